"""Heads that sit on an encoder."""

from itertools import pairwise

from torch import nn


def mlp(*widths: int, last_norm: bool = False) -> nn.Sequential:
    """Linear-BatchNorm-ReLU between every two of `widths`; the last layer is linear alone.

    With `last_norm` a BatchNorm with scale and without shift follows the last layer, which then has no bias, as in
    SimCLR's published code.
    """
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(widths), start=1):
        last = i == len(widths) - 1
        norm = not last or last_norm
        layers.append(nn.Linear(width_in, width_out, bias=not norm))
        if norm:
            layers.append(norm_layer := nn.BatchNorm1d(width_out))
            norm_layer.bias.requires_grad_(not last)   # the last one scales and does not shift: its bias stays 0
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
