"""What every method promises, whoever wrote it. A method added later is covered by adding its name to CASES.

Each `check_` takes `build`, a function that makes a small method, and so a method from anywhere. That a loss is its
paper's is asserted in test_methods.py.
"""

from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from ssl_zoo import methods
from ssl_zoo.data import ArrayImages
from ssl_zoo.memory import MomentumEncoder, Queue
from ssl_zoo.method import Batch
from ssl_zoo.methods import (
    AMCL,
    DCL,
    DCLW,
    AMCLBarlowTwins,
    AMCLMoCo,
    BarlowTwins,
    MoCHi,
    MoCo,
    MoCoV3,
    PixContrast,
    PixPro,
    SimCLR,
    SwAV,
)
from ssl_zoo.optim import parameter_groups
from ssl_zoo.views import Key, View
from tests.conftest import MULTI_CROP, finish, same, small, state, trainer

PROCESSES, SECONDS, BATCHES = 2, 1800, 3   # a limit for hangs: a busy machine takes minutes
WIDTHS = {"projector": (16, 8)}

CASES = {
    "SimCLR": partial(small, SimCLR, **WIDTHS),
    "SimCLR over multi-crop": partial(small, SimCLR, *MULTI_CROP, **WIDTHS),
    "DCL": partial(small, DCL, **WIDTHS),
    "DCL over multi-crop": partial(small, DCL, *MULTI_CROP, **WIDTHS),
    "DCLW": partial(small, DCLW, **WIDTHS),
    "DCLW over multi-crop": partial(small, DCLW, *MULTI_CROP, **WIDTHS),
    "MoCo": partial(small, MoCo, **WIDTHS, queue=20),
    "MoCo, symmetric with splits": partial(small, MoCo, **WIDTHS, queue=20, symmetric=True, splits=2),
    "MoCo, decoupled": partial(small, MoCo, **WIDTHS, queue=20, contrast="decoupled"),
    "MoCo, weighted": partial(small, MoCo, **WIDTHS, queue=20, contrast="weighted_decoupled"),
    "MoCoV3": partial(small, MoCoV3, **WIDTHS, predictor=(16,)),
    "SwAV": partial(small, SwAV, **WIDTHS, prototypes=6, freeze_steps=0),
    "SwAV, multi-crop with queue": partial(small, SwAV, *MULTI_CROP, **WIDTHS, prototypes=6, queue=12, queue_start=0,
                                           freeze_steps=2),
    "BarlowTwins": partial(small, BarlowTwins, **WIDTHS),
    "PixPro": partial(small, PixPro, **WIDTHS),
    "PixPro, instance branch": partial(small, PixPro, **WIDTHS, instance_weight=1.0, transform_layers=0),
    "PixContrast": partial(small, PixContrast, **WIDTHS),
    "MoCHi": partial(small, MoCHi, **WIDTHS, queue=20, hardest=8, pairs=4, with_query=3, start=0),
    "MoCHi, decoupled": partial(small, MoCHi, **WIDTHS, queue=20, hardest=8, pairs=4, with_query=3, start=1,
                                contrast="decoupled"),
    "MoCHi, weighted": partial(small, MoCHi, **WIDTHS, queue=20, hardest=8, pairs=4, with_query=3, start=0,
                               contrast="weighted_decoupled"),
    "AMCL": partial(small, AMCL, heads=2, **WIDTHS),
    "AMCL, paper": partial(small, AMCL, heads=2, **WIDTHS, form="paper", floor=0.05),
    "AMCLMoCo": partial(small, AMCLMoCo, heads=2, **WIDTHS, queue=20),
    "AMCLMoCo, paper": partial(small, AMCLMoCo, heads=2, **WIDTHS, queue=20, form="paper", floor=0.05),
    "AMCLBarlowTwins": partial(small, AMCLBarlowTwins, global_batch=8, heads=2, **WIDTHS),
    "AMCLBarlowTwins, paper": partial(small, AMCLBarlowTwins, global_batch=8, heads=2, **WIDTHS, form="paper"),
}
every_method = pytest.mark.parametrize("name", CASES)
pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log.*", "ignore:the loss of .* sits at")


def seeded(build, seed=0):
    """The method that `build` makes in a run of seed 0; its first weights, and what torch draws later, are `seed`'s."""
    pl.seed_everything(0, verbose=False)
    torch.manual_seed(seed)
    return build()


def batches(method, count=BATCHES, size=8):
    """Batches of noise images with the views that this method's augmentation draws."""
    generator = torch.Generator().manual_seed(1)
    for place in range(count):
        images = torch.randint(0, 256, (size, 3, 16, 16), generator=generator, dtype=torch.uint8)
        key = Key(0, 0, place, 0)
        index = torch.arange(size * place, size * (place + 1))
        yield Batch(images, torch.full((size,), -1), index, method.augment(images, key), key)


def share(batch, rank, dtype):
    """One process's part of a batch."""
    def part(x):
        return x.chunk(PROCESSES)[rank] if rank is not None else x
    views = [View(part(view.images).to(dtype), part(view.boxes), part(view.flipped), view.role) for view in batch.views]
    key = batch.key._replace(rank=rank or 0)
    return Batch(part(batch.images), part(batch.labels), part(batch.index), views, key)


def without_norms(module):
    """BatchNorm reads a process's own part of the batch; the tests of several processes do without."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, nn.Identity())
    return module


def rows(queue):
    """What a queue holds, in an order of its own: processes write theirs one after another."""
    order = np.lexsort([*queue.keys.T.tolist(), queue.index.tolist()])
    return queue.index[order], queue.keys[order], queue.head.clone(), queue.filled.clone()


def losses_and_gradients(build, rank=None):
    """Loss, gradients and queues after each of a few batches of which process `rank` has its share, or all if None."""
    method, found = without_norms(seeded(build)).double(), []
    for batch in batches(method):
        method.zero_grad()
        loss = method.training_loss(share(batch, rank, torch.float64))
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.requires_grad}
        found.append((loss.detach(), gradients, [rows(m) for m in method.modules() if isinstance(m, Queue)]))
    return found


def one_process(rank, port, folder, builds):
    limit = timedelta(seconds=SECONDS)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES, timeout=limit)
    torch.save({name: losses_and_gradients(build, rank) for name, build in builds.items()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def in_two_processes(builds, folder):
    """What each of two processes found of each method; they are started once for all."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)     # the system finds a free port
    processes = mp.spawn(one_process, (store.port, Path(folder), builds), nprocs=PROCESSES, join=False)
    finish(processes, SECONDS)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(PROCESSES)]


def check_two_processes(build, first, second, tolerance=1e-9):
    """The mean loss, the averaged gradient and the queues of two processes are those of one with all images."""
    for whole, *halves in zip(losses_and_gradients(build), first, second, strict=True):
        loss, gradients, queues = whole
        assert torch.stack([half[0] for half in halves]).mean().item() == pytest.approx(loss.item(), abs=tolerance)
        for name, gradient in gradients.items():
            there = torch.stack([half[1][name] for half in halves]).mean(0)
            assert torch.allclose(there, gradient, rtol=0, atol=tolerance), name
        for half in halves:
            for (index, keys, *counts), (index_there, keys_there, *counts_there) in zip(queues, half[2], strict=True):
                assert same([index, *counts], [index_there, *counts_there])
                assert torch.allclose(keys, keys_there, rtol=0, atol=tolerance)


class Record(pl.Callback):
    """The losses of a run and, after each batch, what `look` finds in the method."""

    def __init__(self, look=lambda method: None):
        self.look, self.losses, self.found = look, [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].detach().clone())
        self.found.append(self.look(pl_module))


def check_resume(build, data, folder, stops):
    """A run taken up from a checkpoint after any of `stops` steps ends bit for bit as the uninterrupted one."""
    def run(seed, into, **options):
        method, record = seeded(build, seed), Record()
        saving = ModelCheckpoint(into, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        running = trainer(folder, saving, record, enable_checkpointing=True, limit_val_batches=0)
        running.fit(method, datamodule=data(), **options)
        return record.losses, {"weights": state(method), "optimizer": running.optimizers[0].state_dict(),
                               "schedule": running.lr_scheduler_configs[0].scheduler.state_dict(),
                               "step": running.global_step}

    losses, whole = run(0, folder / "whole")
    for stop in stops:      # other first weights and other random numbers: all that counts is in the checkpoint
        losses_there, resumed = run(1, folder / f"resumed{stop}", ckpt_path=folder / "whole" / f"step={stop}.ckpt")
        assert same(losses_there, losses[stop:])
        assert same(resumed, whole)


def averaged(method):
    return [p.detach().clone() for module in method.modules() if isinstance(module, MomentumEncoder)
            for p in module.parameters()]


def heads(method):
    return [queue.head.item() for queue in method.modules() if isinstance(queue, Queue)]


def check_accumulation(build, data, folder):
    """Averaged weights move once with each optimiser step, queues with each batch."""
    found = {}
    for batches_per_step in (1, 2):
        method = seeded(build)
        start = averaged(method)
        record = Record(lambda method: (averaged(method), heads(method)))
        trainer(folder, record, max_epochs=1, limit_val_batches=0, accumulate_grad_batches=batches_per_step).fit(
            method, datamodule=data(images=32))
        found[batches_per_step] = record.found
    assert [heads for _, heads in found[1]] == [heads for _, heads in found[2]]
    averages = [start, *(averages for averages, _ in found[2])]
    moved = [not same(before, after) for before, after in pairwise(averages)]
    assert not moved[0]                             # the step comes with the second batch
    assert not moved[2]                             # the next one with the fourth
    assert moved[1] == bool(start)


def check_bfloat16(build, data, folder, tolerance):
    """Under bf16-mixed the first loss is close to float32's, and training goes on with finite ones."""
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        record = Record()
        trainer(folder, record, max_epochs=1, limit_val_batches=0, precision=precision).fit(
            seeded(build), datamodule=data())
        losses[precision] = torch.stack(record.losses)
    assert losses["bf16-mixed"].isfinite().all()
    assert losses["bf16-mixed"][0].item() == pytest.approx(losses["32-true"][0].item(), rel=tolerance, abs=tolerance)


def check_checkpoint(build, data, folder):
    """A checkpoint loads strictly, holds plain values and each tensor once, and the encoder comes back as it was."""
    method = seeded(build)
    running = trainer(folder, max_epochs=1, limit_val_batches=0)
    running.fit(method, datamodule=data())
    running.save_checkpoint(folder / "run.ckpt")
    saved = torch.load(folder / "run.ckpt", weights_only=True)["state_dict"]
    assert len({(x.data_ptr(), x.shape) for x in saved.values() if x.numel()}) == len(saved)
    other = seeded(build, 1)
    parts = {name: getattr(other, name) for name in ("encoder", "augment", "optimizer", "schedule")}
    loaded = type(method).load_from_checkpoint(folder / "run.ckpt", strict=True, **parts)
    images = next(batches(method)).images
    assert not torch.equal(seeded(build, 1).encode(images), method.encode(images))
    assert torch.equal(loaded.encode(images), method.encode(images))
    assert same(state(loaded), state(method))


def check_parameters(build):
    """Every weight that learns gets a gradient and is the optimiser's; no averaged weight is either's."""
    method = seeded(build)
    for batch in batches(method, 1):
        method.training_loss(batch).backward()
    group = [id(p) for group in parameter_groups(method) for p in group["params"]]
    for module in method.modules():
        if isinstance(module, MomentumEncoder):
            assert not any(p.requires_grad or id(p) in group for p in module.parameters())
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def check_compiled(build, backend):
    """The compiled loss is the loss, and so are its gradients."""
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        method = seeded(build)
        loss_of = torch.compile(method.training_loss, backend=backend) if compiled else method.training_loss
        losses = []
        for batch in batches(method):
            losses.append(loss_of(batch))
            losses[-1].backward()
        found.append((torch.stack(losses).detach(), [p.grad for p in method.parameters() if p.requires_grad],
                      state(method)))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    for gradient, gradient_there in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(gradient, gradient_there, rtol=1e-4, atol=1e-5 * max(1, gradient.abs().max().item()))


@pytest.fixture
def few(arrays):
    """A run's data, anew for each run: 3 batches of 8 an epoch."""
    return lambda images=27: ArrayImages(str(arrays), batch_size=8, train_images=images)


def test_every_method_is_among_the_cases():
    assert {build.args[0].__name__ for build in CASES.values()} == set(methods.__all__)
    assert set(methods.__all__) <= CASES.keys()


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    return in_two_processes(CASES, tmp_path_factory.mktemp("processes"))


@every_method
def test_loss_gradient_and_queues_do_not_depend_on_the_number_of_processes(halves, name):
    check_two_processes(CASES[name], *(results[name] for results in halves))


@every_method
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, few, name):
    check_resume(CASES[name], few, tmp_path, stops=(2, 3))      # in the middle of an epoch and at the end of it


@every_method
def test_averages_move_with_each_optimiser_step_and_queues_with_each_batch(tmp_path, few, name):
    check_accumulation(CASES[name], few, tmp_path)


@every_method
def test_a_method_trains_close_to_float32_under_bf16(tmp_path, few, name):
    check_bfloat16(CASES[name], few, tmp_path, tolerance=0.02)


@every_method
def test_a_method_comes_back_from_its_checkpoint(tmp_path, few, name):
    check_checkpoint(CASES[name], few, tmp_path)


@every_method
def test_every_weight_that_learns_gets_a_gradient(name):
    check_parameters(CASES[name])


@pytest.mark.parametrize(("name", "backend"), [("SimCLR", "inductor"), *((name, "aot_eager") for name in CASES)])
def test_a_compiled_loss_is_the_loss(name, backend):
    check_compiled(CASES[name], backend)
