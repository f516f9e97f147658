"""logistic: a linear classifier that solves a convex problem to its end."""

from ssl_zoo.evaluation.accuracy import OF_UNBALANCED
from ssl_zoo.evaluation.classifiers import judge, logistic
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity


class Logistic(Protocol):
    """Accuracy of a logistic regression, to which nothing but the features matters."""

    name = "logistic"
    quantities = {"logistic": Quantity("multinomial logistic regression on standardised features, as scikit-learn's "
                                       "with C = 1, to convergence or 1,000 iterations")} | OF_UNBALANCED

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        return Measured(judge("logistic", logistic, train, test))
