"""Crops from files: how far an image may be reduced while it is decoded, and cutting a crop from what came out.

A photograph of 12 megapixels holds far more pixels than its views. JPEG files can be decoded at a half, a quarter or an
eighth of their size for a fraction of the time. What is drawn for a batch depends on the sizes in the files' headers
alone, so it is known how many pixels the crops of an image need before the image is decoded.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ssl_zoo.distributed import Key
from ssl_zoo.views.specs import ViewSpec
from ssl_zoo.views.tables import draw_rows

FACTORS = (8, 4, 2)   # by which a JPEG file can be reduced while it is decoded
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Scaled(NamedTuple):
    """An image that was reduced while it was decoded."""

    pixels: Tensor          # [C, h, w] uint8; the last row and column may reach beyond the image's edge
    size: tuple[int, int]   # height and width of the image in its file, pixels
    factor: int             # pixels of the image in a pixel of these, along a side


class Reduction:
    """How far each image of a batch may be reduced before its crops are cut.

    Args:
        views: the rows of the recipe.
        key: the batch.
        images: in the batch.
    """

    def __init__(self, views: Sequence[ViewSpec], key: Key, images: int):
        self.views, self.largest = views, max(spec.size for spec in views)
        self.numbers = Numbers(key, images)

    def factor(self, place: int, height: int, width: int) -> int:
        """The largest factor that leaves each crop at least the pixels of its view; 1 where there is none.

        Args:
            place: of the image in the batch.
            height: of the image, pixels.
            width: of the image, pixels.
        """
        if min(height, width) < min(FACTORS) * self.largest:   # most images: nothing has to be drawn
            return 1
        tables = draw_rows(self.views, np.array([[height, width]]), self.numbers.of(place))
        room = min(table["crop"][..., 2:].min() / spec.size for table, spec in zip(tables, self.views, strict=True))
        return next((factor for factor in FACTORS if factor <= room), 1)


class Numbers:
    """A batch's random numbers for one image at a time, which none of them depends on."""

    def __init__(self, key: Key, images: int):
        self.generator, self.images = np.random.default_rng(list(key)), images
        self.drawn: list[np.ndarray] = []
        self.place = self.next = 0

    def of(self, place: int) -> Any:
        """This, from the first number of an image on; it answers as the batch's generator."""
        self.place, self.next = place, 0
        return self

    def random(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """[..., 1, n] of the image, where the generator would give [..., B, n]."""
        if self.next == len(self.drawn):
            self.drawn.append(self.generator.random((*shape[:-2], self.images, shape[-1]), dtype=dtype))
        self.next += 1
        return self.drawn[self.next - 1][..., self.place:self.place + 1, :]


def cut_batch(images: Sequence[Tensor | Scaled], table: np.ndarray, spec: ViewSpec) -> Tensor:
    """The crops [V, B, C, size, size] of a batch, by a table [V, B]; each is copied once, to its place."""
    first = images[0].pixels if isinstance(images[0], Scaled) else images[0]
    crops = torch.empty(*table.shape, first.shape[0], spec.size, spec.size, dtype=torch.uint8)
    for view, entries in zip(crops, table, strict=True):
        for place, image, entry in zip(view, images, entries, strict=True):
            place.copy_(cut(image, entry, spec))
    return crops


def cut(image: Tensor | Scaled, entry: np.void, spec: ViewSpec) -> Tensor:
    """Cut one crop [C, size, size] from one uint8 image [C, H, W], by torch's own antialiased resize.

    Args:
        image: [C, H, W] uint8, or a reduced one.
        entry: of a table, with the columns of `tables.COLUMNS`.
        spec: the row of the recipe.
    """
    flipped, vertically = entry["flips"].astype(int)
    if isinstance(image, Scaled):
        crop = cut_scaled(image, entry, spec)
    else:
        top, left, height, width = entry["crop"].astype(int)
        crop = image[None, :, top:top + height, left:left + width]
        crop = crop.contiguous(memory_format=torch.channels_last)                     # the fast kernel's layout
        crop = F.interpolate(crop, (spec.size, spec.size), mode=spec.interpolation, antialias=True)[0]
    return crop.flip([-1] * flipped + [-2] * vertically) if flipped or vertically else crop


def cut_scaled(image: Scaled, entry: np.void, spec: ViewSpec) -> Tensor:
    """The crop [C, size, size] of a reduced image, where a crop may begin within a pixel: PIL's resize takes such."""
    top, left, height, width = (entry["crop"] / image.factor).tolist()
    above, before = int(top), int(left)
    region = image.pixels[:, above:math.ceil(top + height), before:math.ceil(left + width)].permute(1, 2, 0)
    pixels = region.contiguous().numpy()
    crop = Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0]).resize(
        (spec.size, spec.size), RESAMPLING[spec.interpolation],
        (left - before, top - above, left - before + width, top - above + height))
    return torch.from_numpy(np.atleast_3d(np.array(crop))).permute(2, 0, 1)
