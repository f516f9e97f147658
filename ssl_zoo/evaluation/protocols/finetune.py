"""finetune: does pretraining pay on few, some and all of the labels?"""

from collections.abc import Mapping

from ssl_zoo.evaluation import charts
from ssl_zoo.evaluation.accuracy import OF_UNBALANCED
from ssl_zoo.evaluation.augmented import Trained
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.finetune import cells, finetune
from ssl_zoo.evaluation.protocol import Context, Measured, Picture, Protocol, Quantity
from ssl_zoo.evaluation.score import Score


class Finetune(Protocol):
    """Accuracy after all weights are trained with 1, 10 and 100 % of the labels, beside the same from random weights.

    The encoder stays as it is; copies of it are trained.
    """

    name = "finetune"
    quantities = {"finetune/": Quantity(
        "all weights and a linear layer on random crops and flips of this percentage of each class, the same images "
        "for every encoder; SGD, batch 256, lr 0.2 (encoder 0.02), 30 epochs at 100 %, 95 at 10 %, 300 at 1 % (or with "
        "the name's epochs in place of 30), cosine; scratch: the same from random weights, lr 0.1, weight decay 1e-4; "
        "gain: points above scratch")} | OF_UNBALANCED
    quick = False

    def __init__(self) -> None:
        self.known: dict[str, Trained] = {}   # from scratch, which encoders of one class share

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        return finetune(self.name, train, context, self.known)

    def compare(self, columns: Mapping[str, Mapping[str, Score]]) -> Mapping[str, Picture]:
        if not (found := cells(columns, self.name)):
            return {}
        return {"finetuning": lambda: charts.picture(charts.learning_curves(found, "accuracy after fine-tuning"))}
