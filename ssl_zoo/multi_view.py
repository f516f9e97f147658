"""Contrasts of any number of views at once, and the averages of pairs of views that some are compared with."""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.blocks import require_room
from ssl_zoo.losses import full_precision, gather_views, nt_xent


def require_views(z: Tensor) -> Tensor:
    """Return the projections [V, B, D], or raise where there are no two views to pair."""
    if len(z) < 2:
        raise ValueError(f"a multi-view loss pairs two or more views of an image, not {len(z)}: draw more views")
    return z


def products(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The cosines, divided by the temperature, of all views of this process's images with all views of all images.

    Args:
        z: projections [V, B, D], any scale.

    Returns:
        The positives [V, B, V]: of each view with the views of its own image, itself among them. And all others
        [V, B, V, N], with -inf in place of the positives; N counts the images of all processes.
    """
    z = F.normalize(require_views(z), dim=-1)
    views, batch, _ = z.shape
    keys = gather_views(z, "a multi-view loss")                                          # [V, N, D]
    require_room(views * batch * keys.shape[:-1].numel(), keys, "a multi-view loss")
    cosines = torch.einsum("vbd,wnd->vbwn", z, keys) / temperature                       # [V, B, V, N]
    own = torch.arange(batch, device=z.device) + batch * distributed.rank()
    own = own[None, :, None, None].expand(views, batch, views, 1)
    return cosines.gather(3, own)[..., 0], cosines.scatter(3, own, float("-inf"))


@full_precision
def mv_info_nce(z: Tensor, temperature: float, same_view_negatives: bool = True) -> Tensor:
    """All pairs of views of an image against all pairs of a view of it with any view: MV-InfoNCE, arXiv:2507.06979.

    The mean over images of the log of the sum over all pairs less that over pairs of two views of the image. It takes
    memory for (V * B) * (V * N) cosines.

    Args:
        z: projections [V, B, D], any scale.
        temperature: divides the cosines, > 0.
        same_view_negatives: count pairs of an image with others in the same view too, as the published code does; the
            paper's formula has only pairs across views.
    """
    positive, negative = products(z, temperature)
    views = torch.eye(len(z), dtype=torch.bool, device=z.device)                         # pairs in the same view
    positive = positive.masked_fill(views[:, None], float("-inf")).transpose(0, 1).flatten(1)        # [B, V * V]
    if not same_view_negatives:
        negative = negative.masked_fill(views[:, None, :, None], float("-inf"))
    rivals = torch.cat([positive, negative.transpose(0, 1).flatten(1)], 1)               # [B, V * V + V * V * N]
    return (rivals.logsumexp(1) - positive.logsumexp(1)).mean()


@full_precision
def mv_dhel(z: Tensor, temperature: float) -> Tensor:
    """The views of an image agree, and each view by itself spreads the images: MV-DHEL, arXiv:2507.06979.

    The mean over images of the sum over views of the log of the sum over other images, less the log of the sum over
    pairs of views. It takes memory for V * B * N cosines. The paper's formula counts the image itself among the
    others; its code, followed here, does not. V * log(N - 1) + (V - 1) / temperature - log(V * (V - 1) / 2) where all
    projections are equal.

    Args:
        z: projections [V, B, D], any scale.
        temperature: divides the cosines, > 0.
    """
    z = F.normalize(require_views(z), dim=-1)
    views, batch, _ = z.shape
    keys = gather_views(z, "a multi-view loss")                                          # [V, N, D]
    require_room(batch * keys.shape[:-1].numel(), keys, "a multi-view loss")
    cosines = torch.bmm(z, keys.mT) / temperature                                        # [V, B, N]
    own = torch.arange(batch, device=z.device)[None, :, None] + batch * distributed.rank()
    spread = cosines.scatter(2, own.expand(views, batch, 1), float("-inf")).logsumexp(2)             # [V, B]
    pairs = torch.einsum("vbd,wbd->bvw", z, z) / temperature                             # [B, V, V]
    once = torch.ones(views, views, dtype=torch.bool, device=z.device).triu(1)
    return (spread.sum(0) - pairs.masked_fill(~once, float("-inf")).flatten(1).logsumexp(1)).mean()


@full_precision
def poly_view(z: Tensor, temperature: float) -> Tensor:
    """The mean over ordered pairs of views of InfoNCE against all views of all other images: PVC, arXiv:2403.05490.

    The geometric form, as MV-DHEL's authors compare with it. With two views it is `nt_xent`.
    """
    positive, negative = products(z, temperature)
    terms = torch.logaddexp(negative.flatten(2).logsumexp(2)[..., None], positive) - positive        # [V, B, V]
    views = torch.eye(len(z), dtype=torch.bool, device=z.device)
    return terms.mean(1).masked_fill(views, 0).sum() / (len(z) * (len(z) - 1))


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
    require_room(len(z) * (len(z) - 1) // 2 * z.shape[1] * keys.shape[1], keys, "CACR")
    terms = []
    own = torch.arange(z.shape[1], device=z.device)[:, None] + z.shape[1] * distributed.rank()
    for x, y in combinations(range(len(z)), 2):
        distances = 2 - 2 * z[x] @ keys[y].T                                                     # [B, N]
        itself = torch.zeros_like(distances, dtype=torch.bool).scatter(1, own, True)
        weights = (-sharpness * distances).masked_fill(itself, float("-inf")).softmax(1)
        terms.append(-(weights * distances).sum(1).mean())
    return torch.stack(terms).mean()
