"""health: what features tell without labels."""

import warnings

import torch
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.data.orders import some
from ssl_zoo.evaluation import charts
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.health import (
    COLLAPSED_STD,
    EDGES,
    alignment,
    feature_std,
    rankme,
    similarities,
    tolerance,
    uniformity,
)
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity
from ssl_zoo.evaluation.score import Score, number

IMAGES, RUN_IMAGES = 25_000, 5000   # at most this many are looked at, and during a run


class Health(Protocol):
    """How many directions the features use, and how evenly; needs no labels. Warns of a collapse during a run.

    With two views of each image at hand, which a run does not have: how near they are to each other, and other images.
    """

    name = "health"
    quantities = {
        "health/width": Quantity("how many numbers a feature has", percent=False),
        "health/feature_std": Quantity("deviation of unit features times the root of their width: 1 is even, 0 is "
                                       "collapse", percent=False),
        "health/rankme": Quantity("effective rank of at most 25,000 features of the encoder (5,000 during a run or "
                                  "without labels), where the paper takes the projector's; from 1 to their width",
                                  percent=False),
        "health/uniformity": Quantity("log of the mean of exp(-2 d²) over pairs of unit features; lower is more even",
                                      percent=False),
        "health/alignment": Quantity("mean d² between unit features of two of SimCLR's views of an image; lower is "
                                     "closer", percent=False),
        "health/tolerance": Quantity("mean cosine of two images of a class; _joint: over all pairs, 0 where the "
                                     "classes differ", percent=False),
        "health/positive": Quantity("cosine of the features of two of SimCLR's views of an image", percent=False),
        "health/negative": Quantity("cosine of the features of views of two images", percent=False)}
    needs_labels = False

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        if context.running:
            chosen = torch.linspace(0, len(train.x) - 1, min(RUN_IMAGES, len(train.x)), device=train.x.device).long()
            scores = spread(train.x[chosen])
            warn_of_collapse(scores["health/feature_std"].value)
            return Measured(scores)
        chosen = torch.from_numpy(some(len(train.x), IMAGES)).to(train.x.device)
        x, labels = train.x[chosen], train.labels[chosen]
        scores = {"health/width": number(x.shape[1]), **spread(x)}
        if (labels >= 0).all():
            joint, conditional = tolerance(x, labels)
            scores |= {"health/tolerance": number(conditional), "health/tolerance_joint": number(joint)}
        if context.views is None:
            return Measured(scores)
        try:
            one, two = (view.x.float() for view in context.views())
        except ValueError as error:   # of images that have no colours
            return Measured(scores, left_out=[f"health/alignment, positive and negative: {error}"])
        of_views = nearness(one, two, context.name)
        return of_views._replace(scores=scores | dict(of_views.scores))


def spread(x: Tensor) -> dict[str, Score]:
    return {"health/feature_std": number(feature_std(x)), "health/rankme": number(rankme(x)),
            "health/uniformity": number(uniformity(x))}


def nearness(one: Tensor, two: Tensor, name: str) -> Measured:
    """How near two views of an image are, and views of two images, by their features [N, D]."""
    pairs = similarities(one, two)
    scores = {"health/alignment": number(alignment(one, two))}
    for kind, cosines in zip(("positive", "negative"), pairs, strict=True):
        scores |= {f"health/{kind}_mean": number(cosines.mean), f"health/{kind}_variance": number(cosines.variance)}
    positives, negatives = (side.counts.cpu() for side in pairs)
    title = f"{name}: cosine of the features of two views"
    return Measured(scores, {"similarities": lambda: charts.picture(
        charts.similarity_histogram(positives, negatives, EDGES, title))})


def warn_of_collapse(deviation: float) -> None:
    if deviation < COLLAPSED_STD and not distributed.rank():
        warnings.warn(f"the features of all images are nearly the same (feature_std {deviation:.3f}, where 1 is "
                      "healthy): the encoder has collapsed; try a lower learning rate, a larger batch or stronger "
                      "augmentation", stacklevel=2)
