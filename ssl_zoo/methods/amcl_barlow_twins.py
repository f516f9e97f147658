from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.adaptive import LOGGED, AdaptiveForm, PairTemperature, adaptive_correlation, temperature_quantiles
from ssl_zoo.heads import MultiHead
from ssl_zoo.losses import check_choice, standardized
from ssl_zoo.method import Batch, Method


class AMCLBarlowTwins(Method):
    """Barlow Twins with several projectors and a learned temperature for each pair of their outputs.

    Wang et al., ECCV 2024, arXiv:2310.05615, eq. (2.3). The temperature of two outputs is learned from their values
    over the batch, so the network is as wide as the batch of all processes.

    Args:
        heads: the number of projectors, at least 1.
        projector: layer widths of each projector, with BatchNorm between the layers.
        global_batch: images in a training batch of all processes together.
        redundancy_weight: weight of the terms off the diagonal.
        regularizer_weight: weight of the term that keeps temperatures away from 0; the paper's beta.
        floor: the lowest temperature. Give the paper's form at least 0.02, or its temperatures end at 1e-5.
        form: "bounded", or "paper", whose regulariser off the diagonal leaves the loss without a lower bound.
    """

    def __init__(self, global_batch: int, heads: int = 3, projector: Sequence[int] = (2048, 2048, 2048),
                 redundancy_weight: float = 0.005, regularizer_weight: float = 1e-6, floor: float = 1e-5,
                 form: AdaptiveForm = "bounded", **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("AMCLBarlowTwins")
        self.projectors = MultiHead(heads, self.encoder.dim, *projector, norm=True)
        self.temperature = PairTemperature(global_batch, floor=floor)
        self.redundancy_weight, self.regularizer_weight = redundancy_weight, regularizer_weight
        self.form = check_choice("form", form, AdaptiveForm)

    def training_loss(self, batch: Batch) -> Tensor:
        z1, z2 = (self.projectors(self.encoder(view.images)) for view in batch.views)     # [B, C, D] each
        losses, of_positives, of_negatives = [], [], []
        for head in range(z1.shape[1]):
            u1, u2 = standardized(z1[:, head]), standardized(z2[:, head])                 # [N, D], of all processes
            if len(u1) != self.temperature.width:
                raise ValueError(f"AMCLBarlowTwins was built for batches of {self.temperature.width} images over all "
                                 f"processes and got {len(u1)}: set model.global_batch to that")
            # of unit length, as with the other hosts: at theirs the temperatures would start at the floor
            code1, code2 = (self.temperature(u.T / len(u) ** 0.5) for u in (u1, u2))      # [D, N]
            temperatures = self.temperature.of(code1 @ code2.T)                           # [D, D]
            losses.append(adaptive_correlation(u1.T @ u2 / len(u1), temperatures, self.redundancy_weight,
                                               self.regularizer_weight, self.form))
            of_positives.append(temperatures.diagonal())
            of_negatives.append(temperatures[:LOGGED].detach().clone().fill_diagonal_(float("nan")))
        self.log_dict(temperature_quantiles(of_positives, of_negatives), batch_size=len(z1))
        return torch.stack(losses).sum()
