"""Measures of features that torchmetrics does not have, as its `Metric` classes: for any LightningModule, or none.

Give each batch to `update`, ask `compute` for the number over all of them, and `reset`. On several processes `compute`
counts the images of all; each process must have had a batch. The metrics join a `MetricCollection`, pickle, and take
features in half precision. The protocols of `ssl_zoo.evaluation` use the same functions; these classes are for any loop
of your own.

    self.rankme = RankMe()                            # in a LightningModule's __init__
    self.rankme.update(features); self.log("rankme", self.rankme)
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ssl_zoo.evaluation.health import alignment, feature_std, rankme, tolerance, uniformity
from ssl_zoo.evaluation.knn import knn_scores, most_voted
from ssl_zoo.evaluation.nearest import nearest_by_chunk


class FeatureMetric(Metric):
    """Keeps the features of all batches until the number is asked for; a subclass says what to `measure` of them."""

    is_differentiable = False
    full_state_update = False
    features: list[Tensor]

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.add_state("features", default=[], dist_reduce_fx="cat")

    def measure(self, x: Tensor) -> float:
        """The number, of features [N, D] in float32."""
        raise NotImplementedError

    def update(self, features: Tensor) -> None:
        """Add a batch of features [B, D]."""
        self.features.append(features.detach())

    def compute(self) -> Tensor:
        return torch.tensor(self.measure(dim_zero_cat(self.features).float()), device=self.device)


class RankMe(FeatureMetric):
    """Effective rank of the features, from 1 to their width: eq. (1) and (2) of arXiv:2210.02885, in float64."""

    higher_is_better = True

    def measure(self, x: Tensor) -> float:
        return rankme(x)


class FeatureStd(FeatureMetric):
    """Deviation of the unit features times the root of their width: 1 fills the sphere, 0 is collapse.

    Sec. 4.1 of SimSiam, arXiv:2011.10566.
    """

    higher_is_better = True

    def measure(self, x: Tensor) -> float:
        return feature_std(x)


class Uniformity(FeatureMetric):
    """Log of the mean of exp(-t d²) over all pairs of unit features; 0 at collapse, lower is more even.

    Eq. (2) of Wang and Isola, arXiv:2005.10242. NaN for one image.

    Args:
        t: the factor of the squared distance.
        options: of torchmetrics' `Metric`.
    """

    higher_is_better = False

    def __init__(self, t: float = 2.0, **options: Any):
        super().__init__(**options)
        self.t = t

    def measure(self, x: Tensor) -> float:
        return uniformity(x, self.t)


class Alignment(Metric):
    """Mean squared distance of the unit features of two views of an image: 0 where they agree, 4 where opposite.

    Eq. (1) of Wang and Isola, arXiv:2005.10242, with alpha 2.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add the features [B, D] of two views of the same images."""
        self.total += alignment(first.detach(), second.detach()) * len(first)
        self.images += len(first)

    def compute(self) -> Tensor:
        return (self.total / self.images).float()


class Tolerance(FeatureMetric):
    """Mean cosine of two images of a class, over all such pairs: 1 where a class is one point.

    The conditional form of Wang and Liu, arXiv:2012.09740, whose own also counts pairs of two classes as 0. Images
    without a label (-1) are left out; NaN where no class has two images.
    """

    higher_is_better = True
    labels: list[Tensor]

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, labels: Tensor) -> None:   # type: ignore[override]
        """Add a batch of features [B, D] with their labels [B]."""
        super().update(features)
        self.labels.append(labels)

    def measure(self, x: Tensor) -> float:
        return tolerance(x, dim_zero_cat(self.labels)).conditional


class KNNAccuracy(Metric):
    """Share of the test images whose class gets the largest vote of their nearest training images by the cosine.

    Sec. 3.4 of InstDisc, arXiv:1805.01978; the defaults are the protocol knn_dino, and `k=200, temperature=0.1` is
    knn_instdisc. NaN as long as there are no training or no test images: `forward` on one batch has only either.

    Args:
        k: neighbours that vote; all training images, where there are fewer.
        temperature: a vote weighs exp(cosine / temperature).
        top: a test image is right where its class is among this many with the largest votes, at most 5.
        options: of torchmetrics' `Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    bank: list[Tensor]
    bank_labels: list[Tensor]
    queries: list[Tensor]
    query_labels: list[Tensor]

    def __init__(self, k: int = 20, temperature: float = 0.07, top: int = 1, **options: Any):
        super().__init__(**options)
        if k < 1 or not 1 <= top <= 5 or temperature <= 0:
            raise ValueError(f"at least 1 neighbour votes at a temperature above 0 for 1 to 5 classes, not {k} at "
                             f"{temperature} for {top}")
        self.k, self.temperature, self.top = k, temperature, top
        for state in ("bank", "bank_labels", "queries", "query_labels"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, labels: Tensor, train: bool) -> None:
        """Add a batch.

        Args:
            features: [B, D].
            labels: [B]; training images need one, and a test image without one (-1) is wrong.
            train: whether these images vote, or are to be classified.
        """
        if train and (labels < 0).any():
            raise ValueError(f"{int((labels < 0).sum())} of {len(labels)} training images have no label, and "
                             "neighbours vote for labels: leave these images out")
        (self.bank if train else self.queries).append(features.detach())
        (self.bank_labels if train else self.query_labels).append(labels)

    def compute(self) -> Tensor:
        if not len(self.bank) or not len(self.queries):
            return torch.tensor(torch.nan, device=self.device)
        bank, labels = dim_zero_cat(self.bank), dim_zero_cat(self.bank_labels)
        classes = int(labels.max()) + 1
        votes = (most_voted(knn_scores(cosines, labels[places], self.temperature, classes))[:, :self.top]
                 for cosines, places in nearest_by_chunk(dim_zero_cat(self.queries), bank, self.k))
        truth = dim_zero_cat(self.query_labels)[:, None]
        return ((torch.cat(list(votes)) == truth) & (truth >= 0)).any(1).double().mean().float()
