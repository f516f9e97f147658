from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.clusters import ClusterBank, Pool
from ssl_zoo.heads import mlp
from ssl_zoo.losses import (
    check_choice,
    check_share,
    check_temperature,
    check_weight,
    contrast,
    queue_similarities,
    unit,
)
from ssl_zoo.memory import MomentumEncoder, Queue
from ssl_zoo.method import Batch, Method


class InterCLR(Method):
    """MoCo, and a query also finds another image of its cluster among the more similar images of other clusters.

    Xie et al., 2020, arXiv:2008.11702. The bank holds the newest key of each image. The authors cluster the features
    of the first weights in a pass over all images; here the bank fills during the first epochs, in which this is MoCo.

    Args:
        images: the number of images in the training part.
        projector: layer widths of the projector, which has no BatchNorm.
        temperature: divides the cosine similarities.
        queue: the number of keys to remember; keep it well below the number of images.
        momentum: share of the momentum encoder kept at each step.
        splits: the number of groups on each process whose keys share BatchNorm statistics; 8 on a single device.
        clusters: the number of clusters.
        smallest: clusters of fewer images are dissolved, and halves of the largest take their place.
        negatives: how many images of other clusters a query meets.
        pool: how many of the most similar images of other clusters they are drawn from; a tenth of the images.
        kind: "semi_hard"; "hard" for the most similar themselves, "semi_easy" for a pool of the least similar, "random"
            for one of all images.
        margin: is taken from the cosine with the positive; below 0, images of a cluster need not agree.
        inter_weight: weight of the other images, 0 to 1; the views of one image have the rest.
        share: of the newest key in an image's feature.
        start: the first epoch with clusters, from 0.
        every: steps from one mending of the clusters to the next.
    """

    def __init__(self, images: int, projector: Sequence[int] = (2048, 128), temperature: float = 0.2,
                 queue: int = 65536, momentum: float = 0.999, splits: int = 1, clusters: int = 10000,
                 smallest: int = 20, negatives: int = 16384, pool: int = 128000, kind: Pool = "semi_hard",
                 margin: float = -0.5, inter_weight: float = 0.25, share: float = 1.0, start: int = 1, every: int = 10,
                 **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("InterCLR")
        if not 1 <= negatives <= pool <= images:
            raise ValueError(f"InterCLR draws negatives from a pool of the images, and these are {negatives} of {pool} "
                             f"of {images}: let each be at most the next")
        if every < 1:
            raise ValueError(f"every counts steps from 1, and is {every}")
        self.projector = mlp(self.encoder.dim, *projector, norm=False)
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projector)
        self.queue = Queue(queue, projector[-1])
        self.bank = ClusterBank(images, projector[-1], clusters, smallest)
        self.temperature, self.momentum, self.splits = check_temperature(temperature), momentum, splits
        self.negatives, self.pool, self.kind = negatives, pool, check_choice("kind", kind, Pool)
        self.inter_weight = check_weight("inter_weight", inter_weight, papers=0.25)
        self.margin, self.share, self.start, self.every = margin, check_share("share", share), start, every

    def training_loss(self, batch: Batch) -> Tensor:
        x1, x2 = (view.images for view in batch.views)
        query = self.projector(self.encoder(x1))                                         # [B, D]
        key = unit(self.momentum_encoder.keys(x2, batch.key, self.splits))
        intra = contrast(*queue_similarities(query, key, self.queue.snapshot()), self.temperature)
        drawn = self.bank.draw(query, batch.index, self.negatives, self.pool, self.kind)
        terms = contrast(drawn.positive - self.margin, drawn.negative, self.temperature, reduction="none")
        inter = torch.where(drawn.known, terms, 0).mean()
        self.queue.enqueue(key, batch.index)
        self.bank.write(batch.index, key, self.share)
        self.log_dict({"loss/intra": intra.detach(), "loss/inter": inter.detach()}, batch_size=len(query))
        weight = self.inter_weight * self.bank.made                                      # 0 before there are clusters
        return (1 - weight) * intra + weight * inter

    def after_step(self) -> None:
        self.momentum_encoder.update(momentum=self.momentum)
        if self.current_epoch >= self.start and self.global_step % self.every == 0:
            self.bank.tidy()
