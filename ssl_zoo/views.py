"""Views as data: a `ViewSpec` says how a view is drawn, a table what was drawn, a `View` what came out and from where.

One table of numbers per batch is drawn on the host from (seed, epoch, batch, rank); everything after it is a pure
function of images and table. So a resumed run draws what the uninterrupted one would have, a GPU draws what a CPU
draws, and a crop may be cut on the device or by a data loader's worker.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo import geometry, photometric


@dataclass(frozen=True)
class ViewSpec:
    """A distribution over views of one image; the operations run in the order in which they stand here.

    Args:
        size: side of the view, pixels.
        count: how many views to draw from this distribution.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's width over its height, drawn evenly in the logarithm.
        interpolation: of the resize, always with antialias.
        flip: probability of changing left and right.
        jitter: probability of changing brightness, contrast, saturation and hue, in an order drawn for each view.
        strength: multiplies the four ranges below; the s of SimCLR, arXiv:2002.05709, app. A.
        brightness: factor between 1 - this * strength (not below 0) and 1 + this * strength.
        contrast: as brightness.
        saturation: as brightness.
        hue: shift of up to this * strength turns either way; at most half a turn.
        gray: probability of dropping the colour.
        blur: probability of a Gaussian blur.
        sigma: range of the blur's standard deviation, pixels.
        kernel: width of the blur, odd, pixels. Left out, a tenth of the side as SimCLR has it, but at most three sigma
            either way, beyond which it adds nothing.
        solarize: probability of inverting all pixels from `threshold` on.
        threshold: share of full brightness.
    """

    size: int
    count: int = 1
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    flip: float = 0.5
    jitter: float = 0.0
    strength: float = 1.0
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    gray: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    kernel: int | None = None
    solarize: float = 0.0
    threshold: float = 128 / 255

    def __post_init__(self) -> None:
        def check(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise ValueError(f"a view's {name} must be {rule}, not {getattr(self, name)}")

        for name in ("size", "count"):
            check(isinstance(getattr(self, name), int), name, "a whole number")
            check(getattr(self, name) >= 1, name, "at least 1")
        check(self.interpolation in geometry.KERNELS, "interpolation", f"one of {', '.join(geometry.KERNELS)}")
        for name in ("flip", "jitter", "gray", "blur", "solarize", "threshold"):
            check(0 <= getattr(self, name) <= 1, name, "between 0 and 1")
        for name in ("strength", "brightness", "contrast", "saturation", "hue"):
            check(getattr(self, name) >= 0, name, "at least 0")
        check(self.hue * self.strength <= 0.5, "hue", f"at most half a turn with strength {self.strength}")
        check(0 < self.scale[0] <= self.scale[1] <= 1, "scale", "two rising shares of the image's area in (0, 1]")
        check(0 < self.ratio[0] <= self.ratio[1], "ratio", "two rising numbers above 0")
        check(0 < self.sigma[0] <= self.sigma[1], "sigma", "two rising numbers of pixels above 0")
        check(self.kernel is None or (self.kernel % 2 == 1 and 0 <= self.kernel // 2 < self.size), "kernel",
              "an odd number of pixels that the view can hold")

    @property
    def blur_kernel(self) -> int:
        """Pixels. Beyond three standard deviations a kernel adds nothing (0.002 of 255 on average, measured)."""
        return self.kernel or min(self.size // 10 | 1, 2 * math.ceil(3 * self.sigma[1]) + 1)


class View(NamedTuple):
    """One view of each image of a batch, with the geometry that made it."""

    images: Tensor    # [B, 3, size, size] float32 in [0, 1]
    boxes: Tensor     # [B, 4] left, top, right, bottom as shares of the source image
    flipped: Tensor   # [B] bool


class Crops(NamedTuple):
    """A batch whose crops a data loader's worker has cut, with the tables that say where and what comes next."""

    pixels: list[Tensor]          # for each spec [V, B, 3, size, size] uint8, resized and flipped
    tables: list[np.ndarray]      # for each spec [V, B, COLUMNS]; arrays, so that they stay on the host
    sizes: np.ndarray             # [B, 2] height and width of the source images, pixels


class Key(NamedTuple):
    """What the draws of a batch depend on, and all that they depend on."""

    seed: int
    epoch: int
    batch: int
    rank: int


class Column(IntEnum):
    """The columns of a table [V, B, COLUMNS] float32: one row for each view of each image."""

    TOP, LEFT, HEIGHT, WIDTH = 0, 1, 2, 3   # pixels of the source
    FLIPPED = 4                             # 0 or 1
    JITTERED = 5                            # 0 or 1
    BRIGHTNESS, CONTRAST, SATURATION = 6, 7, 8
    HUE = 9                                 # turns
    ORDER = 10                              # to 13: which of the four above comes first, second, third, last
    GRAY = 14                               # 0 or 1
    SIGMA = 15                              # pixels; 0 for no blur
    SOLARIZED = 16                          # 0 or 1


COLUMNS = 17
TRIES = 10                                  # torchvision's: then the largest centred crop


def draw(spec: ViewSpec, sizes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A table [spec.count, B, COLUMNS] for images of `sizes` [B, 2] (height, width in pixels).

    The crop is torchvision's RandomResizedCrop, the jitter its ColorJitter with one order for each view.
    """
    u = generator.random((spec.count, len(sizes), 36), dtype=np.float32)      # as many whatever is drawn from them
    table = np.zeros((spec.count, len(sizes), COLUMNS), dtype=np.float32)
    table[..., :4] = draw_crops(spec, sizes, u[..., :22])
    table[..., Column.FLIPPED] = u[..., 22] < spec.flip
    table[..., Column.JITTERED] = u[..., 23] < spec.jitter
    for column, amount in zip((Column.BRIGHTNESS, Column.CONTRAST, Column.SATURATION),
                              (spec.brightness, spec.contrast, spec.saturation), strict=True):
        lowest, highest = max(0.0, 1 - amount * spec.strength), 1 + amount * spec.strength
        table[..., column] = lowest + (highest - lowest) * u[..., 18 + column]
    table[..., Column.HUE] = (2 * u[..., 27] - 1) * spec.hue * spec.strength
    table[..., Column.ORDER:Column.ORDER + 4] = u[..., 28:32].argsort(-1)
    table[..., Column.GRAY] = u[..., 32] < spec.gray
    sigma = spec.sigma[0] + (spec.sigma[1] - spec.sigma[0]) * u[..., 33]
    table[..., Column.SIGMA] = np.where(u[..., 34] < spec.blur, sigma, 0)
    table[..., Column.SOLARIZED] = u[..., 35] < spec.solarize
    return table


def draw_crops(spec: ViewSpec, sizes: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Crops [V, B, 4] as top, left, height, width in pixels, from even random numbers [V, B, 2 * TRIES + 2]."""
    rows, columns = sizes[:, 0].astype(np.float32), sizes[:, 1].astype(np.float32)     # [B]
    area = (rows * columns)[:, None] * (spec.scale[0] + (spec.scale[1] - spec.scale[0]) * u[..., :TRIES])
    low, high = math.log(spec.ratio[0]), math.log(spec.ratio[1])
    ratio = np.exp(low + (high - low) * u[..., TRIES:2 * TRIES])                       # [V, B, TRIES]
    width, height = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (width >= 1) & (width <= columns[:, None]) & (height >= 1) & (height <= rows[:, None])
    first = fits.argmax(-1, keepdims=True)
    width, height = (np.take_along_axis(side, first, -1)[..., 0] for side in (width, height))
    top = np.floor(u[..., -2] * (rows - height + 1))
    left = np.floor(u[..., -1] * (columns - width + 1))
    drawn = np.stack([top, left, height, width], -1)

    widest = np.where(columns > rows * spec.ratio[1], np.round(rows * spec.ratio[1]), columns)
    tallest = np.where(columns < rows * spec.ratio[0], np.round(columns / spec.ratio[0]), rows)
    widest, tallest = np.maximum(widest, 1), np.maximum(tallest, 1)      # torchvision fails on a thin image here
    centred = np.stack([(rows - tallest) // 2, (columns - widest) // 2, tallest, widest], -1)      # [B, 4]
    return np.where(fits.any(-1, keepdims=True), drawn, centred)


def cut(image: Tensor, row: np.ndarray, spec: ViewSpec) -> Tensor:
    """One crop [3, size, size] of one uint8 image [3, H, W], as a worker cuts it: torch's native antialiased resize."""
    top, left, height, width, flipped = row[:5].astype(int)
    crop = image.expand(3, -1, -1)[None, :, top:top + height, left:left + width]
    crop = crop.contiguous(memory_format=torch.channels_last)                         # the native kernel's layout
    crop = F.interpolate(crop, (spec.size, spec.size), mode=spec.interpolation, antialias=True)[0]
    return crop.flip(-1) if flipped else crop


def colour(crops: Tensor, table: np.ndarray, spec: ViewSpec) -> Tensor:
    """Jitter, gray, blur and solarise `crops` [V, B, 3, S, S] in place; only rows that change are read."""
    crops = crops.flatten(0, 1)
    rows = torch.from_numpy(table).flatten(0, 1)                                      # [V * B, COLUMNS], on the host
    jittered, gray, blurred, solarized = (torch.nonzero(rows[:, column])[:, 0] for column in (
        Column.JITTERED, Column.GRAY, Column.SIGMA, Column.SOLARIZED))
    if len(jittered):
        drawn = rows[jittered]
        photometric.change_rows(crops, jittered, lambda x: photometric.jitter(
            x, drawn[:, Column.BRIGHTNESS:Column.HUE + 1], drawn[:, Column.ORDER:Column.ORDER + 4]))
    if len(gray):
        photometric.change_rows(crops, gray, lambda x: photometric.grayscale(x).expand_as(x))
    if len(blurred):
        sigma = rows[blurred, Column.SIGMA]
        photometric.change_rows(crops, blurred, lambda x: photometric.gaussian_blur(x, sigma, spec.blur_kernel))
    if len(solarized):
        photometric.change_rows(crops, solarized, lambda x: photometric.solarize(x, spec.threshold))
    return crops.unflatten(0, table.shape[:2])


class Augmentation:
    """Draws `count` views of every image of a batch, on the device where the batch is.

    Args:
        views: the distributions to draw from, in the order in which the method sees them.
    """

    def __init__(self, views: Sequence[ViewSpec]):
        if not views:
            raise ValueError("an augmentation needs at least one row of views")
        self.views = tuple(views)

    @property
    def count(self) -> int:
        """How many views of each image come out."""
        return sum(spec.count for spec in self.views)

    def draw(self, sizes: np.ndarray, key: Key) -> list[np.ndarray]:
        """The tables of a batch of images of `sizes` [B, 2], one for each row of views."""
        generator = np.random.default_rng(list(key))
        return [draw(spec, sizes, generator) for spec in self.views]

    def cut(self, images: Sequence[Tensor], key: Key) -> Crops:
        """Crops of uint8 images [3, H, W] of any sizes: a worker's part of the work."""
        if not images or any(image.dtype != torch.uint8 for image in images):
            raise ValueError("a worker cuts crops from at least one image, of uint8 pixels")
        for image in images:
            check_images(image[None])
        sizes = np.array([image.shape[-2:] for image in images])
        tables = self.draw(sizes, key)
        pixels = [torch.stack([torch.stack([cut(image, row, spec) for image, row in zip(images, rows, strict=True)])
                               for rows in table]) for spec, table in zip(self.views, tables, strict=True)]
        return Crops(pixels, tables, sizes)

    @torch.no_grad()
    def __call__(self, batch: Tensor | Crops, key: Key) -> list[View]:
        """Views of `batch`: images [B, 3, H, W] (uint8, or float in [0, 1]), or what `cut` made of them."""
        if isinstance(batch, Crops):
            return [view for pixels, table, spec in zip(batch.pixels, batch.tables, self.views, strict=True)
                    for view in finish(pixels / 255, table, batch.sizes, spec)]
        check_images(batch)
        images = batch.expand(-1, 3, -1, -1)
        sizes = np.array([images.shape[-2:]] * len(images))
        with torch.autocast(images.device.type, enabled=False):   # bfloat16 has half as many levels as a pixel
            return [view for table, spec in zip(self.draw(sizes, key), self.views, strict=True)
                    for view in finish(crop(images, table, spec), table, sizes, spec)]


def check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(f"views are drawn from images [B, 3, H, W] or [B, 1, H, W], not from {list(images.shape)}; "
                         "keep three channels and at least one image of at least one pixel")
    if images.dtype == torch.uint8:
        return
    lowest, highest = images.amin().item(), images.amax().item()   # waits for a GPU; but loaders send uint8
    if images.dtype != torch.float32 or lowest < 0 or highest > 1:
        raise ValueError(f"views are drawn from uint8 images or float32 ones in [0, 1], not from {images.dtype} from "
                         f"{lowest:.4g} to {highest:.4g}; divide by the largest value that a pixel can have")


def crop(images: Tensor, table: np.ndarray, spec: ViewSpec) -> Tensor:
    """Crops [V, B, 3, size, size] in [0, 1] of images of one size, on their device."""
    places = torch.from_numpy(table[..., :Column.FLIPPED + 1]).to(images.device, non_blocking=True)
    top, left, height, width, flipped = places.unbind(-1)                             # [V, B] each
    return geometry.crop_and_resize(images, top, left, height, width, flipped, spec.size, spec.interpolation)


def finish(crops: Tensor, table: np.ndarray, sizes: np.ndarray, spec: ViewSpec) -> list[View]:
    """The views of float `crops` [V, B, 3, size, size]: coloured, and each with its place in the source."""
    rows, columns = sizes[:, 0], sizes[:, 1]
    top, left, height, width = np.moveaxis(table[..., :4], -1, 0)
    boxes = np.stack([left / columns, top / rows, (left + width) / columns, (top + height) / rows], -1)
    boxes_there = torch.from_numpy(boxes.astype(np.float32)).to(crops.device, non_blocking=True)
    flipped = torch.from_numpy(table[..., Column.FLIPPED] > 0).to(crops.device, non_blocking=True)
    return [View(*view) for view in zip(colour(crops, table, spec), boxes_there, flipped, strict=True)]
