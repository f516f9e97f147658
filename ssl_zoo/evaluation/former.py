"""The callbacks that `Evaluation` replaced, so that recipes and runs that name them go on. New ones name `Evaluation`.
"""

from collections.abc import Sequence
from typing import Literal

from ssl_zoo.evaluation.callback import Evaluation
from ssl_zoo.evaluation.protocols.knn import Knn
from ssl_zoo.evaluation.protocols.linear_cached import LinearCached
from ssl_zoo.evaluation.protocols.neighbours import Neighbours as Sheet


class KNN(Evaluation):
    """Now `Evaluation` with the protocol knn."""

    def __init__(self, protocols: Sequence[Literal["knn_instdisc", "knn_dino"]] = ("knn_instdisc", "knn_dino")):
        super().__init__([Knn(protocols)])


class LinearProbe(Evaluation):
    """Now `Evaluation` with the protocol linear_cached."""

    def __init__(self, epochs: int = 90):
        super().__init__([LinearCached(epochs)])


class NaiveBayes(Evaluation):
    """Now `Evaluation` with the protocol naive_bayes."""

    def __init__(self) -> None:
        super().__init__(["naive_bayes"])


class Health(Evaluation):
    """Now `Evaluation` with the protocol health."""

    def __init__(self) -> None:
        super().__init__(["health"])


class Neighbours(Evaluation):
    """Now `Evaluation` with the protocol neighbours."""

    def __init__(self, queries: int = 10):
        super().__init__([Sheet(queries)])
