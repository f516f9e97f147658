"""linear_lbfgs: the linear layer of linear_cached in a few large steps, for evaluations within a run."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.evaluation.accuracy import OF_UNBALANCED
from ssl_zoo.evaluation.classifiers import Linear, judge, linear, moments, require_labels
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity

STEPS = 15


class LinearLbfgs(Protocol):
    """Accuracy of a linear classifier that is found in few steps on all features at once.

    `linear_cached` takes 17,640 small steps at 50,000 images, each of which a GPU has to be told of; this protocol
    takes 15 over all images. On a CPU it costs a twentieth of linear_cached's time for features of 128 numbers, a tenth
    for 512, and 0.4 of it for 2,048, at 10,000 images. On encoders of OBoW, GroCo and FT its accuracy was off by 0.2,
    0.4 and 0.0 points. It stays a protocol of its own: compare its numbers with each other.
    """

    name = "linear_lbfgs"
    quantities = {"linear_lbfgs": Quantity(
        f"standardised features, a linear layer, {STEPS} steps of L-BFGS over all images, cross entropy with the "
        "penalty of logistic")} | OF_UNBALANCED

    unasked = False   # beside linear_cached it says nothing new

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        return Measured(judge("linear_lbfgs", descended, train, test))


@torch.no_grad()
def descended(x: Tensor, labels: Tensor, classes: int, steps: int = STEPS) -> Linear:
    """The logistic regression of `classifiers.logistic`, in float32 and for `steps` steps from zero.

    Few are enough in the coordinates of `classifiers.minimise`, where the cross entropy is about equally curved along
    all directions. Twice as many images as a feature has numbers are enough to find them.

    Args:
        x: features [N, D].
        labels: [N], whole numbers below `classes`.
        classes: how many there are, C.
        steps: of L-BFGS.
    """
    require_labels(x, labels, classes)
    mean, std = (each.float() for each in moments(x))
    with torch.autocast(x.device.type, enabled=False):
        rows = F.pad((x.float() - mean) / std, (0, 1), value=1.0)                                   # [N, D + 1]
        some = rows[::max(1, len(rows) // (2 * rows.shape[1]))]
        curvature = some.mT @ some / len(some) + 0.01 * torch.eye(rows.shape[1], device=x.device)
        basis = torch.linalg.inv(torch.linalg.cholesky(curvature))
        truth, place = F.one_hot(labels, classes).float(), rows.new_zeros(classes, rows.shape[1])
        solver = torch.optim.LBFGS([place], max_iter=steps, max_eval=2 * steps, tolerance_grad=1e-6,
                                   tolerance_change=0, line_search_fn="strong_wolfe")

        @torch.no_grad()
        def objective() -> Tensor:
            weight = place @ basis
            log_p = (rows @ weight.mT).log_softmax(1)                                               # [N, C]
            slope = (log_p.exp() - truth).mT @ rows / len(rows)
            penalty = F.pad(weight[:, :-1], (0, 1)) / len(rows)                                     # none on the bias
            place.grad = (slope + penalty) @ basis.mT
            return -(log_p * truth).sum() / len(rows) + (weight * penalty).sum() / 2

        solver.step(objective)
        weight = place @ basis
        return linear(weight[:, :-1] / std, weight[:, -1] - (weight[:, :-1] / std * mean).sum(1), x)
