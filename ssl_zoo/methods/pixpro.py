from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.heads import PixelPropagation, pixel_mlp
from ssl_zoo.losses import full_precision, negative_cosine
from ssl_zoo.memory import MomentumEncoder
from ssl_zoo.method import Batch, Method
from ssl_zoo.schedules import cosine
from ssl_zoo.views.crops import cell_distances


@full_precision
def pixel_consistency(y: Tensor, x: Tensor, matches: Tensor) -> Tensor:
    """Minus the mean cosine of matching cells, eq. (4): from -1 to 1, 0 for an image without matches.

    Args:
        y, x: maps of two views, [B, D, h, w]; no gradient reaches `x`.
        matches: [B, h * w, h * w], true where a cell of `y` and one of `x` show the same place.
    """
    y, x = (F.normalize(z.flatten(2), dim=1) for z in (y, x.detach()))                # [B, D, N]
    cosines = torch.bmm(y.mT, x)                                                      # [B, N, N]
    return -((cosines * matches).sum((1, 2)) / (matches.sum((1, 2)) + 1e-6)).mean()


class PixPro(Method):
    """A cell of one view, smoothed with the cells like it, agrees with the cells of the other view at the same place.

    Xie et al., CVPR 2021, arXiv:2011.10043. For dense tasks. The authors' code doubles both losses.

    Args:
        projector: hidden and final width of the 1x1 convolutions on the feature map.
        threshold: cells match below this distance, in diagonals of the larger view's cell.
        gamma: sharpness of the propagation.
        transform_layers: 1x1 convolutions that transform what is propagated; 0 or 1.
        momentum: share of the momentum encoder kept at the first step; rises to 1 by a cosine.
        instance_weight: of the loss between whole views, which helps classification.
        encoder: images -> features; what pretraining is for. Its maps must have more than one cell.
    """

    def __init__(self, projector: tuple[int, int] = (4096, 256), threshold: float = 0.7, gamma: float = 2.0,
                 transform_layers: int = 1, momentum: float = 0.99, instance_weight: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("PixPro", places=True)
        hidden, width = projector
        self.projectors = nn.ModuleList(pixel_mlp(self.encoder.dim, hidden, width)    # of the cells, and of whole views
                                        for _ in range(2 if instance_weight else 1))
        self.propagation = PixelPropagation(width, transform_layers, gamma)
        self.predictor = pixel_mlp(width, hidden, width) if instance_weight else None
        self.momentum_encoder = MomentumEncoder(self.encoder, *self.projectors)
        self.threshold, self.momentum, self.instance_weight = threshold, momentum, instance_weight

    def training_loss(self, batch: Batch) -> Tensor:
        first, second = batch.views
        maps = [self.encoder.maps(view.images) for view in batch.views]
        online = [[head(x) for head in self.projectors] for x in maps]
        target = [self.momentum_encoder.maps(view.images) for view in batch.views]
        matches = cell_distances(first.boxes, first.flipped, second.boxes, second.flipped,
                                 *maps[0].shape[2:]) < self.threshold                 # [B, N, N]
        self.log("matches", matches.float().sum((1, 2)).mean(), batch_size=len(matches))
        y1, y2 = (self.propagation(heads[0]) for heads in online)
        loss = pixel_consistency(y1, target[1][0], matches) + pixel_consistency(y2, target[0][0], matches.mT)
        if self.predictor is not None:
            p1, p2 = (self.predictor(heads[1]).mean((2, 3)) for heads in online)      # [B, D]
            t1, t2 = (heads[1].mean((2, 3)) for heads in target)
            loss = loss + self.instance_weight * (negative_cosine(p1, t2) + negative_cosine(p2, t1))
        return loss

    def after_step(self) -> None:
        momentum = cosine(self.momentum, 1.0, self.progress)
        self.momentum_encoder.update(momentum=momentum)
