"""fewshot: many small problems of five classes."""

from ssl_zoo.evaluation.episodes import fewshot
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity


class Fewshot(Protocol):
    """Accuracy over 600 tasks of 5 classes of the test part, each learnt from 1 or 5 images of each class."""

    name = "fewshot"
    quantities = {"fewshot/": Quantity(
        "tasks of 5 classes of the test part with 1 or 5 images each and 15 queries, nearest class mean by cosine, "
        "mean of 600; opta_transductive also looks at all queries at once and assumes that they are balanced")}

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        scores, left_out = fewshot(test)
        return Measured(scores, left_out=left_out)
