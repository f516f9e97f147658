from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import cross_correlation, off_diagonal, require_others
from ssl_zoo.method import Batch, Method


class BarlowTwins(Method):
    """The cross-correlation of two views' projections becomes the identity.

    Zbontar et al., ICML 2021, arXiv:2103.03230, eq. (1); over the batch of all processes.

    Args:
        projector: layer widths of the projector.
        redundancy_weight: weight of the terms off the diagonal; the paper's lambda.
    """

    def __init__(self, projector: Sequence[int] = (8192, 8192, 8192), redundancy_weight: float = 0.005, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("BarlowTwins")
        self.projector = mlp(self.encoder.dim, *projector, bias=False)
        self.redundancy_weight = redundancy_weight

    def training_loss(self, batch: Batch) -> Tensor:
        z1, z2 = (self.projector(self.encoder(view.images)) for view in batch.views)     # [B, D] each
        require_others(z1, "BarlowTwins")
        c = cross_correlation(z1, z2)                                                     # [D, D]
        return (c.diagonal() - 1).square().sum() + self.redundancy_weight * off_diagonal(c).square().sum()
