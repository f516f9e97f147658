"""kNN: the weighted vote of the nearest training images."""

from collections.abc import Sequence
from typing import Literal

from ssl_zoo.evaluation.accuracy import OF_UNBALANCED
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.knn import VOTES, knn
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity

Name = Literal["knn_instdisc", "knn_dino", "knn_dino_10", "knn_dino_100", "knn_dino_200"]
RUN = ("knn_instdisc", "knn_dino")   # what a run measures unless it is told otherwise


class Knn(Protocol):
    """Accuracy of a weighted vote of the nearest training images by the cosine, for several numbers of neighbours.

    knn_instdisc has 200 neighbours and temperature 0.1, knn_dino 20 and 0.07, and knn_dino_10 to knn_dino_200 as many
    as they say.

    Args:
        votes: which to measure. Where left out all of them, with the accuracy among five classes, and during a run
            knn_instdisc and knn_dino alone.
    """

    name = "knn"
    quantities = {"knn_instdisc": Quantity("200 nearest training images by cosine vote with weight exp(cosine / 0.1)"),
                  "knn_dino": Quantity("20 nearest (or as many as the name says), weight exp(cosine / 0.07); files are "
                                       "resized bilinearly, where DINO's code is bicubic")} | OF_UNBALANCED
    sharded = takes_half = in_bar = True

    def __init__(self, votes: Sequence[Name] | None = None):
        self.votes = votes

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        chosen = {name: VOTES[name] for name in self.votes or (RUN if context.running else VOTES)}
        scores = knn(train, test, chosen)
        if context.running:
            return Measured({name: score for name, score in scores.items() if not name.endswith("_top5")})
        few = [f"{name} has {len(train.x)} neighbours, all training images, instead of {vote.k}"
               for name, vote in chosen.items() if vote.k > len(train.x)]
        return Measured(scores, left_out=few)
