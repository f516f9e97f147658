"""The same rows by torchvision's transforms, image by image: slow, and independent of ours, to compare with."""

from collections.abc import Sequence

import numpy as np
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as F
from torch import Tensor

from ssl_zoo.views import Augmentation, Canvases, Crops, Key, View, ViewSpec
from ssl_zoo.views.tables import COLUMNS, TRIES

Crop = tuple[int, int, int, int]   # top, left, height, width


class Twin(Augmentation):
    """The augmentation of the same rows whose views torchvision draws."""

    def cut(self, images: Sequence[Tensor], key: Key) -> Crops:
        return Crops(*draw(self.views, images, key), np.array([image.shape[-2:] for image in images]))

    def __call__(self, batch: Tensor | Canvases | Crops, key: Key) -> list[View]:
        if isinstance(batch, Tensor):
            batch = self.cut(list(batch), key)
        elif isinstance(batch, Canvases):
            batch = self.cut([image[:, :height, :width] for image, (height, width) in zip(*batch, strict=True)], key)
        return super().__call__(batch, key)


def draw(specs: Sequence[ViewSpec], images: Sequence[Tensor], key: Key) -> tuple[list[Tensor], list[np.ndarray]]:
    """Finished views of uint8 images [3, H, W] for each spec: [V, B, 3, size, size] uint8, and their tables, which say
    where the views come from and that no colour is left to change.
    """
    pixels = [torch.empty(spec.count, len(images), 3, spec.size, spec.size, dtype=torch.uint8) for spec in specs]
    tables = [np.zeros((spec.count, len(images)), COLUMNS) for spec in specs]
    seeds = np.random.SeedSequence(list(key)).generate_state(len(images))
    with torch.random.fork_rng(devices=[]):
        for i, (image, seed) in enumerate(zip(images, seeds, strict=True)):
            torch.manual_seed(int(seed))
            first: Crop | None = None
            for spec, views, table in zip(specs, pixels, tables, strict=True):
                for v in range(spec.count):
                    crop = draw_crop(spec, image, first)
                    first = first or crop
                    table["crop"][v, i] = crop
                    views[v, i] = finish(spec, image, crop, table["flips"][v, i])
    return pixels, tables


def draw_crop(spec: ViewSpec, image: Tensor, first: Crop | None) -> Crop:
    if spec.clean:
        height, width = image.shape[-2:]
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side
    for _ in range(1 + TRIES):
        crop: Crop = T.RandomResizedCrop.get_params(image, spec.scale, spec.ratio)
        if first is None or not spec.overlap or share(crop, first) >= spec.overlap:
            return crop
    assert first is not None
    return first


def share(crop: Crop, other: Crop) -> float:
    """How much of `crop` lies in `other`."""
    sides = [max(0, min(crop[i] + crop[i + 2], other[i] + other[i + 2]) - max(crop[i], other[i])) for i in (0, 1)]
    return sides[0] * sides[1] / (crop[2] * crop[3])


def finish(spec: ViewSpec, image: Tensor, crop: Crop, flips: np.ndarray) -> Tensor:
    """The view [3, size, size] of one crop; says in `flips` how it was flipped."""
    mode = F.InterpolationMode(spec.interpolation)
    view = F.resized_crop(image.expand(3, -1, -1), *crop, [spec.size, spec.size], interpolation=mode, antialias=True)
    if spec.clean:
        return view
    for i, (chance, turn) in enumerate(((spec.flip, F.horizontal_flip), (spec.vertical_flip, F.vertical_flip))):
        if torch.rand(()) < chance:
            flips[i], view = 1, turn(view)
    amounts = [amount * spec.strength for amount in (spec.brightness, spec.contrast, spec.saturation, spec.hue)]
    return T.Compose([T.RandomApply([T.ColorJitter(*amounts)], spec.jitter), T.RandomGrayscale(spec.gray),
                      T.RandomApply([T.GaussianBlur(spec.blur_kernel, spec.sigma)], spec.blur),
                      T.RandomSolarize(255 * spec.threshold, spec.solarize)])(view)
