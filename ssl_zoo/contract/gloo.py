"""The check that two processes make: half of each batch on each gives what all of it gives on one."""

import pickle
import re
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

from ssl_zoo.contract.runs import Broken, Build, batches, loss_of, seeded, temporary_folder
from ssl_zoo.memory import Queue
from ssl_zoo.method import Batch, Method
from ssl_zoo.views import View

PROCESSES, LEARNING_RATE, TOLERANCE = 2, 0.05, 1e-9   # in float64
HANGING = 1800                                        # seconds; only for hangs, since a busy machine takes minutes


class Step(NamedTuple):
    """What one process knows after one batch, on which all of them have stepped."""

    loss: Tensor                    # []
    gradients: dict[str, Tensor]    # by parameter, averaged over the processes
    queues: dict[str, list[Tensor]]  # by module, in an order that does not depend on who wrote first
    buffers: dict[str, Tensor]      # all other persistent ones


class Failure(NamedTuple):
    """Why a process has no steps to show."""

    sentence: str


Found = list[Step] | Failure


def processes(build: Build, found: Sequence[Found] | None = None) -> None:
    """Two processes have the loss and gradients of one, and remember the same as each other.

    BatchNorm is left out, since it reads each process's own part of a batch.

    Args:
        found: what `in_two_processes` found of this method, to start processes once for several; by default they are
            started here.
    """
    whole = steps(build)
    first, second = found or in_two_processes({"it": build})["it"]
    failures = [one.sentence for one in (first, second) if isinstance(one, Failure)]
    if failures:      # where one fails, the other may only see that it is gone: the cause comes first
        cause = min(failures, key=lambda said: bool(re.search("Connection (closed|reset) by peer|Broken pipe", said)))
        raise Broken(f"on one of two processes: {cause}")
    assert isinstance(first, list)
    assert isinstance(second, list)
    for number, (step, *halves) in enumerate(zip(whole, first, second, strict=True), 1):
        compare(f"batch {number}", step, *halves)


def compare(batch: str, whole: Step, *halves: Step) -> None:
    """Raise what two processes do not have in common, or with one."""
    loss = torch.stack([half.loss for half in halves]).mean()
    if not close(loss, whole.loss):
        raise Broken(f"the loss of {batch} is {whole.loss.item():.6g} on one process, and the mean of two is "
                     f"{loss.item():.6g}: gather what is compared with other images, or averaged over them, from all "
                     "processes (ssl_zoo.distributed.gather)")
    for name, gradient in whole.gradients.items():
        if not close(halves[0].gradients[name], gradient):
            away = (halves[0].gradients[name] - gradient).norm() / gradient.norm()
            raise Broken(f"the gradient of {name} after {batch} is another one on two processes, by {away.item():.2g} "
                         "of its length: gather with a gradient (ssl_zoo.distributed.gather), and take means where the "
                         "processes' losses are averaged")
    first, second = halves
    for name, value in first.buffers.items():
        if not close(value, second.buffers[name]):
            raise Broken(f"the buffer {name} differs between two processes after {batch}: write it with the rows of "
                         "all processes (ssl_zoo.distributed.gather, ssl_zoo.memory.SampleTable)")
    for name, contents in whole.queues.items():
        if not all(close(x, y) for half in halves for x, y in zip(contents, half.queues[name], strict=True)):
            raise Broken(f"the queue {name} of two processes holds other keys after {batch} than that of one")


def close(x: Tensor, y: Tensor) -> bool:
    scale = max(1.0, y.abs().max().item()) if y.numel() else 1.0
    return x.shape == y.shape and bool(((x - y).abs() <= TOLERANCE * scale).all())


def steps(build: Build, rank: int | None = None) -> list[Step]:
    """What happens over three batches of which process `rank` has its share, or one process all if None."""
    method, found = without_norms(seeded(build)).double(), []
    learning = {name: p for name, p in method.named_parameters() if p.requires_grad}
    for batch in batches(method):
        method.zero_grad()
        loss = loss_of(method, own_part(batch, rank))
        loss.backward()
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learning.values()])
        if rank is not None:
            dist.all_reduce(flat)
            flat /= PROCESSES
        parts = flat.split([p.numel() for p in learning.values()])
        gradients = {name: part.view_as(p) for (name, p), part in zip(learning.items(), parts, strict=True)}
        with torch.no_grad():
            for name, parameter in learning.items():
                parameter.sub_(gradients[name], alpha=LEARNING_RATE)
        method.after_step()
        found.append(Step(loss.detach(), gradients, *remembered(method)))
    return found


def own_part(batch: Batch, rank: int | None) -> Batch:
    """One process's part of a batch, or all of it, in float64."""
    def part(x: Any) -> Any:
        return x if rank is None else x.chunk(PROCESSES)[rank]
    views = [View(part(view.images).double(), part(view.boxes), part(view.flipped), view.role) for view in batch.views]
    return batch._replace(images=part(batch.images), labels=part(batch.labels), index=part(batch.index), views=views,
                          key=batch.key._replace(rank=rank or 0))


def without_norms(module: Method) -> Method:
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, nn.Identity())
    return module


def remembered(method: Method) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """Copies of what queues hold and of all other persistent buffers."""
    queues = {name: module for name, module in method.named_modules() if isinstance(module, Queue)}
    saved = method.state_dict().keys()
    return {name: rows(queue) for name, queue in queues.items()}, {
        name: buffer.clone() for name, buffer in method.named_buffers()
        if name in saved and name.rpartition(".")[0] not in queues}


def rows(queue: Queue) -> list[Tensor]:
    """A queue's keys, ordered by themselves: each process's keys stand together, and so in another order than one's."""
    order = np.lexsort([*queue.keys.T.tolist(), queue.index.tolist()])
    return [queue.index[order], queue.keys[order], queue.head.clone(), queue.filled.clone()]


def in_two_processes(builds: Mapping[str, Build]) -> dict[str, list[Found]]:
    """What each of two new processes finds of each method; the failure, or the end, of one hides no other's result."""
    found: dict[str, list[Found]] = {}
    pickled = {}
    for name, build in builds.items():
        try:
            pickled[name] = pickle.dumps(build)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            found[name] = [Failure(f"no other process can be told how to build the method ({error}): define it at the "
                                   "top of a module")] * PROCESSES
    with temporary_folder() as folder:
        while left := [name for name in pickled if name not in found]:
            found |= together(left, pickled, folder)
    return found


def together(names: Sequence[str], pickled: Mapping[str, bytes], folder: Path) -> dict[str, list[Found]]:
    """What two processes find of these methods, up to one that ends a process."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)     # the system finds a free port
    # forks of a process that has only imported: a fork of this one would inherit locks that autograd's threads hold
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    started = [context.Process(target=one_process, args=(rank, store.port, folder, {n: pickled[n] for n in names}),
                               daemon=True) for rank in range(PROCESSES)]
    end = time.monotonic() + HANGING
    try:
        for process in started:
            process.start()
        while any(process.is_alive() for process in started) and time.monotonic() < end:
            if any(process.exitcode for process in started):
                break
            time.sleep(0.1)
    finally:
        for process in started:
            process.kill()
            process.join()
    found = {name: list(written(folder, name)) for name in names}
    broken = next((name for name in names if len(found[name]) < PROCESSES), None)
    if broken is None:
        return found
    said = f"the process ended with status {next((p.exitcode for p in started if p.exitcode not in (0, -9)), -9)}"
    whole = {name: steps for name, steps in found.items() if len(steps) == PROCESSES}
    return {**whole, broken: [Failure(said if time.monotonic() < end else f"no end within {HANGING} s")] * PROCESSES}


def written(folder: Path, name: str) -> Iterator[Found]:
    for rank in range(PROCESSES):
        if (file := place(folder, name, rank)).is_file():
            yield torch.load(file, weights_only=False)   # of our own processes


def place(folder: Path, name: str, rank: int) -> Path:
    return folder / f"{name.encode().hex()}-{rank}.pt"


def one_process(rank: int, port: int, folder: Path, pickled: Mapping[str, bytes]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")     # Lightning's, of values logged without a trainer
    limit = timedelta(seconds=HANGING)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=limit)
    for name, build in pickled.items():      # a group of its own for each: one whose process has failed is out of step
        dist.init_process_group("gloo", store=dist.PrefixStore(name, store), rank=rank, world_size=PROCESSES,
                                timeout=limit)
        try:
            found: Found = steps(pickle.loads(build), rank)
        except Exception as error:
            found = Failure(sentence(error))
        file = place(folder, name, rank)
        torch.save(found, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)         # what is there is whole
        dist.destroy_process_group()


def sentence(error: BaseException) -> str:
    """What an error says, its kind where it is not ours, and the author's line that raised it."""
    said = (str(error).strip() or "nothing more").splitlines()[0]
    if isinstance(error, Broken):
        return said
    lines = [line for line in traceback.extract_tb(error.__traceback__)
             if not any(part in line.filename for part in ("/torch/", "/pytorch_lightning/", "/ssl_zoo/contract/"))]
    where = f", line {lines[-1].lineno} of {Path(lines[-1].filename).name}" if lines else ""
    return f"{type(error).__name__}: {said}{where}"
