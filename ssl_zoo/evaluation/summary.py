"""Scores of one or several encoders as a table and as plain values, each number under its protocol's name."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from ssl_zoo.evaluation.score import Score, difference

# What a protocol is, by its name or by what its name starts with. Changing a line here changes what a number means.
PROTOCOLS = {
    "knn_instdisc": "200 nearest training images by cosine vote with weight exp(cosine / 0.1)",
    "knn_dino": "20 nearest (or as many as the name says), weight exp(cosine / 0.07)",
    "linear_cached": "standardised features, a linear layer, SGD with Nesterov momentum 0.9, lr 0.1, batch 256, 90 "
                     "epochs (or as many as the name says), cosine",
    "linear_grid": "24 linear layers (learning rate x weight decay x with and without standardised features), trained "
                   "together; the cross entropy of a tenth of the training part chooses one",
    "linear_simclr": "a linear layer on random resized crops and flips, SGD with Nesterov momentum 0.9, lr 0.1, batch "
                     "256, 90 epochs (or as many as the name says), cosine",
    "finetune_simclr": "all weights and a linear layer on random resized crops and flips, SGD with Nesterov momentum "
                       "0.9, lr 0.05, batch 256, 30 epochs (or as many as the name says), cosine",
    "linear_dense": "a linear layer on the last feature map, Adam, lr 0.05, batch 16, 10 epochs; mean IoU",
    "logistic": "multinomial logistic regression on standardised features, C = 1, to convergence or 1,000 iterations",
    "naive_bayes": "Gaussians with one pooled variance for each axis",
    "nearest_class_mean": "the class whose mean has the largest cosine",
    "lowshot/": "the classifier named (knn as knn_dino; the others on features that the whole training part "
                "standardises), from so many labels of each class, or so many in a hundred of each, at least one; mean "
                "and deviation of 5 draws",
    "fewshot/": "tasks of 5 classes of the test part with 1 or 5 images each and 15 queries, nearest class mean by "
                "cosine, mean of 600; opta_transductive also looks at all queries at once and assumes that they are "
                "balanced",
    "retrieval/map": "mean average precision of at most 1,000 test images as queries among the training images, those "
                     "without an image of their class left out",
    "retrieval/recall": "share of these queries with an image of their class among the nearest",
    "health/width": "how many numbers a feature has",
    "health/feature_std": "deviation of unit features times the root of their width: 1 is even, 0 is collapse",
    "health/rankme": "effective rank of at most 25,000 features (5,000 during a run or without labels), from 1 to "
                     "their width",
    "health/uniformity": "log of the mean of exp(-2 d²) over pairs of unit features; lower is more even",
    "health/alignment": "mean d² between unit features of two of SimCLR's views of an image; lower is closer",
    "health/tolerance": "mean cosine of two images of a class; _joint: over all pairs, 0 where the classes differ",
    "health/positive": "cosine of the features of two of SimCLR's views of an image",
    "health/negative": "cosine of the features of views of two images",
}


def describe(names: Sequence[str]) -> dict[str, str]:
    """The protocols of these numbers, each once."""
    def start(name: str) -> str:
        return max((key for key in PROTOCOLS if name.startswith(key)), key=len)

    return {key: PROTOCOLS[key] for key in dict.fromkeys(map(start, names))}


LEGEND = ("± is half of the 95 % interval over test images or episodes, and for `lowshot/` the deviation over draws.\n"
          "A difference is taken image by image, draw by draw; * marks one larger than half of its 95 % interval.\n")


def rows(scores: Mapping[str, Mapping[str, Score]], compare: bool = True) -> list[list[str]]:
    """The table's cells: a line for each number, a column for each encoder, and what each has over the first one.

    A difference is marked with * where it is larger than half of its 95 % interval, which is taken image by image.
    """
    encoders = list(scores)
    names = list(dict.fromkeys(name for numbers in scores.values() for name in numbers))
    others = encoders[1:] if compare else []
    head = ["", *encoders, *(f"{other} - {encoders[0]}" for other in others)]
    body = []
    for name in names:
        found = [scores[encoder].get(name) for encoder in encoders]
        apart = [delta(name, found[0], scores[other].get(name)) for other in others]
        body.append([name, *(cell(name, score) for score in found), *apart])
    return [head, *body]


def shown(name: str, value: float) -> str:
    return f"{value:.4g}" if name.startswith("health/") else f"{100 * value:.1f}"


def cell(name: str, score: Score | None) -> str:
    if score is None:
        return "-"
    unit = "" if name.startswith("health/") else " %"
    return shown(name, score.value) + (f" ± {shown(name, score.spread)}" if score.spread is not None else "") + unit


def delta(name: str, first: Score | None, other: Score | None) -> str:
    if first is None or other is None:
        return "-"
    apart, interval = difference(other, first)
    sign = "+" if apart >= 0 else ""
    if interval is None:
        return sign + shown(name, apart)
    return f"{sign}{shown(name, apart)} ± {shown(name, interval)}" + " *" * (abs(apart) > interval)


def differences(scores: Mapping[str, Mapping[str, Score]]) -> list[dict[str, Any]]:
    """What each encoder has over each one before it, for JSON."""
    found = []
    for one, other in combinations(scores, 2):
        for name in scores[one].keys() & scores[other].keys():
            apart, interval = difference(scores[other][name], scores[one][name])
            found.append({"score": name, "encoder": other, "over": one, "difference": finite(apart),
                          "interval": finite(interval), "exceeds": None if interval is None else abs(apart) > interval})
    return sorted(found, key=lambda row: (row["over"], row["encoder"], row["score"]))


def as_text(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
                     for row in table) + "\n"


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(table[0]) - 1), *lines[1:]]) + "\n"


def plain(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    """For JSON."""
    return {name: {"value": finite(score.value), "spread": finite(score.spread), "mean_over": score.of or None,
                   "count": len(score.units) if score.of else None} for name, score in scores.items()}


def finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is None or math.isfinite(value) else None
