"""Contrasts of any number of views at once, and the averages of pairs of views that some are compared with."""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.blocks import Products, by_rows
from ssl_zoo.losses import full_precision, gather_views, nt_xent


def require_views(z: Tensor) -> Tensor:
    """Return the projections [V, B, D], or raise where there are no two views to pair."""
    if len(z) < 2:
        raise ValueError(f"a multi-view loss pairs two or more views of an image, not {len(z)}: draw more views")
    return z


def against_others(z: Tensor, every: Tensor, temperature: float) -> Tensor:
    """The log of the sum of exp(cosine / temperature) of each row with all rows of other images, [V, B].

    Args:
        z: projections of this process's images [V, B, D], unit norm.
        every: those of all images that they are compared with, [W, N, D]; the same object where it is the same.
    """
    (views, batch, _), (others, images, _) = z.shape, every.shape
    rows = z.flatten(0, 1)                                                               # [V * B, D]
    own = torch.arange(batch, device=z.device)[:, None] + batch * distributed.rank()
    own = own + images * torch.arange(others, device=z.device)                           # [B, W]
    products = Products(rows, rows if every is z else every.flatten(0, 1), own.repeat(views, 1))
    return products.log_sums(temperature).view(views, batch)


def everyone(z: Tensor) -> Tensor:
    """The projections of all processes' images [V, N, D] from this one's [V, B, D]."""
    every = gather_views(z, "a multi-view loss")
    return every if distributed.world_size() > 1 else z


def own_products(z: Tensor, temperature: float) -> Tensor:
    """The cosines, divided by the temperature, of the views of each image: [B, V, V] of unit rows [V, B, D]."""
    return torch.einsum("vbd,wbd->bvw", z, z) / temperature


@full_precision
def mv_info_nce(z: Tensor, temperature: float, same_view_negatives: bool = True) -> Tensor:
    """All pairs of views of an image against all pairs of a view of it with any view: MV-InfoNCE, arXiv:2507.06979.

    The mean over images of the log of the sum over all pairs less that over pairs of two views of the image. Its time
    grows with (V * N) ** 2, and its memory with V * N.

    Args:
        z: projections [V, B, D], any scale.
        temperature: divides the cosines, > 0.
        same_view_negatives: count pairs of an image with others in the same view too, as the published code does; the
            paper's formula has only pairs across views.
    """
    z = F.normalize(require_views(z), dim=-1)
    every, views = everyone(z), range(len(z))
    if same_view_negatives:
        rivals = against_others(z, every, temperature)                                   # [V, B]
    else:
        rivals = torch.cat([against_others(z[v:v + 1], every[[w for w in views if w != v]], temperature)
                            for v in views])
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = own_products(z, temperature).masked_fill(itself, float("-inf")).flatten(1)            # [B, V * V]
    return (torch.cat([positive, rivals.T], 1).logsumexp(1) - positive.logsumexp(1)).mean()


@full_precision
def mv_dhel(z: Tensor, temperature: float) -> Tensor:
    """The views of an image agree, and each view by itself spreads the images: MV-DHEL, arXiv:2507.06979.

    The mean over images of the sum over views of the log of the sum over other images, less the log of the sum over
    pairs of views. Its time grows with V * N ** 2. The paper's formula counts the image itself among the others; its
    code, followed here, does not. V * log(N - 1) + (V - 1) / temperature - log(V * (V - 1) / 2) where all projections
    are equal.

    Args:
        z: projections [V, B, D], any scale.
        temperature: divides the cosines, > 0.
    """
    z = F.normalize(require_views(z), dim=-1)
    alone, every = z[:, None], everyone(z)[:, None]                                      # V x [1, B, D], [1, N, D]
    spread = sum(against_others(one, one if distributed.world_size() == 1 else keys, temperature)[0]
                 for one, keys in zip(alone, every, strict=True))                        # [B]
    once = torch.ones(len(z), len(z), dtype=torch.bool, device=z.device).triu(1)
    pairs = own_products(z, temperature).masked_fill(~once, float("-inf"))
    return (spread - pairs.flatten(1).logsumexp(1)).mean()


@full_precision
def poly_view(z: Tensor, temperature: float) -> Tensor:
    """The mean over ordered pairs of views of InfoNCE against all views of all other images: PVC, arXiv:2403.05490.

    The geometric form, as MV-DHEL's authors compare with it. With two views it is `nt_xent`.
    """
    z = F.normalize(require_views(z), dim=-1)
    rivals = against_others(z, everyone(z), temperature).T[..., None]                    # [B, V, 1]
    positive = own_products(z, temperature)                                              # [B, V, V]
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    terms = (torch.logaddexp(rivals, positive) - positive).mean(0).masked_fill(itself, 0)
    return terms.sum() / (len(z) * (len(z) - 1))


def pairwise(z: Tensor, temperature: float) -> Tensor:
    """The mean of `nt_xent` over the pairs of views [V, B, D]."""
    z = require_views(z)
    return torch.stack([nt_xent(z[a], z[b], temperature) for a in range(len(z)) for b in range(a)]).mean()


@full_precision
def average(z: Tensor, temperature: float) -> Tensor:
    """The mean over views of `nt_xent` of one and the mean of the others, all of unit norm: [V, B, D]."""
    z = F.normalize(require_views(z), dim=-1)
    others = (z.sum(0) - z) / (len(z) - 1)
    return torch.stack([nt_xent(one, other, temperature) for one, other in zip(z, others, strict=True)]).mean()


@full_precision
def attraction(z: Tensor, sharpness: float) -> Tensor:
    """The mean squared distance of a view from the others of its image, the far ones weighted more.

    Of CACR, arXiv:2105.03746. The weights are softmax(sharpness * distance), and the gradient flows through them too,
    as in the authors' code. It is the mean squared distance for two views, and for a sharpness of 0.

    Args:
        z: projections [V, B, D], any scale.
        sharpness: of the weights, at least 0.
    """
    z = F.normalize(z, dim=-1)
    distances = 2 - 2 * torch.einsum("vbd,wbd->bvw", z, z)                                       # [B, V, V]
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    weights = (sharpness * distances).masked_fill(itself, float("-inf")).softmax(2)
    return (weights * distances).sum(2).mean()


@full_precision
def repulsion(z: Tensor, sharpness: float) -> Tensor:
    """Minus the mean squared distance of a view from another view of other images, the near ones weighted more.

    Of CACR, arXiv:2105.03746: the mean over pairs of views. The weights are softmax(-sharpness * distance), and the
    gradient flows through them too.

    Args:
        z: projections [V, B, D], any scale.
        sharpness: of the weights, at least 0.
    """
    z = F.normalize(z, dim=-1)
    keys = gather_views(z, "CACR")                                                               # [V, N, D]
    own = torch.arange(z.shape[1], device=z.device)[:, None] + z.shape[1] * distributed.rank()

    def near(cosines: Tensor) -> Tensor:
        there = cosines.isfinite()                                                               # [r, N]
        distances = 2 - 2 * cosines.masked_fill(~there, 0)
        weights = (-sharpness * distances).masked_fill(~there, float("-inf")).softmax(1)
        return (weights * distances).sum(1)
    return -torch.stack([by_rows(near, (Products(z[x], keys[y], own),), ()).mean()
                         for x, y in combinations(range(len(z)), 2)]).mean()
