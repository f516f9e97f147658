from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.heads import mlp
from ssl_zoo.losses import full_precision, off_diagonal, require_two_images
from ssl_zoo.method import Batch, Method


class VICReg(Method):
    """Two views have the same projection, whose columns vary (variance) and say different things (covariance).

    Bardes et al., ICLR 2022, arXiv:2105.04906, eq. (6), with the means of the authors' code: the invariance is a mean
    over the columns too, and the variance the mean of both views. Statistics are over the batch of all processes.

    Args:
        projector: layer widths of the projector.
        invariance_weight: weight of the distance between the views' projections.
        variance_weight: weight of what each column's standard deviation lacks to 1.
        covariance_weight: weight of the covariances of different columns.
    """

    def __init__(self, projector: Sequence[int] = (8192, 8192, 8192), invariance_weight: float = 25.0,
                 variance_weight: float = 25.0, covariance_weight: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("VICReg")
        self.projector = mlp(self.encoder.dim, *projector, bias=False)
        self.weights = invariance_weight, variance_weight, covariance_weight

    def training_loss(self, batch: Batch) -> Tensor:
        z1, z2 = (self.projector(self.encoder(view.images)) for view in batch.views)     # [B, D] each
        invariance = mean_square(z1, z2)
        every1, every2 = (require_two_images(distributed.gather(z), "VICReg") for z in (z1, z2))
        variance = (missing_deviation(every1) + missing_deviation(every2)) / 2
        covariance = shared_variance(every1) + shared_variance(every2)
        self.log_dict({"loss/invariance": invariance.detach(), "loss/variance": variance.detach(),
                       "loss/covariance": covariance.detach()}, batch_size=len(z1))
        terms = zip(self.weights, (invariance, variance, covariance), strict=True)
        return sum((weight * term for weight, term in terms), start=z1.new_zeros(()))


@full_precision
def mean_square(z1: Tensor, z2: Tensor) -> Tensor:
    """The mean square of the differences of two views' projections [B, D]: s of eq. (5), divided by D."""
    return F.mse_loss(z1, z2)


@full_precision
def missing_deviation(z: Tensor) -> Tensor:
    """The mean over columns of what their standard deviation over [N, D] lacks to 1: eq. (1), 0.99 at collapse."""
    return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()


@full_precision
def shared_variance(z: Tensor) -> Tensor:
    """The sum of the squared covariances of different columns of [N, D], divided by D: eq. (4)."""
    centred = z - z.mean(0)
    return off_diagonal(centred.T @ centred / (len(z) - 1)).square().sum() / z.shape[1]
