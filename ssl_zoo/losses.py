"""Losses that two methods share: tensors in, a tensor out, no state. They compute in float32 or better."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo import distributed

Reduction = Literal["mean", "sum", "none"]


def full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run `loss` with autocast off and half-precision tensors as float32: exp(1 / 0.07) overflows float16."""

    def widen(x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x

    @functools.wraps(loss)
    def widened(*args: Any, **kwargs: Any) -> Tensor:
        device = next(x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.autocast(device.type, enabled=False):
            return loss(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})
    return widened


@full_precision
def nt_xent(z1: Tensor, z2: Tensor, temperature: float, reduction: Reduction = "mean") -> Tensor:
    """Normalised temperature-scaled cross entropy between two views of a batch.

    Eq. (1) of SimCLR, arXiv:2002.05709, averaged over the 2B rows of this process. Row i of `z1` and row i of `z2`
    are positives; every other row, on any process, is a negative. The authors' TensorFlow code adds the means over
    the two views, which is twice this; we follow the paper.

    Args:
        z1, z2: projections [B, D], any scale.
        temperature: divides the cosine similarities, > 0.
        reduction: "none" gives the 2B rows, those of `z1` first.

    Returns:
        In nats. log(2B - 1) where all projections are equal.
    """
    z = F.normalize(torch.stack([z1, z2]), dim=-1)                           # [2, B, D]
    batch = z.shape[1]
    keys = distributed.gather(z.transpose(0, 1).contiguous())                # [N, 2, D], N over all processes
    keys = keys.transpose(0, 1).flatten(0, 1)                                # [2N, D]: all first views, then all second
    logits = z.flatten(0, 1) @ keys.T / temperature                          # [2B, 2N]
    first = torch.arange(batch, device=z.device) + batch * distributed.rank()
    second = first + len(keys) // 2
    itself = torch.cat([first, second])[:, None]
    logits = logits.scatter(1, itself, float("-inf"))                        # a row is not its own negative
    return F.cross_entropy(logits, torch.cat([second, first]), reduction=reduction)


@torch.no_grad()
@full_precision
def mean_similarities(z1: Tensor, z2: Tensor) -> Tensor:
    """[2]: the mean cosine of `z1` [B, D] with its positives in `z2`, and with the other rows of `z2`.

    The second is 0 for a batch of one, which has no other rows.
    """
    z1, z2 = F.normalize(z1, dim=-1), F.normalize(z2, dim=-1)
    positive = (z1 * z2).sum(-1).mean()
    pairs = len(z1) * (len(z1) - 1)
    negative = (z1.sum(0) @ z2.sum(0) - len(z1) * positive) / max(pairs, 1)   # no [B, B] matrix
    return torch.stack([positive, negative if pairs else torch.zeros_like(negative)])
