from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.clusters import kmeans_step
from ssl_zoo.distributed import gather, world_size
from ssl_zoo.draws import Draws
from ssl_zoo.heads import mlp
from ssl_zoo.losses import Contrast, check_choice, check_temperature, contrast, full_precision, queue_similarities, unit
from ssl_zoo.memory import MomentumEncoder, Queue
from ssl_zoo.method import Batch, Method
from ssl_zoo.mixing import mixed_similarities, towards

NEAREST = 0.8   # of the way to where two prototypes tie, how much a positive may stay behind: the authors' lambda


class HaLP(Method):
    """MoCo with more positives than there are views: keys moved towards other clusters, as far as they keep their own.

    Shah et al., CVPR 2023, arXiv:2304.00387, which is about skeletons; here it learns from images. The prototypes take
    a step of spherical k-means over the newest keys after each step, where the authors run it anew every ten steps.

    Args:
        projector: layer widths of the projector, which has no BatchNorm.
        temperature: divides the cosine similarities.
        queue: the number of keys to remember; keep it well below the number of images.
        momentum: share of the momentum encoder kept at each step.
        splits: the number of groups on each process whose keys share BatchNorm statistics; 8 on a single device.
        contrast: "info_nce", or "decoupled" or "weighted_decoupled" for DCL on the queue.
        prototypes: the number of clusters.
        newest: the number of keys that are clustered.
        positives: how many positives to make for each image.
        weight: of their term, beside MoCo's loss.
        start: share of training before that term joins; until then the features are too young to be clustered.
    """

    prototypes: Tensor   # [P, D]

    def __init__(self, projector: Sequence[int] = (2048, 128), temperature: float = 0.2, queue: int = 65536,
                 momentum: float = 0.999, splits: int = 1, contrast: Contrast = "info_nce", prototypes: int = 20,
                 newest: int = 256, positives: int = 100, weight: float = 2.0, start: float = 0.44, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("HaLP")
        check_counts(prototypes, newest, positives, queue)
        self.projector = mlp(self.encoder.dim, *projector, norm=False)
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projector)
        self.queue, self.draws = Queue(queue, projector[-1]), Draws()
        self.register_buffer("prototypes", unit(torch.randn(prototypes, projector[-1])))
        self.temperature, self.contrast = check_temperature(temperature), check_choice("contrast", contrast, Contrast)
        self.momentum, self.splits, self.newest, self.positives = momentum, splits, newest, positives
        self.weight, self.start = weight, start
        if not 0 <= start <= 1:
            raise ValueError(f"start is a share of training, 0 to 1, not {start}: divide the epoch by all epochs")

    def training_loss(self, batch: Batch) -> Tensor:
        x1, x2 = (view.images for view in batch.views)
        queue = self.queue.snapshot()                                                    # [K, D]
        query = self.projector(self.encoder(x1))                                         # [B, D]
        key = unit(self.momentum_encoder.keys(x2, batch.key, self.splits))
        loss = contrast(*queue_similarities(query, key, queue), self.temperature, self.contrast)
        drawn = self.draws(len(key), 2 * self.positives) / 2 ** 32
        made, kept = latent_positives(key, self.prototypes, drawn.unflatten(1, (-1, 2)))
        alike = (mixed_similarities(query, made) * kept).sum() / gather(kept.sum()[None]).sum().clamp_min(1)
        self.queue.enqueue(key, batch.index)
        self.log_dict({"loss/moco": loss.detach(), "positives/kept": kept.mean()}, batch_size=len(key))
        weight = self.weight * (batch.progress >= self.start)
        return loss - weight * world_size() * alike / self.temperature

    def after_step(self) -> None:
        self.momentum_encoder.update(momentum=self.momentum)
        self.prototypes.copy_(kmeans_step(self.prototypes, self.queue.newest(self.newest)))


def check_counts(prototypes: int, newest: int, positives: int, queue: int) -> None:
    if prototypes < 2:
        raise ValueError(f"HaLP moves keys between 2 or more prototypes, not {prototypes}")
    if not prototypes <= newest <= queue:
        raise ValueError(f"HaLP finds its {prototypes} prototypes of {newest} keys among the newest {newest} keys of a "
                         f"queue of {queue}: let prototypes be at most newest, and newest at most queue")
    if positives < 1:
        raise ValueError(f"HaLP makes 1 or more positives, not {positives}")


@torch.no_grad()
@full_precision
def latent_positives(key: Tensor, prototypes: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Positives [B, M, D] of keys [B, D], and 1.0 where one keeps its key's nearest prototype, otherwise 0.0, [B, M].

    Args:
        key, prototypes: unit norm.
        drawn: two numbers of 0 to 1 for each positive [B, M, 2]: which other prototype, and how far.
    """
    order = (key @ prototypes.T).argsort(1, descending=True)                             # [B, P]
    which, behind = drawn.to(key).unbind(2)                                              # [B, M] each
    others = order.shape[1] - 1
    choice = 1 + (which * others).long().clamp_max(others - 1)
    made = towards(key[:, None], prototypes[order[:, :1]], prototypes[order.gather(1, choice)], 1 - NEAREST * behind)
    return made, ((made @ prototypes.T).argmax(2) == order[:, :1]).to(made)
