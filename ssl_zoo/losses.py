"""Losses that two methods share: tensors in, a tensor out, no state. They compute in float32 or better."""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo import distributed

Reduction = Literal["mean", "sum", "none"]
Contrast = Literal["info_nce", "decoupled", "weighted_decoupled"]


Result = TypeVar("Result")


def full_precision(loss: Callable[..., Result]) -> Callable[..., Result]:
    """Run `loss` with autocast off and half-precision tensors as float32: exp(1 / 0.07) overflows float16."""

    def widen(x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x

    @functools.wraps(loss)
    def widened(*args: Any, **kwargs: Any) -> Result:
        device = next(x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.autocast(device.type, enabled=False):
            return loss(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})
    return widened


def check_temperature(temperature: float) -> float:
    """The temperature, which a method's constructor takes from a recipe."""
    if not temperature > 0:
        raise ValueError(f"a temperature must be above 0, not {temperature}")
    return temperature


def check_choice(what: str, given: Result, choices: Any) -> Result:
    """What was given, if it is one of the names of a Literal."""
    if given not in get_args(choices):
        raise ValueError(f"there is no {what} {given}: it is one of {', '.join(get_args(choices))}")
    return given


def require_scalar(loss: Any, name: str) -> Tensor:
    """The loss that `name` returned, if an optimiser can minimise it."""
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        given = f"a tensor {list(loss.shape)} that {'has' if loss.requires_grad else 'has no'} gradient" if isinstance(
            loss, Tensor) else type(loss).__name__
        raise ValueError(f"{name} must return one number with a gradient, not {given}: take the mean of the batch's "
                         "terms, and detach no projection of the online encoder")
    return loss


@full_precision
def unit(z: Tensor) -> Tensor:
    """Rows of length 1; in half precision, the smallest and the largest rows have no length."""
    return F.normalize(z, dim=-1)


@full_precision
def batch_similarities(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines of each row of two views with its positive, and with all other images' rows on any process.

    Args:
        z1, z2: projections [B, D], any scale.

    Returns:
        [2B], those of `z1` first, and [2B, 2N] with N the images of all processes: -inf where a row would meet itself
        or its positive.
    """
    return batch_products(F.normalize(z1, dim=-1), F.normalize(z2, dim=-1))


@full_precision
def batch_products(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """As `batch_similarities`, of the scalar products."""
    z = torch.stack([z1, z2])                                                # [2, B, D]
    batch = z.shape[1]
    keys = distributed.gather(z.transpose(0, 1).contiguous())                # [N, 2, D]
    keys = keys.transpose(0, 1).flatten(0, 1)                                # [2N, D]: all first views, then all second
    products = z.flatten(0, 1) @ keys.T                                      # [2B, 2N]
    first = torch.arange(batch, device=z.device) + batch * distributed.rank()
    second = first + len(keys) // 2
    partner = torch.cat([second, first])[:, None]
    itself = torch.cat([first, second])[:, None]
    return products.gather(1, partner)[:, 0], products.scatter(1, torch.cat([itself, partner], 1), float("-inf"))


@full_precision
def queue_similarities(query: Tensor, key: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines of each query with its key [B], and with the keys in a queue [B, K].

    Args:
        query, key: projections [B, D], any scale.
        queue: keys of other images [K, D], unit norm.
    """
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    return (query * key).sum(-1), query @ queue.T


@full_precision
def key_similarities(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines of each query with its key [B], and with the keys of all other images on any process [B, N].

    Args:
        query, key: projections [B, D], any scale; no gradient reaches the keys.
    """
    query, key = F.normalize(query, dim=-1), F.normalize(key.detach(), dim=-1)
    cosines = query @ distributed.gather(key).T                              # [B, N]
    partner = torch.arange(len(query), device=query.device)[:, None] + len(query) * distributed.rank()
    return cosines.gather(1, partner)[:, 0], cosines.scatter(1, partner, float("-inf"))


@full_precision
def contrast(positive: Tensor, negative: Tensor, temperature: float, kind: Contrast = "info_nce",
             sigma: float = 0.5, reduction: Reduction = "mean") -> Tensor:
    """How far the negatives outweigh the positive.

    "info_nce" is minus the log of the positive's softmax: eq. (1) of MoCo, arXiv:1911.05722. "decoupled" leaves the
    positive out of the denominator, and "weighted_decoupled" pulls those pairs harder that are further apart: DCL and
    DCLW, arXiv:2110.06848, eq. (6) and (7), which have no lower bound.

    Args:
        positive: cosines [B].
        negative: cosines [B, K], -inf where there is none.
        temperature: divides the cosines, > 0.
        sigma: temperature of the weights.

    Returns:
        In nats. With n negatives and all cosines equal: log(1 + n), and log(n) for the decoupled two.
    """
    weight = pair_weights(positive, sigma) if kind == "weighted_decoupled" else 1.0
    positive, negative = positive / temperature, negative / temperature
    rivals = torch.cat([positive[:, None], negative], 1) if kind == "info_nce" else negative
    return reduced(rivals.logsumexp(1) - weight * positive, reduction)


def reduced(terms: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return terms
    return terms.mean() if reduction == "mean" else terms.sum()


@torch.no_grad()
def pair_weights(positive: Tensor, sigma: float) -> Tensor:
    """[B]: 2 - N softmax(cosine / sigma) over the N pairs of all processes: 1 on average, at most 2.

    The paper does not say whether they carry a gradient; one would push easy pairs apart, so they do not.
    """
    every = distributed.gather(positive / sigma)
    return 2 - len(every) * (positive / sigma - every.logsumexp(0)).exp()


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, reduction: Reduction = "mean") -> Tensor:
    """Normalised temperature-scaled cross entropy between two views of a batch.

    Eq. (1) of SimCLR, arXiv:2002.05709, averaged over the 2B rows of this process. Row i of `z1` and row i of `z2`
    are positives; every other row, on any process, is a negative. The authors' TensorFlow code adds the means over
    the two views, which is twice this; we follow the paper.

    Args:
        z1, z2: projections [B, D], any scale.
        temperature: divides the cosine similarities, > 0.
        reduction: "none" gives the 2B rows, those of `z1` first.

    Returns:
        In nats. log(2B - 1) where all projections are equal.
    """
    return contrast(*batch_similarities(z1, z2), temperature, reduction=reduction)


@torch.no_grad()
@full_precision
def mean_similarities(z1: Tensor, z2: Tensor) -> Tensor:
    """[2]: the mean cosine of `z1` [B, D] with its positives in `z2`, and with the other rows of `z2`.

    The second is 0 for a batch of one, which has no other rows.
    """
    z1, z2 = F.normalize(z1, dim=-1), F.normalize(z2, dim=-1)
    positive = (z1 * z2).sum(-1).mean()
    pairs = len(z1) * (len(z1) - 1)
    negative = (z1.sum(0) @ z2.sum(0) - len(z1) * positive) / max(pairs, 1)   # no [B, B] matrix
    return torch.stack([positive, negative if pairs else torch.zeros_like(negative)])


@full_precision
def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Eq. (1) of SimSiam, arXiv:2011.10566: from -1 to 1, over predictions [B, D]. No gradient reaches `target`."""
    return -F.cosine_similarity(prediction, target.detach(), dim=-1).mean()


@full_precision
def standardized(z: Tensor) -> Tensor:
    """[N, D]: the projections [B, D] of all processes, each number with mean 0 and deviation 1 over them."""
    z = distributed.gather(z)
    return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-12).sqrt()      # a number that never changes gives 0


@full_precision
def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """[D, D]: how each number of one view's projections [B, D] varies with each of the other's, over all processes.

    Eq. (2) of Barlow Twins, arXiv:2103.03230.
    """
    z1, z2 = standardized(z1), standardized(z2)
    return z1.T @ z2 / len(z1)


def off_diagonal(matrix: Tensor) -> Tensor:
    """The n * (n - 1) elements of an [n, n] matrix that are not on its diagonal, row by row."""
    n = len(matrix)
    return matrix.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten()
