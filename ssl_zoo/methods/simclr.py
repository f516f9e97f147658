from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.heads import mlp
from ssl_zoo.losses import check_temperature, mean_similarities, nt_xent, require_others
from ssl_zoo.method import Batch, Method
from ssl_zoo.methods.genview import PairWeights


class SimCLR(Method):
    """Two views of an image agree against every other image of the batch.

    Chen et al., ICML 2020, arXiv:2002.05709. Colour strength is a property of the views: `strength` of their row. With
    multi-crop views, each view of the role global learns with every other view.

    Args:
        projector: layer widths of the projector, at least one.
        projector_norm: end the projector with a BatchNorm that scales and does not shift, as the authors' code does.
        temperature: divides the cosine similarities.
        judge: a frozen encoder by which pairs of good views count more (GenView): a file, or a name with weights, as
            ssl-zoo evaluate takes them. Without one all pairs count alike.
    """

    def __init__(self, projector: Sequence[int] = (2048, 128), projector_norm: bool = True, temperature: float = 0.1,
                 judge: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.pairs = self.augment.pairs("SimCLR")
        self.projector = mlp(self.encoder.dim, *projector, last_norm=projector_norm)
        self.temperature = check_temperature(temperature)
        self.pair_weights = PairWeights(judge, self.augment)

    def training_loss(self, batch: Batch) -> Tensor:
        z = [self.projector(self.encoder(view.images)) for view in batch.views]        # V x [B, D]
        require_others(z[0], "SimCLR")
        positive, negative = mean_similarities(z[0], z[1])
        self.log_dict({"similarity/positive": positive, "similarity/negative": negative}, batch_size=len(z[0]))
        weights = self.pair_weights(batch.views)                                       # [V, V, B]
        return torch.stack([nt_xent(z[a], z[b], self.temperature, "none").view(2, -1) * weights[a, b]
                            for a, b in self.pairs]).mean()
