from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import check_coldest, check_share, global_contrast
from ssl_zoo.memory import SampleTable
from ssl_zoo.method import Batch, Method


class SogCLR(Method):
    """SimCLR for small batches: each image's denominator is a moving average over the batches that it was in.

    Yuan et al., ICML 2022, arXiv:2202.12387. The loss is a surrogate that has the gradient of the method; its value
    says little. An image's first batch alone makes its first average.

    Args:
        images: the number of images in the training part.
        projector: layer widths of the projector, at least one.
        temperature: divides the cosine similarities.
        gamma: share of the newest batch in an image's average.
    """

    def __init__(self, images: int, projector: Sequence[int] = (2048, 128), temperature: float = 0.1,
                 gamma: float = 0.9, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("SogCLR")
        self.projector = mlp(self.encoder.dim, *projector, last_norm=True)
        self.table = SampleTable(images, average=0.0)            # 0 is before the first batch
        self.temperature, self.gamma = check_coldest(temperature), check_share("gamma", gamma)

    def training_loss(self, batch: Batch) -> Tensor:
        z1, z2 = (self.projector(self.encoder(view.images)) for view in batch.views)     # [B, D] each
        old = self.table.read("average", batch.index)                                    # [B]
        loss, averages, _ = global_contrast(z1, z2, old, torch.full_like(old, self.temperature), self.gamma)
        self.table.write(batch.index, average=averages)
        return loss
