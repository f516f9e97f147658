"""Batches that the loss sees as a whole and an encoder a few images at a time: gradient caching.

Gao et al., 2021, arXiv:2101.06983 (GradCache). An encoder keeps nothing of a batch but its features; when the loss has
given their gradient, each few images are encoded again for their part of it. Since autograd knows of all of it, a
parameter's gradient is complete when it appears: clipping, mixed precision, accumulation and DistributedDataParallel
see a plain step.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_zoo.encoders import Encoder
from ssl_zoo.grouped import OfGroups, each

CALLS = ("forward", "maps", "stage_maps")     # by which a method encodes images


class GradientCache(pl.Callback):
    """Encode a training batch a few images at a time, so that the encoder's memory does not limit the batch.

    The loss and its gradients are those of the plain step, for one more forward pass of the encoder. BatchNorm in it
    takes its statistics from each few images, as it does on several devices; heads see the whole batch.

    Args:
        images: the number of views that an encoder takes at a time, at least 2; null takes the whole batch. The batch
            of the loss is data.batch_size.
    """

    def __init__(self, images: int | None = None):
        if images is not None and images < 2:
            raise ValueError(f"gradient_cache.images is the number of views that an encoder takes at a time, at least "
                             f"2, not {images}; null takes the whole batch")
        self.images = images
        self.entrances: list[Entrance] = []
        self.said = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.images is None:
            return
        if getattr(pl_module, "_compiler_ctx", None) is not None:     # Lightning's, of torch.compile(method)
            raise ValueError(f"gradient_cache.images {self.images} divides what an encoder gets, and a compiled "
                             "training step cannot be divided: compile the encoder alone, method.encoder.compile()")
        self.entrances = entrances(pl_module, self.images)
        if not self.entrances:
            raise ValueError(f"gradient_cache.images {self.images} is for encoders of ssl_zoo.encoders, and "
                             f"{type(pl_module).__name__} has none: leave it out")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                             batch_idx: int) -> None:
        for entrance in self.entrances:
            entrance.narrow()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        self.widen()
        if self.entrances and not self.said and not any(entrance.parts.used for entrance in self.entrances):
            rank_zero_warn(f"gradient_cache.images {self.images} changes nothing, because no encoder gets more views "
                           "at once: raise --data.batch_size, which is the batch of the loss")
        self.said = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.widen()

    def widen(self) -> None:
        for entrance in self.entrances:
            entrance.widen()


class Entrance:
    """An attribute of a module by which images enter an encoder. It changes for a training batch alone: whatever
    copies the module between two batches finds it as it was."""

    def __init__(self, module: nn.Module, name: str, parts: "Parts"):
        self.module, self.name, self.parts = module, name, parts
        self.own = vars(module).get(name)                             # where it is not the class's, as when compiled
        self.narrowed = partial(parts, getattr(module, name))         # one object: torch.compile compiles it once

    def narrow(self) -> None:
        vars(self.module)[self.name] = self.narrowed

    def widen(self) -> None:
        if self.own is None:
            vars(self.module).pop(self.name, None)
        else:
            vars(self.module)[self.name] = self.own


def entrances(method: nn.Module, images: int) -> list[Entrance]:
    """All entrances of a method's encoders, the outermost where one is compiled: its program is for a few images."""
    wrapped = {id(inner): module for module in method.modules()
               if isinstance(inner := module._modules.get("_orig_mod"), Encoder)}
    found = []
    for encoder in method.modules():
        if not isinstance(encoder, Encoder):
            continue
        parts = Parts(encoder, images)
        for name in CALLS:
            if name == "forward" and id(encoder) in wrapped:
                found.append(Entrance(wrapped[id(encoder)], name, parts))
            elif name == "forward" and encoder._compiled_call_impl is not None:
                found.append(Entrance(encoder, "_compiled_call_impl", parts))
            elif hasattr(encoder, name):
                found.append(Entrance(encoder, name, parts))
    return found


class Parts:
    """Encodes images a few at a time, and each few once more in the backward pass.

    Args:
        encoder: the encoder whose functions are called.
        images: the number of images at a time.
    """

    def __init__(self, encoder: Encoder, images: int):
        self.encoder, self.images, self.used = encoder, images, False
        self.norms: list[Any] = [one for one in encoder.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
        self.spare: dict[nn.Module, dict[str, Tensor | None]] = {}

    def __call__(self, encode: Callable[[Tensor], Any], images: Tensor) -> Any:
        """encode(images), of rows [B, ...]: a tensor or several."""
        if len(images) <= self.images:
            return encode(images)
        few, before = self.split(images), {} if self.used else self.remembered()
        if torch.is_grad_enabled():
            encode = partial(checkpoint, with_own_weights, encode, use_reentrant=False,
                             context_fn=lambda: (nullcontext(), self.again()))
        features = each(lambda *rows: torch.cat(rows), *map(encode, few))
        if changed := {} if self.used else before.items() - self.remembered().items():
            raise ValueError(f"gradient_cache.images {self.images} encodes images twice, and {min(changed)[0]} of the "
                             f"{type(self.encoder).__name__} changes each time, so that its features would differ: "
                             "leave it out, or take an encoder without it")
        self.used = True
        return features

    def split(self, images: Tensor) -> list[Tensor]:
        """Parts of nearly one size, each with as many images of every group whose BatchNorm statistics are apart."""
        groups = max((norm.groups for norm in self.norms if isinstance(norm, OfGroups)), default=1)
        if self.images < 2 * groups:
            raise ValueError(f"gradient_cache.images {self.images} does not make {groups} groups of 2 or more keys: "
                             "raise it, or lower splits")
        rounds = images.unflatten(0, (-1, groups))
        return [part.flatten(0, 1) for part in rounds.tensor_split(math.ceil(len(rounds) / (self.images // groups)))]

    def remembered(self) -> dict[str, tuple[int, int]]:
        """What tells whether a buffer has changed, of all but BatchNorm's, which `again` takes care of."""
        norms = {id(buffer) for norm in self.norms for buffer in norm.buffers()}
        return {name: (id(buffer), buffer._version) for name, buffer in self.encoder.named_buffers()
                if id(buffer) not in norms}

    @contextmanager
    def again(self) -> Iterator[None]:
        """Encode images for the second time: BatchNorm's running statistics have seen them already."""
        kept = [(norm, norm._buffers) for norm in self.norms if norm.training and norm.track_running_stats]
        for norm, buffers in kept:
            if norm not in self.spare:
                self.spare[norm] = {name: None if one is None else one.clone() for name, one in buffers.items()}
            norm._buffers = self.spare[norm]
        try:
            yield
        finally:
            for norm, buffers in kept:
                norm._buffers = buffers


def with_own_weights(encode: Callable[[Tensor], Any], images: Tensor) -> Any:
    """encode(images), whose weights are cast for these images alone where autocast casts them.

    Its cache would hand all parts one cast of a weight, at which their gradients add up in half precision.
    """
    device = images.device.type
    with torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device),
                        cache_enabled=False):
        return encode(images)
