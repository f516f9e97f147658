"""Why our own operations are not Kornia's: the time of each against Kornia's, and the largest difference of one draw.

One process, one thread, process time, medians of interleaved calls; images are random. Kornia's module changes all
images with one factor drawn for each, and ours does the same.

    python benchmarks/kornia_ops.py     about a minute
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import kornia
import kornia.augmentation as K
import numpy as np
import torch
from record import record

from ssl_zoo.views import colour
from ssl_zoo.views.crops import crop_and_resize

ROUNDS, SHORTEST = 7, 0.1   # timings of each candidate, seconds of each


def cases(images: torch.Tensor) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Ours and Kornia's for images [N, 3, S, S], with the same factors where both take any."""
    count, size, generator = len(images), images.shape[-1], np.random.default_rng(0)
    factors = torch.from_numpy(generator.uniform(0.6, 1.4, (count, 4)).astype(np.float32))
    factors[:, 3] = (factors[:, 3] - 1) / 4
    sides = torch.from_numpy(generator.integers(size // 2, size, (count, 1)).astype(np.float32))
    crops = torch.cat([torch.zeros(count, 2), sides, sides, torch.zeros(count, 2)], 1)
    sigma, kernel = torch.full((count,), 1.0), 7
    kinds = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3}
    theirs = {"brightness": K.RandomBrightness((0.6, 1.4), p=1.0), "contrast": K.RandomContrast((0.6, 1.4), p=1.0),
              "saturation": K.RandomSaturation((0.6, 1.4), p=1.0), "hue": K.RandomHue((-0.1, 0.1), p=1.0)}
    orders = np.argsort(generator.random((count, 4)), 1)

    def jitter() -> None:
        copy = images.clone()
        for order in np.unique(orders, axis=0):
            index = torch.from_numpy(np.flatnonzero((orders == order).all(1)))
            copy.index_copy_(0, index, colour.jitter_(copy[index], factors[index], order))

    found: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        name: (lambda name=name, i=i: getattr(colour, name + "_")(images.clone(), factors[:, i]),
               lambda name=name: theirs[name](images)) for name, i in kinds.items()}
    jiggle, crop = K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0), K.RandomResizedCrop((size, size), (0.25, 1.0), (1.0, 1.0))
    return found | {
        "jitter, an order for each view": (jitter, lambda: jiggle(images)),
        "gray": (lambda: colour.grayscale(images).expand_as(images), lambda: kornia.color.rgb_to_grayscale(images)),
        "blur": (lambda: colour.gaussian_blur(images, sigma, kernel),
                 lambda: kornia.filters.gaussian_blur2d(images, (kernel, kernel), sigma[:, None].expand(-1, 2))),
        "solarize": (lambda: colour.solarize(images, 0.5), lambda: kornia.enhance.solarize(images, 0.5)),
        "crop, antialiased": (lambda: crop_and_resize(images, crops[None], size, "bilinear"), lambda: crop(images)),
    }


def seconds(calls: tuple[Callable[[], Any], ...]) -> list[float]:
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(ROUNDS):
        for call, runs in zip(calls, times, strict=True):
            start, count = time.process_time(), 0
            while time.process_time() - start < SHORTEST:
                call()
                count += 1
            runs.append((time.process_time() - start) / count)
    return [statistics.median(runs) for runs in times]


def figures() -> dict[str, Any]:
    result: dict[str, Any] = {}
    for batch, size in ((128, 32), (8, 224)):
        images = torch.from_numpy(np.random.default_rng(0).random((batch, 3, size, size), dtype=np.float32))
        for name, both in cases(images).items():
            ours, theirs = seconds(both)
            result.setdefault(name, {})[f"{batch} x {size}"] = {
                "ours, microseconds per image": round(1e6 * ours / batch, 1), "times Kornia": round(theirs / ours, 2)}
        pairs = {"gray": (colour.grayscale(images), kornia.color.rgb_to_grayscale(images)),
                 "hue": (colour.hue_(images.clone(), torch.full((batch,), 0.1)),
                         kornia.enhance.adjust_hue(images, 0.1 * 2 * np.pi)),
                 "solarize": (colour.solarize(images, 0.5), kornia.enhance.solarize(images, 0.5)),
                 "blur": (colour.gaussian_blur(images, torch.ones(batch), 7),
                          kornia.filters.gaussian_blur2d(images, (7, 7), (1.0, 1.0)))}
        for name, (ours, theirs) in pairs.items():
            result[name][f"{batch} x {size}"]["largest difference, levels"] = round(
                255 * (ours - theirs).abs().max().item(), 3)
    return result


torch.set_num_threads(1)
with torch.no_grad():
    record("kornia_ops", figures())
