"""The checks that one process makes. Each trains small methods that `build` makes, and raises what is wrong."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, UnsupportedFakeTensorException

from ssl_zoo.checkpoints import load_encoder
from ssl_zoo.contract.runs import (
    BATCH,
    SIDE,
    Broken,
    Build,
    Record,
    batches,
    loss_of,
    noise,
    seeded,
    temporary_folder,
    train,
)
from ssl_zoo.export import save_encoder
from ssl_zoo.memory import Queue
from ssl_zoo.method import Batch, Method
from ssl_zoo.views import Key


def gradients(build: Build) -> None:
    """Every weight that learns gets a finite gradient and is the optimiser's, and no other is."""
    method = seeded(build)
    loss_of(method, next(batches(method))).backward()
    optimizer = method.configure_optimizers()["optimizer"]
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            raise Broken(f"{name} learns but no gradient reaches it: use it in the loss, or let it be with "
                         "requires_grad_(False)")
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise Broken(f"the gradient of {name} is not finite: the loss has a division by 0, or the square root or "
                         "logarithm of 0")
        if parameter.requires_grad != (id(parameter) in stepped):
            raise Broken(f"{name} {'learns and' if parameter.requires_grad else 'does not learn but'} is "
                         f"{'not ' * parameter.requires_grad}among the optimiser's parameters")


def resume(build: Build) -> None:
    """A resumed run is the uninterrupted one, bit for bit: in mid-epoch and at an epoch's end."""
    def run(seed: int, *callbacks: Any, **options: Any) -> tuple[list[Tensor], dict[str, Any]]:
        method, record = seeded(build, seed), Record()
        trainer = train(method, record, *callbacks, enable_checkpointing=bool(callbacks), **options)
        return record.losses, copy.deepcopy({
            **method.state_dict(), "the optimiser": trainer.optimizers[0].state_dict(),
            "the schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "the number of steps": trainer.global_step})

    with temporary_folder() as folder:
        losses, whole = run(0, ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1),
                            ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True))
        for stop, file, when in ((2, "step=2", "in mid-epoch"), (3, "epoch=0", "at an epoch's end"),
                                 (3, "step=3", "from a checkpoint saved by step on an epoch's last batch")):
            again, resumed = run(1, ckpt_path=folder / f"{file}.ckpt")
            for step, (loss, loss_again) in enumerate(zip(losses[stop:], again, strict=True), stop + 1):
                if not torch.equal(loss, loss_again):
                    raise Broken(f"resumed {when}, the loss of step {step} is {loss_again.item():.7g} and was "
                                 f"{loss.item():.7g}: keep what the loss remembers in buffers (register_buffer), and "
                                 "draw its random numbers from batch.key")
            for name, value in whole.items():
                if not same(value, resumed[name]):
                    raise Broken(f"resumed {when}, {name} ends elsewhere: it depends on what no checkpoint holds, a "
                                 "plain attribute or torch's own random numbers")


def accumulation(build: Build) -> None:
    """Averaged weights move once for each optimiser step, queues once for each batch."""
    found, start = {}, frozen(seeded(build))
    for batches_per_step in (1, 2):
        record = Record(lambda method: (frozen(method), heads(method)))
        train(seeded(build), record, limit_train_batches=2, accumulate_grad_batches=batches_per_step)     # two epochs
        found[batches_per_step] = record.found
    for name in start:
        values = [start[name], *(weights[name] for weights, _ in found[2])]
        moved = [not torch.equal(before, after) for before, after in pairwise(values)]
        if moved[0] or moved[2]:
            raise Broken(f"where a step accumulates two batches, {name} moves at the first of them: move averaged "
                         "weights in after_step, not in training_loss")
        if not torch.equal(start[name], found[1][0][0][name]) and not moved[1]:
            raise Broken(f"{name} moves with each batch where a step takes one, and not with a step that takes two: "
                         "move averaged weights in after_step")
    if [places for _, places in found[1]] != [places for _, places in found[2]]:
        raise Broken("a queue takes other keys where a step accumulates two batches: enqueue them in training_loss")


def bfloat16(build: Build, tolerance: float = 0.02) -> None:
    """In bf16-mixed the first loss is float32's to 2 %, and all later ones are finite."""
    first = {}
    for precision in ("32-true", "bf16-mixed"):
        record = Record()
        train(seeded(build), record, max_epochs=1, precision=precision)
        first[precision] = record.losses[0].item()
        for step, loss in enumerate(record.losses, 1):
            if not loss.isfinite():
                raise Broken(f"in {precision} the loss of step {step} is {loss.item()}")
    exact, coarse = first.values()
    if abs(exact - coarse) > tolerance * max(1, abs(exact)):
        raise Broken(f"in bf16-mixed the first loss is {coarse:.6g}, and in float32 {exact:.6g}: compute the loss with "
                     "autocast off (ssl_zoo.losses.full_precision)")


def compiled(build: Build, backend: str = "aot_eager", graphs: int = 1) -> None:
    """torch.compile makes one graph of training_loss, and a run has the same losses and weights.

    Args:
        backend: of torch.compile; by default one that needs no compiler.
        graphs: the most that it may make.
    """
    results, calls, inner = [], [], lookup_backend(backend)

    def counting(graph: Any, inputs: Any, **options: Any) -> Any:
        calls.append(1)
        return inner(graph, inputs, **options)

    for compiling in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.graph_break_reasons.clear()
        method, record = seeded(build), Record(lambda method: len(calls))
        if compiling:
            method.training_loss = torch.compile(   # type: ignore[method-assign]
                method.training_loss, backend=counting)
        train(method, record)
        results.append((torch.stack(record.losses), method.state_dict()))
    require_close(results)
    if len(calls) > graphs:
        reasons = [reason for reason in torch._dynamo.utils.graph_break_reasons if reason.graph_break]
        steps = [step for step, (before, after) in enumerate(pairwise([0, *record.found]), 1) if after > before]
        raise Broken(f"torch.compile makes {len(calls)} graphs of training_loss, at step "
                     f"{', '.join(map(str, steps))}, and should make {graphs} at the first: {why(reasons)}")


def require_close(results: list[tuple[Tensor, dict[str, Tensor]]]) -> None:
    """Refuse compiled losses or weights that are not those without compiling, but for their last digits."""
    (losses, state), (losses_there, state_there) = results
    if not torch.allclose(losses, losses_there, rtol=1e-4, atol=1e-5):
        raise Broken(f"compiled, the losses are {losses_there.tolist()}, and else {losses.tolist()}")
    for name, value in state.items():
        if not torch.allclose(value, state_there[name], rtol=1e-3, atol=1e-4 * max(1, value.abs().max().item())):
            raise Broken(f"compiled, {name} ends elsewhere by "
                         f"{(value - state_there[name]).abs().max().item():.2g}")


def why(reasons: list[Any]) -> str:
    """The first place at which the compiler gave up, or that it gave up at none."""
    if not reasons:
        return "a number that training_loss reads changes from step to step; make it a tensor (batch.progress is one)"
    place, said = reasons[0].user_stack[-1], reasons[0].reason.splitlines()[0]
    return f"it cannot go through line {place.lineno} of {Path(place.filename).name}, {place.line} ({said})"


def files(build: Build) -> None:
    """A checkpoint and an export load strictly, and give the features that were saved."""
    method = seeded(build)
    trainer = train(method, max_epochs=1)
    images = noise()[0][:BATCH]
    features, other = method.encode(images), seeded(build, 1)
    if torch.equal(other.encode(images), features):
        raise Broken("a method of other first weights has the same features: encode() does not depend on the encoder")
    with temporary_folder() as folder:
        trainer.save_checkpoint(folder / "run.ckpt")
        saved = torch.load(folder / "run.ckpt", weights_only=True)["state_dict"]
        owners: dict[Any, str] = {}
        for name, value in saved.items():
            if value.numel() and (twin := owners.setdefault((value.data_ptr(), value.shape), name)) != name:
                raise Broken(f"the checkpoint holds one tensor under two names, {twin} and {name}: keep each module "
                             "under one attribute")
        parts = {name: getattr(other, name) for name in ("encoder", "augment", "optimizer", "schedule")}
        loaded = type(method).load_from_checkpoint(folder / "run.ckpt", strict=True, **parts)
        exported = load_encoder(save_encoder(method.evaluated, folder / "encoder"), kind=type(method.evaluated))
    for name, value in method.state_dict().items():
        if not torch.equal(value, loaded.state_dict()[name]):
            raise Broken(f"{name} does not come back from the checkpoint as it was saved")
    with torch.no_grad():
        for what, there in (("the checkpoint", loaded.encode(images)), ("the exported encoder", exported(images))):
            if not torch.equal(there, features):
                away = (there - features).abs().max().item()
                raise Broken(f"the features of {what} differ from the method's by {away:.2g}: encode() must be that "
                             "of `evaluated`, and an encoder is what its arguments say")


def gpu(build: Build) -> None:
    """On a GPU no tensors of two devices meet, and nothing is read back to the host.

    The GPU need not be there: its tensors have a shape and a device, and no numbers.
    """
    method = seeded(build)
    pinned = mock.patch.object(Tensor, "pin_memory", lambda tensor, *device: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True), pinned:
        move(method)
        images = torch.empty(BATCH, 3, SIDE, SIDE, dtype=torch.uint8, device="cuda")
        index, key = torch.arange(BATCH, device="cuda"), Key(0, 0, 0, 0)
        try:
            loss = method.training_loss(Batch(images, index % 3, index, method.augment(images, key), key))
        except (DataDependentOutputException, UnsupportedFakeTensorException) as error:
            raise Broken("training_loss reads a number back from the GPU (.item(), .tolist(), float(), bool() or an if "
                         "on a tensor), for which every step would wait: keep it a tensor") from error
        except RuntimeError as error:
            if "device" in str(error):
                raise Broken("training_loss mixes tensors of the GPU and of the host: keep tensors in buffers, and "
                             f"make new ones with device=images.device ({str(error).splitlines()[0]})") from error
            raise
    if loss.device.type != "cuda":
        raise Broken(f"the loss of images on a GPU is on the {loss.device.type}")


def move(method: Method) -> None:
    """Put empty tensors on the GPU in the place of all parameters and buffers."""
    moved: dict[int, Tensor] = {}
    for module in method.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None and id(old) not in moved:
                    new = torch.empty(old.shape, dtype=old.dtype, device="cuda")
                    moved[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                if old is not None:
                    tensors[name] = moved[id(old)]   # type: ignore[assignment]


def frozen(method: Method) -> dict[str, Tensor]:
    """The weights that no gradient trains."""
    return {name: p.detach().clone() for name, p in method.named_parameters() if not p.requires_grad}


def heads(method: Method) -> list[int]:
    return [int(module.head) for module in method.modules() if isinstance(module, Queue)]


def same(first: Any, second: Any) -> bool:
    """Equal bit for bit, through dictionaries and lists."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)
