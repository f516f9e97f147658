"""Weighted k-nearest-neighbour accuracy of frozen features."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.evaluation.features import FeatureCallback, Features
from ssl_zoo.evaluation.score import Score

QUERIES, ROWS = 384, 1024   # of the queries and of the bank that are compared at a time
SAMPLE = 2048               # rows of the bank that tell roughly how near the nearest are


class Protocol(NamedTuple):
    k: int               # neighbours that vote
    temperature: float   # a vote weighs exp(cosine / temperature)


PROTOCOLS = {"knn_instdisc": Protocol(200, 0.1),   # InstDisc's k with the temperature of MoCo's CIFAR demo
             "knn_dino": Protocol(20, 0.07),       # arXiv:2104.14294, sec. 4.1: the best of these four
             "knn_dino_10": Protocol(10, 0.07),
             "knn_dino_100": Protocol(100, 0.07),
             "knn_dino_200": Protocol(200, 0.07)}


def working(x: Tensor) -> Tensor:
    """`x` in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float32 at least: in float16 the squares overflow."""
    return F.normalize(working(x), dim=-1)


def inverse_norms(x: Tensor) -> Tensor:
    """One over the length of each row, [N]: with these no copy of a bank needs to be normalised."""
    norms = torch.cat([torch.linalg.vector_norm(working(rows), dim=-1) for rows in x.split(ROWS)])
    return 1 / norms.clamp_min(1e-12)   # as F.normalize


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, matrix products of float32 are in float32, also where the run allows bfloat16 or TF32 for speed."""
    backends = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


class Best:
    """The k nearest of each query so far and, behind them, what was found since, not yet compared with them."""

    def __init__(self, queries: Tensor, k: int):
        self.k, self.width = k, 2 * k + ROWS
        self.cosines = queries.new_full((len(queries), self.width), -torch.inf)
        self.places = torch.zeros(self.cosines.shape, dtype=torch.int32, device=queries.device)
        self.filled = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
        self.least = queries.new_full((len(queries), 1), -torch.inf)   # what is further is not among the nearest

    def add(self, starts: Tensor, places: Tensor, cosines: Tensor) -> None:
        """Of query i those from starts[i] to starts[i + 1], at most ROWS."""
        counts = starts.diff()
        first = self.filled - starts[:-1] + torch.arange(0, self.cosines.numel(), self.width, device=starts.device)
        slots = first.repeat_interleave(counts, output_size=len(places)) + torch.arange(len(places), device=starts.device)
        self.cosines.view(-1).scatter_(0, slots, cosines)
        self.places.view(-1).scatter_(0, slots, places.int())
        self.filled += counts
        if self.filled.max() >= 2 * self.k:
            self.keep()

    def keep(self) -> None:
        cosines, kept = self.cosines.topk(self.k, sorted=False)
        self.places[:, :self.k] = self.places.gather(1, kept)
        self.cosines.fill_(-torch.inf)
        self.cosines[:, :self.k] = cosines
        self.filled.fill_(self.k)
        self.least = torch.maximum(self.least, cosines.amin(1, keepdim=True))

    def nearest_first(self) -> tuple[Tensor, Tensor]:
        cosines, kept = self.cosines.topk(self.k)
        return cosines, self.places.gather(1, kept).long()


def above(cosines: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Where `cosines` [m, n] are at least `least` [m, 1]: row i from starts[i] to starts[i + 1] [m + 1], columns [h]."""
    mask = cosines >= least if cosines.is_cuda else torch.from_numpy(cosines.numpy() >= least.numpy())
    found = mask.view(-1).nonzero()[:, 0] if cosines.is_cuda else torch.from_numpy(np.flatnonzero(mask.numpy()))
    m, n = cosines.shape
    starts = torch.searchsorted(found, torch.arange(0, m * n + 1, n, device=found.device))
    return starts, found % n


def search(queries: Tensor, bank: Tensor, inverse: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = Best(queries, k)
    for piece in pieces(len(bank), k):
        with full_precision():
            cosines = (queries @ working(bank[piece]).T).mul_(inverse[piece])
        starts, columns = above(cosines, best.least)
        rows = torch.arange(len(queries)).repeat_interleave(starts.diff(), output_size=len(columns))
        best.add(starts, columns + piece.start, cosines[rows, columns])
    return best.nearest_first()


def pieces(rows: int, k: int) -> Iterator[slice]:
    """Each as long as all before it, up to ROWS, so that few in it are among the nearest so far."""
    start, stop = 0, min(k, ROWS)
    while start < rows:
        yield slice(start, stop)
        start, stop = stop, stop + min(stop, ROWS)


def sieve(queries: Tensor, bank: Tensor, inverse: Tensor, k: int, sample: Tensor) -> tuple[Tensor, Tensor]:
    best = Best(queries, k)
    expected = k * len(sample) / len(bank)
    rank = math.ceil(expected + 3.5 * math.sqrt(expected)) + 1
    half = queries.to(sample.dtype)
    guess = (half @ sample.T).topk(rank).values[:, -1:].to(queries.dtype)
    slack = 2 ** -8 + queries.shape[1] * 2 ** -23
    best.least = guess
    for piece in pieces(len(bank), k):
        rows, scale = working(bank[piece]), inverse[piece]
        rough = half @ (rows * scale[:, None]).to(half.dtype).T
        starts, columns = above(rough.float(), best.least - slack)
        if len(columns) > rough.numel() // 8:
            return search(queries, bank, inverse, k)
        best.add(starts, columns + piece.start, dots(queries, rows, starts, columns) * scale[columns])
    cosines, places = best.nearest_first()
    short = ~(cosines[:, -1] >= guess[:, 0])
    if short.any():
        cosines[short], places[short] = search(queries[short], bank, inverse, k)
    return cosines, places


def dots(queries: Tensor, rows: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        pairs = torch.sparse_csr_tensor(starts, columns, queries.new_zeros(len(columns)), (len(queries), len(rows)),
                                        check_invariants=False)
    return torch.sparse.sampled_addmm(pairs, queries, rows.T, beta=0).values()


@torch.no_grad()
def neighbours(queries: Tensor, bank: Tensor, k: int, own: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosines and places of the `k` nearest rows of `bank` [N, D] to each of `queries` [M, D], nearest first.

    One chunk of the queries after another.
    """
    inverse = inverse_norms(bank)
    wanted = min(k + (own is not None), len(bank))
    sample = None
    if not bank.is_cuda and len(bank) >= 4 * SAMPLE:
        drawn = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[:SAMPLE]
        sample = unit(bank[drawn]).bfloat16()
    for start in range(0, len(queries), QUERIES):
        rows = unit(queries[start:start + QUERIES])
        if sample is None:
            cosines, places = search(rows, bank, inverse, wanted)
        else:
            cosines, places = sieve(rows, bank, inverse, wanted, sample)
        if own is not None:
            itself = places == own[start:start + QUERIES, None]
            cosines, kept = cosines.masked_fill(itself, -torch.inf).topk(wanted - 1)
            places = places.gather(1, kept)
        yield cosines, places


def nearest(queries: Tensor, bank: Tensor, k: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    cosines, places = (torch.cat(column) for column in zip(*neighbours(queries, bank, k, own), strict=True))
    return cosines, places


def knn_scores(cosines: Tensor, labels: Tensor, temperature: float, classes: int) -> Tensor:
    """Share of the weighted vote that each class gets, [M, classes].

    Sec. 3.4 of InstDisc, arXiv:1805.01978: neighbour j votes for its class with weight exp(cosine_j / temperature).

    Args:
        cosines: [M, k] with the neighbours.
        labels: [M, k] of the neighbours.
    """
    weights = (cosines / temperature).softmax(-1)   # the weights over their sum; exp alone overflows float16
    return weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)


def knn_accuracy(train: Features, test: Features, protocol: Protocol) -> float:
    """Top-1 accuracy, 0 to 1, of `test` by votes of its neighbours in `train`; all of them where there are too few."""
    cosines, places = nearest(test.x, train.x, protocol.k)
    classes = int(torch.maximum(train.labels.max(), test.labels.max())) + 1
    scores = knn_scores(cosines, train.labels[places], protocol.temperature, classes)
    return (scores.argmax(-1) == test.labels).float().mean().item()


class KNN(FeatureCallback):
    """Accuracy of a weighted vote of the nearest training images, by named protocols.

    knn_instdisc has 200 neighbours and temperature 0.1, knn_dino 20 and 0.07; both use the cosine.

    Args:
        protocols: which to measure; each is logged under its name.
    """

    def __init__(self, protocols: tuple[Literal["knn_instdisc", "knn_dino"], ...] = ("knn_instdisc", "knn_dino")):
        super().__init__()
        self.protocols = protocols

    def measure(self, train: Features, test: Features) -> dict[str, float]:
        return {name: knn_accuracy(train, test, PROTOCOLS[name]) for name in self.protocols}
