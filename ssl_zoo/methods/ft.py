from collections.abc import Sequence
from typing import Any

import torch
from scipy.special import betaincinv
from torch import Tensor

from ssl_zoo.draws import Draws
from ssl_zoo.heads import mlp
from ssl_zoo.losses import Contrast, check_choice, check_temperature, contrast, mean_cosines, unit
from ssl_zoo.memory import MomentumEncoder, Queue
from ssl_zoo.method import Batch, Method
from ssl_zoo.mixing import transformed_similarities

QUANTILES = 4096   # from which a Beta distribution is drawn


class FT(Method):
    """MoCo whose positives are pushed apart along their line, and whose negatives are mixtures of two keys.

    Zhu et al., ICCV 2021, arXiv:2108.02982 (feature transformation). As in the authors' command, each step draws one
    share for all pairs and one for all keys, and nothing is scaled back to unit norm; their class can also draw one for
    each dimension. The queue remembers the keys as they are.

    Args:
        projector: layer widths of the projector, which has no BatchNorm.
        temperature: divides the scalar products.
        queue: the number of keys to remember; keep it well below the number of images.
        momentum: share of the momentum encoder kept at each step; the paper has 0.99 for ImageNet-100.
        splits: the number of groups on each process whose keys share BatchNorm statistics; 8 on a single device.
        contrast: "info_nce", or "decoupled" or "weighted_decoupled" for DCL over the transformed queue.
        extrapolation: pairs are pushed apart to 1 + Beta(a, a) of their distance with this a; larger is nearer to 1.5.
        interpolation: keys are mixed by a share of Beta(a, a) with this a; larger is nearer to a half.
    """

    extrapolations: Tensor   # [QUANTILES]
    interpolations: Tensor   # [QUANTILES]

    def __init__(self, projector: Sequence[int] = (2048, 128), temperature: float = 0.2, queue: int = 65536,
                 momentum: float = 0.999, splits: int = 1, contrast: Contrast = "info_nce",
                 extrapolation: float = 2.0, interpolation: float = 1.6, **kwargs: Any):
        super().__init__(**kwargs)
        self.augment.require_views("FT")
        self.projector = mlp(self.encoder.dim, *projector, norm=False)
        self.momentum_encoder = MomentumEncoder(self.encoder, self.projector)
        self.queue, self.draws = Queue(queue, projector[-1]), Draws()
        self.register_buffer("extrapolations", beta_quantiles(extrapolation), persistent=False)
        self.register_buffer("interpolations", beta_quantiles(interpolation), persistent=False)
        self.temperature, self.contrast = check_temperature(temperature), check_choice("contrast", contrast, Contrast)
        self.momentum, self.splits = momentum, splits

    def training_loss(self, batch: Batch) -> Tensor:
        x1, x2 = (view.images for view in batch.views)
        queue = self.queue.snapshot()                                                    # [K, D]
        query = unit(self.projector(self.encoder(x1)))                                   # [B, D]
        key = unit(self.momentum_encoder.keys(x2, batch.key, self.splits))
        first, second = self.draws.order(QUANTILES)[:2].split(1)                         # [1]: a place [] is read back
        apart, along = 1 + self.extrapolations[first], self.interpolations[second]
        similarities = transformed_similarities(query, key, queue, self.draws.order(len(queue)), apart, along)
        self.queue.enqueue(key, batch.index)
        self.log_dict(mean_cosines(*similarities), batch_size=len(query))
        return contrast(*similarities, self.temperature, self.contrast)

    def after_step(self) -> None:
        self.momentum_encoder.update(momentum=self.momentum)


def beta_quantiles(alpha: float) -> Tensor:
    """Numbers [QUANTILES] at even distances of the distribution Beta(alpha, alpha): one at random is a draw."""
    if not alpha > 0:
        raise ValueError(f"a Beta distribution's parameter must be above 0, not {alpha}")
    places = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    return torch.from_numpy(betaincinv(alpha, alpha, places.numpy())).float()
