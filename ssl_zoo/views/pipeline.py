"""Make views from images: a `ViewSpec` is a distribution, a table holds what was drawn, a `View` is the result.

All random numbers of a batch are drawn first, on the host, from (seed, epoch, batch, rank). They fill one table for
each row of the recipe, and everything after that is a pure function of images and tables. So a resumed run sees the
views that an uninterrupted one would have seen, a GPU makes the views that a CPU makes, and you can have crops cut
on the device or by a data loader's workers.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.distributed import Key
from ssl_zoo.views import operations
from ssl_zoo.views.crops import crop_and_resize
from ssl_zoo.views.reduction import Reduction, Scaled, cut, cut_batch
from ssl_zoo.views.specs import PRESETS, Preset, ViewSpec
from ssl_zoo.views.tables import boxes, draw_rows

__all__ = ["Augmentation", "Canvases", "Crops", "Key", "View", "ViewSpec"]

PLACE = 4 + 2 + 4  # columns that say where a view comes from: crop, flips, box
PIECE = 2 ** 19    # bytes of views that fit into a core's cache, for an operation to pass over at once
BY_PRODUCTS = 64   # pixels: up to this side, matrix products are faster on a CPU than torch's resize of each crop


class View(NamedTuple):
    """One view of each image of a batch, and where in the images it comes from."""

    images: Tensor    # [B, C, size, size] in [0, 1], of the augmentation's dtype
    boxes: Tensor     # [B, 4] left, top, right, bottom as shares of the source image
    flipped: Tensor   # [B, 2] bool: mirrored left to right, mirrored top to bottom
    role: str = ""    # the role of its row
    moved: bool = False   # its row's `extra` moves pixels, so the box says only roughly where they come from


class Canvases(NamedTuple):
    """A batch of images of different sizes, each in the upper left corner of a canvas; its other pixels are unused."""

    pixels: Tensor       # [B, C, H, W] uint8
    sizes: np.ndarray    # [B, 2] height and width of the images, pixels; NumPy, to stay on the host


class Crops(NamedTuple):
    """A batch of crops that a data loader's worker has cut, with the tables for the operations still to come."""

    pixels: list[Tensor]          # for each row of the recipe [V, B, C, size, size] uint8, resized and flipped
    tables: list[np.ndarray]      # for each row of the recipe [V, B] of tables.COLUMNS; NumPy, to stay on the host
    sizes: np.ndarray             # [B, 2] height and width of the source images, pixels


class Augmentation:
    """Makes `count` views of every image of a batch, on the device that holds the batch.

    Args:
        views: rows of views, in the order in which the method sees them; or the name of a paper's rows, which
            --print_config spells out.
        compile: fuse the pipeline with torch.compile. It saves most of the time on a GPU, and costs half a minute for
            each row at the first batch.
        dtype: type of the views. They are computed in float32 whatever it is.
        channels_last: store the views in channels_last memory format, in which GPUs convolve faster in half precision.
        backend: leave it out. Recipes saved before 0.2 have backend: batched, which means the same as nothing.
    """

    def __init__(self, views: Sequence[ViewSpec] | Preset, compile: bool = False,
                 dtype: Literal["float32", "bfloat16", "float16"] = "float32", channels_last: bool = False,
                 backend: str | None = None):
        if backend not in (None, "batched"):
            raise ValueError(f"there is no backend {backend}: ssl_zoo draws all views itself, so leave backend out")
        if isinstance(views, str):
            if views not in PRESETS:
                raise ValueError(f"there are no views named {views}; there are {', '.join(PRESETS)}")
            views = PRESETS[views]
        if not views:
            raise ValueError("an augmentation needs at least one row of views")
        self.views = tuple(views)
        self.extras = [extra_of(spec) for spec in self.views]
        self.compile, self.channels_last = compile, channels_last
        self.channels = 3   # that gray images get; a data module of single channels says otherwise
        self.dtype: torch.dtype = getattr(torch, dtype)

    @property
    def count(self) -> int:
        """The number of views of each image."""
        return sum(spec.count for spec in self.views)

    @property
    def roles(self) -> list[str]:
        """The role of each view, in the order of the views."""
        return [spec.role for spec in self.views for _ in range(spec.count)]

    def require_views(self, name: str, count: int = 2, *, or_more: bool = False, role: str = "",
                      places: bool = False, verb: str = "learns from") -> list[int]:
        """Find the views that a method or callback needs, or raise one sentence that says how to get them.

        Args:
            name: the method or callback, for the sentence.
            count: the number of views of each image that it takes.
            or_more: accept more than `count` views, too.
            role: accept `count` or more views if some have this role, and return those; or views without any roles.
            places: refuse rows that move pixels, because it relies on where each part of a view comes from.
            verb: what it does with the views, for the sentence.

        Returns:
            Indices into the views of a batch.

        Raises:
            ValueError: if the recipe's rows do not make these views.
        """
        moving = next((extra.moving for extra in self.extras if extra and extra.moving), "")
        if places and moving:
            raise ValueError(f"{name} compares the same places of two views, and {moving} moves pixels to places that "
                             "no box knows: leave it out of extra")
        having = [view for view, other in enumerate(self.roles) if role and other == role]
        if having and self.count >= count:
            return having
        enough = self.count == count or or_more and self.count > count
        if enough and not (role and any(self.roles)):
            return list(range(self.count))
        if enough:
            raise ValueError(f"{name} {verb} the views of the role {role} and none of these {self.count} has it: give "
                             "it to their row, or leave roles out")
        instead = f", or give the large ones role: {role}, which then learn with every other view" if role else ""
        raise ValueError(f"{name} {verb} {count} view{'s' * (count > 1)} of each image, and this recipe draws "
                         f"{self.count}: make the counts of its view rows add up to {count}{' or more' * or_more}"
                         f"{instead}")

    def require_channels(self, channels: int) -> None:
        """Take images of so many channels, or raise one sentence that names what in the rows means red, green, blue."""
        for spec, extra in zip(self.views, self.extras, strict=True):
            operations.require_channels(spec, channels)
            if extra is not None:
                extra.require_channels(channels)
        self.channels = channels

    def pairs(self, method: str) -> list[tuple[int, int]]:
        """The pairs of views that a contrastive method compares: each global view with every other, each pair once."""
        found = self.require_views(method, role="global")
        return [(a, b) for a in found for b in range(self.count) if b > a or b not in found]

    def draw(self, sizes: np.ndarray, key: Key) -> list[np.ndarray]:
        """Draw all random numbers of a batch.

        Args:
            sizes: [B, 2] height and width of the images, pixels.
            key: the batch, which seeds the numbers.

        Returns:
            For each row of the recipe a table [V, B] with the columns of `tables.COLUMNS`.
        """
        return draw_rows(self.views, sizes, np.random.default_rng(list(key)))

    def reduction(self, key: Key, images: int) -> Reduction:
        """How far each of so many images of a batch may be reduced while they are decoded for `cut`."""
        return Reduction(self.views, key, images)

    def cut(self, images: Sequence[Tensor | Scaled], key: Key) -> Crops:
        """Cut the crops of a batch, which is a data loader worker's part of the work.

        Args:
            images: uint8, [C, H, W] each, of any sizes; [1, H, W] become three channels. Some may have been reduced
                as far as `reduction` allows.
            key: the batch. Give `__call__` the same one.
        """
        pixels = [image.pixels if isinstance(image, Scaled) else image for image in images]
        if not images or any(each.dtype != torch.uint8 for each in pixels):
            raise ValueError("a worker cuts crops from at least one image, of uint8 pixels")
        for each in pixels:
            require_images(each[None])
        sizes = np.array([image.size if isinstance(image, Scaled) else image.shape[-2:] for image in images])
        tables = self.draw(sizes, key)
        coloured = [self.coloured(each[None])[0] for each in pixels]
        images = [image._replace(pixels=each) if isinstance(image, Scaled) else each
                  for image, each in zip(images, coloured, strict=True)]
        return Crops([cut_batch(images, table, spec) for spec, table in zip(self.views, tables, strict=True)], tables,
                     sizes)

    @torch.no_grad()
    def __call__(self, batch: Tensor | Canvases | Crops, key: Key) -> list[View]:
        """Make the views of a batch.

        Args:
            batch: images [B, C, H, W], uint8 or float32 in [0, 1], of which [B, 1, H, W] become three channels;
                canvases of images of different sizes; or the crops that `cut` made of them.
            key: the batch, which seeds its random numbers.

        Returns:
            `count` views, in the order of the recipe's rows.
        """
        if isinstance(batch, Tensor):
            require_images(batch)
            batch = Canvases(self.coloured(batch), np.array([batch.shape[-2:]] * len(batch)))
        elif isinstance(batch, Canvases):
            require_canvases(batch)
        tables = batch.tables if isinstance(batch, Crops) else self.draw(batch.sizes, key)
        sources = batch.pixels if isinstance(batch, Crops) else [batch.pixels] * len(tables)
        with torch.autocast(sources[0].device.type, enabled=False):   # bfloat16 has half the levels of a pixel
            return [view for row, (source, table, spec) in enumerate(zip(sources, tables, self.views, strict=True))
                    for view in self.render(source, table, batch.sizes, spec, self.extra_change(row, key))]

    def coloured(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W], those of one channel in as many as the views are to have."""
        images = images.expand(-1, self.channels, -1, -1) if images.shape[1] == 1 else images
        if images.shape[1] not in (3, self.channels):
            self.require_channels(images.shape[1])
        return images

    def extra_change(self, row: int, key: Key) -> Any:
        """A function that applies a row's `extra` with the numbers of this batch; None for a row without `extra`.

        Args:
            row: index of the row in the recipe.
            key: the batch, which seeds the numbers.
        """
        extra = self.extras[row]
        if extra is None:
            return None
        stream = key.generator(f"extra of row {row} on process {key.rank}")
        return extra.drawn(int(stream.integers(2 ** 63)))

    def render(self, source: Tensor, table: np.ndarray, sizes: np.ndarray, spec: ViewSpec,
               last: Any = None) -> list[View]:
        """Make the views of one row of the recipe from its table.

        Args:
            source: images [B, C, H, W], or crops [V, B, C, size, size].
            table: [V, B] with the columns of `tables.COLUMNS`.
            sizes: [B, 2] height and width of the source images, pixels.
            spec: the row.
            last: a function that changes images [V * B, C, size, size] float32 at the end and is not compiled; see
                `extra_change`.
        """
        finish = self.finish if last is None else contiguous
        places = np.concatenate([table["crop"], table["flips"], boxes(table, sizes)], -1)             # [V, B, 10]
        if source.device.type == "cpu" and not self.compile:
            numbers = torch.from_numpy(places)
            images = finish(sparse(source, table, spec))
        else:
            changes = [operation.numbers(table[operation.name]) for operation in operations.of(spec)]
            numbers = torch.from_numpy(np.concatenate([places, *changes], -1))                        # one copy for all
            numbers = numbers.pin_memory() if source.device.type == "cuda" else numbers
            numbers = numbers.to(source.device, non_blocking=True)
            crops, *changes = numbers.split([PLACE, *(change.shape[-1] for change in changes)], -1)
            images = (compiled() if self.compile else dense)(source, crops[..., :6], changes, spec, finish)
        _, flips, edges = numbers[..., :PLACE].split((4, 2, 4), -1)
        if last is not None:
            images = self.finish(last(images))
        images, moved = images.unflatten(0, table.shape), last is not None and bool(last.moving)
        return [View(*view, spec.role, moved) for view in zip(images, edges, flips > 0, strict=True)]

    def finish(self, images: Tensor) -> Tensor:
        """Images in the type and memory format that the recipe asks for."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.dtype, memory_format=layout)


def contiguous(images: Tensor) -> Tensor:
    return images.contiguous()


def extra_of(spec: ViewSpec) -> Any:
    """The Kornia augmentations of a row; None for a row without `extra`."""
    if not spec.extra:
        return None
    from ssl_zoo.views.kornia_ops import Extra  # here, because importing Kornia takes over a second
    return Extra(spec.extra, spec.size)


def by_size(views: Sequence[View]) -> list[Tensor]:
    """Join the images of neighbouring views of one size into [views * B, C, H, W], to pass the encoder together."""
    return [torch.cat(list(group)) for _, group in itertools.groupby((view.images for view in views), key=Tensor.size)]


def require_images(images: Tensor) -> None:
    """Raise a ValueError unless views can be made of `images`."""
    if images.ndim != 4 or not images.numel() or images.shape[1] > 4 >= images.shape[3]:   # the last of [B, H, W, C]
        raise ValueError(f"views are drawn from images [B, C, H, W], not from {list(images.shape)}; put the channels "
                         "first, and keep at least one image of at least one pixel")
    if images.dtype == torch.uint8:
        return
    lowest, highest = images.amin().item(), images.amax().item()   # waits for a GPU, but loaders send uint8
    if images.dtype != torch.float32 or not (lowest >= 0 and highest <= 1):
        raise ValueError(f"views are drawn from uint8 images or float32 ones in [0, 1], not from {images.dtype} from "
                         f"{lowest:.4g} to {highest:.4g}; divide by the largest value that a pixel can have")


def require_canvases(canvases: Canvases) -> None:
    """Raise a ValueError unless each canvas holds its image."""
    require_images(canvases.pixels)
    room = np.array(canvases.pixels.shape[-2:])
    if canvases.sizes.shape != (len(canvases.pixels), 2) or (canvases.sizes < 1).any():
        raise ValueError(f"{len(canvases.pixels)} canvases need the height and width of each image, at least 1 pixel, "
                         f"not sizes of shape {list(canvases.sizes.shape)} from {canvases.sizes.min(initial=0)}")
    if (too_large := (canvases.sizes > room).any(1)).any():
        raise ValueError(f"an image of {canvases.sizes[too_large][0].tolist()} pixels does not fit its canvas of "
                         f"{room.tolist()}; sizes are height, width")


# On a CPU: a few views at a time, which stay in its cache, and each operation only on the views that it changes

def sparse(source: Tensor, table: np.ndarray, spec: ViewSpec) -> Tensor:
    """Make the views of one row by changing few of them at a time.

    Args:
        source: images [B, C, H, W], or crops [V, B, C, size, size].
        table: [V, B] with the columns of `tables.COLUMNS`.
        spec: the row.

    Returns:
        [V * B, C, size, size] float32 in [0, 1].
    """
    views, entries = cut_all(source, table, spec).flatten(0, 1), table.reshape(-1)
    step = max(1, PIECE // views[0].nbytes)
    for operation in operations.of(spec):
        columns = entries[operation.name]
        for group in operation.groups(columns):
            for start in range(0, len(group), step):
                places = group[start:start + step]
                if len(places) == 1:                                                    # in place, without a gather
                    one = views[places[0]:places[0] + 1]
                    one.copy_(operation.change(one, columns[places], spec))
                else:
                    index = torch.from_numpy(places)
                    changed = operation.change(views.index_select(0, index), columns[places], spec)
                    views.index_copy_(0, index, changed)
    return views


def cut_all(source: Tensor, table: np.ndarray, spec: ViewSpec) -> Tensor:
    """Cut the crops [V, B, C, size, size] of one row, float32 in [0, 1], unless `source` is crops already.

    Large crops of uint8 images come from torch's resize in uint8, which rounds to one of 256 levels.
    """
    if source.ndim == 5:
        return source / 255
    crops = torch.empty(*table.shape, source.shape[1], spec.size, spec.size)
    if source.dtype == torch.uint8 and spec.size > BY_PRODUCTS:
        for view, entries in zip(crops, table, strict=True):
            for place, image, entry in zip(view, source, entries, strict=True):
                place.copy_(cut(image, entry, spec)).mul_(1 / 255)
        return crops
    where = torch.from_numpy(np.concatenate([table["crop"], table["flips"]], -1))
    step = max(1, 4 * PIECE // crops[:, 0].nbytes)   # few large products, not many small ones
    for start in range(0, len(source), step):
        piece = slice(start, start + step)
        crops[:, piece] = crop_and_resize(source[piece], where[:, piece], spec.size, spec.interpolation)
    return crops


# On a GPU or compiled: every image takes every step, without a branch, and the host never waits for the device

def dense(source: Tensor, crops: Tensor, changes: Sequence[Tensor], spec: ViewSpec,
          finish: Callable[[Tensor], Tensor]) -> Tensor:
    """Make the views of one row by one program for all of them.

    Args:
        source: images [B, C, H, W], or crops [V, B, C, size, size].
        crops: [V, B, 6] for `crop_and_resize`.
        changes: [V, B, numbers] for each operation of the row, from its method `numbers`.
        spec: the row.
        finish: a function that gives the images their type and memory format.

    Returns:
        [V * B, C, size, size].
    """
    if source.ndim == 5:
        images = source / 255
    else:   # half precision uses a GPU's tensor cores, and holds bytes exactly
        half = source.is_cuda and source.dtype == torch.uint8
        images = crop_and_resize(source, crops, spec.size, spec.interpolation,
                                 torch.float16 if half else torch.float32)
    images = images.flatten(0, 1)
    for operation, numbers in zip(operations.of(spec), changes, strict=True):
        images = operation.change_all(images, numbers.flatten(0, 1), spec)
    return finish(images)


@functools.cache
def compiled() -> Any:
    """`dense`, compiled for each row at its first batch; sizes stay numbers, of which the table of a blur is made."""
    return torch.compile(dense, fullgraph=True, dynamic=False)
