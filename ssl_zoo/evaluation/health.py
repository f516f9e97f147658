"""Measures of the health of features: does the encoder tell images apart, and by how many directions?"""

import math
from typing import NamedTuple

import torch
from lightly.utils.debug import std_of_l2_normalized
from torch import Tensor

from ssl_zoo.evaluation.features import require_rows
from ssl_zoo.losses import full_precision, unit

COLLAPSED_STD, COLLAPSED_RANK = 0.02, 1.2   # below; untrained encoders have 0.1 and 28 or more on photographs
BINS = 100      # of a histogram of cosines, from -1 to 1
EDGES = torch.linspace(-1, 1, BINS + 1)


class Tolerance(NamedTuple):
    """How near images of one class are to each other, by the cosine."""

    joint: float         # over all pairs, each image with itself too: mean of the cosine, or 0 where classes differ
    conditional: float   # mean over the pairs of two images of one class; NaN where there are none


class Distribution(NamedTuple):
    """Of cosines."""

    counts: Tensor   # [BINS] int64
    mean: float      # NaN where there are no pairs
    variance: float


class Similarities(NamedTuple):
    positives: Distribution   # of two views of one image
    negatives: Distribution   # of views of two images


@torch.no_grad()
def feature_std(x: Tensor) -> float:
    """Mean deviation of the unit features along their axes, times sqrt(D): 1 if they fill the sphere, 0 at collapse.

    Sec. 4.1 of SimSiam, arXiv:2011.10566. NaN for one image.
    """
    return full_precision(std_of_l2_normalized)(require_rows(x)).item() * math.sqrt(x.shape[1])


@torch.no_grad()
def rankme(x: Tensor, chunk: int = 1000) -> float:
    """Effective rank of `x` [N, D]: the exponential of the entropy of its singular values' shares, 1 to min(N, D).

    Eq. (1) and (2) of RankMe, arXiv:2210.02885, in float64. The singular values are the roots of the eigenvalues of the
    smaller Gram matrix, which takes far less time than a singular value decomposition. Values below 3e-8 of the largest
    are rounding of that matrix and count as 0. The result differs from the decomposition's by less than a thousandth,
    and by less than a millionth for healthy features.
    """
    tall = x if len(require_rows(x)) >= x.shape[1] else x.T
    gram = x.new_zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for rows in tall.split(chunk):
        rows = rows.double()
        gram.addmm_(rows.T, rows)
    squares = torch.linalg.eigvalsh(gram)
    values = torch.where(squares > 1e-15 * squares[-1], squares, 0).sqrt()
    shares = values / values.sum().clamp_min(1e-300) + 1e-7   # the paper's epsilon
    return torch.exp(-(shares * shares.log()).sum()).item()


@torch.no_grad()
def uniformity(x: Tensor, t: float = 2.0, chunk: int = 1024) -> float:
    """log of the mean of exp(-t d^2) over all pairs of unit features; 0 at collapse, lower is more even.

    Eq. (2) of Wang and Isola, arXiv:2005.10242. NaN for one image.
    """
    parts = unit(require_rows(x)).split(chunk)
    total = 0.0
    for i, rows in enumerate(parts):
        for j, others in enumerate(parts[:i + 1]):
            terms = (rows @ others.T).sub_(1).mul_(2 * t).exp_()      # d^2 = 2 - 2 cosine
            total += (terms if i != j else terms.tril(-1)).sum().item()
    pairs = len(x) * (len(x) - 1) / 2
    return math.log(total / pairs) if pairs else math.nan


@torch.no_grad()
def alignment(x: Tensor, y: Tensor, chunk: int = 1024) -> float:
    """Mean squared distance of the unit features of two views, [N, D] each: 0 if they agree, 4 if they are opposite.

    Eq. (1) of Wang and Isola, arXiv:2005.10242, with alpha 2.
    """
    check_views(x, y)
    pairs = zip(x.split(chunk), y.split(chunk), strict=True)
    return sum((unit(a) - unit(b)).square().sum().item() for a, b in pairs) / len(x)


@torch.no_grad()
def tolerance(x: Tensor, labels: Tensor, chunk: int = 1024) -> Tolerance:
    """Mean cosine of images of one class: once over all pairs of images, once over the pairs of one class alone.

    The first is that of Wang and Liu, arXiv:2012.09740; it grows with the share of pairs that are of one class. It
    equals the sum over classes of |sum of the class's unit features|^2, divided by N^2, so no pair needs to be formed.
    Images without a label (-1) are left out.

    Raises:
        ValueError: no image has a label.
    """
    known = labels >= 0
    if not known.any():
        raise ValueError(f"tolerance compares images of one class, and none of {len(labels)} has a label")
    x, (classes, members) = require_rows(x)[known], labels[known].unique(return_inverse=True)
    sums = x.new_zeros(len(classes), x.shape[1], dtype=torch.float64)
    squares = 0.0
    for rows, own in zip(x.split(chunk), members.split(chunk), strict=True):
        rows = unit(rows).double()
        sums.index_add_(0, own, rows)
        squares += rows.square().sum().item()      # of each with itself: 1, or 0 for a feature of length 0
    total = sums.square().sum().item()
    sizes = members.bincount()
    pairs = (sizes * (sizes - 1)).sum().item()
    return Tolerance(total / len(x) ** 2, (total - squares) / pairs if pairs else math.nan)


@torch.no_grad()
def similarities(x: Tensor, y: Tensor, chunk: int = 1024) -> Similarities:
    """Cosines of two views, [N, D] each, of the same images: row i of `x` with row i of `y`, and with all others."""
    check_views(x, y)
    x, y = unit(x), unit(y)
    positives, everything = x.new_zeros(2, BINS + 2, dtype=torch.float64)
    for i, rows in enumerate(x.split(chunk)):
        for j, others in enumerate(y.split(chunk)):
            cosines = rows @ others.T
            everything += tally(cosines)
            if i == j:
                positives += tally(cosines.diagonal())
    return Similarities(distribution(positives), distribution(everything - positives))


def tally(cosines: Tensor) -> Tensor:
    """Counts in the bins, then sum and sum of squares: [BINS + 2] float64, to be added up over chunks."""
    bins = ((cosines + 1) * (BINS / 2)).int().clamp_(0, BINS - 1)      # rounding makes cosines above 1
    counts = bins.flatten().bincount(minlength=BINS)
    return torch.cat([counts.double(), torch.stack([cosines.sum(), cosines.square().sum()]).double()])


def distribution(tally: Tensor) -> Distribution:
    counts, (total, squares) = tally[:BINS].long(), tally[BINS:].tolist()
    pairs = int(counts.sum())
    if not pairs:
        return Distribution(counts, math.nan, math.nan)
    mean = total / pairs
    return Distribution(counts, mean, max(squares / pairs - mean ** 2, 0.0))


def check_views(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(f"these are features of two views of the same images, not {list(x.shape)} and "
                         f"{list(y.shape)}: give one row for each image to both")
    require_rows(x)


def hardest(x: Tensor, y: Tensor, chunk: int = 1024) -> Tensor:
    """The largest cosine of each row of `x` [N, D] with the rows of `y` [N, D] except its own: [N], for N above 1."""
    x, y = unit(x), unit(y)
    largest = []
    for start, rows in zip(range(0, len(x), chunk), x.split(chunk), strict=True):
        cosines = rows @ y.T                                             # [chunk, N]
        cosines.diagonal(start).fill_(-torch.inf)
        largest.append(cosines.amax(1))
    return torch.cat(largest)
