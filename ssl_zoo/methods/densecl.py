from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.heads import mlp, pixel_mlp
from ssl_zoo.losses import check_temperature, check_weight, contrast, full_precision, queue_similarities, unit
from ssl_zoo.memory import MomentumEncoder, Queue
from ssl_zoo.method import Batch, Method


class DenseCL(Method):
    """MoCo for whole images, and for each cell of a feature map with the most similar cell of the other view.

    Wang et al., CVPR 2021, arXiv:2011.09157, eq. (3). Cells match by the encoders' own features, before any projector;
    a second queue holds the mean of each map's projected cells.

    Args:
        projector: hidden and final width of both projectors: of pooled features, and of 1x1 convolutions on the map.
        temperature: divides the cosine similarities.
        queue: the number of keys that each queue remembers; keep it well below the number of images.
        momentum: share of the momentum encoder kept at each step.
        dense_weight: weight of the cells, 0 to 1; the images have the rest.
        splits: the number of groups on each process whose keys share BatchNorm statistics; 8 on a single device.
        encoder: images -> features; what pretraining is for. It must have maps.
    """

    def __init__(self, projector: tuple[int, int] = (2048, 128), temperature: float = 0.2, queue: int = 65536,
                 momentum: float = 0.999, dense_weight: float = 0.5, splits: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("DenseCL")
        self.projector = mlp(self.encoder.dim, *projector, norm=False)
        self.pixel_projector = pixel_mlp(self.encoder.dim, *projector, norm=False)
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projector, self.pixel_projector)
        self.queue, self.pixel_queue = Queue(queue, projector[-1]), Queue(queue, projector[-1])
        self.temperature = check_temperature(temperature)
        self.dense_weight = check_weight("dense_weight", dense_weight, papers=0.5)
        self.momentum, self.splits = momentum, splits

    def training_loss(self, batch: Batch) -> Tensor:
        x1, x2 = (view.images for view in batch.views)
        features, query, queries = outputs(x1, self.encoder, self.projector, self.pixel_projector)
        key_features, key, keys = self.momentum_encoder.keys(
            x2, batch.key, self.splits, lambda images: outputs(images, *self.momentum_encoder))
        whole = contrast(*queue_similarities(query, key, self.queue.snapshot()), self.temperature)
        matched = corresponding(features, key_features, keys).flatten(0, 1)              # [B * N, D]
        cells = contrast(*queue_similarities(queries.flatten(0, 1), matched, self.pixel_queue.snapshot()),
                         self.temperature)
        self.queue.enqueue(unit(key), batch.index)
        self.pixel_queue.enqueue(unit(keys.mean(1)), batch.index)
        self.log_dict({"loss/image": whole.detach(), "loss/cells": cells.detach()}, batch_size=len(batch.index))
        return (1 - self.dense_weight) * whole + self.dense_weight * cells

    def after_step(self) -> None:
        self.momentum_encoder.update(momentum=self.momentum)


def outputs(images: Tensor, encoder: Any, projector: Any, pixel_projector: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The cells' features [B, N, C], the image's projection [B, D] and the cells' projections [B, N, D]."""
    maps = encoder.maps(images)                                                          # [B, C, h, w]
    cells = pixel_projector(maps).flatten(2).mT
    return maps.flatten(2).mT, projector(maps.mean((2, 3))), cells


@torch.no_grad()
@full_precision
def corresponding(features: Tensor, others: Tensor, values: Tensor) -> Tensor:
    """For each cell, the other view's cell whose features have the largest cosine: its row of `values` [B, N, D].

    Args:
        features, others: of the cells of two views, [B, N, C].
        values: of the other view's cells, [B, N, D].
    """
    match = torch.bmm(F.normalize(features, dim=-1), F.normalize(others, dim=-1).mT).argmax(2)   # [B, N]
    return values.gather(1, match[:, :, None].expand(-1, -1, values.shape[2]))
