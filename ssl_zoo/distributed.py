"""What the processes of a run share: streams of random numbers, and collectives, which do nothing on one process."""

import os
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

Rows = TypeVar("Rows", Tensor, np.ndarray)
NUMBERED = {"shuffled keys": (1,), "mixtures": (2,)}   # runs before streams had names drew these by number


class Key(NamedTuple):
    """Identifies a batch's random draws. Nothing else influences them, so no random state needs saving."""

    seed: int
    epoch: int
    batch: int
    rank: int

    def generator(self, name: str) -> np.random.Generator:
        """A generator of random numbers for this batch and purpose, in the same state on every process.

        Two names give independent streams. Draw for the images of all processes and take this one's share with `mine`:
        then the draws do not depend on how many processes share the work. (Views do: they are drawn by rank.)
        """
        stream = NUMBERED.get(name, tuple(name.encode()))
        return np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch, self.batch], spawn_key=stream))


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def run_seed() -> int:
    """The seed of the data's order and of every draw: that of Lightning's `seed_everything`, 0 if it was never called.

    It is the same on every process and after a resume; torch's own random state is neither.
    """
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def run_folder(trainer: Any) -> Path | None:
    """The folder in which a run of Lightning's trainer leaves its files; None for a trial run, which leaves none.

    Not `trainer.log_dir`: that is a collective, which waits until every process asks, and one process writes files.
    """
    if trainer.fast_dev_run:
        return None
    # not a logger's save_dir, which all its runs share
    return Path(getattr(trainer.logger, "log_dir", None) or trainer.default_root_dir)


def keep_own_buffers(model: Any) -> None:
    """Keep DistributedDataParallel from sending ssl_zoo's own buffers from rank 0 before each forward pass.

    They are equal on all processes already: each writes the same gathered rows into its queue, centre or table, which
    the contract checks. To send MoCo's queue of 65,536 keys is 34 MB a pass. The buffers of all other modules are still
    sent, BatchNorm's statistics above all, since each process has those of its own images.
    """
    if isinstance(model, DistributedDataParallel):
        own = {id(buffer) for module in model.module.modules() if type(module).__module__.startswith("ssl_zoo.")
               for buffer in module.buffers(recurse=False)}
        model.parameters_to_ignore |= {name for name, buffer in model.module.named_buffers() if id(buffer) in own}
        model._assign_modules_buffers()     # its constructor has sent them once, so that all begin with the same


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = x.new_empty(world_size() * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(rows, x.contiguous())
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # a copy, for autograd may share the gradient; contiguous, for gloo reduces garbage from a strided one
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)                     # every process's loss reads every process's rows
        return grad.chunk(world_size())[rank()]


def gather(x: Tensor) -> Tensor:
    """Rows of `x` from every process, in rank order, with gradient: [B, ...] -> [W * B, ...], B the same on each."""
    return _Gather.apply(x) if world_size() > 1 else x


@torch.no_grad()
def gather_uneven(x: Tensor) -> Tensor:
    """As `gather`, for processes with different numbers of rows; without gradient."""
    if world_size() == 1:
        return x
    rows = gather(torch.tensor([len(x)], device=x.device)).tolist()
    padded = x.new_zeros(max(rows), *x.shape[1:])
    padded[:len(x)] = x
    return torch.cat([part[:n] for part, n in zip(gather(padded).chunk(world_size()), rows, strict=True)])


def gather_objects(found: Any) -> list[Any]:
    """Small plain values of every process, in rank order: all wait for each other."""
    everyone: list[Any] = [found] * world_size()
    if world_size() > 1:
        dist.all_gather_object(everyone, found)
    return everyone


def mine(rows: Rows) -> Rows:
    """This process's share of rows that were drawn for all processes: [W * B, ...] -> [B, ...], in rank order."""
    share = len(rows) // world_size()
    return rows[share * rank():share * (rank() + 1)]


@torch.no_grad()
def by_index(rows: Tensor, index: Tensor) -> Tensor:
    """The rows of all processes in the order of the data set, each image once: [n, ...] -> [N, ...] on every process.

    For passes over a whole data set, such as clustering. An image that several rows show, as where a sampler pads the
    shares of the processes to one length, keeps its first row.

    Args:
        rows: one for each image that this process has seen; n may differ between processes.
        index: [n] the place of each row's image in its data set.
    """
    return gather_uneven(rows)[first_rows(gather_uneven(index))]


def first_rows(places: Tensor) -> Tensor:
    """The first row of each place that occurs in `places` [n], in rising order of the places."""
    order = places.argsort(stable=True)
    return order[F.pad(places[order].diff() != 0, (1, 0), value=True)[:len(order)]]
