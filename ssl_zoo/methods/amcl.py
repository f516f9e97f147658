from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.adaptive import LOGGED, AdaptiveForm, PairTemperature, adaptive_batch, temperature_quantiles
from ssl_zoo.heads import MultiHead
from ssl_zoo.losses import batch_products, batch_similarities, check_choice, require_others, unit
from ssl_zoo.method import Batch, Method


class AMCL(Method):
    """SimCLR with several projectors and a learned temperature for each pair of projections.

    Wang et al., ECCV 2024, arXiv:2310.05615. The losses of the heads are added.

    Args:
        heads: the number of projectors, at least 1.
        projector: layer widths of each projector, which has no BatchNorm.
        regularizer_weight: weight of the term that keeps temperatures away from 0; the paper's beta.
        floor: the lowest temperature. Give the paper's form at least 0.02, or its temperatures end at 1e-5.
        form: "bounded", or "paper", which compares with the hardest negative alone. The paper's form has no lower bound
            and its temperatures fall to the floor: clip gradients at 1, and do not read its value.
    """

    def __init__(self, heads: int = 3, projector: Sequence[int] = (512, 128), regularizer_weight: float = 1e-4,
                 floor: float = 1e-5, form: AdaptiveForm = "bounded", **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("AMCL")
        self.projectors = MultiHead(heads, self.encoder.dim, *projector)
        self.temperature = PairTemperature(projector[-1], floor=floor)
        self.regularizer_weight, self.form = regularizer_weight, check_choice("form", form, AdaptiveForm)

    def training_loss(self, batch: Batch) -> Tensor:
        z1, z2 = (unit(self.projectors(self.encoder(view.images))) for view in batch.views)   # [B, C, D] each
        require_others(z1, "AMCL")
        losses, of_positives, of_negatives = [], [], []
        for u1, u2 in zip(z1.unbind(1), z2.unbind(1), strict=True):                       # [B, D], one head's
            positive, negative = batch_similarities(u1, u2)                               # [2B] and [2B, 2N]
            positive_codes, negative_codes = batch_products(self.temperature(u1), self.temperature(u2))
            losses.append(adaptive_batch(positive, negative, positive_codes, negative_codes, self.temperature,
                                         self.regularizer_weight, self.form).mean())
            of_positives.append(self.temperature.of(positive_codes))
            codes = negative_codes.of(slice(LOGGED)).matrix()
            of_negatives.append(self.temperature.of(codes).masked_fill(codes.isinf(), float("nan")))
        self.log_dict(temperature_quantiles(of_positives, of_negatives), batch_size=len(z1))
        return torch.stack(losses).sum()
