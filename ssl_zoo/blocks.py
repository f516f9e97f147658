"""Scalar products of many rows with many keys, read in blocks of rows where the whole matrix would not fit.

A batch of 4,096 images has 8,192 views and 67 million pairs, and autograd keeps several matrices of that size. Here the
forward pass keeps one number for each row, and the backward pass makes each block of the matrix again.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK = {"cpu": 2 ** 20, "cuda": 2 ** 24}   # products at a time: as many as caches hold; enough to fill a GPU
PLAIN = 2 ** 19                             # up to this many, autograd's own matrix is the faster way
again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)     # nothing here is left to chance


class Products(NamedTuple):
    """A matrix of scalar products that is not made yet, in which some columns of each row are left out."""

    rows: Tensor       # [R, D]
    keys: Tensor       # [K, D]; the same object as `rows` where the matrix is symmetric
    left_out: Tensor   # [R, n] columns: a row is not its own negative, nor is its positive

    @property
    def few(self) -> bool:
        return len(self.rows) * len(self.keys) <= PLAIN

    def matrix(self) -> Tensor:
        """The whole matrix [R, K], with -inf in the columns that are left out."""
        return (self.rows @ self.keys.T).scatter(1, self.left_out, float("-inf"))

    def of(self, block: slice) -> "Products":
        """These rows alone."""
        return Products(self.rows[block], self.keys, self.left_out[block])

    def log_sums(self, temperature: float) -> Tensor:
        """The logarithm of the sum of exp(product / temperature) over each row, [R]."""
        if self.few:
            return (self.matrix() / temperature).logsumexp(1)
        others = None if self.keys is self.rows else self.keys     # torch.compile takes no tensor twice
        return LogSumExp.apply(self.rows, others, self.left_out, temperature)


class LogSumExp(torch.autograd.Function):
    """The logarithm of the sum of exp(product / temperature) over each row, [R], in blocks.

    The gradient of row i is the sum over j of softmax_ij * key_j / temperature, and that of key j the same with rows
    for keys. Where the rows are the keys, block i of the matrix serves both, because its columns are the rows of the
    other blocks: that makes three matrix products in all, as many as autograd needs for the whole matrix.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, keys: Tensor | None, left_out: Tensor, temperature: float) -> Tensor:
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


def logits_of(rows: Tensor, keys: Tensor, left_out: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """The logits of some rows at a time, [r, K], and which rows these are."""
    scaled = keys.T / temperature                                                        # [D, K]
    for block in blocks(rows, keys):
        yield block, (rows[block] @ scaled).scatter_(1, left_out[block], float("-inf"))


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
    """function(*images) for some images at a time, and once more for these in the backward pass.

    Args:
        function: gives a number for each image.
        products: how many it makes of one.
        images: tensors [B, ...].
    """
    if len(images[0]) * products <= PLAIN:
        return function(*images)
    few = max(1, BLOCK.get(images[0].device.type, BLOCK["cpu"]) // products)
    return torch.cat([again(function, *some) for some in zip(*(x.split(few) for x in images), strict=True)])
