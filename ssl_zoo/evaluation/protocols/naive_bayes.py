"""naive_bayes: Bayes' rule for Gaussian classes."""

from ssl_zoo.evaluation.accuracy import OF_UNBALANCED
from ssl_zoo.evaluation.classifiers import judge, naive_bayes
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity


class NaiveBayes(Protocol):
    """Accuracy of Gaussians with one variance for each axis, pooled over the classes. Nothing to tune."""

    name = "naive_bayes"
    quantities = {"naive_bayes": Quantity("Gaussians with one pooled variance for each axis")} | OF_UNBALANCED

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        return Measured(judge("naive_bayes", naive_bayes, train, test))
