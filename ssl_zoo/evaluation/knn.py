"""Weighted k-nearest-neighbour accuracy of frozen features."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.evaluation.features import FeatureCallback, Features


class Protocol(NamedTuple):
    k: int               # neighbours that vote
    temperature: float   # a vote weighs exp(cosine / temperature)


PROTOCOLS = {"knn_instdisc": Protocol(200, 0.1),   # InstDisc's k with the temperature of MoCo's CIFAR demo
             "knn_dino": Protocol(20, 0.07)}       # arXiv:2104.14294, sec. 4.1


def nearest(queries: Tensor, bank: Tensor, k: int, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Cosines and places of the `k` nearest rows of `bank` [N, D] to each of `queries` [M, D], nearest first.

    At most `chunk` x 16 `chunk` cosines exist at a time; the best of each piece of the bank are merged, exactly.

    Returns:
        Two tensors [M, min(k, N)].
    """
    queries, bank = F.normalize(queries, dim=-1), F.normalize(bank, dim=-1)
    k = min(k, len(bank))
    found = []
    for rows in queries.split(chunk):
        best = rows.new_empty(len(rows), 0)
        places = torch.empty(len(rows), 0, dtype=torch.long, device=rows.device)
        for start in range(0, len(bank), 16 * chunk):
            cosines = rows @ bank[start:start + 16 * chunk].T                                # [chunk, 16 * chunk]
            top, where = cosines.topk(min(k, cosines.shape[1]))
            best, places = torch.cat([best, top], 1), torch.cat([places, where + start], 1)
            best, kept = best.topk(min(k, best.shape[1]))
            places = places.gather(1, kept)
        found.append((best, places))
    cosines, places = (torch.cat(column) for column in zip(*found, strict=True))
    return cosines, places


def knn_scores(cosines: Tensor, labels: Tensor, temperature: float, classes: int) -> Tensor:
    """Share of the weighted vote that each class gets, [M, classes].

    Sec. 3.4 of InstDisc, arXiv:1805.01978: neighbour j votes for its class with weight exp(cosine_j / temperature).

    Args:
        cosines: [M, k] with the neighbours.
        labels: [M, k] of the neighbours.
    """
    weights = (cosines / temperature).softmax(-1)   # the weights over their sum; exp alone overflows float16
    return weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)


def knn_accuracy(train: Features, test: Features, protocol: Protocol) -> float:
    """Top-1 accuracy, 0 to 1, of `test` by votes of its neighbours in `train`; all of them where there are too few."""
    cosines, places = nearest(test.x, train.x, protocol.k)
    classes = int(torch.maximum(train.labels.max(), test.labels.max())) + 1
    scores = knn_scores(cosines, train.labels[places], protocol.temperature, classes)
    return (scores.argmax(-1) == test.labels).float().mean().item()


class KNN(FeatureCallback):
    """Accuracy of a weighted vote of the nearest training images, by named protocols.

    knn_instdisc has 200 neighbours and temperature 0.1, knn_dino 20 and 0.07; both use the cosine.

    Args:
        protocols: which to measure; each is logged under its name.
    """

    def __init__(self, protocols: tuple[Literal["knn_instdisc", "knn_dino"], ...] = ("knn_instdisc", "knn_dino")):
        super().__init__()
        self.protocols = protocols

    def measure(self, train: Features, test: Features) -> dict[str, float]:
        return {name: knn_accuracy(train, test, PROTOCOLS[name]) for name in self.protocols}
