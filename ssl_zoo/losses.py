"""Losses that several methods share: functions of tensors, without state, that compute in float32 or better."""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.blocks import Products, by_rows

Reduction = Literal["mean", "sum", "none"]
Contrast = Literal["info_nce", "decoupled", "weighted_decoupled"]


Result = TypeVar("Result")


def full_precision(loss: Callable[..., Result]) -> Callable[..., Result]:
    """Run `loss` with autocast off and its half-precision tensors as float32: exp(1 / 0.07) overflows float16.

    A tensor without rows, of which a mean would be NaN, gets a sentence.
    """

    def widen(x: Any) -> Any:
        if isinstance(x, Tensor) and x.ndim and not len(x):
            raise ValueError(f"{loss.__name__} was given a tensor of shape {list(x.shape)}, which has no rows: give it "
                             "one image or more")
        return x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x

    @functools.wraps(loss)
    def widened(*args: Any, **kwargs: Any) -> Result:
        device = next(x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.autocast(device.type, enabled=False):
            return loss(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})
    return widened


def check_temperature(temperature: float) -> float:
    """Return `temperature`, or raise if it is not above 0."""
    if not temperature > 0:
        raise ValueError(f"a temperature must be above 0, not {temperature}")
    return temperature


def check_coldest(temperature: float) -> float:
    """Return `temperature`, or raise if float32 does not hold the average of exp(cosine / temperature)."""
    if not temperature >= 0.02:                               # at 0.0113 it overflows
        raise ValueError(f"an image's average of exp(cosine / temperature) needs a temperature of 0.02 or more, not "
                         f"{temperature}")
    return temperature


def check_share(name: str, share: float) -> float:
    """Return `share`, or raise if it is not above 0 and at most 1."""
    if not 0 < share <= 1:
        raise ValueError(f"{name} is a share, above 0 and up to 1, not {share}")
    return share


def check_choice(what: str, given: Result, choices: Any) -> Result:
    """Return `given`, or raise if it is not one of `choices`, a Literal type."""
    if given not in get_args(choices):
        raise ValueError(f"there is no {what} {given}: it is one of {', '.join(get_args(choices))}")
    return given


def check_weight(name: str, weight: float, papers: float) -> float:
    """Return `weight`, of one of two terms that share the loss, or raise if it is not between 0 and 1."""
    if not 0 <= weight <= 1:
        raise ValueError(f"{name} is a share of the loss, 0 to 1, not {weight}: the paper's is {papers}")
    return weight


def require_two_images(z: Tensor, method: str) -> Tensor:
    """Return the rows [N, ...] of all processes' images, or raise where there is one alone to compare."""
    if len(z) < 2:
        raise ValueError(f"{method} compares the images of a batch, and this batch has {len(z)}: raise the batch size")
    return z


def require_others(z: Tensor, method: str) -> None:
    """Refuse a batch of one image over all processes, of which this one has the rows [B, ...]: its loss is 0."""
    if distributed.world_size() == 1:
        require_two_images(z, method)


def gather_views(z: Tensor, method: str) -> Tensor:
    """The projections of all processes' images [V, N, D] from this one's [V, B, D], with gradient."""
    return require_two_images(distributed.gather(z.transpose(0, 1)), method).transpose(0, 1)


@full_precision
def unit(z: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32: the squares of half-precision rows underflow or overflow."""
    return F.normalize(z, dim=-1)


@full_precision
def batch_similarities(z1: Tensor, z2: Tensor) -> tuple[Tensor, Products]:
    """The cosines of each row of two views with its positive, and with the rows of all other images on any process.

    Args:
        z1, z2: projections [B, D], any scale.

    Returns:
        The positives [2B], those of `z1` first, and the negatives [2B, 2N], where N counts the images of all processes
        and a row itself and its positive are left out. They become a matrix where `contrast` or you ask for one.
    """
    return batch_products(F.normalize(z1, dim=-1), F.normalize(z2, dim=-1))


@full_precision
def batch_products(z1: Tensor, z2: Tensor) -> tuple[Tensor, Products]:
    """Like `batch_similarities`, with scalar products in place of cosines."""
    rows = keys = torch.cat([z1, z2])                                        # [2B, D]
    if distributed.world_size() > 1:
        keys = distributed.gather(torch.stack([z1, z2], 1))                  # [N, 2, D]
        keys = keys.transpose(0, 1).flatten(0, 1)                            # [2N, D]: all first views, then all second
    first = torch.arange(len(z1), device=z1.device) + len(z1) * distributed.rank()
    second = first + len(keys) // 2
    itself_and_partner = torch.stack([torch.cat([first, second]), torch.cat([second, first])], 1)
    return (z1 * z2).sum(-1).repeat(2), Products(rows, keys, itself_and_partner)


@full_precision
def queue_similarities(query: Tensor, key: Tensor, queue: Tensor) -> tuple[Tensor, Products]:
    """The cosines of each query with its key [B], and with the keys in a queue [B, K].

    Args:
        query, key: projections [B, D], any scale.
        queue: earlier keys [K, D], unit norm. They may include older keys of the same image.

    Returns:
        Positives and negatives. The latter become a matrix where `contrast` or you ask for one, with `matrix()`.
    """
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    return (query * key).sum(-1), Products(query, queue)


def mean_cosines(positive: Tensor, negative: Products) -> dict[str, Tensor]:
    """The means of what `queue_similarities` gives, without a gradient, by the names under which methods log them."""
    return {"similarity/positive": positive.detach().mean(), "similarity/negative": negative.mean().detach()}


def key_similarities(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Like `cross_similarities`, but no gradient reaches `key`."""
    return cross_similarities(query, key.detach())


@full_precision
def cross_similarities(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines of each query with its key [B], and with the keys of all other images on any process [B, N].

    Args:
        query, key: projections [B, D], any scale.

    Returns:
        The positives [B], and the negatives [B, N], where N counts the images of all processes and -inf stands where a
        query would meet its own key.
    """
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    cosines = query @ distributed.gather(key).T                              # [B, N]
    partner = torch.arange(len(query), device=query.device)[:, None] + len(query) * distributed.rank()
    return cosines.gather(1, partner)[:, 0], cosines.scatter(1, partner, float("-inf"))


@full_precision
def contrast(positive: Tensor, negative: Tensor | Products, temperature: float, kind: Contrast = "info_nce",
             sigma: float = 0.5, reduction: Reduction = "mean") -> Tensor:
    """How far the negatives outweigh the positive.

    "info_nce" is minus the log of the positive's softmax: eq. (1) of MoCo, arXiv:1911.05722. "decoupled" leaves the
    positive out of the denominator, and "weighted_decoupled" pulls those pairs harder that are further apart: DCL and
    DCLW, arXiv:2110.06848, eq. (6) and (7), which have no lower bound.

    Args:
        positive: cosines [B].
        negative: cosines [B, K], -inf where there is none. Of large `Products` only a block is in memory at a time.
        temperature: divides the cosines, > 0.
        kind: "info_nce", "decoupled" or "weighted_decoupled".
        sigma: temperature of the weights, > 0; only "weighted_decoupled" reads it.
        reduction: "mean", "sum", or "none" for the B terms.

    Returns:
        The loss in nats. With n negatives and all cosines equal it is log(1 + n), and log(n) for the two decoupled
        kinds, which are -inf for a row without any negative.
    """
    weight = pair_weights(positive, sigma) if kind == "weighted_decoupled" else 1.0
    positive = positive / temperature
    rivals = (negative.log_sums(temperature) if isinstance(negative, Products) else
              (negative / temperature).logsumexp(1))
    if kind == "info_nce":           # the positive as one more column would be a copy of the whole matrix
        return reduced(F.softplus(rivals - positive, threshold=50), reduction)
    return reduced(rivals - weight * positive, reduction)


def reduced(terms: Tensor, reduction: Reduction) -> Tensor:
    """The mean or the sum of the terms, or the terms themselves for "none"."""
    if reduction == "none":
        return terms
    return terms.mean() if reduction == "mean" else terms.sum()


@torch.no_grad()
def pair_weights(positive: Tensor, sigma: float) -> Tensor:
    """DCLW's weights [B]: 2 - N * softmax(cosine / sigma) over the N pairs of all processes, 1 on average, at most 2.

    The paper does not say whether the weights carry a gradient. Here they do not, for it would push easy pairs apart.
    """
    every = distributed.gather(positive / sigma)
    return 2 - len(every) * (positive / sigma - every.logsumexp(0)).exp()


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, reduction: Reduction = "mean") -> Tensor:
    """Normalised temperature-scaled cross entropy between two views of a batch.

    Eq. (1) of SimCLR, arXiv:2002.05709, averaged over the 2B rows of this process. Row i of `z1` and row i of `z2`
    are positives; every other row, on any process, is a negative. The authors' TensorFlow code adds the means over
    the two views, which gives twice this value; we follow the paper.

    Args:
        z1, z2: projections [B, D], any scale.
        temperature: divides the cosine similarities, > 0.
        reduction: "mean", "sum", or "none" for the 2B terms, those of `z1` first.

    Returns:
        The loss in nats. It is log(2N - 1) where all projections are equal, with N the images of all processes.
    """
    return contrast(*batch_similarities(z1, z2), temperature, reduction=reduction)


@full_precision
def global_contrast(z1: Tensor, z2: Tensor, averages: Tensor, temperature: Tensor,
                    gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """One step of algorithm 1 of SogCLR, arXiv:2202.12387: loss [], new averages [B], unevenness of the weights [B].

    The last is the mean over both views of log(average) less the weighted mean of cosine / temperature: minus the
    Kullback-Leibler divergence of the negatives' weights from uniform where gamma is 1.

    Args:
        z1, z2: projections [B, D], any scale.
        averages: of exp(cosine / temperature) over the negatives of each image [B]; 0 where there is none yet.
        temperature: of each image [B].
        gamma: share of this batch in the new averages.
    """
    positive, products = batch_similarities(z1, z2)                                      # [2B], [2B, 2N]
    count = 2 * len(require_two_images(products.keys[::2], "SogCLR")) - 2                # not itself and its positive
    averages, temperature = averages.repeat(2), temperature.to(positive.dtype).repeat(2)
    with torch.no_grad():
        newest = by_rows(summed_heat, (products,), (temperature,)) / count
    averages = torch.where(averages > 0, (1 - gamma) * averages + gamma * newest, newest)
    pushes = by_rows(weighted_cosines, (products,), (temperature, averages * count))
    uneven = averages.log() - pushes.detach() / temperature
    loss = 2 * (pushes - positive).mean()                                                # both views, per image
    return loss, averages.view(2, -1).mean(0), uneven.view(2, -1).mean(0)


def summed_heat(negative: Tensor, temperature: Tensor) -> Tensor:
    """The sum of exp(cosine / temperature) of each row of negatives [r, K], -inf where there is none."""
    return (negative / temperature[:, None]).exp().sum(1)


def weighted_cosines(negative: Tensor, temperature: Tensor, total: Tensor) -> Tensor:
    """The sum of the cosines of each row [r, K], weighted by exp(cosine / temperature) / total without a gradient."""
    weights = (negative.detach() / temperature[:, None]).exp() / total[:, None]
    return (weights * negative.masked_fill(negative.isinf(), 0)).sum(1)


@torch.no_grad()
@full_precision
def mean_similarities(z1: Tensor, z2: Tensor) -> Tensor:
    """Two means [2]: of the cosines of `z1` [B, D] with its positives in `z2`, and with the other rows of `z2`.

    A batch of one has no other rows, and its second mean is 0.
    """
    z1, z2 = F.normalize(z1, dim=-1), F.normalize(z2, dim=-1)
    positive = (z1 * z2).sum(-1).mean()
    pairs = len(z1) * (len(z1) - 1)
    negative = (z1.sum(0) @ z2.sum(0) - len(z1) * positive) / max(pairs, 1)   # no [B, B] matrix
    return torch.stack([positive, negative if pairs else torch.zeros_like(negative)])


@full_precision
def negative_cosine(prediction: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Minus the mean cosine of predictions and targets [B, D], -1 at best: eq. (1) of SimSiam, arXiv:2011.10566.

    No gradient reaches `target`. `reduction` may be "sum", or "none" for the B terms.
    """
    return reduced(-F.cosine_similarity(prediction, target.detach(), dim=-1), reduction)


@full_precision
def standardized(z: Tensor) -> Tensor:
    """The projections [B, D] of all processes as [N, D], each column with mean 0 and standard deviation 1."""
    z = distributed.gather(z)
    return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-12).sqrt()      # a constant column gives 0


@full_precision
def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """The correlations [D, D] of the columns of two views' projections [B, D], over the images of all processes.

    Row i, column j is that of column i of `z1` and column j of `z2`: eq. (2) of Barlow Twins, arXiv:2103.03230.
    """
    z1, z2 = standardized(z1), standardized(z2)
    return z1.T @ z2 / len(z1)


def off_diagonal(matrix: Tensor) -> Tensor:
    """The n * (n - 1) elements of an [n, n] matrix that are not on its diagonal, row by row."""
    n = len(matrix)
    return matrix.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten()
