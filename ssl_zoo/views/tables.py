"""What is drawn for a batch: a table of numbers on the host, one row for each view of each image."""

import math

import numpy as np

from ssl_zoo.views.operations import OPERATIONS
from ssl_zoo.views.specs import ViewSpec

TRIES = 10   # torchvision's: then the largest centred crop
EVEN_CROP = np.dtype([("area", "f4", TRIES), ("ratio", "f4", TRIES), ("top", "f4"), ("left", "f4")])
ALWAYS = ("jitter", "gray", "blur", "solarize")
# The even random numbers in [0, 1) that every row draws for each of its views, used or not: a recipe's draws must not
# change with ssl_zoo's version, so this list never changes. Operations that came later draw theirs after it.
EVEN = np.dtype([("crop", EVEN_CROP), ("flip", "f4"),
                 *((name, {one.name: one.even for one in OPERATIONS}[name]) for name in ALWAYS),
                 ("vertical_flip", "f4")])
ROW = np.dtype([("crop", "f4", 4),    # top, left, height, width: pixels of the source, whole numbers
                ("flips", "f4", 2),   # 0 or 1: left and right change places, top and bottom do
                *((operation.name, operation.columns) for operation in OPERATIONS)])


def even(generator: np.random.Generator, kind: np.dtype, *shape: int) -> np.ndarray:
    """Even random numbers in [0, 1) with the columns of `kind`."""
    return generator.random((*shape, kind.itemsize // 4), dtype=np.float32).view(kind)[..., 0]


def draw(spec: ViewSpec, sizes: np.ndarray, generator: np.random.Generator,
         first: np.ndarray | None = None) -> np.ndarray:
    """A table [spec.count, B] with the columns of ROW, for images of `sizes` [B, 2] (height, width in pixels).

    The crop is torchvision's RandomResizedCrop, the jitter its ColorJitter with one order for each view.

    Args:
        first: crops [B, 4] of the images' first views, which an overlap refers to; None while those are drawn.
    """
    shape = spec.count, len(sizes)
    u = even(generator, EVEN, *shape)
    table = np.zeros(shape, ROW)
    if spec.clean:
        side = sizes.min(1, keepdims=True)
        table["crop"] = np.concatenate([(sizes - side) // 2, side, side], 1)
        return table
    table["crop"] = draw_crops(spec, sizes, u["crop"])
    if spec.overlap:
        tries = even(generator, EVEN_CROP, TRIES, *shape)
        table["crop"] = overlapping(spec, sizes, table["crop"], first, tries)
    table["flips"][..., 0] = u["flip"] < spec.flip
    table["flips"][..., 1] = u["vertical_flip"] < spec.vertical_flip
    for operation in OPERATIONS:
        if operation.name in ALWAYS:
            operation.draw(spec, u[operation.name], table[operation.name])
        elif operation.chance(spec):
            operation.draw(spec, even(generator, operation.even, *shape), table[operation.name])
    return table


def draw_crops(spec: ViewSpec, sizes: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Crops [..., B, 4] as top, left, height, width in pixels, from the random numbers `u` [..., B] of EVEN_CROP."""
    rows, columns = sizes[:, 0].astype(np.float32), sizes[:, 1].astype(np.float32)     # [B]
    area = (rows * columns)[:, None] * (spec.scale[0] + (spec.scale[1] - spec.scale[0]) * u["area"])
    low, high = math.log(spec.ratio[0]), math.log(spec.ratio[1])
    ratio = np.exp(low + (high - low) * u["ratio"])                       # [..., B, TRIES]
    width, height = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (width >= 1) & (width <= columns[:, None]) & (height >= 1) & (height <= rows[:, None])
    fitting = fits.argmax(-1, keepdims=True)
    width, height = (np.take_along_axis(side, fitting, -1)[..., 0] for side in (width, height))
    top = np.floor(u["top"] * (rows - height + 1))
    left = np.floor(u["left"] * (columns - width + 1))
    drawn = np.stack([top, left, height, width], -1)

    widest = np.where(columns > rows * spec.ratio[1], np.round(rows * spec.ratio[1]), columns)
    tallest = np.where(columns < rows * spec.ratio[0], np.round(columns / spec.ratio[0]), rows)
    widest, tallest = np.maximum(widest, 1), np.maximum(tallest, 1)      # torchvision fails on a thin image here
    centred = np.stack([(rows - tallest) // 2, (columns - widest) // 2, tallest, widest], -1)      # [B, 4]
    return np.where(fits.any(-1, keepdims=True), drawn, centred)


def overlapping(spec: ViewSpec, sizes: np.ndarray, crops: np.ndarray, first: np.ndarray | None,
                u: np.ndarray) -> np.ndarray:
    """`crops` [V, B, 4], drawn again from `u` [TRIES, V, B] where too little of them lies in the image's first view.

    Where no draw overlaps enough, SlotCon's code takes the centred crop, which need not overlap either; here it is the
    first view's own crop.
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
    """Boxes [V, B, 4] of a table's crops: left, top, right, bottom as shares of the source image."""
    rows, columns = sizes[:, 0], sizes[:, 1]
    top, left, height, width = np.moveaxis(table["crop"], -1, 0)
    shares = np.stack([left / columns, top / rows, (left + width) / columns, (top + height) / rows], -1)
    return shares.astype(np.float32)
