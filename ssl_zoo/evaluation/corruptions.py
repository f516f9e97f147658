"""ImageNet-C's corruptions of images, in five severities (Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261).

The strengths are those of the authors' make_imagenet_c.py. Lengths there are pixels of images of 224; images of another
side have them in proportion, so that a blur covers the same share of a picture. What differs from the paper:

- frost is missing: it blends in photographs of frost that are the authors'.
- glass_blur moves each place by a uniform distance, bilinearly, where the paper exchanges whole pixels one by one.
- defocus_blur's disc is exact and read bilinearly, where the paper rounds it to pixels and blurs it a little.
- motion_blur (also snow's) samples the trail four times a pixel, where ImageMagick takes whole pixels.
- fog's plasma is Kornia's variant of the diamond-square algorithm, as rough from level to level.
- elastic_transform has no noise beyond the border, where the paper mirrors it. As in the paper its severities 1 and 2
  bend the whole picture and 3 to 5 wrinkle it, so that they do not rise evenly.
- The paper keeps every corrupted image as a JPEG of quality 85; here it is rounded to bytes.

Random numbers are drawn on the CPU by the name of the corruption and the batch, and are the same for all severities.

Importing Kornia takes more than a second: only the protocol imports this file, when it measures.
"""

import itertools
import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_grayscale
from kornia.contrib import diamond_square
from kornia.filters import fft_conv, filter2d, gaussian_blur2d
from kornia.geometry.transform import elastic_transform2d, warp_affine
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

SIDE = 224   # pixels, of the images that the lengths below are for


class Draws:
    """Random numbers from a generator of the CPU, on the device of the images."""

    def __init__(self, seed: int, device: torch.device):
        self.generator, self.device = torch.Generator().manual_seed(seed), device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return (low + (high - low) * torch.rand(shape, generator=self.generator)).to(self.device)

    def poisson(self, rates: Tensor) -> Tensor:
        return torch.poisson(rates.cpu(), self.generator).to(self.device)

    def plasma(self, images: int, height: int, width: int, roughness: float) -> Tensor:
        """Fractals [B, 1, H, W] from 0 to 1."""
        draw = partial(torch.rand, generator=self.generator)
        return diamond_square((images, 1, height, width), roughness, random_fn=draw, normalize_range=(0.0, 1.0),
                              dtype=torch.float32).to(self.device)


def side(x: Tensor) -> int:
    return min(x.shape[-2:])


# Noise. x [B, C, H, W] in [0, 1] in all that follows, and results may leave it

def gaussian_noise(x: Tensor, draws: Draws, deviation: float) -> Tensor:
    return x + deviation * draws.normal(*x.shape)


def shot_noise(x: Tensor, draws: Draws, photons: float) -> Tensor:
    """Poisson's, of so many photons at full brightness."""
    return draws.poisson(x * photons) / photons


def impulse_noise(x: Tensor, draws: Draws, share: float) -> Tensor:
    """A share of the values becomes 0 or 1, each channel for itself."""
    drawn = draws.uniform(*x.shape)
    return x.masked_fill(drawn < share / 2, 0).masked_fill(drawn > 1 - share / 2, 1)


# Blur

def defocus_blur(x: Tensor, draws: Draws, radius: float) -> Tensor:
    return filter2d(x, disc(radius * side(x) / SIDE)[None].to(x.device))


def disc(radius: float, parts: int = 8) -> Tensor:
    """The weights [n, n] of the mean over a disc of an image that is read bilinearly between its pixels.

    Args:
        radius: pixels; small ones blur, too.
        parts: points for each pixel's side.
    """
    reach = math.ceil(radius)
    points = (torch.arange(2 * reach * parts) + 0.5) / parts - reach                                        # [p]
    inside = (points[:, None].square() + points.square() <= radius ** 2).float()                           # [p, p]
    shares = (1 - (points - torch.arange(-reach, reach + 1)[:, None]).abs()).clamp_min(0)                  # [n, p]
    weights = shares @ inside @ shares.T
    return weights / weights.sum()


def glass_blur(x: Tensor, draws: Draws, sigma: float, distance: float, times: int) -> Tensor:
    scale = side(x) / SIDE
    x = gaussian(x, sigma * scale)
    for _ in range(times):
        reach = distance * scale
        x = moved(x, draws.uniform(len(x), *x.shape[-2:], 2, low=-reach, high=reach))
    return gaussian(x, sigma * scale)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    width = 2 * max(1, math.ceil(4 * sigma)) + 1
    return gaussian_blur2d(x, (width, width), (sigma, sigma))


def moved(x: Tensor, offsets: Tensor) -> Tensor:
    """Each place [B, H, W] reads the image at so many pixels to the right and below (last dimension), bilinearly."""
    height, width = x.shape[-2:]
    grid = F.affine_grid(torch.eye(2, 3, device=x.device).expand(len(x), -1, -1), list(x.shape), align_corners=False)
    share = offsets * 2 / torch.tensor([width, height], device=x.device)
    return F.grid_sample(x, grid + share, padding_mode="reflection", align_corners=False)


def motion_blur(x: Tensor, draws: Draws, radius: float, sigma: float, low: float = -45.0, high: float = 45.0) -> Tensor:
    """A trail of 2 x radius pixels to one side, at an angle of each image's own between low and high degrees."""
    scale = side(x) / SIDE
    angles = draws.uniform(len(x), low=low, high=high).deg2rad()
    return fft_conv(x, trails(angles, 2 * radius * scale, sigma * scale), border_type="reflect")


def trails(angles: Tensor, length: float, sigma: float) -> Tensor:
    """Kernels [B, n, n]: half a Gaussian from the centre along each angle, whose weights add up to 1."""
    reach = math.ceil(length) + 1
    far = torch.linspace(0, length, 4 * math.ceil(length) + 1, device=angles.device)                       # [n], pixels
    weights = (-far.square() / (2 * sigma ** 2)).exp()
    places = torch.stack([angles.sin(), angles.cos()])[..., None] * far + reach                         # [2, B, n]
    kernel = angles.new_zeros(len(angles), (2 * reach + 1) ** 2)
    for corner in itertools.product((0, 1), repeat=2):           # a point's weight goes to the four pixels around it
        pixels = places.floor() + torch.tensor(corner, device=angles.device)[:, None, None]
        share = (1 - (places - pixels).abs()).prod(0)                                                       # [B, n]
        kernel.scatter_add_(1, (pixels[0] * (2 * reach + 1) + pixels[1]).long(), weights * share)
    kernel /= kernel.sum(1, keepdim=True)
    return kernel.unflatten(1, (2 * reach + 1, 2 * reach + 1))


def zoom_blur(x: Tensor, draws: Draws, end: float, step: float) -> Tensor:
    """The mean of the image and of itself, enlarged by 1, 1 + step, ... below `end`."""
    factors = [1 + i * step for i in range(math.ceil((end - 1) / step - 1e-6))]
    return (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of the images, enlarged."""
    theta = torch.eye(2, 3, device=x.device) / factor
    grid = F.affine_grid(theta.expand(len(x), -1, -1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


# Weather

def snow(x: Tensor, draws: Draws, mean: float, deviation: float, size: float, least: float, radius: float, sigma: float,
         kept: float) -> Tensor:
    """Flakes that fall, and whitened colours."""
    flakes = mean + deviation * draws.normal(len(x), 1, *x.shape[-2:])
    flakes = zoomed(flakes, max(1.0, size * side(x) / SIDE))
    flakes = motion_blur(flakes.masked_fill(flakes < least, 0).clamp(0, 1), draws, radius, sigma, -135.0, -45.0)
    gray = rgb_to_grayscale(x) if x.shape[1] == 3 else x.mean(1, keepdim=True)
    return kept * x + (1 - kept) * torch.maximum(x, gray * 1.5 + 0.5) + flakes + flakes.flip(-2, -1)


def fog(x: Tensor, draws: Draws, thickness: float, decay: float) -> Tensor:
    """A plasma whose differences shrink by decay squared from level to level."""
    plasma = draws.plasma(len(x), x.shape[-2], x.shape[-1], decay ** -2)
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + thickness * plasma) * brightest / (brightest + thickness)


def brightness(x: Tensor, draws: Draws, more: float) -> Tensor:
    """The value of HSV, the largest channel, rises; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    raised = (value + more).clamp(max=1)
    return torch.where(value > 0, x * (raised / value.clamp_min(1e-9)), raised)


# Digital

def contrast(x: Tensor, draws: Draws, factor: float) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def elastic_transform(x: Tensor, draws: Draws, alpha: float, sigma: float, corner: float) -> Tensor:
    """An affine transform of three points' moves, then a smooth displacement; lengths are shares of the side."""
    whole = 244 / 224 * side(x)                                      # as in the authors' code
    height, width = x.shape[-2:]
    third = side(x) // 3
    places = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], device=x.device) * third
    places = F.pad(places + torch.tensor([width // 2, height // 2], device=x.device), (0, 1), value=1.0)      # [3, 3]
    there = places[:, :2] + draws.uniform(len(x), 3, 2, low=-corner * whole, high=corner * whole)
    matrices = torch.linalg.solve(places, there).mT                                                        # [B, 2, 3]
    x = warp_affine(x, matrices, (height, width), padding_mode="reflection", align_corners=True)
    noise = draws.uniform(len(x), 2, height, width, low=-1.0, high=1.0)
    reach = min(math.ceil(3 * sigma * whole), max(height, width) - 1)             # beyond it the noise is 0
    shares = [2 * alpha * whole / (length - 1) for length in (width, height)]     # of Kornia's coordinates, -1 to 1
    return elastic_transform2d(x, noise, (2 * reach + 1, 2 * reach + 1), (sigma * whole, sigma * whole),
                               (shares[0], shares[1]), align_corners=True, padding_mode="reflection")


def pixelate(x: Tensor, draws: Draws, share: float) -> Tensor:
    """Each pixel becomes the mean of its cell; there are so many cells for each pixel of a side."""
    down, across = (cells(length, max(1, int(length * share))).to(x.device) for length in x.shape[-2:])
    return down @ x @ across.T


def cells(length: int, count: int) -> Tensor:
    """A matrix [length, length] that replaces each pixel of a line by the mean of those in its cell."""
    own = ((torch.arange(length) + 0.5) * count / length).floor()
    together = (own[:, None] == own).float()
    return together / together.sum(1, keepdim=True)


def jpeg_compression(x: Tensor, draws: Draws, quality: int) -> Tensor:
    """By libjpeg, as the paper; Kornia's codec is differentiable, and another one."""
    files = [encode_jpeg(image, quality) for image in as_bytes(x).cpu()]
    mode = ImageReadMode.GRAY if x.shape[1] == 1 else ImageReadMode.RGB
    return torch.stack([decode_jpeg(file, mode) for file in files]).to(x.device) / 255


class Corruption(NamedTuple):
    """One kind of corruption."""

    family: str
    change: Callable[..., Tensor]                # (images, draws, *a row's numbers)
    strengths: tuple[Any, ...]                   # a row of numbers for each severity
    channels: tuple[int, ...] = ()               # that images may have; any where there are none


KINDS = {
    "gaussian_noise": Corruption("noise", gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Corruption("noise", shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption("noise", impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": Corruption("blur", defocus_blur, (3, 4, 6, 8, 10)),
    "glass_blur": Corruption("blur", glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": Corruption("blur", motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": Corruption("blur", zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "snow": Corruption("weather", snow, (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55))),
    "fog": Corruption("weather", fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": Corruption("weather", brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption("digital", contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": Corruption("digital", elastic_transform, (
        (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))),
    "pixelate": Corruption("digital", pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": Corruption("digital", jpeg_compression, (25, 18, 15, 10, 7), channels=(1, 3)),
}
SEVERITIES = 5


@torch.no_grad()
def corrupt(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Corrupt images [B, C, H, W] of bytes; severity 0 leaves them as they are.

    Args:
        name: of the corruption, one of KINDS.
        severity: 0 to 5.
        seed: draws other random numbers; the same ones for all severities.
    """
    if name not in KINDS:
        raise ValueError(f"there is no corruption {name}; there are {', '.join(KINDS)}")
    if not 0 <= severity <= SEVERITIES:
        raise ValueError(f"a severity is 0 to {SEVERITIES}, not {severity}")
    if severity == 0:
        return images
    kind, draws = KINDS[name], Draws(zlib.crc32(f"{name} {seed}".encode()), images.device)
    strength = kind.strengths[severity - 1]
    with torch.autocast(images.device.type, enabled=False):
        return as_bytes(kind.change(images / 255, draws, *(strength if isinstance(strength, tuple) else (strength,))))


def as_bytes(x: Tensor) -> Tensor:
    return (x * 255).round().clamp(0, 255).to(torch.uint8)
