"""Batches on their way to a GPU, which goes on with the former step meanwhile."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches, copied to a GPU on a stream of their own; as they are where `device` is none.

    The host is ahead of the GPU by a step or so. A copy on the stream of the steps would wait for all that the host has
    asked for before; on its own it begins at once, and the next step alone waits for it.
    """
    if device.type != "cuda":
        yield from batches
        return
    side: Any = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(side):
            copied: Any = changed(batch, lambda x: x.to(device, non_blocking=True))
        steps = torch.cuda.current_stream(device)
        steps.wait_stream(side)                    # the GPU waits, not the host
        yield changed(copied, lambda x, steps=steps: used_on(x, steps))


def used_on(x: Tensor, stream: Any) -> Tensor:
    """`x`, whose memory is given to no other copy before the stream has done with it."""
    x.record_stream(stream)
    return x


def changed(batch: Any, change: Any) -> Any:
    """The batch with `change` of each of its tensors, within tuples and lists too."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, tuple | list):
        parts = [changed(part, change) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch
