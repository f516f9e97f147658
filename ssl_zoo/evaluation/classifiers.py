"""Linear classifiers of frozen features without a learning rate: logistic regression, naive Bayes, nearest mean."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.evaluation.accuracy import accuracies
from ssl_zoo.evaluation.features import Features, require_finite
from ssl_zoo.evaluation.score import Score

CHUNK = 1024   # images that exist in float64 at a time


class Linear(NamedTuple):
    """Scores that are linear in the features, taken as they came out of the encoder."""

    weight: Tensor   # [..., C, D]
    bias: Tensor     # [..., C]; -inf for a class without images, which is then never predicted

    def scores(self, x: Tensor) -> Tensor:
        """[..., N, C] for features [..., N, D]."""
        with torch.autocast(x.device.type, enabled=False):
            return x.to(self.weight.dtype) @ self.weight.mT + self.bias[..., None, :]

    def predict(self, x: Tensor) -> Tensor:
        """Classes [..., N] of features [..., N, D]."""
        return self.scores(x).argmax(-1)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [D] of the features [N, D], in float64.

    The deviation of a channel that never changes is infinite: such a channel says nothing, and becomes 0 when it is
    divided by it.
    """
    mean = torch.stack([rows.double().sum(0) for rows in x.split(CHUNK)]).sum(0) / len(x)
    squares = torch.stack([(rows.double() - mean).square().sum(0) for rows in x.split(CHUNK)]).sum(0)
    std = (squares / len(x)).sqrt()
    return mean, torch.where(std > 1e-6 * mean.abs(), std, torch.inf)


@torch.no_grad()
def logistic(x: Tensor, labels: Tensor, classes: int, *, standardise: bool = True) -> Linear:
    """Multinomial logistic regression: minimise the sum of cross entropies + |W|^2 / 2, with a free bias.

    This is scikit-learn's with C = 1. For two classes that has one vector w and the penalty |w|^2 / 2; here they have
    W_1 = -W_0 = w / 2, whose |W|^2 / 2 is half of it, and count double. L-BFGS starts at 0 and runs in float64 until no
    derivative exceeds 1e-5, or for 1000 iterations; on a CPU the same input gives the same bits. The softmax of the
    scores are probabilities. Leading dimensions hold independent problems, which are solved together.

    Args:
        x: features [..., N, D].
        labels: [..., N], whole numbers below `classes`.
        classes: how many there are, C.
        standardise: divide by the deviation of all of `x` inside; the result still takes features as they are.
    """
    require_labels(x, labels, classes)
    std = moments(x.flatten(0, -2))[1] if standardise else x.new_ones(x.shape[-1]).double()   # the bias takes the mean
    if x.shape[-2] < x.shape[-1]:                       # W lies in the span of the images: N numbers instead of D
        span, inside = torch.linalg.qr((x.double() / std).mT)                              # [..., D, N], [..., N, N]
        weight, bias = logistic(inside.mT, labels, classes, standardise=False)
        return linear(weight @ span.mT / std, bias, x)
    return linear(*minimise(x, labels, classes, std), x)


def minimise(x: Tensor, labels: Tensor, classes: int, std: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the logistic regression on x / std, for features as they are; in float64.

    Features of an encoder differ a thousandfold in scale, and L-BFGS needs many steps where a function is much more
    curved along one direction than along another. So it moves [W, b] in other coordinates:

    1. The curvature of the cross entropy is at most `squares / classes`, the second moments of the features and the
       constant 1; the penalty adds 1 or 2 to it. That bound does not depend on the weights and is computed once.
    2. With its Cholesky factor L, weight = place @ inverse(L) makes the bound the identity: the sum is about equally
       curved along all directions of `place`, and most of the steps are saved.
    3. The slope goes back the same way, transposed. A class without images has its bias at -inf throughout.
    """
    unseen = torch.zeros(*labels.shape[:-1], classes, device=x.device).scatter_(-1, labels, 1.0) == 0
    absent = torch.zeros_like(unseen, dtype=torch.float64).masked_fill_(unseen, -torch.inf)
    scale = F.pad(1 / std, (0, 1), value=1.0)                      # [D + 1]
    twice = torch.where((~unseen).sum(-1) == 2, 2.0, 1.0)[..., None, None].double()
    penalty = twice * F.pad(torch.ones_like(std), (0, 1))          # [..., 1, D + 1], none on the bias
    squares = torch.zeros_like(torch.diag(scale))
    for rows, _ in pieces(x, labels):
        rows = F.pad(rows, (0, 1), value=1.0)
        squares = squares + rows.mT @ rows                         # [..., D + 1, D + 1]
    curvature = scale[:, None] * squares * scale / classes + twice * torch.diag(torch.ones_like(scale))
    basis = torch.linalg.inv(torch.linalg.cholesky(curvature))
    place = absent.new_zeros(*absent.shape, len(scale))
    solver = torch.optim.LBFGS([place], max_iter=1000, max_eval=2000, tolerance_grad=1e-5, tolerance_change=0,
                               line_search_fn="strong_wolfe")

    @torch.no_grad()
    def objective() -> Tensor:
        weight = place @ basis
        loss, slope = cross_entropy(x, labels, weight * scale, absent)
        place.grad = (slope * scale + weight * penalty) @ basis.mT
        return loss + (weight.square() * penalty).sum() / 2

    solver.step(objective)
    weight = place @ basis * scale
    return weight[..., :-1], weight[..., -1] + absent


def cross_entropy(x: Tensor, labels: Tensor, weight: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
    """The cross entropy, summed over the images, and its derivative by the weight [..., C, D + 1], bias last.

    Args:
        x: features [..., N, D].
        labels: [..., N].
        weight: [..., C, D + 1].
        absent: [..., C], added to the scores: -inf for a class without images, else 0.
    """
    loss, slope = weight.new_zeros(()), torch.zeros_like(weight)
    bias = (weight[..., -1] + absent)[..., None, :]
    for rows, truth in pieces(x, labels):
        log_p = (rows @ weight[..., :-1].mT + bias).log_softmax(-1)                        # [..., n, C]
        truth = truth[..., None]
        loss = loss - log_p.gather(-1, truth).sum()
        wrong = log_p.exp_().scatter_add_(-1, truth, -torch.ones_like(truth, dtype=log_p.dtype))
        slope[..., :-1] += wrong.mT @ rows
        slope[..., -1] += wrong.sum(-2)
    return loss, slope


@torch.no_grad()
def naive_bayes(x: Tensor, labels: Tensor, classes: int) -> Linear:
    """Bayes' rule for Gaussian classes that share one diagonal variance: the scores are log p(c | x) plus a constant.

    The naive Bayes of linear evaluation, arXiv:2302.02334: W_c = mu_c / v and b_c = log pi_c - sum(mu_c^2 / v) / 2 for
    class means mu, shares pi and the pooled variance v = sum_c pi_c (var_c + 1e-9). The mean of all images is the
    origin here, for else constant channels would drown the others in rounding. With one image of each class it predicts
    the class of the nearest image.

    Args:
        x: features [N, D].
        labels: [N], whole numbers below `classes`.
        classes: how many there are, C.
    """
    require_labels(x, labels, classes)
    counts = labels.bincount(minlength=classes).double()
    means = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device)
    for rows, truth in pieces(x, labels):
        means.index_add_(0, truth, rows)
    origin = means.sum(0) / len(x)
    means /= counts[:, None].clamp_min(1)
    squares = torch.zeros_like(origin)
    for rows, truth in pieces(x, labels):
        squares += (rows - means[truth]).square().sum(0)
    weight = (means - origin) / (squares / len(x) + 1e-9)
    bias = (counts / len(x)).log() - (weight * (means + origin)).sum(-1) / 2
    return linear(weight, bias, x)


@torch.no_grad()
def nearest_class_mean(x: Tensor, labels: Tensor, classes: int) -> Linear:
    """The class whose mean of unit features has the largest cosine with the image.

    SimpleShot's L2-normalised nearest centroid, arXiv:1911.04623, with the centroids on the sphere too: a scattered
    class is not further away for that, and lengths mean nothing, as in kNN and in the contrastive losses.

    Args:
        x: features [N, D].
        labels: [N], whole numbers below `classes`.
        classes: how many there are, C.
    """
    require_labels(x, labels, classes)
    sums = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device)
    for rows, truth in pieces(x, labels):
        sums.index_add_(0, truth, F.normalize(rows, dim=-1))
    bias = torch.where(labels.bincount(minlength=classes) > 0, 0.0, -torch.inf)
    return linear(F.normalize(sums, dim=-1), bias, x)


def judge(name: str, fit: Callable[[Tensor, Tensor, int], Linear], train: Features,
          test: Features) -> dict[str, Score]:
    """The accuracies of the classifier that `fit` makes of features, labels and the number of classes."""
    require_finite(train.x, "training")
    require_finite(test.x, "test")
    classes = int(torch.maximum(train.labels.max(), test.labels.max())) + 1
    return accuracies(name, fit(train.x, train.labels, classes).predict(test.x), test.labels)


def linear(weight: Tensor, bias: Tensor, x: Tensor) -> Linear:
    """In the features' precision, and at least in float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return Linear(weight.to(dtype), bias.to(dtype))


def pieces(x: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """At most CHUNK images' features in float64, with their labels."""
    for rows, truth in zip(x.split(CHUNK, -2), labels.split(CHUNK, -1), strict=True):
        yield rows.double(), truth


def require_labels(x: Tensor, labels: Tensor, classes: int) -> None:
    if not labels.numel():
        raise ValueError("0 images: a classifier needs 1 or more")
    if x.shape[:-1] != labels.shape:
        raise ValueError(f"{x[..., 0].numel()} features have {labels.numel()} labels: give each image one")
    if not 0 <= (extremes := torch.stack(labels.aminmax())).min() <= extremes.max() < classes:
        raise ValueError(f"labels go from {extremes[0]} to {extremes[1]}, and {classes} classes are 0 to "
                         f"{classes - 1}: leave out the images whose class is not known")
    require_finite(x)
