"""What the processes of a run share: collectives that are the identity on one process, and the run's seed."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def run_seed() -> int:
    """The seed of data order and view draws: that of Lightning's `seed_everything`, 0 where it was never called.

    It is the same on every process and after a resume, where torch's own random state is not.
    """
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def run_folder(trainer: Any) -> Path | None:
    """Where a run of Lightning's trainer leaves its files; None for a trial run, which leaves none.

    `trainer.log_dir` would wait until every process asks for it, and most files are one process's affair.
    """
    if trainer.fast_dev_run:
        return None
    logger = trainer.logger
    return Path(getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None) or trainer.default_root_dir)


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
