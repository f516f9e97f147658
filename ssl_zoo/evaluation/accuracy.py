"""The share of images whose class is told right, and what to read in its place where the classes are unbalanced."""

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score

from ssl_zoo.evaluation.protocol import Quantity
from ssl_zoo.evaluation.score import Score, number

UNBALANCED = 2   # images of the commonest class for each of the rarest, from where accuracy alone misleads
WHERE = "where the test part has a class with twice the images of another, or more"
OF_UNBALANCED = {
    "balanced_accuracy/": Quantity(f"mean over the classes of the share of their images that are right, {WHERE}"),
    "macro_f1/": Quantity(f"mean over the classes of F1, of what is predicted and what is true, {WHERE}")}


def accuracies(name: str, predictions: Tensor, truth: Tensor) -> dict[str, Score]:
    """The accuracy under its name, and for an unbalanced test part balanced_accuracy/name and macro_f1/name too.

    Args:
        predictions: [N] classes.
        truth: [N], -1 where unknown, which is never right.
    """
    right = ((predictions == truth) & (truth >= 0)).double()
    found = {name: Score(right, "image")}
    if unbalanced(truth):
        classes = int(torch.maximum(predictions.max(), truth.max())) + 1
        f1 = multiclass_f1_score(predictions, truth, classes, average="macro", validate_args=False)
        found |= {f"balanced_accuracy/{name}": Score(right, "image", truth), f"macro_f1/{name}": number(f1.item())}
    return found


def unbalanced(truth: Tensor) -> bool:
    """Whether the commonest class has at least twice the images of the rarest that occurs; not if some are unknown."""
    counts = truth.unique(return_counts=True)[1]
    return bool((truth >= 0).all() and counts.max() >= UNBALANCED * counts.min())


def guess(truth: Tensor) -> Score:
    """The accuracy of always guessing the commonest class of `truth` [N]."""
    return Score((truth == truth.mode().values).double(), "image")
