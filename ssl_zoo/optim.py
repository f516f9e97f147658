"""Which parameters decay, how fast each learns, and the optimisers that a recipe names beside torch's own."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightly.utils.lars import LARS
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["LARS", "Group", "Schedules", "parameter_groups"]


def constant(progress: float) -> float:
    """A factor of 1 throughout training; SimSiam's predictor learns this way."""
    return 1.0


@dataclass(frozen=True)
class Group:
    """Parameters with a learning rate, a schedule or a weight decay of their own.

    Args:
        modules: modules, or parameters by themselves, whose trainable parameters these are.
        lr_scale: multiplies the optimiser's lr; 0 leaves the parameters as they are.
        schedule: the factor on the lr as a function of progress, in place of the recipe's; `constant` keeps it fixed.
        weight_decay: of these weights in place of the optimiser's; a function of the progress through training, 0 to 1,
            for one that changes, as DINO's. Biases and norms never decay.
    """

    modules: Sequence[nn.Module | nn.Parameter]
    lr_scale: float = 1.0
    schedule: Callable[[float], float] | None = None
    weight_decay: float | Callable[[float], float] | None = None


def parameter_groups(module: nn.Module, groups: Sequence[Group] = ()) -> list[dict[str, Any]]:
    """The trainable parameters of `module`: those that decay, and biases and norms (at most one axis), which do not.

    The second group's weight decay is 0. LARS reads that as "no layer-wise adaptation" as well, which is the
    exclusion of SimCLR, arXiv:2002.05709, app. B.1. Each of `groups` adds two more, which say under `place` which of
    them they belong to, for `Schedules` to read. Groups that would be empty are left out.

    Raises:
        ValueError: two groups share a parameter.
    """
    found: list[dict[str, Any]] = []
    taken: set[int] = set()
    for place, group in enumerate(groups):
        parts = ([part] if isinstance(part, nn.Parameter) else part.parameters() for part in group.modules)
        own = {id(p): p for part in parts for p in part if p.requires_grad}
        if shared := taken & own.keys():
            raise ValueError(f"groups() names {len(shared)} parameters twice: give each parameter one group")
        taken |= own.keys()
        weights, spared = by_decay(own.values(), place=place)
        if group.weight_decay is not None:
            weights["weight_decay"] = group.weight_decay(0.0) if callable(group.weight_decay) else group.weight_decay
        found += [weights, spared]
    rest = (p for p in module.parameters() if p.requires_grad and id(p) not in taken)
    return [group for group in [*by_decay(rest), *found] if group["params"]]


def by_decay(parameters: Iterable[nn.Parameter], **options: Any) -> list[dict[str, Any]]:
    """The weights, which decay, and the biases and norms."""
    parameters = list(parameters)
    return [{"params": [p for p in parameters if p.ndim > 1], **options},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, **options}]


class Schedules(LambdaLR):
    """Sets each group's learning rate before every step, and its weight decay where that changes.

    Args:
        optimizer: of the groups that `parameter_groups` made.
        schedule: the factor on the lr, as a function of progress, of parameters in no group of their own.
        groups: as `parameter_groups` got them.
        progress: from a number of optimiser steps to the share of training, 0 to 1.
    """

    def __init__(self, optimizer: Optimizer, schedule: Callable[[float], float], groups: Sequence[Group],
                 progress: Callable[[int], float]):
        self.groups = [groups[made["place"]] if "place" in made else Group(()) for made in optimizer.param_groups]
        self.progress = progress
        for made, group in zip(optimizer.param_groups, self.groups, strict=True):
            made["lr"] = made["lr"] * group.lr_scale
        super().__init__(optimizer, [partial(self.rate, group.schedule or schedule) for group in self.groups])

    def rate(self, schedule: Callable[[float], float], step: int) -> float:
        return schedule(self.progress(step))

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        for made, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            if callable(group.weight_decay) and made["params"][0].ndim > 1:      # biases and norms never decay
                made["weight_decay"] = group.weight_decay(self.progress(self.last_epoch))

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name not in ("groups", "progress")}
