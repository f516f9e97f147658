"""What do ImageNet-21k and a billion images on 64 GPUs need? Counted and simulated, for docs/scale.md.

    python benchmarks/scale.py            write the tables of docs/scale.md
    python benchmarks/scale.py --check    only say whether they differ; status 1 if they do

Bytes are counted, not measured: each method's recipe is built, takes one step on tensors without numbers, as one of 64
processes, and every collective, weight and state of its optimiser is added up. The shuffle is simulated by the program
that shuffles a run. Assumptions stand in CAPITALS here and in the document.
"""

import contextlib
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ssl_zoo import distributed
from ssl_zoo.cli.fit import Cli
from ssl_zoo.cli.messages import quiet
from ssl_zoo.cli.recipes import shipped
from ssl_zoo.contract.checks import move
from ssl_zoo.data.orders import Blocks
from ssl_zoo.data.shard_index import Index, Shard
from ssl_zoo.method import Batch, Method
from ssl_zoo.optim import built, parameter_groups
from ssl_zoo.views import Key

DOCUMENT = Path(__file__).parents[1] / "docs" / "scale.md"
PROCESSES, PER_NODE = 64, 8
BYTES = {"as they are": 110_000, "short side 256": 29_000}   # of an image: ImageNet's mean; of 1,000 of its photographs
SHARD, BLOCK = 200 * 10 ** 6, 16                             # bytes of a shard; shards in a block: the defaults
SPEED = 1000                                                 # images a second that a GPU learns from
DISK = 10 ** 9                                               # bytes a second that a checkpoint is written with
FAILURES = 1000                                              # hours between two failures of one node
SETS = {"ImageNet-21k": (13_153_500, 21_841), "a billion images": (10 ** 9, 0)}   # images, classes
QUEUE = 65_536                                               # keys, where a recipe's queue is for one process
BATCH = 64                                                   # of one process, for the shuffle


class Step(NamedTuple):
    """What one process sends and keeps for one step, in bytes; and how often all processes wait for each other."""

    recipe: str
    batch: int
    weights: int         # all tensors of the state dict
    optimizer: int
    gradients: int
    gathered: int        # that arrive by gather
    returned: int        # gradients of what was gathered
    norms: int           # that SyncBatchNorm exchanges
    waits: int           # collectives of one step, those of the gradients' buckets apart


# Shards

def shards_of(images: int, size: int) -> np.ndarray:
    """Images of each shard."""
    per_shard = SHARD // size
    return np.diff([*range(0, images, per_shard), images])


def reading() -> list[list[str]]:
    rows = [["", "images of", "shards", "of a process", "bytes a second of a node", "of all", "an epoch",
             "fetched shards on a node's disk", "index"]]
    for name, (images, classes) in SETS.items():
        for kind, size in BYTES.items():
            counts = shards_of(images, size)
            rate = SPEED * size
            rows.append([name, kind, f"{len(counts):,}", f"{len(counts) / PROCESSES:,.0f}", data(rate * PER_NODE),
                         data(rate * PROCESSES), f"{images / SPEED / PROCESSES / 3600:.1f} h",
                         data((2 * BLOCK + 1) * SHARD * PER_NODE), data(index_bytes(counts, classes))])
    return rows


def index_bytes(counts: np.ndarray, classes: int) -> int:
    """Of an index.json: one line as it is written, times the number of shards."""
    labels = np.random.default_rng(0).integers(0, classes, counts[0]).tolist() if classes else None
    one = Shard(f"{0:06}.tar", int(counts[0]), SHARD, 2 ** 31, labels)
    return (len(Index([one] * 2, [], []).as_json()) - len(Index([one], [], []).as_json())) * len(counts)


def memory() -> list[list[str]]:
    """Of one process, in bytes."""
    rows = [["", "labels", "order of its share", "counts of the shards", "a SampleTable of one column"]]
    for name, (images, classes) in SETS.items():
        counts = shards_of(images, BYTES["short side 256"])
        rows.append([name, data(8 * images if classes else 8), data(8 * images // PROCESSES), data(16 * len(counts)),
                     data(4 * images)])
    return rows


# The shuffle

def shuffling() -> list[list[str]]:
    """How often two images of a batch are neighbours in the source: of one shard, written without a shuffle."""
    rows = [["", "block", "shards in a batch of a process", "pairs of a batch from one shard, against a whole shuffle",
             "the same in the batch of all processes"]]
    for name, (images, _) in SETS.items():
        counts = shards_of(images, BYTES["short side 256"])
        for block in (1, 4, BLOCK, 64):
            own = shard_numbers(counts, block)
            batches = own[:len(own) // BATCH * BATCH].reshape(-1, BATCH)[::max(1, len(own) // BATCH // 200)]
            chance = (counts * (counts - 1)).sum() / (images * (images - 1))
            together = pairs(batches) * (BATCH - 1) / (PROCESSES * BATCH - 1)   # two processes share no whole shard
            rows.append([name, f"{block}", f"{np.mean([len(np.unique(batch)) for batch in batches]):.1f}",
                         f"{pairs(batches) / chance:,.0f} x", f"{together / chance:,.1f} x"])
    return rows


def shard_numbers(counts: np.ndarray, block: int) -> np.ndarray:
    """The shard of each image of one process's epoch, in its order."""
    order = Blocks(counts, block)
    return np.searchsorted(order.starts, order.share(0, 0, 0, PROCESSES), "right") - 1


def pairs(batches: np.ndarray) -> float:
    """The share of the pairs of a batch's images that are from one shard."""
    size = batches.shape[1]
    counts = [np.unique(batch, return_counts=True)[1] for batch in batches]
    return float(np.mean([(found * (found - 1)).sum() for found in counts])) / (size * (size - 1))


# A step of each method

def recipes() -> Iterator[str]:
    """A recipe of each method: that of ImageNet, or else that of a folder."""
    seen = set()
    for name in sorted(shipped(), key=lambda name: (not name.startswith("imagenet/"), name)):
        if name.startswith(("imagenet/", "folder/")):
            method = yaml.safe_load(shipped()[name].read_text())["model"]["class_path"]
            if method not in seen:
                seen.add(method)
                yield name


def step(name: str) -> Step:
    """Build a recipe's method, and let it take a step as one of PROCESSES on tensors without numbers."""
    options = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto",
               "--trainer.precision=32-true", "--trainer.sync_batchnorm=false", "--trainer.num_nodes=1"]
    parts = yaml.safe_load(shipped()[name].read_text())
    if parts["model"]["init_args"].get("queue", QUEUE) < PROCESSES * parts["data"]["init_args"]["batch_size"]:
        options.append(f"--model.queue={QUEUE}")   # a folder's is shorter than a batch of all processes
    cli: Any = Cli(["--config", str(shipped()[name]), *options], run=False)
    method, batch = cli.model, cli.datamodule.batch_size
    weights = sum(value.nbytes for value in method.state_dict().values())
    state = optimizer_bytes(method)
    with as_one_of_many() as gathered, FakeTensorMode(allow_non_fake_inputs=True):
        norms = watched_norms(method)
        move(method)
        one_loss(method, batch)
    gradients = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    returned = [size for size, learns in gathered if learns]
    return Step(name, batch, weights, state, ring(gradients),
                sum(size for size, _ in gathered) * (PROCESSES - 1) // PROCESSES, ring(sum(returned)), sum(norms),
                len(gathered) + len(returned) + len(norms))


def one_loss(method: Method, batch: int) -> None:
    """The forward pass of a step. What comes back follows from it, and needs a GPU that is there."""
    images = torch.empty(batch, 3, 256, 256, dtype=torch.uint8, device="cuda")
    index, key = torch.arange(batch, device="cuda"), Key(0, 0, 0, 0)
    with mock.patch.object(Tensor, "pin_memory", lambda tensor, *device: tensor):
        method.training_loss(Batch(images, index % 3, index, method.augment(images, key), key))


@contextlib.contextmanager
def as_one_of_many() -> Iterator[list[tuple[int, bool]]]:
    """Gathers that move nothing and are written down: the bytes of all processes, and whether a gradient comes back."""
    found: list[tuple[int, bool]] = []

    def gathered(x: Tensor) -> Tensor:
        found.append((PROCESSES * x.nbytes, x.requires_grad and torch.is_grad_enabled()))
        return x.repeat(PROCESSES, *[1] * (x.ndim - 1))

    with (mock.patch.multiple(dist, is_initialized=lambda: True, get_rank=lambda: 0, get_world_size=lambda: PROCESSES),
          mock.patch.object(distributed._Gather, "apply", gathered)):
        yield found


def watched_norms(method: Method) -> list[int]:
    """What SyncBatchNorm would exchange, filled by a step: mean, variance and count, and two sums coming back."""
    found: list[int] = []

    def watch(norm: nn.Module, *_: Any) -> None:
        if norm.training:
            channels: int = norm.num_features   # type: ignore[assignment]
            found.append(4 * (2 * channels + 1) * (PROCESSES - 1))
            if torch.is_grad_enabled() and any(p.requires_grad for p in norm.parameters()):
                found.append(ring(4 * 2 * channels))

    for module in method.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.register_forward_hook(watch)
    return found


def optimizer_bytes(method: Method) -> int:
    """What the optimiser keeps after a step on copies without numbers."""
    optimizer = built(method.optimizer, parameter_groups(method, method.groups()))
    for group in optimizer.param_groups:
        group["fused"] = None                  # kernels need numbers
        group["params"] = [nn.Parameter(p.detach().to("meta")) for p in group["params"]]
        for p in group["params"]:
            p.grad = torch.empty_like(p)
    optimizer.step()
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values()
               if isinstance(value, Tensor))


def ring(size: int) -> int:
    """Bytes that a process sends for a sum over all processes in a ring."""
    return 2 * size * (PROCESSES - 1) // PROCESSES


def traffic(steps: Sequence[Step]) -> list[list[str]]:
    return [["recipe", "batch", "gradients", "gathered", "gradients of the gathered", "SyncBatchNorm", "waits"],
            *([one.recipe, f"{one.batch}", *map(data, (one.gradients, one.gathered, one.returned, one.norms)),
               f"{one.waits}"] for one in steps)]


def checkpoints(steps: Sequence[Step]) -> list[list[str]]:
    """Size and the interval at which writing costs as much as what a failure loses (Young, 1974)."""
    between = FAILURES * 3600 / (PROCESSES / PER_NODE)
    rows = [["recipe", "weights and buffers", "optimiser", "written in", "best every", "lost by writing and failures"]]
    for one in steps:
        seconds = (one.weights + one.optimizer) / DISK
        every = math.sqrt(2 * seconds * between)
        rows.append([one.recipe, data(one.weights), data(one.optimizer), f"{seconds:.1f} s", f"{every / 60:.0f} min",
                     f"{seconds / every + every / 2 / between:.2%}"])
    return rows


# The document

def data(size: float) -> str:
    """Bytes, with two or three digits."""
    for unit, factor in (("TB", 10 ** 12), ("GB", 10 ** 9), ("MB", 10 ** 6), ("kB", 10 ** 3)):
        if size >= factor:
            return f"{size / factor:,.0f} {unit}" if size >= 10 * factor else f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def main() -> None:
    quiet()
    torch.set_num_threads(1)
    steps = [step(name) for name in recipes()]
    tables = {"reading": reading(), "memory": memory(), "shuffle": shuffling(), "traffic": traffic(steps),
              "checkpoints": checkpoints(steps)}
    text = DOCUMENT.read_text()
    for name, rows in tables.items():
        text = re.sub(rf"(?s)(<!-- {name} -->\n).*?(<!-- end -->)", lambda found, rows=rows: (
            f"{found[1]}{table(rows)}\n{found[2]}"), text)
    if "--check" not in sys.argv:
        DOCUMENT.write_text(text)
    elif text != DOCUMENT.read_text():
        sys.exit(f"{DOCUMENT} and its program differ: python benchmarks/scale.py")


if __name__ == "__main__":
    main()
