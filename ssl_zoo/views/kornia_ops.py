"""Kornia's augmentations in a row of views: any of them, drawn from the batch's key and batched on the views' device.

Kornia draws from torch's global generator and, where its modules are on a GPU, reads its draws back from there. So its
modules stay on the CPU, outside Lightning's tree of modules, and draw under a seeded copy of the CPU's generator; the
few numbers that they have drawn follow the images to the device without a wait. A row's draws then depend on the
batch's key, the row's place and the number of its views, and on nothing else.

This module is imported only for a recipe that has `extra`: Kornia takes more than a second to import.
"""

import copy
import difflib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import torch
from kornia.augmentation import AugmentationBase2D, IntensityAugmentationBase2D, MixAugmentationBaseV2
from torch import Tensor

REFUSED = {
    "Normalize": "normalisation is the encoder's first layer, and views stay in [0, 1]",
    "Denormalize": "normalisation is the encoder's first layer, and views stay in [0, 1]",
    "RandomDissolving": "it draws while it is applied, so that no run could be resumed or repeated",
}
GENERATOR: torch.Generator = torch.default_generator   # the CPU's; torch.manual_seed would seed every GPU's as well


class Extra:
    """The Kornia augmentations of one row, one after another.

    Args:
        entries: each a module, or its class path and arguments as a recipe has them.
        size: side of the row's views, pixels.
    """

    def __init__(self, entries: Sequence[Any], size: int):
        self.modules = [built(entry) for entry in entries]
        for module in self.modules:
            check(module, size)

    @property
    def moving(self) -> str:
        """The first of them that moves pixels, so that boxes no longer say where a view's cells come from; or none."""
        return next((name(module) for module in self.modules
                     if not isinstance(module, IntensityAugmentationBase2D)), "")

    def drawn(self, seed: int) -> "Drawn":
        """What the row's operations do to a batch whose draws start from `seed`."""
        return Drawn(self.modules, bool(self.moving), seed)


class Drawn(NamedTuple):
    """The operations of a row with the draws of a batch."""

    modules: Sequence[AugmentationBase2D]
    moving: bool
    seed: int

    def __call__(self, images: Tensor) -> Tensor:
        """Images [N, 3, S, S] float32 in [0, 1], changed, and cut off at 0 and 1 after each operation."""
        with seeded(self.seed):
            for module in self.modules:
                images = applied(module, images).clamp_(0, 1)
        return images


def built(entry: Any) -> AugmentationBase2D:
    """The module that an entry of `extra` names; raises one sentence where there is none."""
    if isinstance(entry, AugmentationBase2D):
        refuse(type(entry))
        return entry.cpu()
    kind: Any = type(entry) if isinstance(entry, torch.nn.Module) else found(entry)
    refuse(kind)
    arguments = {argument: tuple(value) if isinstance(value, list) else value
                 for argument, value in (entry.get("init_args") or {}).items()}
    known = list(inspect.signature(kind).parameters)
    for argument in set(arguments) - set(known):
        near = difflib.get_close_matches(argument, known, n=1)
        raise ValueError(f"{kind.__name__} takes no {argument}" + (f"; did you mean {near[0]}?" if near else
                                                                   f": it takes {', '.join(known)}"))
    try:
        return kind(**arguments)
    except Exception as error:   # whatever Kornia raises on a value
        raise ValueError(f"{kind.__name__} does not take these arguments, {arguments}: {error}") from error


def found(entry: Any) -> type:
    """The class of an entry {class_path, init_args}; a name alone is one of kornia.augmentation."""
    if not isinstance(entry, dict) or not isinstance(entry.get("class_path"), str) or set(entry) - {"class_path",
                                                                                                  "init_args"}:
        raise ValueError(f"an entry of extra is a class_path and its init_args, as in {{class_path: "
                         f"kornia.augmentation.RandomErasing, init_args: {{p: 0.3}}}}, not {entry}")
    path = entry["class_path"]
    place, _, wanted = path.rpartition(".")
    try:
        module = import_module(place or "kornia.augmentation")
    except ImportError as error:
        raise ValueError(f"extra's {path} cannot be imported: {error}; Kornia's operations are in kornia.augmentation"
                         ) from error
    kind = getattr(module, wanted, None)
    if not isinstance(kind, type):
        near = difflib.get_close_matches(wanted, dir(module), n=1)
        raise ValueError(f"there is no {wanted} in {module.__name__}" + (f"; did you mean {near[0]}?" if near else ""))
    return kind


def refuse(kind: type) -> None:
    """Raise one sentence for what can be no part of a row's views."""
    if issubclass(kind, MixAugmentationBaseV2):
        raise ValueError(f"{kind.__name__} mixes the images of a batch, and each view is of one image: leave it out of "
                         "extra; MoCHi and mixing.py mix features")
    if kind.__name__ in REFUSED:
        raise ValueError(f"{kind.__name__} cannot be in extra, for {REFUSED[kind.__name__]}: leave it out")
    if not issubclass(kind, AugmentationBase2D):
        raise ValueError(f"extra takes Kornia's augmentations of images, which are subclasses of kornia.augmentation."
                         f"AugmentationBase2D, and {kind.__name__} is not one: list such operations one by one")


def check(module: AugmentationBase2D, size: int) -> None:
    """Try an operation on two gray views, so that one that fails or changes their size does so before training."""
    views = torch.full((2, 3, size, size), 0.5)
    try:
        with seeded(0):
            shape = list(applied(module, views, always=True).shape[-2:])
    except Exception as error:   # whatever Kornia raises on such a view
        raise ValueError(f"{name(module)} fails on views of {size} pixels: {error}") from error
    if shape != [size, size]:
        raise ValueError(f"{name(module)} makes views of {shape[0]} x {shape[1]} pixels out of {size} x {size}: the "
                         "row's size and scale say how views are cut, so leave it out of extra or keep the size")


def applied(module: AugmentationBase2D, images: Tensor, always: bool = False) -> Tensor:
    """The images [N, 3, S, S], changed by draws from torch's generator for the CPU."""
    module = copy.copy(module)   # it remembers its last draws, which would hold memory and travel to workers
    drawn = module.forward_parameters(images.shape)
    if always:
        drawn["batch_prob"] = torch.ones_like(drawn["batch_prob"])
    return module(images, params=drawn)


def name(module: AugmentationBase2D) -> str:
    return type(module).__name__


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's generator for the CPU starts from `seed` here, and afterwards is as it was."""
    state = GENERATOR.get_state()
    GENERATOR.manual_seed(seed)
    try:
        yield
    finally:
        GENERATOR.set_state(state)
