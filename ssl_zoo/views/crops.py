"""Crops and their geometry: cut, resize and flip a batch with two matrix products, and compare places in the source.

A *crop* is a region of a source image in whole pixels. A *box* is the same region in shares of the source, which is
what methods such as PixPro and SlotCon compare.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear(x: Tensor) -> Tensor:
    """The triangle 1 - |x|, zero from 1 on. Overwrites `x`, because allocating a result slows small views down."""
    return x.abs_().neg_().add_(1).clamp_min_(0)


def bicubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5, the one that PIL and torch's antialiased resize use; zero from 2 on."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


KERNELS = {"bilinear": bilinear, "bicubic": bicubic}


def resampling_matrices(start: Tensor, length: Tensor, inputs: int, outputs: int, interpolation: str,
                        flipped: Tensor | None = None, total: float = 1.0) -> Tensor:
    """Write the crop, resize and flip of one line of pixels as a matrix.

    The weights equal those of `F.interpolate(antialias=True, align_corners=False)` applied to the cropped line. When
    shrinking, the kernel is stretched to the width of an output pixel, so that every input pixel counts. Pixels outside
    the crop get no weight, and the weights of each output pixel sum to `total`.

    Args:
        start: [N] first pixel of each crop, a whole number.
        length: [N] pixels in each crop, a whole number of at least 1.
        inputs: pixels in the line.
        outputs: pixels to resize to.
        interpolation: "bilinear" or "bicubic".
        flipped: [N], nonzero where the outputs come in reverse order; None for no flips.
        total: sum of the weights of an output pixel. Pass 1 / 255 to map bytes to [0, 1] on the way.

    Returns:
        [N, outputs, inputs] float32.
    """
    output = torch.arange(outputs, device=start.device, dtype=torch.float32)[None]              # [1, O]
    if flipped is not None:
        output = torch.where(flipped[:, None] > 0, outputs - 1 - output, output)                # [N, O]
    scale = (length / outputs)[:, None]
    centre = (output + 0.5) * scale                                            # in input pixels from the crop's edge
    pixel = torch.arange(inputs, device=start.device, dtype=torch.float32) + 0.5 - start[:, None]    # [N, I]
    inside = ((pixel > 0) & (pixel < length[:, None])).float()[:, None]                         # [N, 1, I]
    reach = 1 / scale.clamp_min(1)                                             # antialias: stretch, but never shrink
    weights = KERNELS[interpolation]((pixel * reach)[:, None] - (centre * reach)[:, :, None]).mul_(inside)
    return weights.mul_(total / weights.sum(-1, keepdim=True))


def crop_and_resize(images: Tensor, crops: Tensor, size: int, interpolation: str,
                    dtype: torch.dtype = torch.float32) -> Tensor:
    """Cut V crops from each of B images, resize them to a square with antialias, and flip them, without a loop.

    Equals torchvision's `resized_crop(antialias=True)` on float images. Bicubic overshoot is clamped once at the end;
    PIL clamps after each direction, which differs at hard edges.

    A crop resized in both directions is `vertical @ image @ horizontal.T`. All crops of a batch are then two batched
    matrix products, whatever their places and sizes, with no gather and no kernel launch for each crop. The first
    product stacks the V vertical matrices of an image, so that its pixels are read once for all of its views.

    Args:
        images: [B, C, H, W], uint8 or float in [0, 1].
        crops: [V, B, 6]. First top, left, height and width: whole pixels, inside the image. Then two flips, nonzero
            to mirror left to right and top to bottom.
        size: side of the result, pixels.
        interpolation: "bilinear" or "bicubic".
        dtype: type in which the products are computed. Float16 uses a GPU's tensor cores and is off by 0.03 of 255 on
            average and 0.3 at most; bfloat16 by ten times that.

    Returns:
        [V, B, C, size, size] float32 in [0, 1], not contiguous. If you keep it, copy it to where you need it.
    """
    (views, batch), (_, channels, tall, wide) = crops.shape[:2], images.shape
    top, left, height, width, flipped, vertically = crops.transpose(0, 1).reshape(-1, 6).unbind(1)     # [B * V] each
    brightest = 255 if images.dtype == torch.uint8 else 1
    vertical = resampling_matrices(top, height, tall, size, interpolation, vertically, 1 / brightest).to(dtype)
    horizontal = resampling_matrices(left, width, wide, size, interpolation, flipped).to(dtype)
    lines = images.transpose(1, 2).to(dtype).contiguous()                                             # [B, H, C, W]
    y = torch.bmm(vertical.view(batch, views * size, tall), lines.view(batch, tall, channels * wide))  # [B, V*S, C*W]
    y = torch.bmm(y.view(batch * views, size * channels, wide), horizontal.transpose(1, 2))            # [B*V, S*C, S]
    y = y.view(batch, views, size, channels, size).permute(1, 0, 3, 2, 4).float()
    return y.clamp_(0, 1) if interpolation == "bicubic" else y


def cell_centres(boxes: Tensor, flipped: Tensor, height: int, width: int) -> Tensor:
    """Find where in the source image the cells of a view's feature map are centred.

    Args:
        boxes: [B, 4] left, top, right, bottom of the view, as shares of the source.
        flipped: [B, 2] bool, whether the view is mirrored left to right and top to bottom.
        height: cells of the map from top to bottom.
        width: cells of the map from left to right.

    Returns:
        [B, height, width, 2], x and y as shares of the source image.
    """
    start, end = boxes[:, None, :2], boxes[:, None, 2:]                                       # [B, 1, 2]
    start, end = torch.where(flipped[:, None], end, start), torch.where(flipped[:, None], start, end)   # walk backwards
    x = (torch.arange(width, device=boxes.device) + 0.5) / width
    y = (torch.arange(height, device=boxes.device) + 0.5) / height
    across = start[..., 0] + x * (end - start)[..., 0]                                        # [B, width]
    down = start[..., 1] + y * (end - start)[..., 1]                                          # [B, height]
    return torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), -1)


def cell_distances(boxes: Tensor, flipped: Tensor, other_boxes: Tensor, other_flipped: Tensor, height: int,
                   width: int) -> Tensor:
    """Measure how far each cell of a view's feature map is from each cell of another view's, in the source image.

    The unit is the diagonal of the larger of the two views' cells. This is the distance of PixPro, arXiv:2011.10043,
    sec. 3.1, where two cells match below 0.7. PixPro's code takes a box from the centre of its first pixel to the
    centre of its last (width - 1) but divides it into cells as if it went from edge to edge, which is up to a pixel
    off; here a box always goes from edge to edge. Distances are taken in shares of the source's width and height, so
    a source that is not square is measured as if it were.

    Args:
        boxes: [B, 4] left, top, right, bottom of the first view, as shares of the source.
        flipped: [B, 2] bool, whether the first view is mirrored left to right and top to bottom.
        other_boxes: [B, 4] of the second view.
        other_flipped: [B, 2] of the second view.
        height: cells of both maps from top to bottom.
        width: cells of both maps from left to right.

    Returns:
        [B, height * width, height * width]: cells of the first view by cells of the second, each from left to right
        and then from top to bottom.

    Raises:
        ValueError: if the maps have a single cell.
    """
    if height * width == 1:
        raise ValueError("cells are matched on feature maps of more than one cell, and this encoder's map of the views "
                         "is 1x1: draw larger views, or take an encoder with a smaller stride")
    diagonal = torch.maximum(*(torch.hypot((b[:, 2] - b[:, 0]) / width, (b[:, 3] - b[:, 1]) / height)   # [B]
                               for b in (boxes, other_boxes)))
    here, there = (cell_centres(b, f, height, width).flatten(1, 2)             # [B, N, 2]
                   for b, f in ((boxes, flipped), (other_boxes, other_flipped)))
    return torch.cdist(here, there, compute_mode="donot_use_mm_for_euclid_dist") / diagonal[:, None, None]


def intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersect two boxes [B, 4] of each image.

    Returns:
        [B, 4] left, top, right, bottom; its width or height is 0 where the two boxes share nothing.
    """
    start = torch.maximum(boxes[:, :2], others[:, :2])
    return torch.cat([start, torch.maximum(start, torch.minimum(boxes[:, 2:], others[:, 2:]))], 1)


def area(boxes: Tensor) -> Tensor:
    """The areas [B] of boxes [B, 4], as shares of the source image."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """The share [B] of each of `boxes` [B, 4] that the other box of the same image covers. It is not symmetric."""
    return area(intersection(boxes, others)) / area(boxes)


def inverse_sample(maps: Tensor, boxes: Tensor, flipped: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Look up a view's feature map at places of the source image, such as the `cell_centres` of another view.

    Interpolates bilinearly between the map's cells. Within half a cell of the border, takes the nearest cell's value.

    Args:
        maps: [B, D, h, w] feature maps of the view.
        boxes: [B, 4] left, top, right, bottom of the view, as shares of the source.
        flipped: [B, 2] bool, whether the view is mirrored left to right and top to bottom.
        centres: [B, height, width, 2], x and y as shares of the source image.

    Returns:
        The samples [B, D, height, width], 0 outside the view; and a bool [B, height, width], whether each place is
        inside the view.
    """
    start, end = boxes[:, None, None, :2], boxes[:, None, None, 2:]
    grid = 2 * (centres - start) / (end - start) - 1          # -1 at the box's left or top edge, 1 at the other
    inside = (grid.abs() <= 1).all(-1)
    grid = torch.where(flipped[:, None, None], -grid, grid).to(maps.dtype)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled * inside[:, None], inside
