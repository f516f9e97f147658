"""lowshot: accuracy from few labels."""

from collections.abc import Mapping

from ssl_zoo.evaluation import charts
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.lowshot import cells, lowshot
from ssl_zoo.evaluation.protocol import Context, Measured, Picture, Protocol, Quantity
from ssl_zoo.evaluation.score import Score


class Lowshot(Protocol):
    """Accuracy from 1 to 100 labels of each class, and from 1 % and 10 % of all labels, with learning curves."""

    name = "lowshot"
    quantities = {"lowshot/": Quantity(
        "the classifier named (knn as knn_dino; the others on features that the whole training part standardises), "
        "from this many labels of each class, or this percentage of each, at least one; mean and deviation of 5 draws")}

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        scores, left_out = lowshot(train, test, context.classes)
        return Measured(scores, left_out=left_out)

    def compare(self, columns: Mapping[str, Mapping[str, Score]]) -> Mapping[str, Picture]:
        if not (found := cells(columns)):
            return {}
        return {"learning_curves": lambda: charts.picture(charts.learning_curves(found, "accuracy from few labels"))}
