"""Runs of several processes and machines: as one process with their whole batch, however they are started.

The processes are forks that share one import, but torchrun's, which it starts itself.
"""

import argparse
import itertools
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml

from ssl_zoo import cli, distributed, peers
from ssl_zoo.contract.gloo import without_norms
from ssl_zoo.data import ArrayImages
from ssl_zoo.methods import AMCL, DCLW, BarlowTwins, MoCo, PixPro, SimCLR, SwAV
from ssl_zoo.views import Augmentation, View
from tests.conftest import TWO_VIEWS, small, state, trainer
from tests.processes import PROCESSES

METHODS = {"SimCLR": (SimCLR, {}), "MoCo": (MoCo, {"queue": 40}), "SwAV": (SwAV, {"prototypes": 6, "freeze_steps": 2}),
           "DCLW": (DCLW, {}), "PixPro": (PixPro, {}), "Barlow Twins": (BarlowTwins, {}), "AMCL": (AMCL, {"heads": 2})}
BATCH = 8       # images of one process that trains alone


class OfAll(Augmentation):
    """Draws the views of the batch of all processes, so that these do not depend on how many there are."""

    def __call__(self, batch, key):
        views = super().__call__(distributed.gather(batch), key._replace(rank=0))
        return [View(*map(distributed.mine, view[:3]), view.role) for view in views]


class Losses(pl.Callback):
    def __init__(self):
        self.losses, self.images = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].detach())
        self.images.append(batch.index.tolist())


def fit(folder, arrays, kind, processes=1, batch=BATCH, **more):
    """The losses, the images of each step and the state at the end of a run without BatchNorm."""
    pl.seed_everything(0, verbose=False)
    method, options = METHODS[kind]
    model = without_norms(small(method, augment=OfAll([TWO_VIEWS]), projector=(16, 8), **options))
    several = {"strategy": "ddp", "devices": processes} if processes > 1 else {}
    watch, data = Losses(), ArrayImages(str(arrays), batch_size=batch // processes)
    data.said = True
    several |= {"limit_val_batches": 0, "precision": "64-true", "max_epochs": 2} | more.pop("trainer", {})
    running = trainer(folder, watch, **several)
    running.fit(model, datamodule=data, **more)
    return torch.stack(watch.losses), watch.images, state(model), running


def as_a_cluster_would(rank):
    """What a cluster tells each of its processes, so that Lightning joins the group and starts none of its own."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(PROCESSES), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT="0")


def one_process(rank, folder, arrays, begun):
    as_a_cluster_would(rank)
    found = {kind: fit(folder, arrays, kind, PROCESSES)[:3] for kind in METHODS}
    found["goes on"] = {}
    for batch, (moment, (checkpoint, _)) in itertools.product((BATCH, 2 * BATCH), begun.items()):
        _, images, _, running = fit(folder, arrays, "SimCLR", PROCESSES, batch, ckpt_path=checkpoint)
        found["goes on"][moment, batch] = images, running.global_step
    found["sent"] = sent(rank, folder, arrays)
    return found


def sent(rank, folder, arrays):
    """The modules whose buffers DistributedDataParallel sends before a forward pass, and whether queues are equal."""
    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            model = trainer.model
            model._assign_modules_buffers()
            names = [model.module.get_submodule(name.rpartition(".")[0]) for name in model.named_module_buffers]
            self.kinds = {type(module).__name__ for module in names}

    torch.manual_seed(rank)                       # whoever forgets a seed begins with the queue of rank 0
    watch, data = Watch(), ArrayImages(str(arrays), batch_size=BATCH // PROCESSES)
    data.said = True
    model = small(MoCo, projector=(16, 8), queue=40)
    trainer(folder, watch, limit_val_batches=0, max_epochs=1, strategy="ddp", devices=PROCESSES).fit(model, data)
    return watch.kinds, model.queue.keys


@pytest.fixture(scope="module")
def begun(tmp_path_factory, arrays):
    """Checkpoints of one process, after 3 batches of an epoch and at its end, and the images that were shown."""
    folder, found = tmp_path_factory.mktemp("begun"), {}
    for moment, steps in (("mid-epoch", 3), ("epoch end", -1)):
        _, images, _, running = fit(folder, arrays, "SimCLR", trainer={"max_epochs": 1, "max_steps": steps})
        running.save_checkpoint(folder / f"{moment}.ckpt")
        found[moment] = folder / f"{moment}.ckpt", images
    return found


@pytest.fixture(scope="module")
def halves(two_processes, tmp_path_factory, arrays, begun):
    return two_processes(one_process, tmp_path_factory.mktemp("processes"), arrays, begun)


@pytest.mark.filterwarnings("ignore:the loss of .* sits at")
@pytest.mark.parametrize("kind", METHODS)
def test_two_processes_have_the_losses_and_weights_of_one_with_the_whole_batch(halves, arrays, tmp_path, kind):
    losses, images, weights, _ = fit(tmp_path, arrays, kind)
    (first, of_first, state_first), (second, of_second, state_second) = (found[kind] for found in halves)
    assert [a + b for a, b in zip(of_first, of_second, strict=True)] == images
    assert len(losses) == 14
    assert torch.allclose((first + second) / 2, losses, rtol=1e-5, atol=1e-5)
    for name, value in weights.items():
        if not name.startswith("queue"):          # which holds the same keys in another order
            assert torch.allclose(state_first[name], value, rtol=1e-5, atol=1e-5), name
            assert torch.equal(state_first[name], state_second[name]), name


@pytest.mark.parametrize(("moment", "batch", "steps"), [
    ("mid-epoch", BATCH, 3 + 4 + 7), ("mid-epoch", 2 * BATCH, 3 + 2 + 3),
    ("epoch end", BATCH, 7 + 7), ("epoch end", 2 * BATCH, 7 + 3)])
def test_a_run_goes_on_with_another_number_of_processes_and_shows_no_image_again(halves, begun, moment, batch, steps):
    shown = sum(begun[moment][1], []) if moment == "mid-epoch" else []            # another epoch shows all again
    of_both = zip(*(found["goes on"][moment, batch][0] for found in halves), strict=True)
    together = [first + second for first, second in of_both]
    assert {len(images) for images in together} == {batch}
    epoch = sum(together[:-(60 // batch)] if moment == "mid-epoch" else together, [])
    assert len({*shown, *epoch}) == len(shown) + len(epoch)
    assert [found["goes on"][moment, batch][1] for found in halves] == [steps] * 2


def test_only_buffers_that_differ_between_processes_are_sent(halves):
    kinds, keys = zip(*(found["sent"] for found in halves), strict=True)
    assert kinds == ({"BatchNorm2d"},) * 2
    assert torch.equal(*keys)


# The command line

RECIPE = {
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "num_sanity_val_steps": 0, "limit_val_batches": 0,
                "log_every_n_steps": 1, "enable_progress_bar": False},
    "model": {"class_path": "SimCLR", "init_args": {
        "encoder": {"class_path": "NarrowResNet", "init_args": {"width": 4, "stages": 2}}, "projector": [16, 8],
        "augment": {"views": [{"size": 16, "count": 2}]}, "schedule": {},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}}},
    "data": {"class_path": "ArrayImages", "init_args": {"batch_size": 4}}}


@pytest.fixture
def folder(tmp_path, arrays, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RECIPE["data"]["init_args"]["path"] = str(arrays)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def command(place, number, environment, arguments):
    """The real command line in a fork; what it says goes into files beside the recipe."""
    os.chdir(place)
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open(f"said{number}", "w") as said, redirect_stdout(said), redirect_stderr(said):
        os.dup2(said.fileno(), 2)
        try:
            cli.run(["fit", "--config", "recipe.yaml", *arguments])
        except SystemExit as ended:
            said.write(str(ended.code))
            said.flush()
            os._exit(1)


def started(folder, environments, *arguments):
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pytorch_lightning", "torchvision"])
    processes = [server.Process(target=command, args=(folder, number, one, arguments), daemon=True)
                 for number, one in enumerate(environments)]
    for process in processes:
        process.start()
    return processes


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def one_run(folder, steps=2 * 7):
    """The state of the one run that is there, which took as many steps as 8 images at a time make."""
    (path,) = folder.glob("runs/recipe/version_0/checkpoints/last.ckpt")
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == steps
    assert saved["course"]["processes"] == 2
    return saved["state_dict"]


def in_a_cluster(port):
    return [{"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port)} for rank in range(2)]


def in_slurm(port):
    return [{"SLURM_NTASKS": "2", "SLURM_PROCID": str(node), "SLURM_LOCALID": "0", "SLURM_NODEID": str(node),
             "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "pretrain",
             "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} for node in range(2)]


def test_slurm_starts_two_machines_that_make_one_run(folder):
    processes = started(folder, in_slurm(free_port()), "--trainer.strategy", "ddp", "--trainer.num_nodes", "2")
    for process in processes:
        process.join(1800)
    assert [process.exitcode for process in processes] == [0, 0], Path("said0").read_text() + Path("said1").read_text()
    one_run(folder)


def test_torchrun_starts_two_machines_that_make_one_run(folder):
    port = free_port()
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend",
             "c10d", "--rdzv_id", "test", "--rdzv_endpoint", f"127.0.0.1:{port}", "--local_addr", "127.0.0.1", "-m",
             "ssl_zoo", "fit", "--config", "recipe.yaml", "--trainer.strategy", "ddp", "--trainer.num_nodes", "2"]
    machines = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                for _ in range(2)]
    said = [machine.communicate(timeout=1800)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    one_run(folder)


# Processes that die or are stopped

@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_a_sentence(folder, rank):
    processes = started(folder, in_a_cluster(free_port()), "--trainer.strategy", "ddp", "--trainer.devices", "2",
                        "--trainer.max_epochs", "1000000")
    while not list(folder.rglob("last.ckpt")):
        assert all(process.is_alive() for process in processes), Path("said0").read_text() + Path("said1").read_text()
        time.sleep(0.1)
    os.kill(processes[rank].pid, signal.SIGKILL)
    processes[1 - rank].join(1800)
    said = Path(f"said{1 - rank}").read_text()
    assert processes[1 - rank].exitcode == 1
    assert f"ssl-zoo: the process of rank {rank} ({processes[rank].pid} on {socket.gethostname()}) " in said
    assert "Traceback" not in said


def watching(process, **silent):
    """What rank 0 of 3 finds where rank 1 is this process and rank 2 is on another machine."""
    found = peers.Peers()
    found.rank = 0
    found.signs = {1: peers.Sign(socket.gethostname(), process.pid, "7", peers.table()),
                   2: peers.Sign("elsewhere", 12, "8", peers.table())}
    found.silent = {1: silent.get("one", 0), 2: silent.get("two", 0)}
    return found


def test_what_is_said_of_a_process_that_is_killed_stopped_or_silent():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        assert watching(process, one=peers.SILENT - 1, two=peers.SILENT - 1).lost() is None
        assert watching(process, two=peers.SILENT).lost() == (
            "the process of rank 2 (12 on elsewhere) has given no sign of life for 40 s, because it or its machine "
            "hangs, so that this one of rank 0 cannot go on")
        process.send_signal(signal.SIGSTOP)
        while peers.stat(process.pid)[0] != "T":
            time.sleep(0.01)
        assert re.match(r"the process of rank 1 \(\d+ on .*\) has given no sign of life for 40 s, stopped by SIGSTOP "
                        "or the like, so that", watching(process, one=peers.SILENT).lost())
        process.kill()
        while peers.stat(process.pid)[0] != "Z":
            time.sleep(0.01)
        assert "was ended by SIGKILL, so that" in watching(process).lost()
        process.wait()
        assert ") has ended, so that" in watching(process).lost()      # and the system has forgotten how
    finally:
        process.kill()


def test_a_process_that_has_ended_as_it_should_is_not_missed():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    found = watching(process)
    found.signs[1] = found.signs[1]._replace(beat=peers.DONE)
    assert found.lost() is None


@pytest.mark.parametrize("table", ["another machine's", "another container's"])
def test_a_process_of_the_same_name_that_this_one_cannot_see_is_not_missed(monkeypatch, table):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()                                             # no process has its number here
    boot, space = "/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"
    read, link = Path.read_text, os.readlink
    with monkeypatch.context() as there:
        if table == "another machine's":
            there.setattr(Path, "read_text", lambda path, *_: "other\n" if str(path) == boot else read(path))
        else:
            there.setattr(os, "readlink", lambda path: "pid:[7]" if path == space else link(path))
        found = watching(process)
        store = found.store = Store()
        found.rank = 1
        found.say("7")
    found.rank, found.signs = 0, {1: peers.Sign.of(store.said[-1].encode())._replace(pid=process.pid)}
    assert found.lost() is None
    found.silent = {1: peers.SILENT}
    assert "because it or its machine hangs" in found.lost()


class Store:
    """Keeps what was said; a sign of life takes a while to arrive where it is `slow`."""

    def __init__(self, slow=False):
        self.slow, self.under_way, self.said = slow, threading.Event(), []

    def set(self, key, value):
        if self.slow and " done " not in value:
            self.under_way.set()
            time.sleep(0.5)
        self.said.append(value)

    def multi_get(self, keys):
        return ["7" for _ in keys]


def test_nothing_is_said_after_the_last_word_of_a_process(monkeypatch):
    monkeypatch.setattr(peers, "BEAT", 0.01)
    monkeypatch.setattr(peers, "_get_default_store", lambda: type("Whole", (), {"clone": lambda _: store})())
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(peers.Sign, "of", classmethod(lambda cls, said: cls("elsewhere", 1, said, "unknown")))
    store = Store(slow=True)
    store.get = lambda _: "7"
    found = peers.Peers()
    found.setup(argparse.Namespace(strategy=argparse.Namespace(launcher=None)), None, "fit")
    store.under_way.clear()
    assert store.under_way.wait(1800)
    monkeypatch.setattr(peers, "BEAT", 1800)                   # how long it waits at most
    found.end()
    time.sleep(1)
    assert " done " in store.said[-1]


def test_where_rank_0_no_longer_answers_it_is_the_one():
    found = watching(subprocess.Popen([sys.executable, "-c", "pass"]))
    found.rank, found.unanswered = 2, peers.SILENT
    found.signs = {rank: peers.Sign("elsewhere", 12 + rank, "7", "unknown") for rank in range(2)}
    assert "the process of rank 0 (12 on elsewhere) has given no sign of life for 40 s" in found.lost()


@pytest.mark.parametrize(("error", "its"), [
    (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False), (ValueError("gloo"), False)])
def test_only_an_error_of_a_collective_is_blamed_on_another_process(error, its):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    found = watching(process)
    found.thread = object()
    assert (found.reason(error) is not None) == its
