"""Draw the random numbers of a batch, on the host: a table with one entry for each view of each image."""

import math
from collections.abc import Sequence

import numpy as np

from ssl_zoo.views.operations import OPERATIONS
from ssl_zoo.views.specs import ViewSpec

TRIES = 10   # as torchvision: crops to try before the largest centred one is taken
EVEN_CROP = np.dtype([("area", "f4", TRIES), ("ratio", "f4", TRIES), ("top", "f4"), ("left", "f4")])
ALWAYS = ("jitter", "gray", "blur", "solarize")
# The uniform random numbers in [0, 1) that are drawn for every view, whether its row uses them or not. Switching one of
# these operations on or off therefore leaves the numbers of the others as they are. The list must never change, or the
# same seed would give other views after an update of ssl_zoo; operations outside ALWAYS draw theirs after these.
EVEN = np.dtype([("crop", EVEN_CROP), ("flip", "f4"),
                 *((name, {one.name: one.even for one in OPERATIONS}[name]) for name in ALWAYS),
                 ("vertical_flip", "f4")])
COLUMNS = np.dtype([("crop", "f4", 4),    # top, left, height, width: whole pixels of the source
                    ("flips", "f4", 2),   # 0 or 1: mirror left to right, mirror top to bottom
                    *((operation.name, operation.columns) for operation in OPERATIONS)])


def even(generator: np.random.Generator, kind: np.dtype, *shape: int) -> np.ndarray:
    """Draw uniform random numbers in [0, 1): an array of this shape with the columns of `kind`, all float32."""
    return generator.random((*shape, kind.itemsize // 4), dtype=np.float32).view(kind)[..., 0]


def draw_rows(views: Sequence[ViewSpec], sizes: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Draw the tables of all rows of a recipe, in their order, from the batch's generator."""
    tables: list[np.ndarray] = []
    for spec in views:
        tables.append(draw(spec, sizes, generator, tables[0]["crop"][0] if tables else None))
    return tables


def draw(spec: ViewSpec, sizes: np.ndarray, generator: np.random.Generator,
         first: np.ndarray | None = None) -> np.ndarray:
    """Draw the table of one row of a recipe.

    Crops are distributed as in torchvision's RandomResizedCrop, and jitter as in its ColorJitter with a new order for
    each view.

    Args:
        spec: the row.
        sizes: [B, 2] height and width of the images, pixels.
        generator: the batch's. Draw the tables of all rows from it in the order of the recipe.
        first: [B, 4] crop of each image's first view, for rows with `overlap`. Leave it out for the recipe's first row,
            whose first crop is then the one to overlap.

    Returns:
        [spec.count, B] with the columns of COLUMNS.
    """
    shape = spec.count, len(sizes)
    u = even(generator, EVEN, *shape)
    table = np.zeros(shape, COLUMNS)
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
    """Turn uniform random numbers into crops: the first of TRIES that fits its image, or else the largest centred one.

    Args:
        spec: the row of the recipe.
        sizes: [B, 2] height and width of the images, pixels.
        u: [..., B] with the columns of EVEN_CROP, in [0, 1).

    Returns:
        [..., B, 4] top, left, height, width: whole pixels.
    """
    tall, wide = sizes[:, 0].astype(np.float32), sizes[:, 1].astype(np.float32)        # [B]
    area = (tall * wide)[:, None] * (spec.scale[0] + (spec.scale[1] - spec.scale[0]) * u["area"])
    low, high = math.log(spec.ratio[0]), math.log(spec.ratio[1])
    ratio = np.exp(low + (high - low) * u["ratio"])                       # [..., B, TRIES]
    width, height = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (width >= 1) & (width <= wide[:, None]) & (height >= 1) & (height <= tall[:, None])
    fitting = fits.argmax(-1, keepdims=True)
    width, height = (np.take_along_axis(side, fitting, -1)[..., 0] for side in (width, height))
    top = np.floor(u["top"] * (tall - height + 1))
    left = np.floor(u["left"] * (wide - width + 1))
    drawn = np.stack([top, left, height, width], -1)

    widest = np.where(wide > tall * spec.ratio[1], np.round(tall * spec.ratio[1]), wide)
    tallest = np.where(wide < tall * spec.ratio[0], np.round(wide / spec.ratio[0]), tall)
    widest, tallest = np.maximum(widest, 1), np.maximum(tallest, 1)      # torchvision fails on a thin image here
    centred = np.stack([(tall - tallest) // 2, (wide - widest) // 2, tallest, widest], -1)         # [B, 4]
    return np.where(fits.any(-1, keepdims=True), drawn, centred)


def overlapping(spec: ViewSpec, sizes: np.ndarray, crops: np.ndarray, first: np.ndarray | None,
                u: np.ndarray) -> np.ndarray:
    """Replace the crops that lie too little in the first view of their image, as SlotCon does, arXiv:2205.15288.

    If none of the new crops overlaps enough, SlotCon's code takes the centred crop, which may not overlap either. Here
    it is the crop of the first view.

    Args:
        spec: the row of the recipe, with the least `overlap`.
        sizes: [B, 2] height and width of the images, pixels.
        crops: [V, B, 4] top, left, height, width, pixels.
        first: [B, 4] crop of each image's first view; None if that is the first of `crops`.
        u: [TRIES, V, B] uniform random numbers for new crops, with the columns of EVEN_CROP.

    Returns:
        [V, B, 4], as `crops`.
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
    """The boxes of a table's crops.

    Args:
        table: [V, B] with the columns of COLUMNS.
        sizes: [B, 2] height and width of the source images, pixels.

    Returns:
        [V, B, 4] float32: left, top, right, bottom as shares of the source image.
    """
    tall, wide = sizes[:, 0], sizes[:, 1]
    top, left, height, width = np.moveaxis(table["crop"], -1, 0)
    shares = np.stack([left / wide, top / tall, (left + width) / wide, (top + height) / tall], -1)
    return shares.astype(np.float32)
