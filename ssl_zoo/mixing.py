"""Negatives and positives that no image has, made of those that there are.

MoCHi mixes negatives from a queue's hardest keys, arXiv:2010.01028, sec. 3.3. FT mixes any keys and pushes positives
apart, arXiv:2108.02982, and HaLP moves them towards other clusters, arXiv:2304.00387.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssl_zoo import distributed
from ssl_zoo.blocks import Products, blocks, by_images
from ssl_zoo.distributed import Key
from ssl_zoo.losses import full_precision


class Mixture(NamedTuple):
    """Which of each query's hardest keys are mixed, and how much each contributes."""

    first: Tensor          # [B, s]
    second: Tensor         # [B, s], never equal to `first`
    first_share: Tensor    # [B, s] in [0, 1)
    single: Tensor         # [B, s'], the keys that are mixed with the query
    query_share: Tensor    # [B, s'] in [0, 0.5): the key stays the greater part


def draw_mixture(key: Key, batch: int, hardest: int, pairs: int, with_query: int, device: torch.device) -> Mixture:
    """Draw which keys to mix for each of `batch` queries, and in which shares.

    The draw is for the queries of all processes, of which each process takes its part: so an image's mixture does not
    depend on how many processes there are.

    Args:
        batch: queries B on this process.
        hardest: how many of a query's hardest keys may be mixed, at least 2.
        pairs: mixtures of two keys for each query; s in the paper.
        with_query: mixtures of a key and the query, for each query; s' in the paper.
    """
    drawn = drawn_mixture(key.seed, key.epoch, key.batch, batch * distributed.world_size(), hardest, pairs, with_query)
    return Mixture(*(distributed.mine(part).to(device, non_blocking=True) for part in drawn))


@torch.library.custom_op("ssl_zoo::mixture", mutates_args=())   # of which torch.compile need not know the inside
def drawn_mixture(seed: int, epoch: int, batch: int, rows: int, hardest: int, pairs: int, with_query: int
                  ) -> list[Tensor]:
    """The tensors of a `Mixture` for the queries of all processes, on the host."""
    generator = Key(seed, epoch, batch, 0).generator("mixtures")
    first = generator.integers(hardest, size=(rows, pairs))
    second = (first + 1 + generator.integers(hardest - 1, size=(rows, pairs))) % hardest
    drawn = (first, second, generator.random((rows, pairs), dtype=np.float32),
             generator.integers(hardest, size=(rows, with_query)),
             generator.random((rows, with_query), dtype=np.float32) / 2)
    return [torch.from_numpy(part) for part in drawn]


@drawn_mixture.register_fake
def _(seed: int, epoch: int, batch: int, rows: int, hardest: int, pairs: int, with_query: int) -> list[Tensor]:
    widths = {torch.int64: (pairs, pairs, with_query), torch.float32: (pairs, with_query)}
    (first, second, single), (first_share, query_share) = (
        [torch.empty(rows, width, dtype=dtype) for width in some] for dtype, some in widths.items())
    return [first, second, first_share, single, query_share]


@torch.no_grad()
@full_precision
def hardest_keys(query: Tensor, queue: Tensor, hardest: int) -> Tensor:
    """The places [B, hardest] in a queue [K, D], unit norm, of the keys most similar to each query [B, D]."""
    if hardest > len(queue):
        raise ValueError(f"a queue of {len(queue)} keys has no {hardest} hardest: lower hardest, or lengthen the queue")
    query = F.normalize(query, dim=-1)
    return torch.cat([places_of_largest(query[block] @ queue.T, hardest) for block in blocks(query, queue)])


def places_of_largest(numbers: Tensor, count: int) -> Tensor:
    """The places [R, count] of the largest numbers of each row [R, K], the largest first.

    They are in no more than `count` groups of 8 columns: those whose own largest number is largest. That takes half the
    time of a search in all numbers, for 1,024 of 65,536.
    """
    rows, columns = numbers.shape
    if columns % 8 or 16 * count > columns:
        return numbers.topk(count).indices
    groups = columns // 8
    group = numbers.view(rows, 8, groups).amax(1).topk(count, sorted=False).indices                # [R, count]
    places = (group[:, None] + torch.arange(0, columns, groups, device=numbers.device)[:, None]).flatten(1)
    return places.gather(1, numbers.gather(1, places).topk(count).indices)


class NamedProducts(torch.autograd.Function):
    """The scalar products [B, N] of each row [B, D] with keys [K, D] of its own, which `places` [B, N] names.

    Their gradient is a sum of keys by weights, which needs no copy of the keys.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, keys: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(keys, places)
        return by_images(lambda row, place: torch.einsum("bd,bnd->bn", row, F.embedding(place, keys)),
                         2 * places.shape[1] * keys.shape[1], rows, places)  # copies of half a block: 1.4 times as fast

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        keys, places = ctx.saved_tensors
        return F.embedding_bag(places, keys, mode="sum", per_sample_weights=grad), None, None


@torch.no_grad()
def mixed_lengths(queue: Tensor, first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """The lengths [B, s] of share * one key of the queue [K, D] + (1 - share) * another, whose places are [B, s]."""
    def of(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
        one, other = F.embedding(first, queue), F.embedding(second, queue)                     # [b, s, D]
        return torch.linalg.vector_norm(torch.lerp(other, one, share[..., None]), dim=-1)
    return by_images(of, 6 * first.shape[1] * queue.shape[1], first, second, share)            # three copies, as above


@full_precision
def hard_similarities(query: Tensor, queue: Tensor, places: Tensor, mixture: Mixture) -> Tensor:
    """The cosines [B, s + s'] of each query with negatives that are mixed for it: those of two keys first.

    Mixed negatives are constants: no gradient passes through them, as in all public implementations. The paper does not
    say. They are not made: the product of a query with a sum is the sum of those with its parts, and the length of the
    sum divides it.

    Args:
        query: [B, D], any scale.
        queue: [K, D], unit norm.
        places: [B, N] in the queue, of the keys that may be mixed for each query.
        mixture: which of them are mixed, and in which shares.
    """
    query = F.normalize(query, dim=-1)
    cosines = NamedProducts.apply(query, queue, places)                                        # [B, N]
    share, query_share = mixture.first_share.to(cosines), mixture.query_share.to(cosines)
    first, second, single = (cosines.gather(1, drawn) for drawn in (mixture.first, mixture.second, mixture.single))
    lengths = mixed_lengths(queue, places.gather(1, mixture.first), places.gather(1, mixture.second), share)
    # the query with itself makes 1, whose gradient leaves the sphere; no term of the squares is negative
    sums = torch.lerp(second, first, share), single + query_share * (1 - single)
    squares = (1 - 2 * query_share).square() + 2 * query_share * (1 - query_share) * (1 + single.detach()).clamp_min(0)
    return torch.cat(sums, 1) / torch.cat([lengths, squares.sqrt()], 1).clamp_min(1e-6)   # 0 if opposite


@full_precision
def mixed_similarities(query: Tensor, negatives: Tensor) -> Tensor:
    """The cosines [B, s] of each query [B, D], any scale, with negatives of its own [B, s, D], unit norm."""
    return torch.einsum("bd,bsd->bs", F.normalize(query, dim=-1), negatives)


@full_precision
def towards(key: Tensor, nearest: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """A key moved on the sphere towards another prototype, by a share of the way on which its own stays the nearest.

    The latent positives of HaLP, arXiv:2304.00387. Two prototypes tie at the angle whose tangent is
    sin(w) / (k + cos(w)), with w the angle between the key and the other prototype, and k the quotient of 1 less the
    prototypes' cosine by the difference of the key's cosines with them. The authors' code looks for that angle within a
    quarter turn, which is wrong where it is more; this looks within a half.

    Args:
        key, nearest, other: [..., D], unit norm.
        share: [...] from 0, the key itself, to 1.
    """
    cosine = (key * other).sum(-1)
    aside = other - cosine[..., None] * key                                              # of length sin(w)
    ratio = (1 - (nearest * other).sum(-1)) / (key * (nearest - other)).sum(-1).clamp_min(1e-8)
    angle = share.to(key) * torch.atan2(aside.norm(dim=-1), ratio + cosine)
    moved = angle.cos()[..., None] * key + angle.sin()[..., None] * F.normalize(aside, dim=-1)
    return F.normalize(moved, dim=-1)


@full_precision
def extrapolated(query: Tensor, key: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Both ends of a pair, [B, D] each, moved apart on their line: share * one + (1 - share) * the other.

    The positive extrapolation of FT, arXiv:2108.02982, for a share of 1 to 2. The ends get longer than those of the
    pair and are not scaled back, as in the authors' code.
    """
    return torch.lerp(key, query, share.to(query)), torch.lerp(query, key, share.to(query))


@full_precision
def interpolated(queue: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """Each key of a queue [K, D] mixed with the one that `order` [K] names: share * itself + (1 - share) * the other.

    The negative interpolation of FT, arXiv:2108.02982. Mixed keys are shorter than 1 and are not scaled back.
    """
    return torch.lerp(queue[order], queue, share.to(queue))


@full_precision
def transformed_similarities(query: Tensor, key: Tensor, queue: Tensor, order: Tensor, apart: Tensor,
                             along: Tensor) -> tuple[Tensor, Products]:
    """The scalar products of extrapolated pairs [B], and of their queries with interpolated keys [B, K].

    Args:
        query, key: [B, D], unit norm.
        queue: [K, D], unit norm.
        order: [K] the key that each is mixed with.
        apart, along: the shares of the extrapolation and of the interpolation, [1] each.
    """
    query, key = extrapolated(query, key, apart)
    return (query * key).sum(-1), Products(query, interpolated(queue, order, along))
