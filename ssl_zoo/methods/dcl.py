from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import batch_similarities, check_temperature, contrast, require_others
from ssl_zoo.method import Batch, Method


class DCL(Method):
    """SimCLR without the positive in the denominator: an easy batch is no longer a small gradient.

    Yeh et al., ECCV 2022, arXiv:2110.06848, eq. (6). The loss has no lower bound, and its value says little. With
    multi-crop views, each global view learns with every other view.

    Args:
        projector: layer widths of the projector, at least one.
        projector_norm: end the projector with a BatchNorm that scales and does not shift, as SimCLR's code does.
        temperature: divides the cosine similarities.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), projector_norm: bool = True, temperature: float = 0.1,
                 **kwargs: Any):
        super().__init__(**kwargs)
        self.pairs = self.augment.pairs("DCL")
        self.projector = mlp(self.encoder.dim, *projector, last_norm=projector_norm)
        self.temperature = check_temperature(temperature)

    def training_loss(self, batch: Batch) -> Tensor:
        z = [self.projector(self.encoder(view.images)) for view in batch.views]          # V x [B, D]
        require_others(z[0], "DCL")
        losses = [contrast(*batch_similarities(z[a], z[b]), self.temperature, "decoupled") for a, b in self.pairs]
        return torch.stack(losses).mean()


class DCLW(Method):
    """DCL that pulls the harder pairs of a batch more and the easier ones less.

    Yeh et al., ECCV 2022, arXiv:2110.06848, eq. (7); the weights are balanced over the batch of all processes.

    Args:
        projector: layer widths of the projector, at least one.
        projector_norm: end the projector with a BatchNorm that scales and does not shift, as SimCLR's code does.
        temperature: divides the cosine similarities.
        sigma: temperature of the weights.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), projector_norm: bool = True, temperature: float = 0.1,
                 sigma: float = 0.5, **kwargs: Any):
        super().__init__(**kwargs)
        self.pairs = self.augment.pairs("DCLW")
        self.projector = mlp(self.encoder.dim, *projector, last_norm=projector_norm)
        self.temperature, self.sigma = check_temperature(temperature), check_temperature(sigma)

    def training_loss(self, batch: Batch) -> Tensor:
        z = [self.projector(self.encoder(view.images)) for view in batch.views]          # V x [B, D]
        require_others(z[0], "DCLW")
        losses = [contrast(*batch_similarities(z[a], z[b]), self.temperature, "weighted_decoupled", self.sigma)
                  for a, b in self.pairs]
        return torch.stack(losses).mean()
