"""Colour, blur and solarise on [N, 3, H, W] float images in [0, 1], one parameter per image.

Each function equals torchvision's float function of the same name given the same parameter.
"""

import functools
from collections.abc import Callable

import torch
from kornia.filters import gaussian_blur2d  # per-image sigma, exact, and as fast as our own convolution was
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)   # torchvision's weights of red, green, blue


def grayscale(images: Tensor) -> Tensor:
    """[N, 1, H, W]: the luma of each pixel."""
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * per_image(factor)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of each image by itself."""
    red, green, blue = images.mean((2, 3)).unbind(1)
    luma = per_image(LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)
    return (images * per_image(factor)).add_(luma * (1 - per_image(factor))).clamp_(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    gray = grayscale(images).mul_(1 - per_image(factor))
    return (images * per_image(factor)).add_(gray).clamp_(0, 1)


def hue(images: Tensor, factor: Tensor) -> Tensor:
    """Rotate the hue of HSV by `factor` [N], in turns.

    Closed form: a channel is the minimum plus the chroma times a trapezium of the hue, so no HSV image is built
    (Kornia's adjust_hue builds one and took 5 to 8 times as long).
    """
    red, green, blue = images.unbind(1)
    result = torch.empty_like(images)
    r, g, b = result.unbind(1)
    highest = torch.maximum(red, green)
    torch.maximum(highest, blue, out=highest)
    lowest = torch.minimum(red, green)
    torch.minimum(lowest, blue, out=lowest)
    chroma = highest - lowest
    scale = chroma.clamp_min(1e-12).reciprocal_()                # a gray pixel has no chroma and any hue
    torch.sub(green, blue, out=r).mul_(scale)                    # sixths of a turn, where red is highest
    torch.sub(blue, red, out=g).mul_(scale).add_(2)              # ... green
    torch.sub(red, green, out=b).mul_(scale).add_(4)             # ... blue
    h = torch.where(highest == red, r, torch.where(highest == green, g, b))
    h.add_(factor[:, None, None], alpha=6)
    h.sub_(torch.mul(h, 1 / 6, out=scale).floor_(), alpha=6)     # back into [0, 6)
    torch.sub(h, 3, out=r).abs_().sub_(1).clamp_(0, 1)
    torch.sub(h, 2, out=g).abs_().neg_().add_(2).clamp_(0, 1)
    torch.sub(h, 4, out=b).abs_().neg_().add_(2).clamp_(0, 1)
    return result.mul_(chroma[:, None]).add_(lowest[:, None])


JITTER = (brightness, contrast, saturation, hue)   # in the column order of factors and orders


def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """torchvision's ColorJitter with each image's own factors and each image's own order; works in place.

    Args:
        images: [N, 3, H, W] in [0, 1]; overwritten.
        factors: [N, 4] on the host: of brightness, contrast, saturation, and turns of hue.
        order: [N, 4] on the host: `order[i, k]` is the operation that image i undergoes k-th.
    """
    for step in range(4):
        for operation, change in enumerate(JITTER):
            rows = torch.nonzero(order[:, step] == operation)[:, 0]
            if len(rows):
                factor = factors[rows, operation].to(images.device, non_blocking=True)
                change_rows(images, rows, functools.partial(change, factor=factor))
    return images


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur with each image's own `sigma` [N] in pixels, `kernel` (odd) pixels wide, mirrored at the border.

    `sigma` stays on the host: Kornia looks at its values, which would wait for a GPU.
    """
    size = 16 if images.device.type == "cpu" else len(images)   # 16 images stay in a core's cache
    return torch.cat([gaussian_blur2d(x, (kernel, kernel), s[:, None].expand(-1, 2))
                      for x, s in zip(images.split(size), sigma.split(size), strict=True)])


def solarize(images: Tensor, threshold: float) -> Tensor:
    return torch.where(images >= threshold, 1 - images, images)


def per_image(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1, 1)


def change_rows(images: Tensor, rows: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Replace the images at `rows` (on the host) by `change` of them."""
    rows = rows.to(images.device, non_blocking=True)
    images.index_copy_(0, rows, change(images.index_select(0, rows)))
