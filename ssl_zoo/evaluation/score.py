"""A measurement as what it is a mean of, so that two encoders are compared image by image or draw by draw."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

Unit = Literal["image", "draw", "episode", ""]
Z = 1.959964   # the normal distribution's quantile of a 95 % interval


class Interval(NamedTuple):
    """Of 95 %."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


# Not torchmetrics' accuracy: it gives the mean alone, and intervals and differences need what it is a mean of. It takes
# eleven times as long (benchmarks/torchmetrics_cost.py).
class Score(NamedTuple):
    """The mean of `units`, which have the same order for every encoder that is measured on the same data."""

    units: Tensor    # [n] float64: for each image 1 where it was right, for each draw or episode its accuracy
    of: Unit = ""    # what a unit is; "" for one number that is no mean
    classes: Tensor | None = None   # [n] of the images, where the score is the mean of the classes' own means

    @property
    def value(self) -> float:
        return sum(units.mean().item() for units in self.by_class) / len(self.by_class)

    @property
    def by_class(self) -> list[Tensor]:
        """The units of each class, or all of them together where the classes do not count."""
        if self.classes is None:
            return [self.units]
        return [self.units[self.classes == one] for one in self.classes.unique()]

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the mean over images or episodes; None where it is unknown, as over draws."""
        if self.of in ("", "draw"):
            return None
        return combined([(units.mean().item(), of_mean(units)) for units in self.by_class])

    @property
    def deviation(self) -> float | None:
        """The standard deviation over draws, all of which judge the same test images; None for other scores."""
        return self.units.std().item() if self.of == "draw" and len(self.units) > 1 else None


def finite(value: float | None) -> float | None:
    """None in place of NaN and infinity, which JSON does not have."""
    return value if value is None or math.isfinite(value) else None


def number(value: float) -> Score:
    """A score that is one number, and not the mean of anything."""
    return Score(torch.tensor([value], dtype=torch.float64))


def difference(one: Score, other: Score) -> tuple[float, Interval | None]:
    """`one` minus `other`, and the 95 % interval of the unit by unit differences; None where they have no units.

    Scores of other images or classes have none.
    """
    apart = one.value - other.value
    if not comparable(one, other):
        return apart, None
    units = one._replace(units=one.units - other.units)
    return apart, combined([(each.mean().item(), of_difference(each)) for each in units.by_class])


def comparable(one: Score, other: Score) -> bool:
    """Whether both are means over the same units, and of the same classes where these count."""
    if not one.of or one.of != other.of or len(one.units) != len(other.units):
        return False
    if one.classes is None or other.classes is None:
        return one.classes is other.classes
    return torch.equal(one.classes, other.classes)


# Intervals of one mean

def of_mean(units: Tensor) -> Interval | None:
    """The interval of the mean of `units` [n]: Wilson's for shares of images, Student's for other means.

    Units that do not differ at all would have an interval of no width. In [0, 1] they vary at most as much as ones and
    zeros do, so that Wilson's is on the safe side of theirs; elsewhere nothing is known.
    """
    inside = bool(((units >= 0) & (units <= 1)).all())
    if inside and (constant(units) or bool(((units == 0) | (units == 1)).all())):
        return wilson(units.sum().item(), len(units))
    found = student(units)
    return Interval(max(found.low, 0.0), min(found.high, 1.0)) if found and inside else found


def of_difference(apart: Tensor) -> Interval | None:
    """The interval of the mean of the differences `apart` [n]: Bonett and Price's for images right or wrong, or t."""
    inside = bool((apart.abs() <= 1).all())
    if inside and (constant(apart) or bool(((apart == 0) | (apart.abs() == 1)).all())):
        return paired(apart.clamp_min(0).sum().item(), -apart.clamp_max(0).sum().item(), len(apart))
    return student(apart)


def constant(units: Tensor) -> bool:
    return bool((units == units[0]).all())


def wilson(right: float, count: int) -> Interval:
    """Wilson's score interval of a share (1927), which stays inside [0, 1] and has a width where all are right.

    wilson(81, 263) is 0.2553 to 0.3662 (Newcombe 1998, Stat. Med. 17, table I).
    """
    share, square = right / count, Z ** 2 / count
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return Interval(max(middle - half, 0.0), min(middle + half, 1.0))


def paired(better: float, worse: float, count: int) -> Interval:
    """Bonett and Price's interval of the difference of two shares of the same images (2012, J. Educ. Behav. Stat. 37).

    Wald's with one image more for each side, so that three images which are all better prove nothing. paired(1, 7, 21)
    is -0.508 to -0.013.

    Args:
        better, worse: images that the first alone, and the second alone, has right.
        count: of all images.
    """
    up, down = (better + 1) / (count + 2), (worse + 1) / (count + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    return Interval(max(up - down - half, -1.0), min(up - down + half, 1.0))


def student(units: Tensor) -> Interval | None:
    """Student's t interval of a mean; None where the units [n] do not differ, or there is one."""
    if constant(units):
        return None
    half = float(stdtrit(len(units) - 1, 0.975)) * units.std().item() / math.sqrt(len(units))
    return Interval(units.mean().item() - half, units.mean().item() + half)


def combined(means: Sequence[tuple[float, Interval | None]]) -> Interval | None:
    """The interval of the mean of independent means, each with its own interval (Zou and Donner 2008, Stat. Med. 27).

    The distances of each mean to its lower ends add up in squares, and so do those to the upper ends: classes of few
    images keep their asymmetric intervals.
    """
    known = [(mean, interval) for mean, interval in means if interval is not None]
    if len(known) < len(means):
        return None
    middle = sum(mean for mean, _ in known) / len(known)
    below = math.hypot(*(mean - interval.low for mean, interval in known)) / len(known)
    above = math.hypot(*(interval.high - mean for mean, interval in known)) / len(known)
    return Interval(middle - below, middle + above)
