"""Scalar products of many rows with many keys, read in blocks of rows where the whole matrix would not fit.

A batch of 4,096 images has 8,192 views and 67 million pairs, and autograd keeps several matrices of that size. Here the
forward pass keeps one number for each row, and the backward pass makes each block of the matrix again.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

BLOCK = {"cpu": 2 ** 20, "cuda": 2 ** 24}   # products at a time: as many as caches hold; enough to fill a GPU
PLAIN = 2 ** 19                             # up to this many, autograd's own matrix is the faster way
again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)     # nothing here is left to chance


class Products(NamedTuple):
    """A matrix of scalar products that is not made yet, in which some columns of each row are left out."""

    rows: Tensor                      # [R, D]
    keys: Tensor                      # [K, D]; the same object as `rows` where the matrix is symmetric
    left_out: Tensor | None = None    # [R, n] columns: a row is not its own negative, nor is its positive
    besides: Tensor | None = None     # [R, m] products of each row with keys of its own, as columns after the others

    @property
    def few(self) -> bool:
        return len(self.rows) * len(self.keys) <= PLAIN

    def matrix(self) -> Tensor:
        """The whole matrix [R, K + m], with -inf in the columns that are left out."""
        matrix = self.rows @ self.keys.T
        if self.left_out is not None:
            matrix = matrix.scatter(1, self.left_out, float("-inf"))
        return matrix if self.besides is None else torch.cat([matrix, self.besides], 1)

    def of(self, block: slice) -> "Products":
        """These rows alone."""
        return Products(self.rows[block], self.keys, *(x if x is None else x[block] for x in self[2:]))

    def mean(self) -> Tensor:
        """The mean [] of all products with the keys, the left out among them."""
        return self.rows.mean(0) @ self.keys.mean(0)

    def log_sums(self, temperature: float) -> Tensor:
        """The logarithm of the sum of exp(product / temperature) over each row, [R]."""
        if self.few:
            return (self.matrix() / temperature).logsumexp(1)
        if self.left_out is None and not self.keys.requires_grad:
            sums = LogSumExpOfConstants.apply(self.rows, self.keys, temperature)
        else:
            others = None if self.keys is self.rows else self.keys     # torch.compile takes no tensor twice
            sums = LogSumExp.apply(self.rows, others, self.left_out, temperature)
        return sums if self.besides is None else torch.logaddexp(sums, (self.besides / temperature).logsumexp(1))


class LogSumExp(torch.autograd.Function):
    """The logarithm of the sum of exp(product / temperature) over each row, [R], in blocks.

    The gradient of row i is the sum over j of softmax_ij * key_j / temperature, and that of key j the same with rows
    for keys. Where the rows are the keys, block i of the matrix serves both, because its columns are the rows of the
    other blocks: that makes three matrix products in all, as many as autograd needs for the whole matrix.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, keys: Tensor | None, left_out: Tensor | None, temperature: float) -> Tensor:
        """The keys are the rows where they are None."""
        found = logits_of(rows, rows if keys is None else keys, left_out, temperature)
        sums = torch.cat([logits.logsumexp(1) for _, logits in found])
        ctx.save_for_backward(rows, keys, left_out, sums)
        ctx.temperature = temperature
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, others, left_out, sums = ctx.saved_tensors
        sums = sums.masked_fill(sums.isneginf(), 0.0)       # of a row without columns: its softmax is 0 everywhere
        weight = grad / ctx.temperature                                                  # [R]
        of_rows, of_keys = torch.empty_like(rows), None if others is None else torch.zeros_like(others)
        keys = rows if others is None else others
        for block, logits in logits_of(rows, keys, left_out, ctx.temperature):
            pulls = (logits - sums[block, None]).exp_().mul_(weight[block, None])        # [r, K]
            if of_keys is None:
                pulls += logits.sub_(sums).exp_().mul_(weight)
            else:
                of_keys.addmm_(pulls.T, rows[block])
            of_rows[block] = pulls @ keys
        return of_rows, of_keys, None, None


class LogSumExpOfConstants(torch.autograd.Function):
    """`LogSumExp` for keys without a gradient, as a queue's: the forward pass makes that of the rows too.

    The gradient of row i is the mean of the keys under its softmax, which the block at hand gives: two matrix products
    in all, and nothing is kept but [R, D]. A block has as many rows as a square would, so that each key is read once
    for all of these; its sums are corrected where a later block has a larger logit.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, keys: Tensor, temperature: float) -> Tensor:
        size = BLOCK.get(rows.device.type, BLOCK["cpu"])
        sums, means = [], []
        for some in (rows / temperature).split(isqrt(size)):
            most, total = some.new_full((len(some), 1), float("-inf")), some.new_zeros(len(some), 1)
            mean = torch.zeros_like(some)
            for part in keys.split(max(1, size // len(some))):
                logits = some @ part.T                                                   # [r, k]
                before, most = most, torch.maximum(most, logits.amax(1, keepdim=True))
                heat, shrunk = logits.sub_(most).exp_(), (before - most).exp()           # 0 at first
                total = total * shrunk + heat.sum(1, keepdim=True)                       # [r, 1]
                mean = torch.addmm(mean * shrunk, heat, part)                            # [r, D], times the total
            sums.append((most + total.log())[:, 0])
            means.append(mean / total)
        ctx.save_for_backward(torch.cat(means) / temperature)
        return torch.cat(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad[:, None] * ctx.saved_tensors[0], None, None


def logits_of(rows: Tensor, keys: Tensor, left_out: Tensor | None, temperature: float
              ) -> Iterator[tuple[slice, Tensor]]:
    """The logits of some rows at a time, [r, K], and which rows these are."""
    scaled = keys.T / temperature                                                        # [D, K]
    for block in blocks(rows, keys):
        logits = rows[block] @ scaled
        yield block, logits if left_out is None else logits.scatter_(1, left_out[block], float("-inf"))


def blocks(rows: Tensor, keys: Tensor) -> list[slice]:
    size = max(1, BLOCK.get(rows.device.type, BLOCK["cpu"]) // len(keys))
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def by_rows(function: Callable[..., Tensor], matrices: tuple[Products, ...], columns: tuple[Tensor, ...]) -> Tensor:
    """function(*matrices, *columns) for some rows at a time, and once more for each block in the backward pass.

    Args:
        function: takes the matrices [r, K] and the columns [r, ...] of some rows, and gives a number for each row.
        matrices: of as many rows and keys each.
        columns: tensors [R, ...].
    """
    def of(block: slice) -> Tensor:
        return function(*(products.of(block).matrix() for products in matrices), *(x[block] for x in columns))

    if matrices[0].few:
        return of(slice(None))
    return torch.cat([again(of, block) for block in blocks(matrices[0].rows, matrices[0].keys)])


def by_images(function: Callable[..., Tensor], products: int, *images: Tensor) -> Tensor:
    """function(*images) for some images at a time, and once more for these in the backward pass if there is one.

    Args:
        function: gives a number for each image.
        products: how many it makes of one.
        images: tensors [B, ...].
    """
    if len(images[0]) * products <= PLAIN:
        return function(*images)
    few = max(1, BLOCK.get(images[0].device.type, BLOCK["cpu"]) // products)
    once = again if torch.is_grad_enabled() else lambda function, *some: function(*some)
    return torch.cat([once(function, *some) for some in zip(*(x.split(few) for x in images), strict=True)])
