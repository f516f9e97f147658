"""linear_grid: the best of 24 linear layers, chosen by held-out images of the training part."""

from functools import partial

from ssl_zoo.evaluation import charts
from ssl_zoo.evaluation.accuracy import OF_UNBALANCED, accuracies
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.grid import linear_grid
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity
from ssl_zoo.evaluation.score import finite


class LinearGrid(Protocol):
    """Accuracy of the linear layer that held-out training images choose from a grid of 24, and its confusions."""

    name = "linear_grid"
    quantities = {"linear_grid": Quantity(
        "24 linear layers (learning rate x weight decay x with and without standardised features), trained together; "
        "the cross entropy of a tenth of the training part chooses one")} | OF_UNBALANCED

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        grid = linear_grid(train, test)
        held_out = [{**cell._asdict(), "cross_entropy": finite(loss), "accuracy": grid.validation[cell]}
                    for cell, loss in grid.losses.items()]
        confusion = partial(charts.confusion_matrix, test.labels, grid.predictions, context.classes,
                            f"{context.name}: linear_grid")
        scores = accuracies("linear_grid", grid.predictions, test.labels)
        return Measured(scores, {"confusion": lambda: charts.picture(confusion())},
                        {"linear_grid": {"chosen": grid.cell._asdict(), "held_out": held_out}})
