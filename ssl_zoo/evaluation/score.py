"""A measurement as what it is a mean of, so that two encoders are compared image by image or draw by draw."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Unit = Literal["image", "draw", "episode", ""]


# Not torchmetrics' accuracy: it gives the mean alone, and intervals and differences need what it is a mean of. It takes
# eleven times as long (benchmarks/torchmetrics_cost.py).
class Score(NamedTuple):
    """The mean of `units`, which have the same order for every encoder that is measured on the same data."""

    units: Tensor    # [n] float64: for each image 1 where it was right, for each draw or episode its accuracy
    of: Unit = ""    # what a unit is; "" for one number that is no mean

    @property
    def value(self) -> float:
        return self.units.mean().item()

    @property
    def spread(self) -> float | None:
        """Half of the 95 % interval of the mean over images or episodes; over draws their standard deviation.

        None for a single number, whose spread is unknown.
        """
        if len(self.units) < 2 or not self.of:
            return None
        return self.units.std().item() if self.of == "draw" else half_interval(self.units)


def finite(value: float | None) -> float | None:
    """None in place of NaN and infinity, which JSON does not have."""
    return value if value is None or math.isfinite(value) else None


def number(value: float) -> Score:
    """A score that is one number, and not the mean of anything."""
    return Score(torch.tensor([value], dtype=torch.float64))


def difference(one: Score, other: Score) -> tuple[float, float | None]:
    """`one` minus `other`, and half of the 95 % interval of the unit by unit differences; None without units."""
    if not one.of or len(one.units) != len(other.units) or len(one.units) < 2:
        return one.value - other.value, None
    apart = one.units - other.units
    return apart.mean().item(), half_interval(apart)


def half_interval(units: Tensor) -> float:
    """Half of the 95 % interval of a mean by Student's t, whose quantile is Cornish and Fisher's series in 1 / degrees.

    Within 2 % for 5 draws; 1.96 standard errors for many images.
    """
    z, degrees = 1.959964, len(units) - 1
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return t * units.std().item() / math.sqrt(len(units))
