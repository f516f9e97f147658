"""A linear classifier on frozen features."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.evaluation.classifiers import moments
from ssl_zoo.evaluation.features import FeatureCallback, Features
from ssl_zoo.evaluation.score import Score
from ssl_zoo.schedules import cosine


class Head(nn.Module):
    """Standardise by the training features' mean and deviation, then a linear layer: [N, D] -> [N, classes]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, classes: int):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.linear = nn.utils.skip_init(nn.Linear, len(mean), classes)   # leaves the run's random numbers alone
        nn.init.zeros_(self.linear.weight)                                # a convex problem needs no random start
        nn.init.zeros_(self.linear.bias)
        self.to(mean.device)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((x - self.mean) / self.std)


def train_head(train: Features, classes: int, *, epochs: int, batch: int = 256, lr: float = 0.1) -> Head:
    """A head for `train`: SGD with Nesterov momentum 0.9, cosine to 0 per step, no weight decay.

    The optimiser of SimCLR's linear evaluation (arXiv:2002.05709, app. B.6) on features taken once, without
    augmentation. Its shuffle has a generator of its own, so the run's random numbers stay where they are.
    """
    x, labels = train.x, train.labels
    mean, std = moments(x)
    head = Head(mean.float(), std.float(), classes)
    optimizer = torch.optim.SGD(head.parameters(), lr, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    steps_per_epoch = -(-len(x) // batch)
    for epoch in range(epochs):
        for i, rows in enumerate(torch.randperm(len(x), generator=generator).to(x.device).split(batch)):
            progress = (epoch + i / steps_per_epoch) / epochs
            optimizer.param_groups[0]["lr"] = cosine(lr * batch / 256, 0.0, progress)
            loss = F.cross_entropy(head(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head


class LinearProbe(FeatureCallback):
    """Accuracy of a linear classifier trained anew on the frozen features at every evaluation: linear_cached.

    The classifier and its standardisation are in the checkpoint, under this callback's state.

    Args:
        epochs: passes over the features. The protocol linear_cached has 90; with others the name says how many.
    """

    def __init__(self, epochs: int = 90):
        super().__init__()
        if epochs < 1:
            raise ValueError(f"a linear probe trains for at least 1 epoch, not {epochs}")
        self.epochs = epochs
        self.head: dict[str, Tensor] = {}

    @property
    def protocol(self) -> str:
        return "linear_cached" if self.epochs == 90 else f"linear_cached_{self.epochs}_epochs"

    def measure(self, train: Features, test: Features) -> dict[str, float]:
        return {self.protocol: self.score(train, test).value}

    def score(self, train: Features, test: Features) -> Score:
        """Of each test image, whether it is right."""
        classes = int(torch.maximum(train.labels.max(), test.labels.max())) + 1
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(train.x.device.type, enabled=False):
            head = train_head(Features(*(part.clone() for part in train)), classes, epochs=self.epochs)
        self.head = head.state_dict()
        with torch.no_grad():
            return Score((head(test.x).argmax(-1) == test.labels).double(), "image")

    def state_dict(self) -> dict[str, Any]:
        return {"head": self.head, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.head, self.latest = state_dict["head"], state_dict["latest"]
