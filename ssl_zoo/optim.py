"""Which parameters decay, how fast each learns, and the optimiser that a recipe names beside torch's own."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.sgd import sgd

__all__ = ["LARS", "Group", "Schedules", "parameter_groups"]
ESSENTIAL = {"momentum", "betas", "rho", "alpha"}    # options that tell families of optimisers apart


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

    The second group's weight decay is 0. Each of `groups` adds two more, which say under `place` which of
    them they belong to, for `Schedules` to read. Groups that would be empty are left out.

    Raises:
        ValueError: two groups share a parameter, or one of `groups` is not a Group.
    """
    found: list[dict[str, Any]] = []
    taken: set[int] = set()
    for place, group in enumerate(groups):
        if not isinstance(group, Group):
            raise ValueError(f"{type(module).__name__}.groups() returns Groups, and here a {type(group).__name__}: "
                             "wrap the modules, as in [Group([self.predictor], lr_scale=0.1)]")
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


def built(optimizer: Callable[[Any], Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    """The optimiser of these groups of parameters.

    Where it goes on from a checkpoint, its options stay those that it was made with, and its state says its class.

    Raises:
        ValueError: one of its options is null or of another type, or out of its range.
    """
    try:
        made = optimizer(groups)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the optimizer cannot be made ({error}): give its options numbers that it takes, or leave "
                         "them out for their defaults, where they stand as null") from error
    made.register_state_dict_post_hook(with_class)
    made.register_load_state_dict_pre_hook(with_own_options)
    made.register_load_state_dict_post_hook(in_own_layout)
    return made


def class_of(optimizer: Optimizer) -> str:
    """The import path of an optimiser's class, such as torch.optim.SGD."""
    kind = type(optimizer)
    module = "torch.optim" if getattr(torch.optim, kind.__name__, None) is kind else kind.__module__
    return f"{module}.{kind.__qualname__}"


def with_class(optimizer: Optimizer, state: dict[str, Any]) -> None:
    state["class"] = class_of(optimizer)


def with_own_options(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """A saved state whose groups have this optimiser's own options: what a recipe says now decides, not what it said.

    The lr of the step at hand stays the saved one, until `Schedules.resume` sets it. Values in a group that are none of
    the constructor's options, such as a step size that the optimiser estimates, are state and stay saved too.

    Raises:
        ValueError: the state is another optimiser's.
    """
    own, saved = optimizer.param_groups, state["param_groups"]
    kind = state.get("class")
    # checkpoints that do not name the class yet have at least its options' names
    if kind not in (None, class_of(optimizer)) or ESSENTIAL & own[0].keys() - saved[0].keys():
        raise ValueError(f"the checkpoint's optimizer is {kind or 'another one'}, whose state {class_of(optimizer)} "
                         "cannot go on from: name that of the checkpoint, or start a new run from its encoder, ssl-zoo "
                         "export CHECKPOINT and then --model.encoder.weights")
    options = {*inspect.signature(type(optimizer)).parameters, "initial_lr"} - {"lr", "params"}
    groups = [group | {name: mine[name] for name in options & mine.keys()}
              for group, mine in zip(saved, own, strict=False)]       # torch refuses other numbers of groups
    return {**state, "param_groups": [*groups, *saved[len(own):]]}


def in_own_layout(optimizer: Optimizer) -> None:
    """Give a loaded state the memory format of its parameters: a run may go on in another than it began with.

    Fused optimisers on a CPU take numbers in the order in which they lie in memory, whatever their strides say.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def by_decay(parameters: Iterable[nn.Parameter], **options: Any) -> list[dict[str, Any]]:
    """The weights, which decay, and the biases and norms."""
    parameters = list(parameters)
    return [{"params": [p for p in parameters if p.ndim > 1], **options},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, **options}]


class LARS(torch.optim.SGD):
    """SGD in which each weight's step is a fixed share of its norm, however long its gradient: arXiv:1708.03888.

    A weight w with gradient g and decay d learns from trust_coefficient * |w| / (|g| + d * |w|) * (g + d * w), also
    where the decay is 0. Biases and norms (at most one axis) take SGD's steps, as in SimCLR, arXiv:2002.05709,
    app. B.1; so do weights whose norm, or whose gradient's, is 0. Nothing waits for the device.

    Args:
        params: parameters, or groups of them.
        lr: multiplies every step.
        momentum: share of the former steps that is kept.
        weight_decay: multiplies the weight that is added to its gradient.
        nesterov: look ahead along the momentum.
        trust_coefficient: with lr, the step's share of a weight's norm.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.0, weight_decay: float = 0.0,
                 nesterov: bool = False, trust_coefficient: float = 0.001):
        super().__init__(params, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
        self.trust_coefficient = trust_coefficient

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            state = [self.state[p] for p in parameters]
            momenta: list[Tensor | None] = [kept.get("momentum_buffer") for kept in state]
            sgd(parameters, self.directions(parameters, group["weight_decay"]), momenta, weight_decay=0.0,
                momentum=group["momentum"], lr=group["lr"], dampening=0.0, nesterov=group["nesterov"], maximize=False)
            for kept, momentum in zip(state, momenta, strict=True):
                kept["momentum_buffer"] = momentum
        return loss

    def directions(self, parameters: list[Tensor], weight_decay: float) -> list[Tensor]:
        """What each parameter learns from in place of its gradient."""
        if not parameters:
            return []
        gradients = [p.grad for p in parameters if p.grad is not None]
        directions = torch._foreach_add(gradients, parameters, alpha=weight_decay)
        norms = zip(parameters, torch._foreach_norm(parameters), torch._foreach_norm(gradients), strict=True)
        torch._foreach_mul_(directions, [self.trust(w, g, weight_decay) if p.ndim > 1 else w.new_ones(())
                                         for p, w, g in norms])
        return list(directions)

    def trust(self, weight: Tensor, gradient: Tensor, weight_decay: float) -> Tensor:
        """Scale of a weight's step, from its norm and that of its gradient."""
        ratio = self.trust_coefficient * weight / (gradient + weight_decay * weight)
        return torch.where((weight > 0) & (gradient > 0), ratio, 1.0)


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
        self.set_decays()

    def set_decays(self) -> None:
        for made, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            if callable(group.weight_decay) and made["params"][0].ndim > 1:      # biases and norms never decay
                made["weight_decay"] = group.weight_decay(self.progress(self.last_epoch))

    def resume(self) -> None:
        """Set the rates and decays of the step at hand, once `progress` knows how far a resumed run is."""
        self._last_lr = [base * rate(self.last_epoch)
                         for base, rate in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for made, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            made["lr"] = lr
        self.set_decays()

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name not in ("groups", "progress")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state with the learning rates that this run's optimiser was made with."""
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
