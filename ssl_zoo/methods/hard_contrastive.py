import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.blocks import by_rows
from ssl_zoo.heads import mlp
from ssl_zoo.losses import (
    batch_similarities,
    check_share,
    check_temperature,
    contrast,
    full_precision,
    queue_similarities,
    require_two_images,
    unit,
)
from ssl_zoo.memory import MomentumEncoder, Queue
from ssl_zoo.method import Batch, Method


class HardContrastive(Method):
    """SimCLR against the hardest negatives alone, so that a high temperature still tells like images apart.

    Wang and Liu, CVPR 2021, arXiv:2012.09740, the hard contrastive loss, on the negatives of the batch. With
    multi-crop views, each global view learns with every other view.

    Args:
        projector: layer widths of the projector, at least one.
        temperature: divides the cosine similarities; larger than where all negatives count.
        hardest: share of each view's negatives to keep, those with the largest cosines; 1 is SimCLR.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), temperature: float = 0.5, hardest: float = 0.0819,
                 **kwargs: Any):
        super().__init__(**kwargs)
        self.pairs = self.augment.pairs("HardContrastive")
        self.projector = mlp(self.encoder.dim, *projector, last_norm=True)
        self.temperature, self.hardest = check_temperature(temperature), check_share("hardest", hardest)

    def training_loss(self, batch: Batch) -> Tensor:
        z = [self.projector(self.encoder(view.images)) for view in batch.views]          # V x [B, D]
        return torch.stack([hard_contrast(z[a], z[b], self.temperature, self.hardest) for a, b in self.pairs]).mean()


class HardContrastiveMoCo(Method):
    """MoCo against the hardest keys of its queue alone: the hard contrastive loss where the paper has its memory bank.

    Args:
        projector: layer widths of the projector, which has no BatchNorm.
        temperature: divides the cosine similarities; larger than where all keys count.
        hardest: share of the queue to keep for each query, those with the largest cosines; 1 is MoCo.
        queue: the number of keys to remember; keep it well below the number of images.
        momentum: share of the momentum encoder kept at each step.
        splits: the number of groups on each process whose keys share BatchNorm statistics; 8 on a single device.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), temperature: float = 0.5, hardest: float = 0.0819,
                 queue: int = 65536, momentum: float = 0.999, splits: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("HardContrastiveMoCo")
        self.projector = mlp(self.encoder.dim, *projector, norm=False)
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projector)
        self.queue = Queue(queue, projector[-1])
        self.temperature, self.hardest = check_temperature(temperature), check_share("hardest", hardest)
        self.momentum, self.splits = momentum, splits

    def training_loss(self, batch: Batch) -> Tensor:
        x1, x2 = (view.images for view in batch.views)
        query = self.projector(self.encoder(x1))                                         # [B, D]
        key = unit(self.momentum_encoder.keys(x2, batch.key, self.splits))
        positive, negative = queue_similarities(query, key, self.queue.snapshot())       # [B], [B, K]
        self.queue.enqueue(key, batch.index)
        return contrast(positive, keep(negative.matrix(), self.hardest), self.temperature)

    def after_step(self) -> None:
        self.momentum_encoder.update(momentum=self.momentum)


@full_precision
def hard_contrast(z1: Tensor, z2: Tensor, temperature: float, hardest: float) -> Tensor:
    """`nt_xent` of two views [B, D] in which only this share of each row's negatives counts, the hardest."""
    positive, negative = batch_similarities(z1, z2)                                      # [2B], [2B, 2N]
    require_two_images(negative.keys[::2], "HardContrastive")

    def rows(cosines: Tensor, positive: Tensor) -> Tensor:
        return contrast(positive, keep(cosines, hardest, absent=2), temperature, reduction="none")
    return by_rows(rows, (negative,), (positive,)).mean()


def keep(negative: Tensor, share: float, absent: int = 0) -> Tensor:
    """The largest cosines of each row [B, K], so many that they are this share of it, rounded up.

    Args:
        absent: the number of columns in which a row holds -inf because it has no negative there.
    """
    return negative.topk(math.ceil(share * (negative.shape[1] - absent)), dim=1).values
