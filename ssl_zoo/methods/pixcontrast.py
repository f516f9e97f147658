from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.blocks import by_images
from ssl_zoo.heads import pixel_mlp
from ssl_zoo.losses import check_temperature, full_precision
from ssl_zoo.memory import MomentumEncoder
from ssl_zoo.method import Batch, Method
from ssl_zoo.schedules import cosine
from ssl_zoo.views.crops import cell_distances


@full_precision
def pixel_contrast(x: Tensor, target: Tensor, matches: Tensor, temperature: float) -> Tensor:
    """Each cell finds the cells of the other view at its place among all of that image, eq. (1).

    log(N) where all N cells are equal and each has one match; 0 where no cell has any.

    Args:
        x, target: maps of two views, [B, D, h, w]; no gradient reaches `target`.
        matches: [B, h * w, h * w], true where a cell of `x` and one of `target` show the same place.
        temperature: divides the cosines, > 0.
    """
    x, target = (F.normalize(z.flatten(2), dim=1) for z in (x, target.detach()))      # [B, D, N]
    return by_images(partial(cell_terms, temperature=temperature), matches[0].numel(), x, target, matches).mean()


def cell_terms(x: Tensor, target: Tensor, matches: Tensor, temperature: float) -> Tensor:
    """The mean over the cells of each image that have a match, [B], of unit cells [B, D, N]; 0 without any."""
    logits = torch.bmm(x.mT, target) / temperature                                    # [B, N, N]
    valid = matches.any(2)                                                            # [B, N]
    matches = matches | ~valid[:, :, None]              # a row without a match is finite, and then left out
    terms = (logits.logsumexp(2) - logits.masked_fill(~matches, float("-inf")).logsumexp(2)) * valid
    return terms.sum(1) / valid.sum(1).clamp_min(1)               # an image without matches adds 0, as in PixPro


class PixContrast(Method):
    """A cell of one view finds the cells of the other view at the same place among all cells of the image.

    Xie et al., CVPR 2021, arXiv:2011.10043, sec. 3.1: the contrastive sibling of PixPro, not in the authors' code.

    Args:
        projector: hidden and final width of the 1x1 convolutions on the feature map.
        temperature: divides the cosine similarities.
        threshold: cells match below this distance, in diagonals of the larger view's cell.
        momentum: share of the momentum encoder kept at the first step; rises to 1 by a cosine.
        encoder: images -> features; what pretraining is for. Its maps must have more than one cell.
    """

    def __init__(self, projector: tuple[int, int] = (4096, 256), temperature: float = 0.3, threshold: float = 0.7,
                 momentum: float = 0.99, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("PixContrast", places=True)
        self.projector = pixel_mlp(self.encoder.dim, *projector)
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projector)
        self.temperature, self.threshold, self.momentum = check_temperature(temperature), threshold, momentum

    def training_loss(self, batch: Batch) -> Tensor:
        first, second = batch.views
        x1, x2 = (self.projector(self.encoder.maps(view.images)) for view in batch.views)           # [B, D, h, w]
        (t1,), (t2,) = (self.momentum_encoder.maps(view.images) for view in batch.views)
        matches = cell_distances(first.boxes, first.flipped, second.boxes, second.flipped,
                                 *x1.shape[2:]) < self.threshold                      # [B, N, N]
        self.log("matches", matches.float().sum((1, 2)).mean(), batch_size=len(matches))
        return (pixel_contrast(x1, t2, matches, self.temperature)
                + pixel_contrast(x2, t1, matches.mT, self.temperature)) / 2

    def after_step(self) -> None:
        momentum = cosine(self.momentum, 1.0, self.progress)
        self.momentum_encoder.update(momentum=momentum)
