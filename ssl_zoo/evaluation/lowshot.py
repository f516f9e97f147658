"""Accuracy on the whole test part from few labelled training images, by kNN, logistic regression and naive Bayes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_zoo.evaluation.classifiers import logistic, moments, naive_bayes
from ssl_zoo.evaluation.features import Features, require_finite
from ssl_zoo.evaluation.knn import VOTES, knn_scores
from ssl_zoo.evaluation.nearest import nearest
from ssl_zoo.evaluation.score import Score

PER_CLASS = (1, 2, 5, 10, 100)   # labels of each class
PERCENT = (1, 10)                # of the labels of each class, rounded, at least one
DRAWS = 5


class FewLabels(NamedTuple):
    """One measurement from few labels."""

    encoder: str
    classifier: str
    labels: float      # per class, or percent of all
    percent: bool
    score: Score


def cells(columns: Mapping[str, Mapping[str, Score]]) -> list[FewLabels]:
    """Those of all encoders, from their scores by name, as `lowshot` returns them; other scores are passed over."""
    named = [(encoder, name.split("/"), score) for encoder, scores in columns.items() for name, score in scores.items()]
    return [FewLabels(encoder, parts[2], float(parts[1].removesuffix("%")), parts[1].endswith("%"), score)
            for encoder, parts, score in named if parts[0] == "lowshot"]


def lowshot(train: Features, test: Features, names: Sequence[str] = ()) -> tuple[dict[str, Score], list[str]]:
    """Score each classifier at each number of labels over 5 draws; sentences say which were left out, and why.

    The draws depend on the labels of the training part alone: every encoder sees the same. A draw of more labels
    contains the draw of fewer with the same number, so a learning curve adds images and replaces none.

    knn votes like knn_dino, with 20 neighbours or all that were drawn. logistic and naive_bayes see features that are
    standardised by the whole training part, which needs no labels. With one image of each class, naive_bayes predicts
    the class of the nearest image.

    Args:
        train, test: features of both parts; training images without a label (-1) serve the standardisation alone.
        names: of the classes, for the sentences.

    Returns:
        Scores by name: lowshot/5/knn from 5 labels per class, lowshot/1%/knn from 1 % of the labels.
    """
    require_labels(train, test)
    classes = int(torch.maximum(train.labels.max(), test.labels.max())) + 1
    mean, std = (column.float() for column in moments(train.x))
    queries = test.x.float()
    standard = (queries - mean) / std

    def predictions(x: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "knn", vote(queries, x, labels, classes)
        x = (x - mean) / std
        yield "logistic", logistic(x, labels, classes, standardise=False).predict(standard)
        yield "naive_bayes", naive_bayes(x, labels, classes).predict(standard)

    scores = {}
    found, left_out = sizes(train.labels[train.labels >= 0].bincount(minlength=classes).cpu(), names)
    for size, wanted in found.items():
        units = defaultdict(list)
        for seed in range(DRAWS):
            rows = draw(train.labels, wanted, seed).to(train.x.device)
            for name, predicted in predictions(train.x[rows].float(), train.labels[rows]):
                units[name].append((predicted == test.labels).double().mean().cpu())
        scores.update({f"lowshot/{size}/{name}": Score(torch.stack(shares), "draw") for name, shares in units.items()})
    return scores, left_out


def require_labels(train: Features, test: Features) -> None:
    require_finite(train.x, "training")
    require_finite(test.x, "test")
    unknown = int((test.labels < 0).sum())
    if unknown:
        raise ValueError(f"{unknown} of {len(test.labels)} test images have no label: accuracy needs them all")
    if train.labels.max() < 0:
        raise ValueError("no train image has a label: accuracy from few labels needs some")


def sizes(counts: Tensor, names: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """How many images to draw of each class [C], by the name of the size, and why the other sizes cannot be drawn.

    Args:
        counts: labelled training images of each class [C]; a class without any is not drawn.
        names: of the classes; their numbers where there are none.
    """
    found, left_out = {}, []
    occurring, rarest = counts[counts > 0], int(counts.where(counts > 0, counts.max() + 1).argmin())
    for n in PER_CLASS:
        at = f"lowshot at {n} label{'s' * (n > 1)} per class"
        if occurring.min() < n:
            images = f"{occurring.min()} image{'s' * bool(occurring.min() > 1)}"
            left_out.append(f"{at}: class {names[rarest] if names else rarest} has {images}")
        elif occurring.max() == n:
            left_out.append(f"{at}: these are all the images")
        else:
            found[str(n)] = counts.clamp_max(n)
    for percent in PERCENT:
        if said := too_few(counts, percent):
            left_out.append(f"lowshot at {said}")
        else:
            found[f"{percent}%"] = share(counts, percent)
    return found, left_out


def too_few(counts: Tensor, percent: float) -> str:
    """Why this share of the labels cannot be drawn of so many images of each class [C]; empty where it can."""
    occurring = int((counts > 0).sum())
    if percent * counts.sum() >= 100 * occurring:
        return ""
    return (f"{percent}% of the labels: of {counts.sum()} images that is less than one for each of {occurring} classes")


def share(counts: Tensor, percent: float) -> Tensor:
    """How many images of each class [C] are this share of them, at least one of each that occurs."""
    return (counts * percent / 100).round().long().clamp_min(1).minimum(counts)


def draw(labels: Tensor, wanted: Tensor, seed: int) -> Tensor:
    """Draw rows, as many of each class as `wanted` [C] says: the seed shuffles all, and each class gives its first.

    The result depends on labels [N] and seed alone. Images with label -1 are not drawn.
    """
    labels, wanted = labels.cpu(), wanted.cpu()                             # a CPU and a GPU draw the same
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]                       # class by class
    classes = labels[order]
    within = torch.arange(len(order)) - torch.searchsorted(classes, classes)
    return order[(classes >= 0) & (within < wanted[classes])]


def vote(queries: Tensor, x: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Classes [M] of `queries` [M, D] by their nearest neighbours among the few of `x` [n, D]."""
    k, temperature = VOTES["knn_dino"]
    with torch.autocast(x.device.type, enabled=False):
        cosines, places = nearest(queries, x, k)
    return knn_scores(cosines, labels[places], temperature, classes).argmax(-1)
