"""Where a view comes from: crop, resize and flip as two matrix products, and the place of a view in its source."""

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear(x: Tensor) -> Tensor:
    return x.abs_().neg_().add_(1).clamp_min_(0)    # in place: this is a good part of the time of small views


def bicubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, as PIL and torch's antialiased resize have it."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


KERNELS = {"bilinear": bilinear, "bicubic": bicubic}


def resampling_matrices(start: Tensor, length: Tensor, inputs: int, outputs: int, interpolation: str,
                        flipped: Tensor | None = None, total: float = 1.0) -> Tensor:
    """Matrices [N, outputs, inputs] that resize the pixels `start` to `start + length` of a line to `outputs` pixels.

    The weights are those of `F.interpolate(antialias=True, align_corners=False)` on the cropped line: a kernel as wide
    as an output pixel where that is larger than an input pixel, rows that sum to `total`, nothing from outside.

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
    weights = KERNELS[interpolation]((pixel * reach)[:, None] - (centre * reach)[:, :, None]).mul_(inside)
    return weights.mul_(total / weights.sum(-1, keepdim=True))


def crop_and_resize(images: Tensor, crops: Tensor, size: int, interpolation: str,
                    dtype: torch.dtype = torch.float32) -> Tensor:
    """V crops of each of B images, resized with antialias to a square and flipped, without a loop or a gather.

    Equals torchvision's `resized_crop(antialias=True)` on float images, with bicubic overshoot cut off at the end (PIL
    cuts off after each direction, which differs at hard edges).

    Args:
        images: [B, C, H, W], uint8 or float in [0, 1].
        crops: [V, B, 6]: top, left, height, width in pixels, whole numbers inside the image; then nonzero where left
            and right change places, and where top and bottom do.
        size: side of the result in pixels.
        dtype: of the products' operands. Half precision takes a GPU's tensor cores: 0.03 of 255 off on average, 0.3 at
            most (bfloat16: ten times that).

    Returns:
        [V, B, C, size, size] float32 in [0, 1], not contiguous: whoever keeps it copies it once, to where it goes.
    """
    (views, batch), (_, channels, rows, columns) = crops.shape[:2], images.shape
    top, left, height, width, flipped, vertically = crops.transpose(0, 1).reshape(-1, 6).unbind(1)     # [B * V] each
    brightest = 255 if images.dtype == torch.uint8 else 1
    vertical = resampling_matrices(top, height, rows, size, interpolation, vertically, 1 / brightest).to(dtype)
    horizontal = resampling_matrices(left, width, columns, size, interpolation, flipped).to(dtype)
    lines = images.transpose(1, 2).to(dtype).contiguous()                              # read once for all V views
    y = torch.bmm(vertical.view(batch, views * size, rows), lines.view(batch, rows, channels * columns))
    y = torch.bmm(y.view(batch * views, size * channels, columns), horizontal.transpose(1, 2))         # [B*V, S*C, S]
    y = y.view(batch, views, size, channels, size).permute(1, 0, 3, 2, 4).float()
    return y.clamp_(0, 1) if interpolation == "bicubic" else y


def cell_centres(boxes: Tensor, flipped: Tensor, height: int, width: int) -> Tensor:
    """Where in the source image the cells of a view's `height` x `width` map lie.

    Args:
        boxes: [B, 4] left, top, right, bottom as shares of the source.
        flipped: [B, 2] bool: left and right have changed places, top and bottom have.

    Returns:
        [B, height, width, 2]: x and y as shares of the source image.
    """
    start, end = boxes[:, None, :2], boxes[:, None, 2:]                                       # [B, 1, 2]
    start, end = torch.where(flipped[:, None], end, start), torch.where(flipped[:, None], start, end)
    x = (torch.arange(width, device=boxes.device) + 0.5) / width
    y = (torch.arange(height, device=boxes.device) + 0.5) / height
    across = start[..., 0] + x * (end - start)[..., 0]                                        # [B, width]
    down = start[..., 1] + y * (end - start)[..., 1]                                          # [B, height]
    return torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), -1)


def cell_distances(boxes: Tensor, flipped: Tensor, other_boxes: Tensor, other_flipped: Tensor, height: int,
                   width: int) -> Tensor:
    """How far each cell of a view's map lies from each of another view's, in diagonals of the larger of the two cells.

    The distance of PixPro, arXiv:2011.10043, sec. 3.1, whose cells match below 0.7. Its code measures boxes from pixel
    centre to pixel centre (width - 1) and then cuts them like edges, up to a pixel off; here they are edges throughout.

    Returns:
        [B, height * width, height * width], row by row; x and y are shares of the source, whatever its shape.
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
    """Boxes [B, 4] of what two boxes of each image share; of no width or height where they share nothing."""
    start = torch.maximum(boxes[:, :2], others[:, :2])
    return torch.cat([start, torch.maximum(start, torch.minimum(boxes[:, 2:], others[:, 2:]))], 1)


def area(boxes: Tensor) -> Tensor:
    """[B]: shares of the source image."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """[B]: the share of each of `boxes` that lies in the other box of its image."""
    return area(intersection(boxes, others)) / area(boxes)


def inverse_sample(maps: Tensor, boxes: Tensor, flipped: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """What a view's feature map says about places of the source image, such as another view's `cell_centres`.

    Bilinear between the map's cells, and the nearest cell's value within half a cell of the border.

    Args:
        maps: [B, D, h, w].
        boxes: [B, 4] of the view.
        flipped: [B, 2] of the view.
        centres: [B, height, width, 2]: x and y as shares of the source image.

    Returns:
        The samples [B, D, height, width], and whether each place lies in the view [B, height, width]; outside it the
        samples are 0.
    """
    start, end = boxes[:, None, None, :2], boxes[:, None, None, 2:]
    grid = 2 * (centres - start) / (end - start) - 1          # -1 at the left or top edge of the box, 1 at the others
    inside = (grid.abs() <= 1).all(-1)
    grid = torch.where(flipped[:, None, None], -grid, grid).to(maps.dtype)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled * inside[:, None], inside
