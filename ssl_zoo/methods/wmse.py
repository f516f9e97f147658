from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.draws import Draws
from ssl_zoo.heads import mlp
from ssl_zoo.losses import full_precision, gather_views
from ssl_zoo.method import Batch, Method


class WMSE(Method):
    """All views of an image have one projection, after whitening has spread the batch over all directions.

    Ermolov et al., ICML 2021, arXiv:2007.06346, eq. (1) to (6), with vectors of length 1. Each view of a slice of
    images is whitened by itself, with Cholesky's factor as in the authors' code. Slices are of the images of all
    processes; where their number does not divide evenly, slices hold a few images more.

    Args:
        projector: layer widths of the projector.
        slice_size: images that are whitened together; the paper has twice as many as the projector has outputs.
        slicings: how often the batch is sliced, each time in another order; their losses are averaged.
    """

    def __init__(self, projector: Sequence[int] = (1024, 64), slice_size: int = 128, slicings: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("WMSE", or_more=True)
        if slice_size <= projector[-1] or slicings < 1:
            raise ValueError(f"WMSE whitens {projector[-1]} outputs in slices of more images than that, best of twice "
                             f"as many, and 1 or more times; not {slicings} times in slices of {slice_size}")
        self.projector = mlp(self.encoder.dim, *projector)
        self.slice_size, self.slicings = slice_size, slicings
        self.draws = Draws()

    def training_loss(self, batch: Batch) -> Tensor:
        z = gather_views(torch.stack([self.projector(self.encoder(view.images)) for view in batch.views]), "WMSE")
        images = z.shape[1]
        if images < self.slice_size:
            raise ValueError(f"WMSE whitens slices of {self.slice_size} images, and this batch has {images} over all "
                             "processes: raise the batch size, or lower slice_size and the projector's last width")
        slices = [part for _ in range(self.slicings)
                  for part in self.draws.order(images).tensor_split(images // self.slice_size)]
        distances = [distance(whitened(z[:, part])) for part in slices]                    # [n] each
        return torch.cat(distances).mean()


@full_precision
def whitened(z: Tensor) -> Tensor:
    """Rows [V, N, D] whose mean over N is 0 and whose covariance is the identity, for each view: eq. (5) and (6).

    NaN where the covariance has no inverse, such as after a collapse, for the run to stop at.
    """
    centred = z - z.mean(1, keepdim=True)
    covariance = centred.mT @ centred / (z.shape[1] - 1)                                    # [V, D, D]
    factor, failed = torch.linalg.cholesky_ex(covariance)             # not cholesky: it waits for the device to see
    factor = factor.masked_fill(failed[:, None, None] > 0, torch.nan)
    return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT


@full_precision
def distance(z: Tensor) -> Tensor:
    """The mean squared distance [N] of an image's views, of length 1, over all pairs: eq. (4), from 0 to 4."""
    total = F.normalize(z, dim=-1).sum(0).square().sum(-1)                                  # V + 2 * sum of cosines
    return 2 - 2 * (total - len(z)) / (len(z) * (len(z) - 1))
