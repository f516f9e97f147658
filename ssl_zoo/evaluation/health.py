"""Health of features without labels: does the encoder tell images apart, and by how many directions?"""

import math

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_zoo.evaluation.features import FeatureCallback, Features

SAMPLE = 5000   # images; RankMe needs a singular value decomposition of [SAMPLE, D]


def feature_std(x: Tensor) -> float:
    """Mean deviation over the axes of the unit features, times sqrt(D): 1 where they fill the sphere, 0 at collapse.

    Sec. 4.1 of SimSiam, arXiv:2011.10566.
    """
    return F.normalize(x, dim=-1).std(0).mean().item() * math.sqrt(x.shape[1])


def rankme(x: Tensor) -> float:
    """Effective rank of `x` [N, D]: the exponential of the entropy of its singular values' shares, 1 to min(N, D).

    Eq. (1) and (2) of RankMe, arXiv:2210.02885, on float64 features.
    """
    values = torch.linalg.svdvals(x.double())
    shares = values / values.sum().clamp_min(1e-12) + 1e-7   # the paper's epsilon
    return torch.exp(-(shares * shares.log()).sum()).item()


def uniformity(x: Tensor, t: float = 2.0, chunk: int = 1000) -> float:
    """log of the mean of exp(-t d^2) over all pairs of unit features; 0 at collapse, lower is more even.

    Eq. (2) of Wang and Isola, arXiv:2005.10242.
    """
    x = F.normalize(x, dim=-1)
    total = sum(torch.exp(-2 * t * (1 - rows @ x.T)).double().sum() for rows in x.split(chunk))   # d^2 = 2 - 2 cosine
    pairs = len(x) * (len(x) - 1)
    return math.log(max((float(total) - len(x)) / max(pairs, 1), 1e-300))


class Health(FeatureCallback):
    """feature_std, rankme and uniformity of plain training images; needs no labels. Warns of a collapse."""

    needs_labels = False

    def measure(self, train: Features, test: Features) -> dict[str, float]:
        chosen = torch.linspace(0, len(train.x) - 1, min(SAMPLE, len(train.x)), device=train.x.device).long()
        x = train.x[chosen]
        if not x.isfinite().all():
            rank_zero_warn("some features are not finite: the encoder's weights have overflowed; go back to an earlier "
                           "checkpoint and lower the learning rate")
            return {}
        numbers = {"health/feature_std": feature_std(x), "health/rankme": rankme(x),
                   "health/uniformity": uniformity(x)}
        if numbers["health/feature_std"] < 0.02:
            rank_zero_warn(f"the features of all images are nearly the same (feature_std "
                           f"{numbers['health/feature_std']:.3f}, where 1 is healthy): the encoder has collapsed; "
                           "try a lower learning rate, a larger batch or stronger augmentation")
        return numbers
