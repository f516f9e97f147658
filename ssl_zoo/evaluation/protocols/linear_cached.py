"""linear_cached: a linear layer on features that are taken once."""

from typing import Any

import torch
from torch import Tensor

from ssl_zoo.evaluation.accuracy import OF_UNBALANCED, accuracies
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.linear import train_head
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity

EPOCHS = 90


class LinearCached(Protocol):
    """Accuracy of a linear classifier that is trained on the frozen features, from zero at every evaluation.

    A run's checkpoint holds the classifier with its standardisation.

    Args:
        epochs: passes over the features. The protocol has 90; with others the score's name says how many.
    """

    name = "linear_cached"
    quantities = {"linear_cached": Quantity(
        "standardised features, a linear layer, SGD with Nesterov momentum 0.9, lr 0.1, batch 256, 90 epochs (or as "
        "many as the name says), cosine")} | OF_UNBALANCED

    def __init__(self, epochs: int = EPOCHS):
        if epochs < 1:
            raise ValueError(f"linear_cached trains for at least 1 epoch, not {epochs}")
        self.epochs = epochs
        self.head: dict[str, Tensor] = {}

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        classes = int(torch.maximum(train.labels.max(), test.labels.max())) + 1
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(train.x.device.type, enabled=False):
            head = train_head(Features(*(column.clone() for column in train)), classes, epochs=self.epochs)
        self.head = head.state_dict()
        with torch.no_grad():
            predictions = head(test.x).argmax(-1)
        name = "linear_cached" if self.epochs == EPOCHS else f"linear_cached_{self.epochs}_epochs"
        return Measured(accuracies(name, predictions, test.labels))

    def state_dict(self) -> dict[str, Any]:
        return {"head": self.head}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.head = state["head"]
