"""What is drawn for a batch: a table of numbers on the host, one row for each view of each image."""

import math
from enum import IntEnum

import numpy as np

from ssl_zoo.views.specs import ViewSpec


class Column(IntEnum):
    """The columns of a table [V, B, COLUMNS] float32: one row for each view of each image."""

    TOP, LEFT, HEIGHT, WIDTH = 0, 1, 2, 3   # pixels of the source
    FLIPPED, VERTICALLY = 4, 5              # 0 or 1
    JITTERED = 6                            # 0 or 1
    BRIGHTNESS, CONTRAST, SATURATION = 7, 8, 9
    HUE = 10                                # turns
    ORDER = 11                              # to 14: which of the four above comes first, second, third, last
    GRAY = 15                               # 0 or 1
    SIGMA = 16                              # pixels; 0 for no blur
    SOLARIZED = 17                          # 0 or 1


COLUMNS = 18
TRIES = 10                                  # torchvision's: then the largest centred crop


def draw(spec: ViewSpec, sizes: np.ndarray, generator: np.random.Generator,
         first: np.ndarray | None = None) -> np.ndarray:
    """A table [spec.count, B, COLUMNS] for images of `sizes` [B, 2] (height, width in pixels).

    The crop is torchvision's RandomResizedCrop, the jitter its ColorJitter with one order for each view.

    Args:
        first: crops [B, 4] of the images' first views, which an overlap refers to; None while those are drawn.
    """
    u = generator.random((spec.count, len(sizes), 37), dtype=np.float32)      # as many whatever is drawn from them
    table = np.zeros((spec.count, len(sizes), COLUMNS), dtype=np.float32)
    if spec.clean:
        side = sizes.min(1, keepdims=True)
        table[..., :4] = np.concatenate([(sizes - side) // 2, side, side], 1)
        return table
    table[..., :4] = draw_crops(spec, sizes, u[..., :22])
    if spec.overlap:
        anew = generator.random((TRIES, spec.count, len(sizes), 22), dtype=np.float32)
        table[..., :4] = overlapping(spec, sizes, table[..., :4], first, anew)
    table[..., Column.FLIPPED] = u[..., 22] < spec.flip
    table[..., Column.VERTICALLY] = u[..., 36] < spec.vertical_flip
    table[..., Column.JITTERED] = u[..., 23] < spec.jitter
    for column, amount, even in zip((Column.BRIGHTNESS, Column.CONTRAST, Column.SATURATION),
                                    (spec.brightness, spec.contrast, spec.saturation),
                                    (u[..., 24], u[..., 25], u[..., 26]), strict=True):
        lowest, highest = max(0.0, 1 - amount * spec.strength), 1 + amount * spec.strength
        table[..., column] = lowest + (highest - lowest) * even
    table[..., Column.HUE] = (2 * u[..., 27] - 1) * spec.hue * spec.strength
    table[..., Column.ORDER:Column.ORDER + 4] = u[..., 28:32].argsort(-1)
    table[..., Column.GRAY] = u[..., 32] < spec.gray
    sigma = spec.sigma[0] + (spec.sigma[1] - spec.sigma[0]) * u[..., 33]
    table[..., Column.SIGMA] = np.where(u[..., 34] < spec.blur, sigma, 0)
    table[..., Column.SOLARIZED] = u[..., 35] < spec.solarize
    return table


def draw_crops(spec: ViewSpec, sizes: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Crops [..., B, 4] as top, left, height, width in pixels, from even random numbers [..., B, 2 * TRIES + 2]."""
    rows, columns = sizes[:, 0].astype(np.float32), sizes[:, 1].astype(np.float32)     # [B]
    area = (rows * columns)[:, None] * (spec.scale[0] + (spec.scale[1] - spec.scale[0]) * u[..., :TRIES])
    low, high = math.log(spec.ratio[0]), math.log(spec.ratio[1])
    ratio = np.exp(low + (high - low) * u[..., TRIES:2 * TRIES])                       # [..., B, TRIES]
    width, height = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (width >= 1) & (width <= columns[:, None]) & (height >= 1) & (height <= rows[:, None])
    fitting = fits.argmax(-1, keepdims=True)
    width, height = (np.take_along_axis(side, fitting, -1)[..., 0] for side in (width, height))
    top = np.floor(u[..., -2] * (rows - height + 1))
    left = np.floor(u[..., -1] * (columns - width + 1))
    drawn = np.stack([top, left, height, width], -1)

    widest = np.where(columns > rows * spec.ratio[1], np.round(rows * spec.ratio[1]), columns)
    tallest = np.where(columns < rows * spec.ratio[0], np.round(columns / spec.ratio[0]), rows)
    widest, tallest = np.maximum(widest, 1), np.maximum(tallest, 1)      # torchvision fails on a thin image here
    centred = np.stack([(rows - tallest) // 2, (columns - widest) // 2, tallest, widest], -1)      # [B, 4]
    return np.where(fits.any(-1, keepdims=True), drawn, centred)


def overlapping(spec: ViewSpec, sizes: np.ndarray, crops: np.ndarray, first: np.ndarray | None,
                u: np.ndarray) -> np.ndarray:
    """`crops` [V, B, 4], drawn anew from `u` where too little of them lies in the image's first view.

    SlotCon's code ends in the centred crop, which need not overlap; here it is the first view's own, which does.
    """
    first = crops[0] if first is None else first
    tries = np.concatenate([crops[None], draw_crops(spec, sizes, u)])                  # [1 + TRIES, V, B, 4]
    start = np.maximum(tries[..., :2], first[:, :2])
    end = np.minimum(tries[..., :2] + tries[..., 2:], first[:, :2] + first[:, 2:])
    shared = (end - start).clip(0).prod(-1) / tries[..., 2:].prod(-1)                  # [1 + TRIES, V, B]
    enough = (shared >= spec.overlap)[..., None]
    chosen = np.take_along_axis(tries, enough.argmax(0)[None], 0)[0]
    return np.where(enough.any(0), chosen, first)


def boxes(table: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes [V, B, 4] of the crops: left, top, right, bottom as shares of the source image."""
    rows, columns = sizes[:, 0], sizes[:, 1]
    top, left, height, width = np.moveaxis(table[..., :4], -1, 0)
    shares = np.stack([left / columns, top / rows, (left + width) / columns, (top + height) / rows], -1)
    return shares.astype(np.float32)


def jitter_orders(rows: np.ndarray) -> np.ndarray:
    """[N]: a number for each of the 24 orders of the rows [N, COLUMNS], -1 where nothing is jittered."""
    code = rows[:, Column.ORDER:Column.ORDER + 4].astype(int) @ (64, 16, 4, 1)
    return np.where(rows[:, Column.JITTERED] > 0, code, -1)


def jitter_steps(table: np.ndarray) -> np.ndarray:
    """What `colour.jitter_all` takes for the jitter of a table's rows: [V, B, STEPS].

    Brightness is a blend of (factor, 0), saturation one of (factor, 1 - factor); neutral steps are (1, 0) and 0 turns.
    """
    place = table[..., Column.ORDER:Column.ORDER + 4].argsort(-1)        # where each of the four stands in the order
    brightness, contrast, saturation, hue = np.moveaxis(place, -1, 0)
    jittered = table[..., Column.JITTERED] > 0
    factors = [np.where(jittered, table[..., column], neutral) for column, neutral in
               ((Column.BRIGHTNESS, 1), (Column.CONTRAST, 1), (Column.SATURATION, 1), (Column.HUE, 0))]
    brighter = brightness < saturation                                   # which of the two blends is the earlier one
    earlier, later = np.minimum(brightness, saturation), np.maximum(brightness, saturation)
    pixel = np.where(brighter, factors[0], factors[2]), np.where(brighter, factors[2], factors[0])
    gray = np.where(brighter, 0, 1 - factors[2]), np.where(brighter, 1 - factors[2], 0)
    steps = []
    for side in (np.less, np.greater):                                   # before contrast, after it
        for hue_side in (np.less, np.greater):                           # before hue, after it
            for blend, where in enumerate((earlier, later)):
                here = side(where, contrast) & hue_side(where, hue)
                steps += [np.where(here, pixel[blend], 1), np.where(here, gray[blend], 0)]
        steps.append(np.where(side(hue, contrast), factors[3], 0))
    return np.stack([*steps, factors[1]], -1).astype(np.float32)
