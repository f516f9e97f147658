"""nearest_class_mean: the class whose mean is nearest."""

from ssl_zoo.evaluation.accuracy import OF_UNBALANCED
from ssl_zoo.evaluation.classifiers import judge, nearest_class_mean
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity


class NearestClassMean(Protocol):
    """Accuracy of the nearest class mean on the sphere. Nothing to tune, and one image of each class is enough."""

    name = "nearest_class_mean"
    quantities = {"nearest_class_mean": Quantity("the class whose mean has the largest cosine")} | OF_UNBALANCED

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        return Measured(judge("nearest_class_mean", nearest_class_mean, train, test))
