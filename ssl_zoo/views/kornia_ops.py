"""Run any of Kornia's augmentations at the end of a row, on the device of the views and repeatable by the batch's key.

Kornia draws its random numbers from torch's global generator, and a Kornia module on a GPU reads them back from there,
which makes the host wait. So its modules stay on the CPU, where Lightning does not find and move them. They draw while
the CPU's generator is seeded for the batch, and the few numbers follow the images to the device without a wait. These
numbers depend on the batch's key, the row's place in the recipe and the number of its views, and on nothing else.

Only a recipe with `extra` imports this file, because importing Kornia takes more than a second.
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
GENERATOR: torch.Generator = torch.default_generator   # the CPU's; torch.manual_seed would seed all GPUs too


class Extra:
    """The Kornia augmentations of one row, to run one after another.

    Args:
        entries: Kornia modules, or their class_path and init_args as a recipe has them.
        size: side of the row's views, pixels.

    Raises:
        ValueError: if an entry cannot be built, fails on views of this size, or changes their size.
    """

    def __init__(self, entries: Sequence[Any], size: int):
        self.modules, self.size = [module_of(entry) for entry in entries], size
        for module in self.modules:
            require_usable(module, size)

    def require_channels(self, channels: int) -> None:
        """Raise a ValueError if an augmentation fails on views of so many channels."""
        for module in self.modules:
            require_usable(module, self.size, channels)

    @property
    def moving(self) -> str:
        """The name of the first one that moves pixels, after which a box says only roughly what a view shows; or ""."""
        return next((name(module) for module in self.modules
                     if not isinstance(module, IntensityAugmentationBase2D)), "")

    def drawn(self, seed: int) -> "Drawn":
        """A function that applies the augmentations to a batch, with random numbers seeded by `seed`."""
        return Drawn(self.modules, bool(self.moving), seed)


class Drawn(NamedTuple):
    """The augmentations of a row, together with the seed of a batch."""

    modules: Sequence[AugmentationBase2D]
    moving: bool
    seed: int

    def __call__(self, images: Tensor) -> Tensor:
        """Change images [N, C, S, S] float32 in [0, 1], clamping them to [0, 1] after each augmentation."""
        with seeded(self.seed):
            for module in self.modules:
                images = applied(module, images).clamp_(0, 1)
        return images


def module_of(entry: Any) -> AugmentationBase2D:
    """Build the module that an entry of `extra` describes, on the CPU; raises a ValueError if it cannot."""
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
    """Import the class of an entry {class_path, init_args}; a bare name is looked up in kornia.augmentation."""
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
    """Raise a ValueError for a class that cannot run on views, with the reason and what to do instead."""
    if issubclass(kind, MixAugmentationBaseV2):
        raise ValueError(f"{kind.__name__} mixes the images of a batch, and each view is of one image: leave it out of "
                         "extra; MoCHi and mixing.py mix features")
    if kind.__name__ in REFUSED:
        raise ValueError(f"{kind.__name__} cannot be in extra, for {REFUSED[kind.__name__]}: leave it out")
    if not issubclass(kind, AugmentationBase2D):
        raise ValueError(f"extra takes Kornia's augmentations of images, which are subclasses of kornia.augmentation."
                         f"AugmentationBase2D, and {kind.__name__} is not one: list such operations one by one")


def require_usable(module: AugmentationBase2D, size: int, channels: int = 3) -> None:
    """Raise a ValueError, before training, if a module fails on two gray views of this size or changes their size."""
    views = torch.full((2, channels, size, size), 0.5)
    try:
        with seeded(0):
            _, found, *shape = applied(module, views, always=True).shape
    except Exception as error:   # whatever Kornia raises on such a view
        of = f"{size} pixels" if channels == 3 else f"{channels} channels"
        raise ValueError(f"{name(module)} fails on views of {of}: {error}") from error
    if found != channels:
        raise ValueError(f"{name(module)} makes {found} channels out of {channels}: leave it out of extra")
    if shape != [size, size]:
        raise ValueError(f"{name(module)} makes views of {shape[0]} x {shape[1]} pixels out of {size} x {size}: the "
                         "row's size and scale say how views are cut, so leave it out of extra or keep the size")


def applied(module: AugmentationBase2D, images: Tensor, always: bool = False) -> Tensor:
    """Change images [N, C, S, S], drawing random numbers from torch's generator for the CPU.

    Args:
        module: the augmentation.
        images: float32 in [0, 1], on any device.
        always: apply it to all images, whatever its probability.
    """
    module = copy.copy(module)   # a module keeps its last numbers, which would hold memory and be sent to workers
    drawn = module.forward_parameters(images.shape)
    if always:
        drawn["batch_prob"] = torch.ones_like(drawn["batch_prob"])
    return module(images, params=drawn)


def name(module: AugmentationBase2D) -> str:
    return type(module).__name__


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator for the CPU inside the block, and restore its state afterwards."""
    state = GENERATOR.get_state()
    GENERATOR.manual_seed(seed)
    try:
        yield
    finally:
        GENERATOR.set_state(state)
