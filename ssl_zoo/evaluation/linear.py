"""A linear classifier on frozen features, trained by descent with a learning rate that falls to 0."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.evaluation.classifiers import moments
from ssl_zoo.evaluation.features import Features, require_rows
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
    mean, std = moments(require_rows(train.x))
    if not 0 <= (extremes := torch.stack(train.labels.aminmax())).min() <= extremes.max() < classes:
        raise ValueError(f"labels go from {extremes[0]} to {extremes[1]}, and {classes} classes are 0 to "
                         f"{classes - 1}: leave out the images whose class is not known")
    head = Head(mean.float(), std.float(), classes)
    descend("linear_cached", torch.optim.SGD(head.parameters(), lr, momentum=0.9, nesterov=True), lr * batch / 256,
            shuffled(len(train.x), batch, train.x.device), steps=-(-len(train.x) // batch), epochs=epochs,
            loss=lambda rows: F.cross_entropy(head(train.x[rows]), train.labels[rows]))
    return head


def descend(name: str, optimizer: torch.optim.Optimizer, lr: float, batches: Callable[[int], Iterable[Any]], *,
            steps: int, epochs: int, loss: Callable[[Any], Tensor | None]) -> None:
    """Minimise the loss of one batch after another while the learning rate falls from `lr` to 0 by half a cosine.

    Every classifier that is trained by descent is trained here, but for linear_grid, whose heads share their products.

    Args:
        name: of the protocol, for messages.
        optimizer: its learning rates are set at every step, that of a group with a `share` to this share of the rate.
        batches: those of an epoch, by its number.
        steps: batches in an epoch.
        loss: of a batch; None to go on to the next one.
    """
    for epoch in range(epochs):
        value = None
        for step, batch in enumerate(batches(epoch)):
            for group in optimizer.param_groups:
                group["lr"] = group.get("share", 1.0) * cosine(lr, 0.0, (epoch + step / steps) / epochs)
            if (value := loss(batch)) is None:
                continue
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        if value is not None and not value.isfinite():           # once an epoch: on a GPU it waits
            raise ValueError(f"{name} has a loss of {value} after {epoch + 1} of {epochs} epochs: the encoder's "
                             f"features are not finite, or a learning rate of {lr:.3g} is too large for them; check "
                             "the encoder, or take a smaller batch, which lowers the learning rate")


def shuffled(count: int, batch: int, device: torch.device, seed: int = 0) -> Callable[[int], Iterable[Tensor]]:
    """For each epoch in turn the batches of `count` rows, in an order that is drawn on the CPU from the seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda epoch: torch.randperm(count, generator=generator).to(device).split(batch)
