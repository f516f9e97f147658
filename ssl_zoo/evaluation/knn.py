"""The weighted vote of the nearest images by the cosine of frozen features: k-nearest-neighbour accuracy."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.evaluation.features import FeatureCallback, Features, nearest_of_all
from ssl_zoo.evaluation.nearest import nearest_by_chunk
from ssl_zoo.evaluation.score import Score


class Protocol(NamedTuple):
    k: int               # neighbours that vote
    temperature: float   # a vote weighs exp(cosine / temperature)


PROTOCOLS = {"knn_instdisc": Protocol(200, 0.1),   # InstDisc's k with the temperature of MoCo's CIFAR demo
             "knn_dino": Protocol(20, 0.07),       # arXiv:2104.14294, sec. 4.1: usually the best of its four k
             "knn_dino_10": Protocol(10, 0.07),
             "knn_dino_100": Protocol(100, 0.07),
             "knn_dino_200": Protocol(200, 0.07)}


def knn_scores(cosines: Tensor, labels: Tensor, temperature: float, classes: int) -> Tensor:
    """Share of the weighted vote that each class gets, [M, classes].

    Sec. 3.4 of InstDisc, arXiv:1805.01978: neighbour j votes for its class with weight exp(cosine_j / temperature).

    Args:
        cosines: [M, k] with the neighbours.
        labels: [M, k] of the neighbours.
    """
    weights = (cosines / temperature).softmax(-1)   # the weights over their sum; exp alone overflows float16
    return weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)


def knn_classes(train: Features, test: Features, protocols: Mapping[str, Protocol] = PROTOCOLS) -> dict[str, Tensor]:
    """By each protocol the five classes with the most votes, most first, [M, 5]; fewer where there are fewer classes.

    All from one search. Where the bank has fewer images than a protocol has neighbours, all vote. In place of a class
    without any vote stands -1.

    Args:
        train, test: of several processes, each one's share: all find the same.
    """
    queries, known = distributed.gather_uneven(test.x), distributed.gather_uneven(train.labels)
    if (known < 0).any():
        raise ValueError(f"{int((known < 0).sum())} of {len(known)} training images have no label, and neighbours vote "
                         "for labels: leave these images out")
    classes, most = int(known.max()) + 1, max(protocol.k for protocol in protocols.values())

    def vote(found: tuple[Tensor, Tensor]) -> list[Tensor]:
        cosines, labels = nearest_of_all(found[0], train.labels[found[1]], most)
        return [most_voted(knn_scores(cosines[:, :k], labels[:, :k], temperature, classes))
                for k, temperature in protocols.values()]

    chunks = map(vote, nearest_by_chunk(queries, train.x, most))
    return {name: torch.cat(chosen) for name, chosen in zip(protocols, zip(*chunks, strict=True), strict=True)}


def most_voted(scores: Tensor) -> Tensor:
    """Classes of `scores` [M, classes], highest first; -1 for one without any vote."""
    votes, classes = scores.topk(min(5, scores.shape[1]))
    return classes.masked_fill(~(votes > 0), -1)


def knn(train: Features, test: Features, protocols: Mapping[str, Protocol] = PROTOCOLS) -> dict[str, Score]:
    """Accuracy of the vote by each protocol, and whether the class is among the five with the most votes (_top5).

    Args:
        train, test: of several processes, each one's share: all find the same.
    """
    truth, scores = distributed.gather_uneven(test.labels)[:, None], {}
    for name, classes in knn_classes(train, test, protocols).items():
        right = (classes == truth) & (truth >= 0)
        scores[name] = Score(right[:, 0].double(), "image")
        scores[f"{name}_top5"] = Score(right.any(1).double(), "image")
    return scores


class KNN(FeatureCallback):
    """Accuracy of a weighted vote of the nearest training images, by named protocols.

    knn_instdisc has 200 neighbours and temperature 0.1, knn_dino 20 and 0.07; both use the cosine.

    Args:
        protocols: which to measure; each is logged under its name.
    """

    sharded = True

    def __init__(self, protocols: tuple[Literal["knn_instdisc", "knn_dino"], ...] = ("knn_instdisc", "knn_dino")):
        super().__init__()
        self.protocols = protocols

    def measure(self, train: Features, test: Features) -> dict[str, float]:
        scores = knn(train, test, {name: PROTOCOLS[name] for name in self.protocols})
        return {name: scores[name].value for name in self.protocols}
