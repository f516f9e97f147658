"""Which images an epoch sees, in which order; and the choice of some of them."""

from typing import Protocol, runtime_checkable

import numpy as np

MANY = 10 ** 8


class Order(Protocol):
    """Which images an epoch trains on, in which order: a function of (seed, epoch) alone, so that a resume repeats it.

    Give your own to a data module, `data.order = ...`, for a curriculum or for batches of neighbours.
    """

    def __call__(self, seed: int, epoch: int, images: int) -> np.ndarray:
        """Places below `images`, at least as many as the epoch's batches hold, and the same on every process."""


@runtime_checkable
class Shares(Protocol):
    """An order that gives each process images of its own, so that no process has to know the others'."""

    def share(self, seed: int, epoch: int, rank: int, processes: int) -> np.ndarray:
        """The places of a process's images, at least as many as its batches hold."""


def shuffled(seed: int, epoch: int, images: int) -> np.ndarray:
    """Every image once, in random order."""
    # spawn_key keeps this stream apart from the views', whose key starts with the same two numbers
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(0,))).permutation(images)


def in_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """Every image once, as the data set has them, in every epoch."""
    return np.arange(images)


class Blocks:
    """The order of a training epoch: shards in random order, of which `block` at a time are shuffled together.

    The processes have equal shares of the images, to one. Where a share begins inside a shard, two processes read it:
    every image is in one share, whatever the numbers of shards, processes and workers, and no process has fewer batches
    than another. Workers share the blocks of their process, so their number changes nothing.

    Args:
        counts: images of each shard.
        block: shards that are shuffled together.
    """

    def __init__(self, counts: np.ndarray, block: int):
        self.counts, self.block = counts, block
        self.starts = np.concatenate([[0], counts.cumsum()])

    def share(self, seed: int, epoch: int, rank: int, processes: int) -> np.ndarray:
        """The places of one process's images in their order."""
        # spawn_key keeps this stream apart from the views', whose key starts with the same two numbers
        sequence = np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(0,))).permutation(
            len(self.counts))
        ends = self.counts[sequence].cumsum()
        images = int(self.counts.sum())
        first, last = images * rank // processes, images * (rank + 1) // processes
        reached = np.arange(np.searchsorted(ends, first, "right"), np.searchsorted(ends, last, "left") + 1)
        own = [np.arange(max(first - before, 0), min(last - before, count)) + start
               for before, count, start in zip((ends - self.counts[sequence])[reached], self.counts[sequence][reached],
                                               self.starts[sequence][reached], strict=True)]
        own = [places for places in own if len(places)]
        within = np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(0, rank)))
        blocks = np.array_split(np.arange(len(own)), max(1, -(-len(own) // self.block)))
        nothing = np.array([], int)   # of a process beyond the number of images
        return np.concatenate([within.permutation(np.concatenate([nothing, *(own[i] for i in block)]))
                               for block in blocks])

    def __call__(self, seed: int, epoch: int, images: int) -> np.ndarray:
        """The order of one process alone."""
        return self.share(seed, epoch, 0, 1)


def some(images: int, wanted: int) -> np.ndarray:
    """Choose at most `wanted` of `images` places at random, the same every time, and return them in rising order."""
    generator = np.random.default_rng(0)
    if images > MANY:   # a permutation of a billion takes eight gigabytes
        return np.sort(generator.choice(images, min(wanted, images), replace=False, shuffle=False))
    return np.sort(generator.permutation(images)[:wanted])


def spaced(images: int, wanted: int) -> list[int]:
    """At most `wanted` of `images` places, the first and the last and as many between them at even distances."""
    return np.unique(np.linspace(0, images - 1, wanted).astype(int)).tolist()
