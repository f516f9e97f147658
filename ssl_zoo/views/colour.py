"""Colour, blur and solarise on [N, 3, H, W] float images in [0, 1], one parameter per image.

Each function equals torchvision's float function of the same name given the same parameter. One with a trailing
underscore works in place: the way of a CPU, which touches only the images that an operation changes. `jitter_all` is
the way of a GPU and of torch.compile: every image takes the same steps, and neutral ones change nothing.
"""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)   # torchvision's weights of red, green, blue


def grayscale(images: Tensor) -> Tensor:
    """[N, 1, H, W]: the luma of each pixel."""
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def brightness_(images: Tensor, factor: Tensor) -> Tensor:
    return images.mul_(per_image(factor)).clamp_(0, 1)


def contrast_(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of each image by itself."""
    means = images.mean((2, 3))
    gray = means @ means.new_tensor(LUMA) * (1 - factor)
    return images.mul_(per_image(factor)).add_(per_image(gray)).clamp_(0, 1)


def saturation_(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(grayscale(images), images, per_image(factor), out=images).clamp_(0, 1)


def hue_(images: Tensor, factor: Tensor) -> Tensor:
    """Rotate the hue of HSV by `factor` [N], in turns.

    A channel is the minimum plus the chroma times a trapezium of the hue, and the hue itself is a signed sum of the
    channels, so no HSV image is built and nothing branches (Kornia's adjust_hue takes 5 to 8 times as long, and
    `torch.where` over the three cases of the textbook twice).
    """
    red, green, blue = images.unbind(1)
    highest = torch.maximum(red, green).maximum(blue)
    lowest = torch.minimum(red, green).minimum(blue)
    chroma = highest.sub_(lowest)
    place = (red - green).sub_(blue).add_(lowest)                 # from cyan, in sixths of a turn: 3 is red; the
    place.div_(chroma.clamp_min(1e-12)).add_(2)                   # sign says on which side of the wheel
    place.copysign_(blue - green).add_(factor[:, None, None], alpha=6)
    place.sub_(torch.mul(place, 1 / 6).round_(), alpha=6)         # back into half a turn either way
    red.copy_(place).abs_().sub_(1)
    green.copy_(place).add_(1).abs_().neg_().add_(2)
    blue.copy_(place).sub_(1).abs_().neg_().add_(2)
    return images.clamp_(0, 1).mul_(chroma[:, None]).add_(lowest[:, None])


JITTER = (brightness_, contrast_, saturation_, hue_)   # in the column order of factors and orders


def jitter_(images: Tensor, factors: Tensor, order: Iterable[int]) -> Tensor:
    """torchvision's ColorJitter with each image's own factors, in one order for all.

    Args:
        factors: [N, 4] of brightness, contrast, saturation, and turns of hue.
        order: which of the four comes first, second, third, last.
    """
    for operation in order:
        JITTER[operation](images, factors[:, operation])
    return images


RGB = tuple[Tensor, Tensor, Tensor]   # [N, H, W] each
STEPS = 19                            # the columns of `jitter_all`'s steps


def jitter_all(images: Tensor, steps: Tensor) -> Tensor:
    """The jitter of every image in its own order, without a branch: one reduction and one pass when compiled.

    On either side of contrast, which alone looks at the whole image, stand up to two blends with the luma, a turn of
    hue, and two blends more; `tables.jitter_steps` says which of them are neutral.

    Args:
        images: [N, 3, H, W] in [0, 1].
        steps: [N, STEPS]: four blends (share of the pixel, share of its luma) and the turns, before and after
            contrast, and the factor of contrast.
    """
    columns = [column[:, None, None] for column in steps.unbind(1)]
    red, green, blue = images.unbind(1)
    rgb = half_chain((red, green, blue), columns[:9])
    factor = columns[18]
    mean = luma(rgb).mean((1, 2), keepdim=True) * (1 - factor)
    rgb = half_chain(each(rgb, lambda channel: (factor * channel + mean).clamp(0, 1)), columns[9:18])
    return torch.stack(rgb, 1)


def half_chain(rgb: RGB, columns: list[Tensor]) -> RGB:
    rgb = blend(blend(rgb, columns[0], columns[1]), columns[2], columns[3])
    rgb = turn(rgb, columns[8])
    return blend(blend(rgb, columns[4], columns[5]), columns[6], columns[7])


def blend(rgb: RGB, pixel: Tensor, gray: Tensor) -> RGB:
    added = gray * luma(rgb)
    return each(rgb, lambda channel: (pixel * channel + added).clamp(0, 1))


def luma(rgb: RGB) -> Tensor:
    return LUMA[0] * rgb[0] + LUMA[1] * rgb[1] + LUMA[2] * rgb[2]


def turn(rgb: RGB, turns: Tensor) -> RGB:
    """As `hue_`, in a form that a compiler fuses."""
    red, green, blue = rgb
    lowest = red.minimum(green).minimum(blue)
    chroma = red.maximum(green).maximum(blue) - lowest
    place = (red - green - blue + lowest) / chroma.clamp_min(1e-12) + 2
    place = place.copysign(blue - green) + 6 * turns
    place = place - 6 * (place * (1 / 6)).round()
    return each((place.abs() - 1, 2 - (place + 1).abs(), 2 - (place - 1).abs()),
                lambda share: lowest + chroma * share.clamp(0, 1))


def each(rgb: RGB, change: Callable[[Tensor], Tensor]) -> RGB:
    return change(rgb[0]), change(rgb[1]), change(rgb[2])


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Blur with each image's own `sigma` [N] in pixels, `kernel` (odd) pixels wide, mirrored at the border.

    Two matrix products for each image: at 32 pixels a third of the time of Kornia's grouped convolution, at 224 as fast
    on one core. A sigma of 0 changes nothing. `dtype` is that of the products' operands.
    """
    matrices = blur_matrices(sigma, images.shape[-2], kernel).to(dtype), blur_matrices(sigma, images.shape[-1], kernel)
    n, channels, height, width = images.shape
    rows = images.to(dtype).transpose(1, 2).reshape(n, height, channels * width)
    rows = torch.bmm(matrices[0], rows).view(n, height * channels, width)
    rows = torch.bmm(rows, matrices[1].to(dtype).transpose(1, 2))
    return rows.view(n, height, channels, width).transpose(1, 2).float().contiguous()


def blur_matrices(sigma: Tensor, size: int, kernel: int) -> Tensor:
    """[N, size, size]: row i holds the weights of the pixels that pixel i becomes, rows that sum to 1."""
    radius = kernel // 2
    distance = torch.arange(radius + 1, device=sigma.device)
    # e^-60 is nothing beside 1 and keeps clear of denormal numbers, on which a CPU is slow
    weights = (-0.5 * (distance / sigma.clamp_min(1e-3)[:, None]).square()).clamp_min(-60).exp()       # [N, radius + 1]
    weights = weights / (2 * weights.sum(1, keepdim=True) - weights[:, :1])
    return (weights @ taps(size, radius, sigma.device)).view(-1, size, size)


@torch.compiler.assume_constant_result   # it would trace through the cache, and say so
def taps(size: int, radius: int, device: torch.device) -> Tensor:
    return mirrored_taps(size, radius, device)


@functools.lru_cache(maxsize=16)
def mirrored_taps(size: int, radius: int, device: torch.device) -> Tensor:
    """[radius + 1, size * size]: how often pixel j stands at each distance from pixel i, mirrored at the border."""
    pixel, offset = torch.arange(size, device=device), torch.arange(-radius, radius + 1, device=device)
    place = (pixel[:, None] + offset).abs()                                       # [size, 2 * radius + 1]
    place = torch.where(place >= size, 2 * (size - 1) - place, place)
    taps = torch.zeros(radius + 1, size, size, device=device)
    return taps.index_put_((offset.abs().expand_as(place), pixel[:, None].expand_as(place), place),
                           torch.ones((), device=device), accumulate=True).flatten(1)


def solarize(images: Tensor, threshold: float) -> Tensor:
    return torch.where(images >= threshold, 1 - images, images)


def per_image(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1, 1)
