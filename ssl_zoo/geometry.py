"""Where a view comes from: crop, resize and flip as two matrix products, and the place of a view in its source."""

import torch
from torch import Tensor


def bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_min(0)


def bicubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, as PIL and torch's antialiased resize have it."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


KERNELS = {"bilinear": bilinear, "bicubic": bicubic}


def resampling_matrices(start: Tensor, length: Tensor, inputs: int, outputs: int, interpolation: str,
                        flipped: Tensor | None = None) -> Tensor:
    """Matrices [N, outputs, inputs] that resize the pixels `start` to `start + length` of a line to `outputs` pixels.

    The weights are those of `F.interpolate(antialias=True, align_corners=False)` on the cropped line: a kernel as wide
    as an output pixel where that is larger than an input pixel, rows that sum to 1, nothing from outside the crop.

    Args:
        start, length: [N] in pixels, whole numbers.
        interpolation: "bilinear" or "bicubic".
        flipped: [N], nonzero where the outputs come in reverse order.
    """
    output = torch.arange(outputs, device=start.device, dtype=torch.float32)[None]              # [1, O]
    if flipped is not None:
        output = torch.where(flipped[:, None] > 0, outputs - 1 - output, output)                # [N, O]
    scale = (length / outputs)[:, None]
    centre = (output + 0.5) * scale                                                             # from the crop's edge
    pixel = torch.arange(inputs, device=start.device, dtype=torch.float32) + 0.5 - start[:, None]    # [N, I]
    inside = ((pixel > 0) & (pixel < length[:, None])).float()[:, None]                         # [N, 1, I]
    reach = 1 / scale.clamp_min(1)                                                              # the antialias
    weights = KERNELS[interpolation]((pixel * reach)[:, None] - (centre * reach)[:, :, None]) * inside
    return weights / weights.sum(-1, keepdim=True)


def crop_and_resize(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, flipped: Tensor,
                    size: int, interpolation: str) -> Tensor:
    """V crops of each of B images, resized with antialias to a square and flipped, without a loop or a gather.

    Equals torchvision's `resized_crop(antialias=True)` on float images, with bicubic overshoot cut off at the end (PIL
    cuts off after each direction, which differs at hard edges).

    Args:
        images: [B, C, H, W], uint8 or float in [0, 1].
        top, left, height, width: [V, B] in pixels, whole numbers inside the image.
        flipped: [V, B], nonzero where left and right change places.
        size: side of the result in pixels.

    Returns:
        [V, B, C, size, size] float32 in [0, 1].
    """
    (views, batch), (_, channels, rows, columns) = top.shape, images.shape
    top, left, height, width, flipped = (x.T.reshape(-1) for x in (top, left, height, width, flipped))   # [B * V]
    vertical = resampling_matrices(top, height, rows, size, interpolation)
    horizontal = resampling_matrices(left, width, columns, size, interpolation, flipped)
    lines = images.transpose(1, 2).reshape(batch, rows, channels * columns)   # the image is read once for its V views
    lines = lines / 255 if lines.dtype == torch.uint8 else lines
    y = torch.bmm(vertical.view(batch, views * size, rows), lines)                                     # [B, V*S, C*W]
    y = torch.bmm(y.view(batch * views, size * channels, columns), horizontal.transpose(1, 2))         # [B*V, S*C, S]
    y = y.view(batch, views, size, channels, size).permute(1, 0, 3, 2, 4).contiguous()
    return y.clamp_(0, 1) if interpolation == "bicubic" else y
