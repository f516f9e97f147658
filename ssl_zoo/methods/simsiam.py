from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import negative_cosine
from ssl_zoo.method import Batch, Method
from ssl_zoo.methods.genview import PairWeights
from ssl_zoo.optim import Group, constant


class SimSiam(Method):
    """Each view's prediction is the projection of the other view, through which no gradient flows.

    Chen and He, CVPR 2021, arXiv:2011.10566, eq. (4): -1 at best. The predictor's learning rate stays constant while
    the others follow the schedule (sec. 4.2).

    Args:
        projector: layer widths of the projector, which ends in a BatchNorm without scale and shift.
        predictor: hidden widths of the predictor, a bottleneck.
        judge: a frozen encoder by which pairs of good views count more (GenView): a file, or a name with weights, as
            ssl-zoo evaluate takes them. Without one all pairs count alike.
    """

    def __init__(self, projector: Sequence[int] = (2048, 2048, 2048), predictor: Sequence[int] = (512,),
                 judge: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("SimSiam")
        self.projector = mlp(self.encoder.dim, *projector, last_norm=True, last_scale=False)
        self.predictor = mlp(projector[-1], *predictor, projector[-1])
        self.pair_weights = PairWeights(judge, self.augment)

    def groups(self) -> Sequence[Group]:
        return [Group([self.predictor], schedule=constant)]

    def training_loss(self, batch: Batch) -> Tensor:
        z1, z2 = (self.projector(self.encoder(view.images)) for view in batch.views)     # [B, D] each
        p1, p2 = self.predictor(z1), self.predictor(z2)
        cosines = negative_cosine(p1, z2, "none") + negative_cosine(p2, z1, "none")      # no gradient to the targets
        return (cosines * self.pair_weights(batch.views)[0, 1]).mean() / 2
