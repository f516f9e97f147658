"""How good a pair of views is, by a frozen encoder's maps: foregrounds that are alike before backgrounds that are not.

Sec. 3.3 of GenView, arXiv:2403.12003. Foreground and background are the two ends of the axis along which cells of the
maps differ most. The authors find it beforehand from features of 10,000 images; here it is that of each batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.losses import full_precision

ROUNDS = 20   # of the power iteration


@torch.no_grad()
def quality_weights(maps: Sequence[Tensor]) -> Tensor:
    """Weights [V, V, B] of the pairs of views, 1 on average over the images of all processes.

    N times the softmax over these N images of the cosine of two foregrounds less that of the backgrounds. The authors'
    softmax is over the images of one process.

    Args:
        maps: of each view [B, C, h, w], which may differ in size.
    """
    cells = [x.to(torch.promote_types(x.dtype, torch.float32)).flatten(2).mT for x in maps]       # V x [B, M, C]
    axis = principal_axis(torch.cat([x.flatten(0, 1) for x in cells]))
    parts = torch.stack([grounds(x, axis) for x in cells])                               # [V, B, 2, C]
    cosines = torch.einsum("vbpc,wbpc->bvwp", parts, parts)
    quality = cosines[..., 0] - cosines[..., 1]                                          # [B, V, V]
    every = distributed.gather(quality)                                                  # [N, V, V]
    return (len(every) * (quality - every.logsumexp(0)).exp()).movedim(0, 2)


@full_precision
def grounds(cells: Tensor, axis: Tensor) -> Tensor:
    """Foreground and background of each image, unit norm: [B, 2, C] from the cells of its map [B, M, C].

    They are means of the cells, weighted by their place along the axis [C] from the image's least to its largest, and
    by the rest to 1. Where all cells are in one place, both are their plain mean.
    """
    along = cells @ axis                                                                 # [B, M]
    low, high = along.aminmax(dim=1, keepdim=True)
    spread = high - low
    share = torch.where(spread > 0, (along - low) / spread, 0.5)
    shares = torch.stack([share, 1 - share], 1)                                          # [B, 2, M]
    return F.normalize(shares @ cells, dim=-1)                   # whose length does not depend on the sum of the shares


@torch.no_grad()
@full_precision
def principal_axis(cells: Tensor) -> Tensor:
    """The unit vector [C] along which cells [M, C] of all processes vary most, by power iteration.

    It points to where fewer cells lie, and these farther out (their third moment is positive): what is in the
    foreground covers less of most pictures than what is behind it.
    """
    def total(rows: Tensor) -> Tensor:
        return distributed.gather(rows.sum(0, keepdim=True)).sum(0)

    centred = cells - total(cells) / (len(cells) * distributed.world_size())
    variances = total(centred.square())
    axis = (torch.arange(len(variances), device=cells.device) == variances.argmax()).to(cells)
    for _ in range(ROUNDS):
        axis = F.normalize(total(centred * (centred @ axis)[:, None]), dim=0)
    skewness = total((centred @ axis).pow(3)[:, None])
    return torch.where(skewness < 0, -axis, axis)
