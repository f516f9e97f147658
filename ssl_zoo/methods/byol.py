from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import negative_cosine
from ssl_zoo.memory import MomentumEncoder
from ssl_zoo.method import Batch, Method
from ssl_zoo.methods.genview import PairWeights
from ssl_zoo.schedules import cosine


class BYOL(Method):
    """Each view's prediction is the momentum encoder's projection of the other view; there are no negatives.

    Grill et al., NeurIPS 2020, arXiv:2006.07733, eq. (2), summed over both directions: 0 at best, 4 where predictions
    and targets are orthogonal.

    Args:
        projector: layer widths of the projector.
        predictor: hidden widths of the predictor.
        momentum: share of the momentum encoder kept at the first step; rises to 1 by a cosine.
        judge: a frozen encoder by which pairs of good views count more (GenView): a file, or a name with weights, as
            ssl-zoo evaluate takes them. Without one all pairs count alike.
    """

    def __init__(self, projector: Sequence[int] = (4096, 256), predictor: Sequence[int] = (4096,),
                 momentum: float = 0.996, judge: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("BYOL")
        self.projector = mlp(self.encoder.dim, *projector)
        self.predictor = mlp(projector[-1], *predictor, projector[-1])
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projector)
        self.momentum = momentum
        self.pair_weights = PairWeights(judge, self.augment)

    def training_loss(self, batch: Batch) -> Tensor:
        x1, x2 = (view.images for view in batch.views)
        p1, p2 = (self.predictor(self.projector(self.encoder(x))) for x in (x1, x2))     # [B, D] each
        z1, z2 = (self.momentum_encoder(x) for x in (x1, x2))
        distances = 4 + 2 * negative_cosine(p1, z2, "none") + 2 * negative_cosine(p2, z1, "none")     # [B]
        return (distances * self.pair_weights(batch.views)[0, 1]).mean()

    def after_step(self) -> None:
        momentum = cosine(self.momentum, 1.0, self.progress)
        self.momentum_encoder.update(momentum=momentum)
