"""The levels of a set of images: measured where the user asks for it, and doubted where they leave images nearly flat.
"""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, NamedTuple

from ssl_zoo.data.decoding import Decoder, Levels, Samples
from ssl_zoo.data.sources import Files
from ssl_zoo.data.workers import load_ahead

Choice = Literal["data"] | Levels
MEASURED = 2000      # at most so many training images are measured for `levels: data`
LOOKED_AT = 32       # at most so many are looked at before a run, to see whether their levels fit
FAINT = 1 / 3        # images that use a smaller share of their levels are worth a warning


class Spread(NamedTuple):
    """The values of an image of more than 8 bits."""

    low: float
    high: float
    smallest: float   # that its type has
    largest: float


def spread(samples: Samples | None) -> Spread | None:
    """None for 8 bits, and for an image without a finite value."""
    return None if samples is None or samples.extremes is None else Spread(*samples.extremes, *samples.range)


class Spreads:
    """The spread of each file; None also where it cannot be read, which the loader says."""

    def __init__(self, files: Files):
        self.files = files

    def __getitem__(self, i: int) -> Spread | None:
        try:
            return spread(self.files.samples(i))
        except Exception:   # whatever a decoder raises
            return None


def fitted(files: Files, choice: Choice, workers: int) -> Decoder:
    """The decoder of the files with the levels that were chosen; warns, or refuses, where these leave images flat.

    Args:
        files: the training images.
        choice: "data" for the values that the images have, from the smallest to the largest.
        workers: processes that measure.
    """
    if choice == "data":
        found = load_ahead(Spreads(files), files.some(MEASURED).tolist(), workers)
        return replace(files.decoder, levels=measured(found))
    require_contrast((Spreads(files)[place] for place in files.spaced(LOOKED_AT)), files.decoder.levels)
    return files.decoder


def measured(spreads: Iterable[Spread | None]) -> Levels:
    """From the smallest to the largest value; "file" where no image has more than 8 bits."""
    known = [one for one in spreads if one is not None]
    low, high = min((one.low for one in known), default=0), max((one.high for one in known), default=0)
    return (float(low), float(high)) if low < high else "file"


def require_contrast(spreads: Iterable[Spread | None], levels: Levels) -> None:
    """Warn of images that use a small part of their levels; refuse those of which a single gray would be left."""
    seen = list(spreads)
    known = [one for one in seen if one is not None]
    if not known:
        return
    low, high = min(one.low for one in known), max(one.high for one in known)
    black, white = levels if levels != "file" else (min(one.smallest for one in known),
                                                    max(one.largest for one in known))
    share = max(0, min(high, white) - max(low, black)) / (white - black)
    if share >= FAINT:
        return
    first, last, *ends = (f"{x:.6g}" if isinstance(x, float) else str(x) for x in (low, high, black, white))
    which = "the images" if len(known) == len(seen) else (
        f"the images of more than 8 bits, {len(known)} of {len(seen)} that were looked at,")
    said = (f"{which} have values from {first} to {last}, {share:.1%} of the {' to '.join(ends)} that become black "
            f"and white, which leaves {int(256 * share) + 1} of 256 grays: set levels to data, or to two numbers such "
            f"as [{first}, {last}]")
    if 256 * share < 1:
        raise ValueError(said)
    warnings.warn(said, stacklevel=2)
