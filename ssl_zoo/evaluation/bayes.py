"""Naive Bayes on frozen features, during training."""

from ssl_zoo.evaluation.classifiers import naive_bayes
from ssl_zoo.evaluation.features import FeatureCallback, Features


class NaiveBayes(FeatureCallback):
    """Accuracy of Gaussians with one variance for each axis, pooled over the classes: naive_bayes. Nothing to tune."""

    def measure(self, train: Features, test: Features) -> dict[str, float]:
        classifier = naive_bayes(train.x, train.labels, int(train.labels.max()) + 1)
        return {"naive_bayes": (classifier.predict(test.x) == test.labels).float().mean().item()}
