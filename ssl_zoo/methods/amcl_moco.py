from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.adaptive import LOGGED, AdaptiveForm, PairTemperature, adaptive_contrast, temperature_quantiles
from ssl_zoo.heads import MultiHead
from ssl_zoo.losses import check_choice, queue_similarities, unit
from ssl_zoo.memory import MomentumEncoder, Queue
from ssl_zoo.method import Batch, Method


class AMCLMoCo(Method):
    """MoCo with several projectors, a queue for each, and a learned temperature for each pair of projections.

    Wang et al., ECCV 2024, arXiv:2310.05615. Each view is the query once; the losses of the heads are added.

    Args:
        heads: the number of projectors, at least 1.
        projector: layer widths of each projector, which has no BatchNorm.
        queue: the number of keys to remember; keep it well below the number of images.
        momentum: share of the momentum encoder kept at each step.
        splits: the number of groups on each process whose keys share BatchNorm statistics; 8 on a single device.
        regularizer_weight: weight of the term that keeps temperatures away from 0; the paper's beta.
        floor: the lowest temperature. Give the paper's form at least 0.02, or its temperatures end at 1e-5.
        form: "bounded", or "paper", which compares with the hardest negative alone. The paper's form has no lower bound
            and its temperatures fall to the floor: clip gradients at 1, and do not read its value.
    """

    def __init__(self, heads: int = 3, projector: Sequence[int] = (512, 128), queue: int = 4096,
                 momentum: float = 0.99, splits: int = 1, regularizer_weight: float = 1e-4, floor: float = 1e-5,
                 form: AdaptiveForm = "bounded", **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("AMCLMoCo")
        self.projectors = MultiHead(heads, self.encoder.dim, *projector)
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projectors)
        self.queue = Queue(queue, heads * projector[-1])                                  # the heads side by side
        self.temperature = PairTemperature(projector[-1], floor=floor)
        self.momentum, self.splits = momentum, splits
        self.regularizer_weight, self.form = regularizer_weight, check_choice("form", form, AdaptiveForm)

    def training_loss(self, batch: Batch) -> Tensor:
        x1, x2 = (view.images for view in batch.views)
        heads, width = len(self.projectors.heads), self.temperature.width
        queue = unit(self.queue.snapshot().unflatten(1, (heads, width)))                  # [K, C, D]
        losses, keys, of_positives, of_negatives = [], [], [], []
        for query_images, key_images in (x1, x2), (x2, x1):
            query = unit(self.projectors(self.encoder(query_images)))                     # [B, C, D]
            key = unit(self.momentum_encoder.keys(key_images, batch.key, self.splits))
            keys.append(key.flatten(1))
            for q, k, negatives in zip(query.unbind(1), key.unbind(1), queue.unbind(1), strict=True):
                code = self.temperature(q)
                products = (code * self.temperature(k)).sum(1), code @ self.temperature(negatives).T       # [B], [B, K]
                temperatures = [self.temperature.of(r) for r in products]
                of_positives.append(temperatures[0])
                of_negatives.append(temperatures[1][:LOGGED])
                positive, negative = queue_similarities(q, k, negatives)
                losses.append(adaptive_contrast(positive, negative.matrix(), *temperatures, width,
                                                self.regularizer_weight, self.form))
        self.queue.enqueue(torch.cat(keys), batch.index.repeat(2))
        self.log_dict(temperature_quantiles(of_positives, of_negatives), batch_size=len(batch.index))
        return torch.stack(losses).sum() / 2

    def after_step(self) -> None:
        self.momentum_encoder.update(momentum=self.momentum)
