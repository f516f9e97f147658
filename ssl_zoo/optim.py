"""Which parameters an optimiser decays, and the optimisers a recipe names beside torch's own."""

from typing import Any

from lightly.utils.lars import LARS
from torch import nn

__all__ = ["LARS", "parameter_groups"]


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters of `module` in two groups: those that decay, and biases and norms (at most one axis).

    The second group's weight decay is 0. LARS reads that as "no layer-wise adaptation" as well, which is the
    exclusion of SimCLR, arXiv:2002.05709, app. B.1. Groups that would be empty are left out.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
