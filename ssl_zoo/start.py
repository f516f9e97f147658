"""What is found out before a method trains, or at its first step, and said in one sentence: what its class, its parts,
its trainer and its loss must be."""

import difflib
import inspect
import re
import warnings
from typing import Any

from torch import Tensor, nn

from ssl_zoo.encoders import check_size
from ssl_zoo.logs import log_kept
from ssl_zoo.own_code import line_of, raised_at

HOOKS = {"training_loss": ("batch",), "after_step": (), "groups": ()}   # with what they are called
SHAPES = re.compile("shapes?|sizes?|channels|elements|dimension")       # in torch's sentences on them


# The class, when a method is made

def require_hooks(kind: type, base: type) -> None:
    """Refuse a class that lacks `training_loss`, or whose functions cannot be called as `base`, Method, calls them."""
    own: dict[str, Any] = {name: value for parent in reversed(kind.__mro__[:kind.__mro__.index(base)])
                           for name, value in vars(parent).items() if inspect.isfunction(value)}
    if not {"training_loss", "training_step"} & own.keys():
        near = difflib.get_close_matches("training_loss", own, n=1)
        raise ValueError(f"{kind.__name__} has no training_loss(self, batch): " + (
            f"rename {near[0]}, {line_of(own[near[0]])}" if near else
            f"write one that returns the number to minimise, below {line_of(kind)}"))
    for name, takes in HOOKS.items():
        if name in own and not may_be_called(own[name], *takes):
            raise ValueError(f"{kind.__name__}.{name} is called as self.{name}({', '.join(takes)}), and is defined as "
                             f"{name}{inspect.signature(own[name])}: mend {line_of(own[name])}")
    if "evaluated" in own:
        raise ValueError(f"{kind.__name__}.evaluated is an attribute, not a function: write @property above "
                         f"{line_of(own['evaluated'])}")
    for name, function in own.items():
        near = difflib.get_close_matches(name, [*HOOKS, "evaluated"], n=1, cutoff=0.9)
        if near and name != near[0] and near[0] not in own and not hasattr(base, name):
            warnings.warn(f"{kind.__name__}.{name} ({line_of(function)}) is not called by itself; did you mean "
                          f"{near[0]}?", stacklevel=3)


def may_be_called(function: Any, *takes: str) -> bool:
    try:
        inspect.signature(function).bind(None, *takes)
    except TypeError:
        return False
    return True


# The parts and the trainer, before anything runs

def require_ready(method: Any, trainer: Any) -> None:
    """Refuse what the encoder, the precision or the length of a run do not allow, before an epoch is spent."""
    for name, value in vars(method).items():
        parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
        if any(isinstance(part, nn.Module) for part in parts) and not name.startswith("_"):
            raise ValueError(f"{type(method).__name__}.{name} is a {type(value).__name__} of modules, whose weights "
                             "would neither learn nor be saved: make it an nn.ModuleList or an nn.ModuleDict")
    if trainer.precision in ("16-true", "bf16-true"):
        raise ValueError(f"--trainer.precision {trainer.precision} keeps the weights themselves in half precision, "
                         "where a step below 1/2048 of a weight (float16) or 1/256 (bfloat16) is rounded away, and "
                         "averaged weights stand still: take 16-mixed or bf16-mixed, which compute in half precision "
                         "and keep float32 weights")
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
        if (value := getattr(trainer, name)) is not None and value <= 0:
            raise ValueError(f"--trainer.{name} counts from 1, and is {value}")
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise ValueError(endless("neither --trainer.max_epochs nor --trainer.max_steps is set"))
    if trainer.gradient_clip_val:
        for optimizer in trainer.optimizers:    # fused; otherwise Lightning refuses to clip in mixed precision
            optimizer._step_supports_amp_scaling = False
    for size in {spec.size for spec in method.augment.views}:
        check_size(method.encoder, size)


def steps(trainer: Any) -> int:
    """The number of optimiser steps of a run. The first call of a run loads its data.

    Raises:
        ValueError: it is unknown, because the loader has no length.
    """
    count = trainer.estimated_stepping_batches
    if not 0 < count < float("inf"):
        raise ValueError(endless("its training data have no length"))
    return count


def endless(why: str) -> str:
    return (f"this run has no last step, because {why}, and the learning rate is a function of the share of the run: "
            "give --trainer.max_steps a number; --trainer.max_time may still end the run before")


# The loss and its gradients, at the first step

def loss_of(method: Any, batch: Any) -> Tensor:
    """The training loss, one number with a gradient; two of torch's errors get a sentence on what they mean here."""
    try:
        loss = method.training_loss(batch)
        log_kept(method)
    except (RuntimeError, ValueError) as error:
        if "more than 1 value per channel" in str(error):
            raise ValueError("BatchNorm needs at least 2 images in a batch, and here it meets 1: raise "
                             "--data.batch_size") from error
        where = raised_at(error)
        if where and type(error) is RuntimeError and SHAPES.search(str(error)):
            raise ValueError(f"{error}: of each image the encoder gives {method.encoder.dim} features, "
                             f"self.encoder.dim ({where})") from error
        raise
    return require_loss(loss, type(method))


def require_loss(loss: Any, kind: type) -> Tensor:
    """Return the loss of a method of class `kind`, or raise if it is not one number with a gradient."""
    if isinstance(loss, Tensor) and not loss.ndim and loss.requires_grad:
        return loss
    given = type(loss).__name__
    if loss is None:
        given, mend = "nothing", "end it with return loss"
    elif isinstance(loss, dict):
        mend = "return the loss alone, such as loss['loss'], and hand all else to self.log_dict"
    elif not isinstance(loss, Tensor):
        mend = "return the tensor itself, without .item() or anything beside it"
    elif loss.ndim:
        given, mend = f"a tensor {list(loss.shape)}", "return its mean, loss.mean()"
    else:
        given, mend = "a number without one", "leave out detach() and no_grad() between the encoder and the loss"
    raise ValueError(f"{kind.__name__}.training_loss must return one number with a gradient, not {given}: {mend} "
                     f"({line_of(kind.training_loss)})")   # type: ignore[attr-defined]


def require_gradients(method: Any, trainer: Any) -> None:
    """Name the parameters that the backward passes of the first step do not reach, in a warning.

    Raises:
        ValueError: processes wait for each other's gradients of every parameter.
    """
    if trainer.global_step:
        return
    missing = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    if not missing:
        return
    more = f" and {len(missing) - 1} more parameters" * (len(missing) > 1)
    said = (f"no gradient of {type(method).__name__}.training_loss ({line_of(type(method).training_loss)}) reaches "
            f"{missing[0]}{more}: use them in the loss, or take them out of training with requires_grad_(False)")
    if not getattr(trainer.model, "find_unused_parameters", True):    # DistributedDataParallel, as it is by default
        raise ValueError(f"{said}, or run with --trainer.strategy ddp_find_unused_parameters_true")
    if trainer.is_global_zero:
        warnings.warn(said, stacklevel=2)
