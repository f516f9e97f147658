"""A grid of linear classifiers on frozen features, trained together: the protocol linear_grid.

There are 24 heads: learning rate x weight decay x with or without a BatchNorm (without affine) in front. A tenth of
each class of the training part, drawn from seed 0, is held out. The other images train all heads in the same batches
of 256, for 90 epochs, by SGD with Nesterov momentum 0.9 and a cosine to 0 over the steps, from weights of 0, without
augmentation. The head with the lowest cross entropy on the held-out images is chosen; on few images the cross entropy
tells heads apart that have the same accuracy. Only the chosen head sees the test part, and only once.

BatchNorm stands for its limit with a large batch: it standardises by the mean and deviation of all images that train,
in training and in the test. On CIFAR-10, a BatchNorm with the statistics of its batches is within 0.1 points of that.
"""

from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.evaluation.classifiers import moments
from ssl_zoo.evaluation.features import Features, require_finite
from ssl_zoo.evaluation.linear import Head, shuffled
from ssl_zoo.evaluation.score import Score
from ssl_zoo.schedules import cosine

DECAYS = (0.0, 1e-4)
RATES = {False: (0.03, 0.12, 0.5, 2.0, 8.0, 30.0),         # best 0.1 for a mean square of 0.5, 30 for MoCo's
         True: (0.0003, 0.0012, 0.005, 0.02, 0.08, 0.3)}   # best 0.001 for 512 features, 0.02 for 128


class Cell(NamedTuple):
    """What one head of the grid was trained with."""

    lr: float
    weight_decay: float
    batchnorm: bool


CELLS = tuple(Cell(lr, weight_decay, batchnorm) for batchnorm, rates in RATES.items()
              for weight_decay, lr in product(DECAYS, rates))


class Grid(NamedTuple):
    """The head that the held-out images chose, and what it makes of the test part."""

    score: Score                   # of the test images
    cell: Cell                     # the chosen one, with the lowest of `losses`
    validation: dict[Cell, float]  # accuracy of each head on the held-out images, 0 to 1
    losses: dict[Cell, float]      # mean cross entropy of each head there; not finite if the head overflowed
    head: Head
    predictions: Tensor            # [M] class of each test image


def linear_grid(train: Features, test: Features) -> Grid:
    """Run the protocol of this file on the features' device. A class that only `test` has is never predicted."""
    require_classes(train, test)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(train.x.device.type, enabled=False):
        kept, held = kept_and_held(train.labels)
        mean, std = statistics(train.x[kept])
        lr, weight_decay, _ = mean.new_tensor(CELLS).view(2, -1, 3).unbind(-1)
        weights = train_heads(train, kept, mean, std, lr, weight_decay, classes=int(train.labels.max()) + 1)
        loss, accuracy = validate(train, held, mean, std, weights)
        best = int(loss.nan_to_num(torch.inf).argmin())
        head = as_head(mean, std, weights, best)
        predictions = head(test.x).argmax(-1)
    validation, losses = (dict(zip(CELLS, values.tolist(), strict=True)) for values in (accuracy, loss))
    return Grid(Score((predictions == test.labels).double(), "image"), CELLS[best], validation, losses, head,
                predictions)


def require_classes(train: Features, test: Features) -> None:
    for name, part in (("train", train), ("test", test)):
        if unknown := int((part.labels < 0).sum()):
            raise ValueError(f"{unknown} of {len(part.labels)} {name} images have no label: leave them out")
        require_finite(part.x, "training" if part is train else "test")
    counts = train.labels.bincount()
    counts = counts[counts > 0]
    if len(counts) < 2:
        raise ValueError(f"all {len(train.labels)} train images have one class, and a classifier tells two apart")
    if counts.max() < 2:
        raise ValueError(f"{len(counts)} classes of one image each leave none to hold out for the choice: give a class "
                         "two images")


def kept_and_held(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Places of `labels` [N] that train, and places that are held out for the choice, both ascending.

    Of a class of n images n // 10 are held out, but at least 1 if n > 1. They are drawn from seed 0 on the CPU.
    """
    classes = labels.cpu()
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    order = order[classes[order].argsort(stable=True)]                     # by class, shuffled within
    counts = classes.bincount()
    within = torch.arange(len(classes)) - (counts.cumsum(0) - counts)[classes[order]]
    wanted = torch.where(counts > 1, (counts // 10).clamp_min(1), 0)
    held = torch.empty(len(classes), dtype=torch.bool)
    held[order] = within < wanted[classes[order]]
    return (~held).nonzero()[:, 0].to(labels.device), held.nonzero()[:, 0].to(labels.device)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation, each [2, D]: first 0 and 1, which leave features as they are, then those of `x` [N, D]."""
    mean, std = (values.to(torch.promote_types(x.dtype, torch.float32)) for values in moments(x))
    return torch.stack([torch.zeros_like(mean), mean]), torch.stack([torch.ones_like(std), std])


def train_heads(train: Features, kept: Tensor, mean: Tensor, std: Tensor, lr: Tensor, weight_decay: Tensor, *,
                classes: int, epochs: int = 90, batch: int = 256) -> Tensor:
    """Train H heads for each of I standardisations of the same features: weights [I, H, classes, D + 1], bias last.

    Each head comes out as torch.optim.SGD(lr, momentum=0.9, nesterov=True, weight_decay) would train it by itself. A
    head that overflows does not disturb the others.

    Args:
        kept: places of the images that train; each epoch takes them in a new order, drawn from seed 0 on the CPU.
        mean, std: [I, D].
        lr, weight_decay: [I, H].
    """
    weights = mean.new_zeros(*lr.shape, classes, mean.shape[1] + 1)
    velocity, gradient = torch.zeros_like(weights), torch.zeros_like(weights)
    lr, weight_decay = lr[..., None, None], weight_decay[..., None, None]
    batches, steps_per_epoch = shuffled(len(kept), batch, kept.device), -(-len(kept) // batch)
    # Not linear.descend: the heads share the two products of each batch, and every head has a learning rate of its own.
    # All 24 together take 2.4 times as long as one head by autograd: benchmarks/linear_grid.py.
    for epoch in range(epochs):
        for step, drawn in enumerate(batches(epoch)):
            rows = kept[drawn]
            x = standardised(train.x.index_select(0, rows), mean, std)             # [I, B, D + 1]
            errors = logits(weights, x).softmax(2).clamp_min_(1e-30)               # denormals slow the product by three
            errors -= F.one_hot(train.labels[rows], classes).T                     # [I, H, classes, B]
            torch.mul(weight_decay, weights, out=gradient)
            gradient.flatten(1, 2).baddbmm_(errors.flatten(1, 2), x, alpha=1 / len(rows))
            velocity.mul_(0.9).add_(gradient)
            rate = cosine(1.0, 0.0, (epoch + step / steps_per_epoch) / epochs) * lr
            weights.addcmul_(rate, gradient.add_(velocity, alpha=0.9), value=-1)   # Nesterov's
    return weights


def standardised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`x` [B, D] standardised by each of `mean` and `std` [I, D]: [I, B, D + 1], with a last column of 1 for the bias.
    """
    with_one = mean.new_empty(len(mean), len(x), mean.shape[1] + 1)
    with_one[..., -1] = 1
    torch.sub(x, mean[:, None], out=with_one[..., :-1]).div_(std[:, None])
    return with_one


def logits(weights: Tensor, x: Tensor) -> Tensor:
    """[I, H, classes, B] of weights [I, H, classes, D + 1] and x [I, B, D + 1]."""
    return (weights.flatten(1, 2) @ x.mT).view(*weights.shape[:3], -1)


def validate(train: Features, held: Tensor, mean: Tensor, std: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy and accuracy of each head on the images at the places `held`: [I * H] float64 each."""
    losses, right = [], []
    for rows in held.split(256):
        votes = logits(weights, standardised(train.x[rows], mean, std)).flatten(0, 1)   # [I * H, classes, B]
        labels = train.labels[rows].expand(len(votes), -1)
        losses.append(F.cross_entropy(votes, labels, reduction="none"))
        right.append(votes.argmax(1) == labels)
    return torch.cat(losses, 1).double().mean(1), torch.cat(right, 1).double().mean(1)


def as_head(mean: Tensor, std: Tensor, weights: Tensor, place: int) -> Head:
    """The head at this place among all I * H."""
    i, weight = place // weights.shape[1], weights.flatten(0, 1)[place]
    head = Head(mean[i], std[i], len(weight))
    head.linear.weight.copy_(weight[:, :-1])
    head.linear.bias.copy_(weight[:, -1])
    return head
