"""The operations that change a view's pixels after its crop: the numbers each draws, and what it does with them.

Each operation is one class, and its options are fields of `ViewSpec`. To add one:

1. in specs.py, give `ViewSpec` a field for its probability and its other options, with their help and their checks;
2. here, write its class and put an instance into OPERATIONS at the place where it runs.

Nothing else names an operation: the tables, both ways of rendering, workers, previews and recipes take them from
OPERATIONS. Recipes that do not use the new one draw what they drew before.

The ratios to Kornia below are those of benchmarks/results/kornia_ops.json, at 32 and at 224 pixels on one core.

A CPU passes each operation the views that it changes, a few at a time, so that they stay in its cache (`groups` and
`change`). A GPU, or a compiled pipeline, passes all views of a row to `change_all`, which changes nothing where an
operation was not drawn: to choose some of the views would take a gather, and a host that waits for the device.
"""

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.views import colour
from ssl_zoo.views.specs import ViewSpec


class Operation:
    """One change of pixels, drawn for each view by itself."""

    name: ClassVar[str]          # of its columns in a table, and of the probability in ViewSpec
    even: ClassVar[np.dtype]     # its even random numbers in [0, 1), all float32
    columns: ClassVar[np.dtype]  # what a table keeps of them, all float32; the first is 0 where nothing changes

    def chance(self, spec: ViewSpec) -> float:
        """The probability that the operation changes a view; a row with 0 leaves it out."""
        return getattr(spec, self.name)

    def draw(self, spec: ViewSpec, even: np.ndarray, columns: np.ndarray) -> None:
        """Fill `columns` [V, B] from the random numbers `even` [V, B]."""
        raise NotImplementedError

    def groups(self, columns: np.ndarray) -> Iterable[np.ndarray]:
        """The places of the views to change, given their `columns` [N]; `change` gets views of one group at a time."""
        return [np.flatnonzero(flat(columns)[:, 0])]

    def change(self, images: Tensor, columns: np.ndarray, spec: ViewSpec) -> Tensor:
        """The changed images [N, 3, S, S] of one group; may overwrite those it gets."""
        raise NotImplementedError

    def numbers(self, columns: np.ndarray) -> np.ndarray:
        """What `change_all` needs to know of each view: [V, B, numbers] float32."""
        return flat(columns)

    def change_all(self, images: Tensor, numbers: Tensor, spec: ViewSpec) -> Tensor:
        """The images [N, 3, S, S], changed where `numbers` [N, numbers] say so; traced by torch.compile."""
        raise NotImplementedError


class Jitter(Operation):
    """torchvision's ColorJitter, in an order drawn for each view.

    Not Kornia's, which draws one order for the whole batch and takes 1.3 to 4.6 times as long (hue alone: 10 times).
    """

    name = "jitter"
    even = np.dtype([("applied", "f4"), ("brightness", "f4"), ("contrast", "f4"), ("saturation", "f4"), ("hue", "f4"),
                     ("order", "f4", 4)])
    # factors: brightness, contrast, saturation, and turns of hue; order: which of them is first, second, third, last
    columns = np.dtype([("applied", "f4"), ("factors", "f4", 4), ("order", "f4", 4)])

    def draw(self, spec: ViewSpec, even: np.ndarray, columns: np.ndarray) -> None:
        columns["applied"] = even["applied"] < spec.jitter
        for i, name in enumerate(("brightness", "contrast", "saturation")):
            amount = getattr(spec, name) * spec.strength
            lowest, highest = max(0.0, 1 - amount), 1 + amount
            columns["factors"][..., i] = lowest + (highest - lowest) * even[name]
        columns["factors"][..., 3] = (2 * even["hue"] - 1) * spec.hue * spec.strength
        columns["order"] = even["order"].argsort(-1)

    def groups(self, columns: np.ndarray) -> Iterable[np.ndarray]:
        """Views of one order together: at most 24 groups."""
        code = np.where(columns["applied"] > 0, columns["order"].astype(int) @ (64, 16, 4, 1), -1)
        return [np.flatnonzero(code == one) for one in np.unique(code[code >= 0])]

    def change(self, images: Tensor, columns: np.ndarray, spec: ViewSpec) -> Tensor:
        return colour.jitter_(images, torch.from_numpy(columns["factors"]), columns["order"][0].astype(int))

    def numbers(self, columns: np.ndarray) -> np.ndarray:
        return jitter_steps(columns)

    def change_all(self, images: Tensor, numbers: Tensor, spec: ViewSpec) -> Tensor:
        return colour.jitter_all(images, numbers)


class Gray(Operation):
    """Drop the colour. Not Kornia's, which takes twice as long for the same to 0.03 of a grey level."""

    name = "gray"
    even = columns = np.dtype([("applied", "f4")])

    def draw(self, spec: ViewSpec, even: np.ndarray, columns: np.ndarray) -> None:
        columns["applied"] = even["applied"] < spec.gray

    def change(self, images: Tensor, columns: np.ndarray, spec: ViewSpec) -> Tensor:
        return colour.grayscale(images).expand_as(images)

    def change_all(self, images: Tensor, numbers: Tensor, spec: ViewSpec) -> Tensor:
        return torch.where(colour.per_image(numbers) > 0, colour.grayscale(images), images)


class Blur(Operation):
    """Blur by a Gaussian whose standard deviation is drawn for each view.

    Kornia's gives the same and is as fast on a CPU (0.75 to 1.0 of our time); ours compiles with the rest and uses
    a GPU's tensor cores.
    """

    name = "blur"
    even = np.dtype([("sigma", "f4"), ("applied", "f4")])
    columns = np.dtype([("sigma", "f4")])   # pixels; 0 for no blur

    def draw(self, spec: ViewSpec, even: np.ndarray, columns: np.ndarray) -> None:
        sigma = spec.sigma[0] + (spec.sigma[1] - spec.sigma[0]) * even["sigma"]
        columns["sigma"] = np.where(even["applied"] < spec.blur, sigma, 0)

    def change(self, images: Tensor, columns: np.ndarray, spec: ViewSpec) -> Tensor:
        return colour.gaussian_blur(images, torch.from_numpy(columns["sigma"]), spec.blur_kernel)

    def change_all(self, images: Tensor, numbers: Tensor, spec: ViewSpec) -> Tensor:
        return colour.gaussian_blur(images, numbers[:, 0], spec.blur_kernel,
                                    torch.float16 if images.is_cuda else torch.float32)


class Solarize(Operation):
    """Invert all pixels from the threshold on: one line, which equals Kornia's in values and time."""

    name = "solarize"
    even = columns = np.dtype([("applied", "f4")])

    def draw(self, spec: ViewSpec, even: np.ndarray, columns: np.ndarray) -> None:
        columns["applied"] = even["applied"] < spec.solarize

    def change(self, images: Tensor, columns: np.ndarray, spec: ViewSpec) -> Tensor:
        return colour.solarize(images, spec.threshold)

    def change_all(self, images: Tensor, numbers: Tensor, spec: ViewSpec) -> Tensor:
        return torch.where(colour.per_image(numbers) > 0, colour.solarize(images, spec.threshold), images)


OPERATIONS: tuple[Operation, ...] = (Jitter(), Gray(), Blur(), Solarize())   # in the order in which they run


def of(spec: ViewSpec) -> list[Operation]:
    """The operations that a row's views may get."""
    return [operation for operation in OPERATIONS if operation.chance(spec)]


def flat(columns: np.ndarray) -> np.ndarray:
    """Named columns [...] of float32 as numbers [..., count]."""
    return np.ascontiguousarray(columns).view(np.float32).reshape(*columns.shape, -1)


def jitter_steps(columns: np.ndarray) -> np.ndarray:
    """The steps that `colour.jitter_all` takes for the jitter of each view: [V, B, colour.STEPS].

    A GPU runs one program for all views, and theirs differ in order. So each order is written as one fixed chain with
    neutral steps: two blends, hue, two blends, contrast, and the same five again. Brightness is the blend (factor, 0)
    of a pixel and its luma, saturation the blend (factor, 1 - factor). Of brightness and saturation the earlier one
    takes the first blend of its place and the later one the second, so that two of them in one place keep their order.
    All other blends are (1, 0), and hue turns by 0 where it has its place on contrast's other side.
    """
    place = columns["order"].argsort(-1)                                 # where each of the four stands in the order
    brightness, contrast, saturation, hue = np.moveaxis(place, -1, 0)
    jittered = columns["applied"] > 0
    factors = [np.where(jittered, columns["factors"][..., i], neutral) for i, neutral in enumerate((1, 1, 1, 0))]
    brighter = brightness < saturation                                   # which of the two blends is the earlier one
    earlier, later = np.minimum(brightness, saturation), np.maximum(brightness, saturation)
    pixel = np.where(brighter, factors[0], factors[2]), np.where(brighter, factors[2], factors[0])
    gray = np.where(brighter, 0, 1 - factors[2]), np.where(brighter, 1 - factors[2], 0)
    steps = []
    for side in (np.less, np.greater):                                   # before contrast, after it
        for hue_side in (np.less, np.greater):                           # before hue, after it
            for blend, where in enumerate((earlier, later)):
                here = side(where, contrast) & hue_side(where, hue)
                steps += [np.where(here, pixel[blend], 1), np.where(here, gray[blend], 0)]
        steps.append(np.where(side(hue, contrast), factors[3], 0))
    return np.stack([*steps, factors[1]], -1).astype(np.float32)
