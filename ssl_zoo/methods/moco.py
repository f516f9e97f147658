from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import Contrast, check_choice, check_temperature, contrast, mean_cosines, queue_similarities, unit
from ssl_zoo.memory import MomentumEncoder, Queue
from ssl_zoo.method import Batch, Method
from ssl_zoo.methods.genview import PairWeights


class MoCo(Method):
    """A query finds its key among a queue of past keys made by a slowly moving encoder.

    He et al., CVPR 2020, arXiv:1911.05722; projector and temperature are MoCo v2's, arXiv:2003.04297.

    Args:
        projector: layer widths of the projector, which has no BatchNorm.
        temperature: divides the cosine similarities.
        queue: the number of keys to remember; keep it well below the number of images.
        momentum: share of the momentum encoder kept at each step.
        symmetric: use each view as the query once, against the same queue, and take the mean of the two losses (the
            authors' notebook adds them, which doubles the learning rate).
        splits: the number of groups on each process whose keys share BatchNorm statistics, so that a query cannot
            recognise its key by them; 8 on a single device. Several processes shuffle their keys in any case.
        contrast: "info_nce", or "decoupled" or "weighted_decoupled" for DCL on a queue.
        judge: a frozen encoder by which pairs of good views count more (GenView): a file, or a name with weights, as
            ssl-zoo evaluate takes them. Without one all pairs count alike.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), temperature: float = 0.2, queue: int = 65536,
                 momentum: float = 0.999, symmetric: bool = False, splits: int = 1, contrast: Contrast = "info_nce",
                 judge: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views(type(self).__name__)
        self.projector = mlp(self.encoder.dim, *projector, norm=False)
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projector)
        self.queue = Queue(queue, projector[-1])
        self.temperature, self.contrast = check_temperature(temperature), check_choice("contrast", contrast, Contrast)
        self.momentum, self.symmetric, self.splits = momentum, symmetric, splits
        self.pair_weights = PairWeights(judge, self.augment)

    def training_loss(self, batch: Batch) -> Tensor:
        x1, x2 = (view.images for view in batch.views)
        queue = self.queue.snapshot()                                        # [K, D], before this step's keys
        weights = self.pair_weights(batch.views)[0, 1]                       # [B]
        losses, keys = [], []
        for query_images, key_images in [(x1, x2), (x2, x1)] if self.symmetric else [(x1, x2)]:
            query = self.projector(self.encoder(query_images))               # [B, D]
            key = unit(self.momentum_encoder.keys(key_images, batch.key, self.splits))
            similarities = queue_similarities(query, key, queue)
            losses.append(contrast(*similarities, self.temperature, self.contrast, reduction="none") * weights)
            keys.append(key)
        self.queue.enqueue(torch.cat(keys), batch.index.repeat(len(keys)))
        self.log_dict(mean_cosines(*similarities), batch_size=len(batch.index))
        return torch.stack(losses).mean()

    def after_step(self) -> None:
        self.momentum_encoder.update(momentum=self.momentum)
