"""The operations that change a view's pixels after its crop: which random numbers they draw, and what they do.

Each operation is one class, and its options are fields of `ViewSpec`. To add one:

1. in specs.py, give `ViewSpec` a field for its probability and for each other option, explain them under `Args`, and
   let `__post_init__` refuse values that make no sense;
2. here, write its class and put an instance into OPERATIONS at the place where it runs.

Nothing else names an operation: tables, both ways of rendering, workers, previews and recipes take them from
OPERATIONS. Recipes that do not use the new one go on to give the same views.

On a CPU, each operation gets only the views that it changes, a few at a time, so that they stay in the cache (`groups`
and `change`). On a GPU or compiled, `change_all` gets all views of a row and must leave alone those to which the
operation does not apply: to pick some views there would take a gather, and the host would have to wait for the device.

The comparisons with Kornia below are from benchmarks/results/kornia_ops.json, at 32 and at 224 pixels on one core.
"""

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.views import colour
from ssl_zoo.views.specs import ViewSpec


class Operation:
    """A change of pixels with random numbers of each view's own."""

    name: ClassVar[str]          # of its probability in ViewSpec, and of its columns in a table
    even: ClassVar[np.dtype]     # its uniform random numbers in [0, 1), all float32
    columns: ClassVar[np.dtype]  # its columns in a table, all float32; the first is 0 where nothing changes

    def chance(self, spec: ViewSpec) -> float:
        """The probability that the operation changes a view; at 0, the row's views skip it."""
        return getattr(spec, self.name)

    def of_colours(self, spec: ViewSpec) -> list[str]:
        """The options of a row that mean red, green and blue, and are not 0."""
        return []

    def draw(self, spec: ViewSpec, even: np.ndarray, columns: np.ndarray) -> None:
        """Fill `columns` [V, B] of a table from the uniform random numbers `even` [V, B]."""
        raise NotImplementedError

    def groups(self, columns: np.ndarray) -> Iterable[np.ndarray]:
        """Group the indices of the views to change, given their `columns` [N]; `change` gets one group at a time."""
        return [np.flatnonzero(flat(columns)[:, 0])]

    def change(self, images: Tensor, columns: np.ndarray, spec: ViewSpec) -> Tensor:
        """Change images [N, C, S, S] of one group, given their `columns` [N]. You may overwrite `images`."""
        raise NotImplementedError

    def numbers(self, columns: np.ndarray) -> np.ndarray:
        """Write `columns` [V, B] as the numbers [V, B, numbers] float32 that `change_all` needs."""
        return flat(columns)

    def change_all(self, images: Tensor, numbers: Tensor, spec: ViewSpec) -> Tensor:
        """Change images [N, C, S, S] where `numbers` [N, numbers] say so, in a form that torch.compile can trace."""
        raise NotImplementedError


class Jitter(Operation):
    """Change brightness, contrast, saturation and hue as torchvision's ColorJitter, in an order of each view's own.

    Kornia's draws one order for the whole batch and takes 1.3 to 4.6 times as long (hue alone: 10 times).
    """

    name = "jitter"
    even = np.dtype([("applied", "f4"), ("brightness", "f4"), ("contrast", "f4"), ("saturation", "f4"), ("hue", "f4"),
                     ("order", "f4", 4)])
    # factors of brightness, contrast and saturation, and turns of hue; order: which of the four is first, second, …
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
        """Group the views by their order, of which there are 24."""
        code = np.where(columns["applied"] > 0, columns["order"].astype(int) @ (64, 16, 4, 1), -1)
        return [np.flatnonzero(code == one) for one in np.unique(code[code >= 0])]

    def change(self, images: Tensor, columns: np.ndarray, spec: ViewSpec) -> Tensor:
        return colour.jitter_(images, torch.from_numpy(columns["factors"]), columns["order"][0].astype(int))

    def of_colours(self, spec: ViewSpec) -> list[str]:
        return [name for name in ("saturation", "hue") if spec.jitter and getattr(spec, name) * spec.strength]

    def numbers(self, columns: np.ndarray) -> np.ndarray:
        return jitter_steps(columns)

    def change_all(self, images: Tensor, numbers: Tensor, spec: ViewSpec) -> Tensor:
        return colour.jitter_all(images, numbers)


class Gray(Operation):
    """Drop the colour. Kornia's gives the same to 0.03 of a gray level and takes twice as long."""

    def of_colours(self, spec: ViewSpec) -> list[str]:
        return ["gray"] if spec.gray else []

    name = "gray"
    even = columns = np.dtype([("applied", "f4")])

    def draw(self, spec: ViewSpec, even: np.ndarray, columns: np.ndarray) -> None:
        columns["applied"] = even["applied"] < spec.gray

    def change(self, images: Tensor, columns: np.ndarray, spec: ViewSpec) -> Tensor:
        return colour.grayscale(images).expand_as(images)

    def change_all(self, images: Tensor, numbers: Tensor, spec: ViewSpec) -> Tensor:
        return torch.where(colour.per_image(numbers) > 0, colour.grayscale(images), images)


class Blur(Operation):
    """Blur with a Gaussian whose standard deviation is drawn for each view.

    Kornia's gives the same and takes 0.75 to 1.0 of our time on a CPU; ours compiles together with the other operations
    and uses a GPU's tensor cores.
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
    """Invert all values that are at least the threshold. Kornia's gives the same in the same time; ours is one line."""

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
    """The operations that may change a row's views, in the order in which they run."""
    return [operation for operation in OPERATIONS if operation.chance(spec)]


def require_channels(spec: ViewSpec, channels: int) -> None:
    """Raise a ValueError that names the options of a row which images of so many channels cannot have."""
    wrong = [name for operation in of(spec) for name in operation.of_colours(spec)]
    if channels != 3 and wrong:
        raise ValueError(f"{' and '.join(wrong)} mean{'s' * (len(wrong) == 1)} red, green and blue; the images have "
                         f"{channels} channel{'s' * (channels > 1)}: set {', '.join(f'{name}: 0' for name in wrong)} "
                         "in the rows of views; brightness, contrast, blur and solarize take any number")


def flat(columns: np.ndarray) -> np.ndarray:
    """Named float32 columns [...] as plain numbers [..., count]."""
    return np.ascontiguousarray(columns).view(np.float32).reshape(*columns.shape, -1)


def jitter_steps(columns: np.ndarray) -> np.ndarray:
    """Write the jitter of each view as the steps of `colour.jitter_all`.

    A GPU runs one program for all views, but their orders differ. So each order is written as one fixed chain, in which
    the steps that a view does not need are neutral: two blends, hue, two blends, contrast, then once more two blends,
    hue, two blends. Brightness is the blend (factor, 0) of a pixel with its luma, saturation (factor, 1 - factor). The
    earlier of the two takes the first blend of its place and the later one the second, so that they keep their order
    where both stand in one place. All other blends are (1, 0), and hue turns by 0 on the other side of contrast.

    Args:
        columns: [V, B] of a table, with the columns of Jitter.

    Returns:
        [V, B, colour.STEPS] float32.
    """
    place = columns["order"].argsort(-1)                                 # each of the four's place in the order
    brightness, contrast, saturation, hue = np.moveaxis(place, -1, 0)
    jittered = columns["applied"] > 0
    factors = [np.where(jittered, columns["factors"][..., i], neutral) for i, neutral in enumerate((1, 1, 1, 0))]
    brighter = brightness < saturation                                   # whether brightness is the earlier blend
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
