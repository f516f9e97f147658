"""One pass over a batch whose BatchNorm layers take their statistics from groups of its images."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OfGroups:
    """A BatchNorm layer that takes image i as one of group i mod `groups`, each with statistics of its own.

    It is what as many passes over the groups would make, with 0.35 of the kernels for 8 groups in a ResNet-18. The
    running statistics move once for each group, in their order.
    """

    groups = 1

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1 or not self.training:                                        # type: ignore[attr-defined]
            return super().forward(x)                                                    # type: ignore[misc]
        return of_groups(self, x, self.groups)


class BatchNorm1d(OfGroups, nn.BatchNorm1d):
    """See `OfGroups`."""


class BatchNorm2d(OfGroups, nn.BatchNorm2d):
    """See `OfGroups`."""


KINDS: dict[type, type] = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d}


def by_groups(module: nn.Module) -> None:
    """Let the BatchNorm layers of `module` take statistics of groups, where `encode` asks for them."""
    for norm in module.modules():
        if type(norm) in KINDS and norm.momentum is not None:      # None: the mean of all batches, which groups are not
            norm.__class__ = KINDS[type(norm)]


def of_groups(norm: Any, x: Tensor, groups: int) -> Tensor:
    """`norm` of x [B, C, ...], as if of each group alone: [B, C, ...]."""
    channels = groups * norm.num_features
    mean, variance = x.new_zeros(2, channels, dtype=torch.float32 if x.dtype != torch.float64 else x.dtype)
    weight, bias = (p if p is None else p.repeat(groups) for p in (norm.weight, norm.bias))
    wide = x.reshape(len(x) // groups, channels, *x.shape[2:])                # image i is of group i mod groups
    y = F.batch_norm(wide, mean, variance, weight, bias, True, 1.0, norm.eps)   # fills in the groups' mean and variance
    if norm.track_running_stats:
        norm.num_batches_tracked.add_(groups)
        kept = 1 - norm.momentum                                  # of what was there, for each group that comes after
        weight = norm.momentum * kept ** torch.arange(groups - 1, -1, -1, dtype=mean.dtype, device=x.device)
        for running, found in ((norm.running_mean, mean), (norm.running_var, variance)):
            running.copy_(torch.addmv(running.to(found.dtype), found.view(groups, -1).T, weight, beta=kept ** groups))
    return y.view(x.shape)


def encode(forward: Callable[[Tensor], Any], module: nn.Module, images: Tensor, groups: int) -> Any:
    """Encode the images in groups, every `groups`-th together, and return rows in the order of the images.

    In one pass where all BatchNorm layers of `module` know groups and these are of one size, otherwise in as many.
    """
    if groups == 1:
        return forward(images)
    if groups < 1:
        raise ValueError(f"keys are encoded in 1 or more groups, not {groups}: 1 is without groups")
    if len(images) < 2 * groups:
        raise ValueError(f"a batch of {len(images)} images does not make {groups} groups of 2 or more: lower "
                         "splits, or raise the batch size")
    norms = [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    if len(images) % groups == 0 and all(isinstance(norm, OfGroups) for norm in norms):
        return at_once(forward, norms, images, groups)
    parts = [forward(images[group::groups]) for group in range(groups)]
    places = torch.arange(len(images), device=images.device)
    back = torch.cat([places[group::groups] for group in range(groups)]).argsort()
    return each(lambda *some: torch.cat(some)[back], *parts)


def at_once(forward: Callable[[Tensor], Any], norms: list[Any], images: Tensor, groups: int) -> Any:
    for norm in norms:
        norm.groups = groups
    try:
        return forward(images)
    finally:
        for norm in norms:
            norm.groups = 1


def each(change: Callable[..., Tensor], *outputs: Any) -> Any:
    """Apply `change` to tensors, or position by position to tuples of tensors."""
    if isinstance(outputs[0], Tensor):
        return change(*outputs)
    return tuple(change(*parts) for parts in zip(*outputs, strict=True))
