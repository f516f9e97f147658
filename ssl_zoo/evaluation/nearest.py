"""The nearest rows of a bank to each query by the cosine: exact, piece by piece, in little memory.

`nearest` is what callers need. Below it are three searches with the same result. `search` compares tiles of queries and
rows in float32 and keeps the k best of each query. `sieve` does the same in half to two thirds of the time on CPUs that
multiply bfloat16 faster: cheap, rough cosines decide which few rows deserve exact ones. Both are told by `guessing`
which rows of a large bank need not be kept. `sort` is for GPUs: it sorts each tile, where the others ask how many rows
come into question, for which the host would wait.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.losses import unit

TILE_QUERIES, TILE_ROWS = 512, 512   # how many queries and rows of the bank are compared at a time
SAMPLE = 2048              # rows of the bank from which the cosine of the k-th nearest is guessed


def tile(device: torch.device) -> tuple[int, int]:
    """How many queries and how many rows of a bank to compare at a time: on a CPU, as many as its cache holds."""
    return (TILE_QUERIES, TILE_ROWS) if device.type == "cpu" else (4 * TILE_QUERIES, 32 * TILE_ROWS)


def nearest(queries: Tensor, bank: Tensor, k: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and places of the `k` nearest rows of `bank` [N, D] to each of `queries` [M, D], nearest first.

    Args:
        own: [M] place of each query in the bank, if the queries are in it; a query is not its own neighbour.

    Returns:
        Two tensors [M, k], with fewer columns if the bank has fewer rows.
    """
    cosines, places = (torch.cat(column) for column in zip(*nearest_by_chunk(queries, bank, k, own), strict=True))
    return cosines, places


def nearest_by_chunk(queries: Tensor, bank: Tensor, k: int, own: Tensor | None = None
                     ) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what `nearest` returns, for one tile of queries after the other.

    The result is exact. Features in half precision are compared in float32. Neither a normalised bank nor the matrix of
    cosines is ever held as a whole: tiles of queries and rows are compared one by one, and the nearest so far are kept.
    """
    if k < 1:
        raise ValueError(f"a query has 1 or more nearest neighbours, not {k}")
    if not len(queries) or not len(bank):
        raise ValueError(f"{len(queries)} queries have no neighbours among {len(bank)} images: are they images?")
    queries, bank = queries.detach(), bank.detach()
    inverse = inverse_norms(bank)
    wanted = min(k + (own is not None), len(bank))
    find = fastest(bank, inverse, wanted)
    chunk = tile(queries.device)[0]
    for start in range(0, len(queries), chunk):
        rows = slice(start, start + chunk)
        yield nearest_first(*find(unit(queries[rows]), bank, inverse, wanted), None if own is None else own[rows])


def fastest(bank: Tensor, inverse: Tensor, k: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """The search that takes the least time on the bank's device."""
    if bank.device.type != "cpu":
        return sort
    fast = fast_bfloat16()
    if len(bank) < max((4 if fast else 16) * SAMPLE, 32 * k):        # the sample would cost more than it saves
        return search
    drawn = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[:SAMPLE]
    sample = working(bank[drawn]).mul_(inverse[drawn, None])
    return partial(guessing, find=sieve, sample=sample.bfloat16()) if fast else partial(guessing, sample=sample)


def nearest_first(cosines: Tensor, places: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sort the neighbours [m, k] by their cosine, and leave out the query itself."""
    if own is not None:
        cosines.masked_fill_(places == own[:, None], -torch.inf)
    cosines, order = cosines.topk(cosines.shape[1] - (own is not None))
    return cosines, places.gather(1, order).long()


def working(x: Tensor) -> Tensor:
    """`x` in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def inverse_norms(x: Tensor) -> Tensor:
    """One over the length of each row, [N]: cosines are divided by the lengths, so the bank need not be copied."""
    norms = torch.cat([torch.linalg.vector_norm(working(rows), dim=-1) for rows in x.split(tile(x.device)[1])])
    return 1 / norms.clamp_min(1e-12)   # as F.normalize


@contextmanager
def ieee_products() -> Iterator[None]:
    """Multiply float32 matrices in float32, even if the run allows bfloat16 or TF32 for speed."""
    settings: Any = torch.backends
    backends = [settings.mkldnn.matmul, settings.cuda.matmul]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


class Best:
    """The k nearest rows of each query so far, followed by candidates that were found since.

    Sorting after every tile would cost more than the products. So candidates are appended without order, and only when
    some query has k of them are all cut back to the k best. `least` is the cosine that a row must reach to be one.
    """

    def __init__(self, queries: Tensor, k: int, rows: int, least: Tensor | None = None):
        self.k, self.width = k, 2 * k + rows
        self.cosines = queries.new_full((len(queries), self.width), -torch.inf)
        self.places = torch.zeros(self.cosines.shape, dtype=torch.int32, device=queries.device)
        self.filled = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
        self.least = queries.new_full((len(queries), 1), -torch.inf) if least is None else least

    def add(self, starts: Tensor, places: Tensor, cosines: Tensor) -> None:
        """Append candidates: those of query i are `places` and `cosines` [h] from starts[i] to starts[i + 1]."""
        counts, device = starts.diff(), starts.device
        first = torch.arange(0, self.cosines.numel(), self.width, device=device) + self.filled - starts[:-1]
        slots = first.repeat_interleave(counts, output_size=len(places)) + torch.arange(len(places), device=device)
        self.cosines.view(-1).scatter_(0, slots, cosines)
        self.places.view(-1).scatter_(0, slots, places.int())
        self.filled += counts
        if self.filled.max() >= 2 * self.k:
            self.keep()

    def keep(self) -> tuple[Tensor, Tensor]:
        """Forget all but the k nearest; returns their cosines and places, [m, k], in no order."""
        used = max(self.k, int(self.filled.max()))
        cosines, kept = self.cosines[:, :used].topk(self.k, sorted=False)
        places = self.places.gather(1, kept)
        self.cosines[:, :used] = -torch.inf
        self.cosines[:, :self.k], self.places[:, :self.k] = cosines, places
        self.filled.fill_(self.k)
        self.least = torch.maximum(self.least, cosines.amin(1, keepdim=True))
        return cosines, places


@ieee_products()
def search(queries: Tensor, bank: Tensor, inverse: Tensor, k: int, least: Tensor | None = None
           ) -> tuple[Tensor, Tensor]:
    """Cosines and places [m, k] of the nearest rows of `bank` [N, D], in no order.

    Args:
        queries: [m, D] of length 1.
        inverse: [N], one over the lengths of the bank's rows.
        least: [m, 1] cosines below which nothing is looked for. A query of which fewer rows reach its own gets cosines
            of -inf in place of the rest.
    """
    rows = tile(queries.device)[1]
    best = Best(queries, k, rows, least)
    room = queries.new_empty(len(queries) * rows)                    # the products in the same memory are 5 % faster
    for piece in pieces(len(bank), k, rows):
        some = working(bank[piece])
        cosines = room[:len(queries) * len(some)].view(-1, len(some))
        torch.mm(queries, some.T, out=cosines).mul_(inverse[piece])
        found, starts = above(cosines, best.least)
        best.add(starts, found % cosines.shape[1] + piece.start, cosines.view(-1)[found])
    return best.keep()


def pieces(count: int, k: int, rows: int) -> Iterator[slice]:
    """Cut `count` rows into pieces, each as long as all before it and at most `rows`.

    The first piece has k rows, all of which are kept. Of a piece as long as everything before it, on average k rows
    are nearer than the k nearest so far: growing the pieces keeps the candidates few from the start.
    """
    start, stop = 0, min(k, rows)
    while start < count:
        yield slice(start, min(stop, count))
        start, stop = stop, stop + min(stop, rows)


@ieee_products()
def guessing(queries: Tensor, bank: Tensor, inverse: Tensor, k: int, sample: Tensor,
             find: Callable[..., tuple[Tensor, Tensor]] = search) -> tuple[Tensor, Tensor]:
    """What `search` returns, by `find`, which is told what cosine the k nearest reach.

    A sample [s, D] of the bank's rows, of length 1, tells which cosine a little more than k rows of the bank reach: the
    guess. If k rows reached it, no other can be nearer, and the result is exact. If not, the guess was too high, and
    `search` does these queries again.
    """
    expected = k * len(sample) / len(bank)
    within = math.ceil(expected + 3.5 * math.sqrt(expected)) + 1   # 3.5 deviations: it seldom fails
    guess = (queries.to(sample.dtype) @ sample.T).topk(min(within, len(sample))).values[:, -1:].to(queries.dtype)
    cosines, places = find(queries, bank, inverse, k, guess)
    missed = ~(cosines >= guess).all(1)
    if missed.any():
        cosines[missed], places[missed] = search(queries[missed], bank, inverse, k)
    return cosines, places


def above(cosines: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Where `cosines` [m, n] are at least `least` [m, 1]: flat places [h], and where each row's places start in them.
    """
    m, n = cosines.shape
    if cosines.device.type == "cpu":   # NumPy takes a quarter of the time
        found = torch.from_numpy(np.flatnonzero(cosines.numpy() >= least.numpy()))
    else:
        found = (cosines >= least).view(-1).nonzero()[:, 0]
    return found, torch.searchsorted(found, torch.arange(0, m * n + 1, n, device=found.device))


# The same neighbours on a GPU, which is never asked

@ieee_products()
def sort(queries: Tensor, bank: Tensor, inverse: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What `search` returns, from the k best of each tile and of all before it."""
    rows = tile(queries.device)[1]
    best = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int32, device=queries.device)
    for start in range(0, len(bank), rows):
        piece = slice(start, start + rows)
        cosines = (queries @ working(bank[piece]).T).mul_(inverse[piece])
        cosines, places = cosines.topk(min(k, cosines.shape[1]), sorted=False)
        both = torch.cat([best[0], cosines], 1), torch.cat([best[1], places.int() + start], 1)
        cosines, kept = both[0].topk(min(k, both[0].shape[1]), sorted=False)
        best = cosines, both[1].gather(1, kept)
    return best


# The same neighbours in less time, on a CPU that multiplies bfloat16 matrices fast

def fast_bfloat16() -> bool:
    """The CPU has units for bfloat16 matrices (AMX), or instructions for their products (AVX-512)."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


@contextmanager
def no_beta_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        yield


@ieee_products()
@no_beta_warning()
def sieve(queries: Tensor, bank: Tensor, inverse: Tensor, k: int, least: Tensor) -> tuple[Tensor, Tensor]:
    """What `search` returns, from rough cosines by bfloat16 products and exact ones where they matter.

    1. A rough cosine is wrong by at most `wrong`. A row whose rough cosine is below `least`, or below the k-th best so
       far, by more than that cannot be one of the k nearest, and is dropped without an exact product. Nothing below
       `wrong` is looked for either.
    2. The few rows that remain get exact cosines, and the k best are kept. `search` takes over if too many remain for a
       gain.
    """
    rows = tile(queries.device)[1]
    wrong = 2 ** -8 + 2 ** -18 + queries.shape[1] * 2 ** -23   # two factors of 8 bits; and the rounding of the sum
    rough_queries = queries.bfloat16()
    best = Best(queries, k, rows, least.clamp_min(wrong))
    half = rough_queries.new_empty(rows, queries.shape[1])
    for piece in pieces(len(bank), k, rows):
        exact, scale = working(bank[piece]), inverse[piece]
        rough = rough_queries @ torch.mul(exact, scale[:, None], out=half[:len(exact)]).T
        low = (best.least - wrong).bfloat16()
        found, starts = above(rough.view(torch.int16), low.view(torch.int16))     # positive numbers sort as their bits
        if len(found) > rough.numel() // 8:
            return search(queries, bank, inverse, k, least)     # all are too near to each other for bfloat16
        columns = found % len(exact)
        best.add(starts, columns + piece.start, dots(queries, exact, starts, columns) * scale[columns])
    cosines, places = best.keep()
    return cosines.masked_fill_(cosines < wrong, -torch.inf), places


def dots(x: Tensor, y: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
    """Products [h] of row i of `x` with the rows of `y` that `columns` [h] names from starts[i] to starts[i + 1]."""
    shape = len(x), len(y)
    pairs = torch.sparse_csr_tensor(starts, columns, x.new_zeros(len(columns)), shape, check_invariants=False)
    return torch.sparse.sampled_addmm(pairs, x, y.T, beta=0).values()
