"""The weighted vote of the nearest images by the cosine of frozen features: k-nearest-neighbour accuracy."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.evaluation.accuracy import accuracies
from ssl_zoo.evaluation.features import Features, nearest_of_all, require_rows
from ssl_zoo.evaluation.nearest import nearest_by_chunk
from ssl_zoo.evaluation.score import Score


class Vote(NamedTuple):
    """How the neighbours of an image vote for its class."""

    k: int               # neighbours that vote
    temperature: float   # a vote weighs exp(cosine / temperature)


VOTES = {"knn_instdisc": Vote(200, 0.1),   # InstDisc's k with the temperature of MoCo's CIFAR demo
         "knn_dino": Vote(20, 0.07),       # arXiv:2104.14294, sec. 4.1: usually the best of its four k
         "knn_dino_10": Vote(10, 0.07),
         "knn_dino_100": Vote(100, 0.07),
         "knn_dino_200": Vote(200, 0.07)}


def knn_scores(cosines: Tensor, labels: Tensor, temperature: float, classes: int) -> Tensor:
    """The share of the weighted vote that each class gets, [M, classes].

    Sec. 3.4 of InstDisc, arXiv:1805.01978: neighbour j votes for its class with weight exp(cosine_j / temperature).

    Args:
        cosines: [M, k] with the neighbours.
        labels: [M, k] of the neighbours.
    """
    weights = (cosines / temperature).softmax(-1)   # the weights over their sum; exp alone overflows float16
    return weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)


def knn_classes(train: Features, test: Features, votes: Mapping[str, Vote] = VOTES) -> dict[str, Tensor]:
    """For each vote, the five classes with the largest shares, largest first: [M, 5], or [M, C] of fewer classes.

    One search of the neighbours serves all votes. Where the bank has fewer images than a vote has neighbours, all of
    them vote. A class that nobody voted for is given as -1.

    Args:
        train, test: on several processes, each one's share of the images; all processes find the same.
    """
    queries, known = require_rows(distributed.gather_uneven(test.x)), distributed.gather_uneven(train.labels)
    if not len(known):
        require_rows(train.x)
    if (known < 0).any():
        raise ValueError(f"{int((known < 0).sum())} of {len(known)} training images have no label, and neighbours vote "
                         "for labels: leave these images out")
    classes, most = int(known.max()) + 1, max(vote.k for vote in votes.values())

    def voted(found: tuple[Tensor, Tensor]) -> list[Tensor]:
        cosines, labels = nearest_of_all(found[0], train.labels[found[1]], most)
        return [most_voted(knn_scores(cosines[:, :k], labels[:, :k], temperature, classes))
                for k, temperature in votes.values()]

    chunks = map(voted, nearest_by_chunk(queries, train.x, most))
    return {name: torch.cat(chosen) for name, chosen in zip(votes, zip(*chunks, strict=True), strict=True)}


def most_voted(scores: Tensor) -> Tensor:
    """The five classes with the highest `scores` [M, classes], highest first; -1 for a class with a score of 0."""
    highest, classes = scores.topk(min(5, scores.shape[1]))
    return classes.masked_fill(~(highest > 0), -1)


def knn(train: Features, test: Features, votes: Mapping[str, Vote] = VOTES) -> dict[str, Score]:
    """Accuracies of each vote, and whether the class is among the five with the largest shares (_top5).

    Args:
        train, test: on several processes, each one's share of the images; all processes find the same.
    """
    truth, scores = distributed.gather_uneven(test.labels)[:, None], dict[str, Score]()
    for name, classes in knn_classes(train, test, votes).items():
        right = (classes == truth) & (truth >= 0)
        scores |= accuracies(name, classes[:, 0], truth[:, 0])
        scores[f"{name}_top5"] = Score(right.any(1).double(), "image")
    return scores
