"""Colour, blur and solarise for float images [N, C, H, W] in [0, 1], with one parameter for each image.

What needs three channels, red, green and blue, says [N, 3, H, W]; brightness, contrast, blur and solarise take any.

Each function gives what torchvision's function of the same name gives on float images with the same parameter. A name
with a trailing underscore overwrites its images; a CPU calls these on the images that an operation changes and leaves
the others alone. On a GPU or under torch.compile, `jitter_all` takes every image through the same steps, and those that
an image does not need are neutral.
"""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)   # torchvision's weights of red, green, blue


def grayscale(images: Tensor) -> Tensor:
    """The luma [N, 1, H, W] of images [N, 3, H, W]."""
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def brightness_(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply each image by its `factor` [N]; 1 changes nothing."""
    return images.mul_(per_image(factor)).clamp_(0, 1)


def contrast_(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its own mean luma; a `factor` [N] of 0 gives plain gray, 1 changes nothing.

    The luma of other than three channels is their mean.
    """
    means = images.mean((2, 3))
    gray = (means @ means.new_tensor(LUMA) if means.shape[1] == 3 else means.mean(1)) * (1 - factor)
    return images.mul_(per_image(factor)).add_(per_image(gray)).clamp_(0, 1)


def saturation_(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each pixel with its luma; a `factor` [N] of 0 drops the colour, 1 changes nothing."""
    return torch.lerp(grayscale(images), images, per_image(factor), out=images).clamp_(0, 1)


def hue_(images: Tensor, factor: Tensor) -> Tensor:
    """Rotate the hue of HSV by `factor` [N], in turns, within half a turn either way.

    A rotation keeps a pixel's lowest channel and its chroma (highest minus lowest), so only its place on the colour
    wheel has to be found, moved, and turned back into channels; no HSV image is built. Here a place is counted in
    sixths of a turn from cyan: 1 is blue, 2 magenta, 3 and -3 red, -2 yellow, -1 green.

    From channels to a place: the textbook has three cases, one for each highest channel, and `torch.where` computes all
    of them. But the distance from cyan is 2 + (red - green - blue + lowest) / chroma in every case. With red highest,
    `lowest` is green or blue and cancels it, which leaves 2 to 3; red in the middle gives 1 to 2, red lowest 0 to 1.
    The sign of blue - green tells the two sides of the wheel apart, so one signed sum replaces the cases.

    From a place to channels: each channel is `lowest` plus chroma times a trapezium over the wheel. It is 1 up to a
    sixth of a turn from the channel's own colour, 0 up to a sixth from the opposite one, and a straight line in
    between. A straight line clamped to 0 and 1 says just that, without choosing among the six sectors.

    Kornia's adjust_hue takes 5 to 8 times as long, `torch.where` over the three cases twice as long.
    """
    red, green, blue = images.unbind(1)
    highest = torch.maximum(red, green).maximum(blue)
    lowest = torch.minimum(red, green).minimum(blue)
    chroma = highest.sub_(lowest)
    place = (red - green).sub_(blue).add_(lowest)                 # [N, H, W]
    place.div_(chroma.clamp_min(1e-12)).add_(2)                   # a gray pixel may stand anywhere: its chroma is 0
    place.copysign_(blue - green).add_(factor[:, None, None], alpha=6)
    place.sub_(torch.mul(place, 1 / 6).round_(), alpha=6)         # back into -3 to 3
    red.copy_(place).abs_().sub_(1)
    green.copy_(place).add_(1).abs_().neg_().add_(2)
    blue.copy_(place).sub_(1).abs_().neg_().add_(2)
    return images.clamp_(0, 1).mul_(chroma[:, None]).add_(lowest[:, None])


JITTER = (brightness_, contrast_, saturation_, hue_)   # in the order of the columns of `factors`


def jitter_(images: Tensor, factors: Tensor, order: Iterable[int]) -> Tensor:
    """Apply torchvision's ColorJitter with factors of each image's own, in one order for all images.

    Args:
        images: [N, C, H, W] in [0, 1], overwritten; saturation and hue leave other than three channels alone.
        factors: [N, 4]: the factors of brightness, contrast and saturation, and the turns of hue.
        order: the places in JITTER of the operation that comes first, second, third and last.
    """
    for operation in order:
        if images.shape[1] == 3 or JITTER[operation] in (brightness_, contrast_):
            JITTER[operation](images, factors[:, operation])
    return images


RGB = tuple[Tensor, Tensor, Tensor]   # [N, H, W] each
STEPS = 19                            # columns of the `steps` of `jitter_all`


def jitter_all(images: Tensor, steps: Tensor) -> Tensor:
    """Jitter every image in an order of its own, without a branch.

    A GPU runs one program for all images, but their orders differ: 24 are possible. This is one chain of steps from
    which each order follows by making steps neutral. Contrast divides it in two, because contrast needs the mean of the
    whole image and so has to wait for everything before it, while all other steps look at one pixel. Compiled, this is
    one reduction, for the mean after the first half, and one pass over the pixels.

    `operations.jitter_steps` writes an image's order and factors as these steps.

    Args:
        images: [N, C, H, W] in [0, 1].
        steps: [N, STEPS]: nine columns of `half_chain` before contrast, nine after it, and the factor of contrast.

    Returns:
        [N, 3, H, W] in [0, 1].
    """
    if images.shape[1] != 3:
        return brighten_all(images, steps[..., None, None])
    columns = [column[:, None, None] for column in steps.unbind(1)]
    red, green, blue = images.unbind(1)
    rgb = half_chain((red, green, blue), columns[:9])
    factor = columns[18]
    mean = luma(rgb).mean((1, 2), keepdim=True) * (1 - factor)
    rgb = half_chain(each(rgb, lambda channel: (factor * channel + mean).clamp(0, 1)), columns[9:18])
    return torch.stack(rgb, 1)


def brighten_all(images: Tensor, steps: Tensor) -> Tensor:
    """`jitter_all` for images of other than three channels: brightness and contrast alone, in each image's order.

    Of the blends before contrast, and of those after it, one at most is brightness; the others are neutral, and 1.
    """
    before, after = (steps[:, start:start + 8:2].prod(1, keepdim=True) for start in (0, 9))     # [N, 1, 1, 1]
    factor = steps[:, 18:19]
    images = (images * before).clamp(0, 1)
    images = (factor * images + (1 - factor) * images.mean((1, 2, 3), keepdim=True)).clamp(0, 1)
    return (images * after).clamp(0, 1)


def half_chain(rgb: RGB, columns: list[Tensor]) -> RGB:
    """Take the steps on one side of contrast: two blends, a turn of hue, two blends.

    Brightness, saturation and hue can all stand on the same side, in any order. Brightness and saturation are both
    blends of a pixel with its luma, so four blends around one turn have room for each order: both before hue, both
    after it, or one on each side. Each place needs two blends because the two do not commute: each clamps its result.

    Args:
        rgb: the three channels, [N, H, W] each.
        columns: nine tensors [N, 1, 1]: for each of the four blends the share of the pixel and the share of its luma,
            neutral at 1 and 0; then the turns of hue, neutral at 0.
    """
    rgb = blend(blend(rgb, columns[0], columns[1]), columns[2], columns[3])
    rgb = turn(rgb, columns[8])
    return blend(blend(rgb, columns[4], columns[5]), columns[6], columns[7])


def blend(rgb: RGB, pixel: Tensor, gray: Tensor) -> RGB:
    """Mix pixels and their luma in the shares `pixel` and `gray`: (f, 0) is brightness, (f, 1 - f) saturation."""
    added = gray * luma(rgb)
    return each(rgb, lambda channel: (pixel * channel + added).clamp(0, 1))


def luma(rgb: RGB) -> Tensor:
    """The luma [N, H, W]; `grayscale` for three separate channels."""
    return LUMA[0] * rgb[0] + LUMA[1] * rgb[1] + LUMA[2] * rgb[2]


def turn(rgb: RGB, turns: Tensor) -> RGB:
    """Rotate the hue by `turns` [N, 1, 1], as `hue_` does and for its reasons, in a form that torch.compile fuses.

    `hue_` overwrites its buffers to save a CPU's memory traffic, which a compiler saves by fusing. So here the same
    formulas stand as plain expressions on three separate channels: the distance from cyan as one sum, its side of the
    wheel as a sign, the channels as clamped straight lines. All of them work pixel by pixel and none of them branches,
    so the whole turn joins the pass of its half chain.
    """
    red, green, blue = rgb
    lowest = red.minimum(green).minimum(blue)
    chroma = red.maximum(green).maximum(blue) - lowest
    place = (red - green - blue + lowest) / chroma.clamp_min(1e-12) + 2    # sixths of a turn from cyan
    place = place.copysign(blue - green) + 6 * turns
    place = place - 6 * (place * (1 / 6)).round()                          # back into -3 to 3
    return each((place.abs() - 1, 2 - (place + 1).abs(), 2 - (place - 1).abs()),
                lambda share: lowest + chroma * share.clamp(0, 1))


def each(rgb: RGB, change: Callable[[Tensor], Tensor]) -> RGB:
    return change(rgb[0]), change(rgb[1]), change(rgb[2])


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Blur each image with a Gaussian of its own, mirroring the image at its border.

    The blur is two matrix products for each image. On one core, these take a third of the time of Kornia's grouped
    convolution at 32 pixels and the same time at 224.

    Args:
        images: [N, C, H, W] in [0, 1].
        sigma: [N] standard deviations, pixels; 0 changes nothing.
        kernel: width of the Gaussian, an odd number of pixels.
        dtype: type in which the products are computed.

    Returns:
        [N, C, H, W] float32, contiguous.
    """
    matrices = blur_matrices(sigma, images.shape[-2], kernel).to(dtype), blur_matrices(sigma, images.shape[-1], kernel)
    n, channels, height, width = images.shape
    y = images.to(dtype).transpose(1, 2).reshape(n, height, channels * width)
    y = torch.bmm(matrices[0], y).view(n, height * channels, width)
    y = torch.bmm(y, matrices[1].to(dtype).transpose(1, 2))
    return y.view(n, height, channels, width).transpose(1, 2).float().contiguous()


def blur_matrices(sigma: Tensor, size: int, kernel: int) -> Tensor:
    """Write the blur of a line of pixels as matrices [N, size, size]; line i holds the weights that make pixel i."""
    radius = kernel // 2
    distance = torch.arange(radius + 1, device=sigma.device)
    # e^-60 vanishes beside 1; smaller weights would be denormal numbers, on which a CPU is slow
    weights = (-0.5 * (distance / sigma.clamp_min(1e-3)[:, None]).square()).clamp_min(-60).exp()       # [N, radius + 1]
    weights = weights / (2 * weights.sum(1, keepdim=True) - weights[:, :1])
    return (weights @ taps(size, radius, sigma.device)).view(-1, size, size)


@torch.compiler.assume_constant_result
def taps(size: int, radius: int, device: torch.device) -> Tensor:
    """`mirrored_taps` for torch.compile, which would otherwise trace through the cache and warn."""
    return mirrored_taps(size, radius, device)


@functools.lru_cache(maxsize=16)
def mirrored_taps(size: int, radius: int, device: torch.device) -> Tensor:
    """Count [radius + 1, size * size] how often pixel j is at each distance from pixel i, mirrored at the border."""
    pixel, offset = torch.arange(size, device=device), torch.arange(-radius, radius + 1, device=device)
    place = (pixel[:, None] + offset).abs()                                       # [size, 2 * radius + 1]
    place = torch.where(place >= size, 2 * (size - 1) - place, place)
    taps = torch.zeros(radius + 1, size, size, device=device)
    return taps.index_put_((offset.abs().expand_as(place), pixel[:, None].expand_as(place), place),
                           torch.ones((), device=device), accumulate=True).flatten(1)


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Invert the values that are at least `threshold`, a share of full brightness."""
    return torch.where(images >= threshold, 1 - images, images)


def per_image(x: Tensor) -> Tensor:
    """Numbers [N] as [N, 1, 1, 1], to broadcast over images."""
    return x.view(-1, 1, 1, 1)
