"""Heads that sit on an encoder."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[], nn.Module]
RELU = partial(nn.ReLU, inplace=True)


def mlp(*widths: int, norm: bool = True, bias: bool = True, last_norm: bool = False,
        last_scale: bool = True, activation: Activation = RELU) -> nn.Sequential:
    """Linear, BatchNorm and ReLU between neighbouring `widths`; the last layer is linear alone.

    Args:
        norm: put a BatchNorm after every hidden layer, whose bias it makes redundant; MoCo v2 has none.
        bias: give the last layer a bias, unless a BatchNorm follows it.
        last_norm: end with a BatchNorm that scales and does not shift, as SimCLR's published code does.
        last_scale: False takes the scale from that last BatchNorm too, as in MoCo v3.
        activation: makes what stands in place of the ReLU.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"a head has the width of its input and 1 or more others, and got {list(widths)}: give the "
                         "projector widths, such as [2048, 128]")
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(widths), start=1):
        last = i == len(widths) - 1
        normed = last_norm if last else norm
        layers.append(nn.Linear(width_in, width_out, bias=not normed and (bias or not last)))
        if normed and last and not last_scale:
            layers.append(nn.BatchNorm1d(width_out, affine=False))
        elif normed:
            layers.append(norm_layer := nn.BatchNorm1d(width_out))
            norm_layer.bias.requires_grad_(not last)   # the last one scales and does not shift: its bias stays 0
        if not last:
            layers.append(activation())
    return nn.Sequential(*layers)


def pixel_mlp(*widths: int, norm: bool = True, activation: Activation = RELU) -> nn.Sequential:
    """An `mlp` that each cell of a feature map passes by itself: [B, inputs, h, w] -> [B, outputs, h, w].

    Args:
        norm: put a BatchNorm after every hidden layer, whose bias it makes redundant; DenseCL has none.
        activation: makes what follows a hidden layer.
    """
    layers: list[nn.Module] = []
    for inputs, hidden in pairwise(widths[:-1]):
        norms = [nn.BatchNorm2d(hidden)] if norm else []
        layers += [nn.Conv2d(inputs, hidden, 1, bias=not norm), *norms, activation()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-2], widths[-1], 1))


class MultiHead(nn.Module):
    """Several projectors of one shape, each with its own weights: [B, width] -> [B, heads, D].

    Args:
        heads: the number of projectors, at least 1.
        widths: layer widths of each, the input's first, as for `mlp`.
        norm: put BatchNorm between the layers.
    """

    def __init__(self, heads: int, *widths: int, norm: bool = False):
        super().__init__()
        if heads < 1:
            raise ValueError(f"a method projects with 1 or more heads, not {heads}")
        self.heads = nn.ModuleList(mlp(*widths, norm=norm) for _ in range(heads))

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([head(features) for head in self.heads], 1)


class PixelPropagation(nn.Module):
    """Each cell of a map becomes the sum of all cells' transforms, weighted by max(cosine, 0) ** gamma.

    Eq. (2) and (3) of PixPro, arXiv:2011.10043. The paper adds the transforms as they are; the authors' code scales
    them to unit norm first, which this follows.

    Args:
        dim: width D of a cell.
        layers: number of 1x1 convolutions in the transform, 0 or 1.
        gamma: sharpness of the weights: 0 mixes all cells equally, a large value mixes none.
    """

    def __init__(self, dim: int, layers: int = 1, gamma: float = 2.0):
        super().__init__()
        if layers not in (0, 1):
            raise ValueError(f"what PixPro propagates is transformed by 0 or 1 layers, not {layers}")
        self.transform = nn.Conv2d(dim, dim, 1) if layers else nn.Identity()
        self.gamma = gamma

    def forward(self, maps: Tensor) -> Tensor:
        """[B, D, h, w] to the same, in float32 or better."""
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
            unit, transformed = (F.normalize(x.flatten(2), dim=1) for x in (maps, self.transform(maps)))   # [B, D, N]
            near = torch.bmm(unit.mT, unit).clamp_min(0) ** self.gamma                                     # [B, N, N]
            return torch.bmm(transformed, near).view_as(maps)                                # near is symmetric


class Prototypes(nn.Module):
    """Unit vectors that projections are compared with. There is no bias: with one, a prototype could win every image.

    Args:
        dim: width D of a projection.
        prototypes: the number of prototypes, K.
    """

    def __init__(self, dim: int, prototypes: int):
        super().__init__()
        if prototypes < 2:
            raise ValueError(f"images are shared among 2 or more prototypes, not {prototypes}")
        self.weight = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=-1))      # [K, D]

    @torch.no_grad()
    def normalize(self) -> None:
        """Scale the prototypes back to unit norm; call it before every step."""
        self.weight.copy_(F.normalize(self.weight, dim=-1))

    def forward(self, projections: Tensor) -> Tensor:
        """Cosines [B, K], in float32 or better, of projections [B, D] of any scale."""
        with torch.autocast(projections.device.type, enabled=False):
            projections = projections.to(torch.promote_types(projections.dtype, torch.float32))
            return F.normalize(projections, dim=-1) @ self.weight.to(projections.dtype).T

    def used(self, scores: Tensor) -> Tensor:
        """The share of prototypes, a tensor [], that are nearest to at least one row of `scores` [B, K]."""
        return scores.new_zeros(len(self.weight)).index_fill(0, scores.argmax(1), 1).mean()
