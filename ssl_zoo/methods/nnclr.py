from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import check_temperature, contrast, cross_similarities, full_precision, require_others, unit
from ssl_zoo.memory import Queue
from ssl_zoo.method import Batch, Method


class NNCLR(Method):
    """The neighbour of a view, nearest of a queue of earlier projections, finds the other view's prediction.

    Dwibedi et al., ICCV 2021, arXiv:2104.14548, eq. (3), the mean of both directions; the queue takes the projections
    of the first view, after they have been compared.

    Args:
        projector: layer widths of the projector, which ends in a BatchNorm.
        predictor: hidden widths of the predictor.
        temperature: divides the cosine similarities.
        queue: the number of projections to remember; more than there are classes, and less than there are images.
    """

    def __init__(self, projector: Sequence[int] = (2048, 2048, 256), predictor: Sequence[int] = (4096,),
                 temperature: float = 0.1, queue: int = 65536, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("NNCLR")
        self.projector = mlp(self.encoder.dim, *projector, last_norm=True)
        self.predictor = mlp(projector[-1], *predictor, projector[-1])
        self.queue = Queue(queue, projector[-1])
        self.temperature = check_temperature(temperature)

    def training_loss(self, batch: Batch) -> Tensor:
        z1, z2 = (self.projector(self.encoder(view.images)) for view in batch.views)     # [B, D] each
        require_others(z1, "NNCLR")
        p1, p2 = self.predictor(z1), self.predictor(z2)
        queue = self.queue.snapshot()                                                    # [K, D]
        (n1, cosine, place), (n2, _, _) = nearest(z1, queue), nearest(z2, queue)
        losses = [contrast(*cross_similarities(n, p), self.temperature) for n, p in ((n1, p2), (n2, p1))]
        same = (self.queue.index[place] == batch.index).float().mean()
        self.log_dict({"neighbour/cosine": cosine.mean(), "neighbour/same_image": same}, batch_size=len(z1))
        self.queue.enqueue(unit(z1), batch.index)
        return (losses[0] + losses[1]) / 2


@full_precision
def nearest(z: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The key [B, D] with the largest cosine for each row of `z` [B, D]; the cosine [B], and its place in `keys` [B].

    Args:
        z: projections, any scale.
        keys: [K, D], unit norm.
    """
    cosine, place = (unit(z.detach()) @ keys.T).max(1)
    return keys[place], cosine, place
