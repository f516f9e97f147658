from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import mean_similarities, nt_xent
from ssl_zoo.method import Batch, Method


class SimCLR(Method):
    """Two views of an image agree against every other image of the batch.

    Chen et al., ICML 2020, arXiv:2002.05709. Colour strength is a property of the views: `strength` of their row.

    Args:
        projector: widths of the projector after the encoder, at least one.
        projector_norm: end the projector with a BatchNorm that scales and does not shift, as the authors' code does.
        temperature: divides the cosine similarities.
        encoder: images -> features; what pretraining is for.
        augment: draws the two views.
        optimizer: builds the optimiser; its lr is the lr used, its weight decay spares biases and norms.
        schedule: multiplies the lr by progress through training.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), projector_norm: bool = True, temperature: float = 0.1,
                 **kwargs: Any):
        super().__init__(**kwargs)
        if self.augment.count != 2:
            raise ValueError(f"SimCLR learns from 2 views of each image, and this recipe draws {self.augment.count}: "
                             "make the counts of its view rows add up to 2")
        if temperature <= 0:
            raise ValueError(f"a temperature must be above 0, not {temperature}")
        self.projector = mlp(self.encoder.dim, *projector, last_norm=projector_norm)
        self.temperature = temperature

    def training_loss(self, batch: Batch) -> Tensor:
        z1, z2 = (self.projector(self.encoder(view.images)) for view in batch.views)   # [B, D] each
        positive, negative = mean_similarities(z1, z2)
        self.log_dict({"similarity/positive": positive, "similarity/negative": negative}, batch_size=len(z1))
        return nt_xent(z1, z2, self.temperature)
