"""Views as data: a `ViewSpec` says how a view is drawn, a table what was drawn, a `View` what came out and from where.

One table of numbers per batch is drawn on the host from (seed, epoch, batch, rank); everything after it is a pure
function of images and table. So a resumed run draws what the uninterrupted one would have, a GPU draws what a CPU
draws, and a crop may be cut on the device or by a data loader's worker.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.distributed import Key
from ssl_zoo.views import operations
from ssl_zoo.views.crops import crop_and_resize
from ssl_zoo.views.specs import PRESETS, Preset, ViewSpec
from ssl_zoo.views.tables import boxes, draw

__all__ = ["Augmentation", "Canvases", "Crops", "Key", "View", "ViewSpec"]

PLACE = 4 + 2 + 4  # numbers that say where a view comes from: crop, flips, box
PIECE = 2 ** 19    # bytes of views that stay in a core's cache while all operations pass over them
BY_PRODUCTS = 64   # pixels: up to this side a CPU crops faster by matrix products than by torch's resize of each crop


class View(NamedTuple):
    """One view of each image of a batch, with the geometry that made it."""

    images: Tensor    # [B, 3, size, size] in [0, 1], of the augmentation's dtype
    boxes: Tensor     # [B, 4] left, top, right, bottom as shares of the source image
    flipped: Tensor   # [B, 2] bool: left and right have changed places, top and bottom have
    role: str = ""    # of its row
    moved: bool = False   # an operation of its row's `extra` moves pixels: the box is only roughly where they come from


class Canvases(NamedTuple):
    """A batch of images of different sizes, each in the upper left corner of a canvas; the rest is never looked at."""

    pixels: Tensor       # [B, 3, H, W] uint8
    sizes: np.ndarray    # [B, 2] height and width of the images, pixels; an array, so that it stays on the host


class Crops(NamedTuple):
    """A batch whose crops a data loader's worker has cut, with the tables that say where and what comes next."""

    pixels: list[Tensor]          # for each spec [V, B, 3, size, size] uint8, resized and flipped
    tables: list[np.ndarray]      # for each spec [V, B] of tables.ROW; arrays, so that they stay on the host
    sizes: np.ndarray             # [B, 2] height and width of the source images, pixels


class Augmentation:
    """Draws `count` views of every image of a batch, on the device where the batch is.

    Args:
        views: the distributions to draw from, in the order in which the method sees them; or a paper's by its name,
            which --print_config spells out.
        compile: fuse the pipeline with torch.compile, which takes half a minute for each row at the first batch; for
            GPUs, where it saves most of the time.
        dtype: of the views; they are computed in float32 in any case.
        channels_last: the memory format of the views, which GPUs prefer for convolutions in half precision.
        backend: leave it out; runs of before 0.2 say batched in their files, which mean the same without it.
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
        self.dtype: torch.dtype = getattr(torch, dtype)

    @property
    def count(self) -> int:
        """How many views of each image come out."""
        return sum(spec.count for spec in self.views)

    @property
    def roles(self) -> list[str]:
        """The role of each view, in the order in which they come out."""
        return [spec.role for spec in self.views for _ in range(spec.count)]

    def require_views(self, name: str, count: int = 2, *, or_more: bool = False, role: str = "",
                      places: bool = False, verb: str = "learns from") -> list[int]:
        """The places of the views that a method or callback needs; raises one sentence where the rows do not draw them.

        Args:
            name: of the method or callback, for the sentence.
            count: the number of views of each image that it takes.
            or_more: it takes more than `count` too.
            role: it takes any number of views some of which have this role, and gets the places of those; `count` views
                without roles serve as well.
            places: it relies on where each part of a view comes from, so no row may move pixels.
            verb: what it does with the views, for the sentence.
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

    def pairs(self, method: str) -> list[tuple[int, int]]:
        """Which views a contrastive method compares: each global one with every other, each pair once."""
        found = self.require_views(method, role="global")
        return [(a, b) for a in found for b in range(self.count) if b > a or b not in found]

    def draw(self, sizes: np.ndarray, key: Key) -> list[np.ndarray]:
        """The tables of a batch of images of `sizes` [B, 2], one for each row of views."""
        generator = np.random.default_rng(list(key))
        tables: list[np.ndarray] = []
        for spec in self.views:
            tables.append(draw(spec, sizes, generator, tables[0]["crop"][0] if tables else None))
        return tables

    def cut(self, images: Sequence[Tensor], key: Key) -> Crops:
        """Crops of uint8 images [3, H, W] of any sizes: a worker's part of the work."""
        if not images or any(image.dtype != torch.uint8 for image in images):
            raise ValueError("a worker cuts crops from at least one image, of uint8 pixels")
        for image in images:
            check_images(image[None])
        sizes = np.array([image.shape[-2:] for image in images])
        tables = self.draw(sizes, key)
        images = [image.expand(3, -1, -1) for image in images]
        pixels = [torch.stack([torch.stack([cut(image, row, spec) for image, row in zip(images, rows, strict=True)])
                               for rows in table]) for spec, table in zip(self.views, tables, strict=True)]
        return Crops(pixels, tables, sizes)

    @torch.no_grad()
    def __call__(self, batch: Tensor | Canvases | Crops, key: Key) -> list[View]:
        """Views of images [B, 3, H, W] (uint8, or float in [0, 1]), of canvases, or of what `cut` made of them."""
        if isinstance(batch, Tensor):
            check_images(batch)
            batch = Canvases(batch.expand(-1, 3, -1, -1), np.array([batch.shape[-2:]] * len(batch)))
        elif isinstance(batch, Canvases):
            check_canvases(batch)
        tables = batch.tables if isinstance(batch, Crops) else self.draw(batch.sizes, key)
        sources = batch.pixels if isinstance(batch, Crops) else [batch.pixels] * len(tables)
        with torch.autocast(sources[0].device.type, enabled=False):   # bfloat16 has half as many levels as a pixel
            return [view for row, (source, table, spec) in enumerate(zip(sources, tables, self.views, strict=True))
                    for view in self.render(source, table, batch.sizes, spec, self.last_change(row, key))]

    def last_change(self, row: int, key: Key) -> Any:
        """What a row's `extra` does to its images in the batch of this key; None without any."""
        extra = self.extras[row]
        if extra is None:
            return None
        stream = key.generator(f"extra of row {row} on process {key.rank}")
        return extra.drawn(int(stream.integers(2 ** 63)))

    def render(self, source: Tensor, table: np.ndarray, sizes: np.ndarray, spec: ViewSpec,
               last: Any = None) -> list[View]:
        """One row's views of `source`: images [B, 3, H, W], or crops [V, B, 3, size, size].

        Args:
            last: changes the row's images [V * B, 3, size, size] float32 at the end, uncompiled: `last_change`.
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
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.dtype, memory_format=layout)


def contiguous(images: Tensor) -> Tensor:
    return images.contiguous()


def extra_of(spec: ViewSpec) -> Any:
    """The Kornia operations of a row, None without any."""
    if not spec.extra:
        return None
    from ssl_zoo.views.kornia_ops import Extra  # here, for Kornia takes more than a second to import
    return Extra(spec.extra, spec.size)


def by_size(views: Sequence[View]) -> list[Tensor]:
    """The images of neighbouring views of one size together, to pass an encoder at once: [views * B, 3, H, W] each."""
    return [torch.cat(list(group)) for _, group in itertools.groupby((view.images for view in views), key=Tensor.size)]


def check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(f"views are drawn from images [B, 3, H, W] or [B, 1, H, W], not from {list(images.shape)}; "
                         "keep three channels and at least one image of at least one pixel")
    if images.dtype == torch.uint8:
        return
    lowest, highest = images.amin().item(), images.amax().item()   # waits for a GPU; but loaders send uint8
    if images.dtype != torch.float32 or not (lowest >= 0 and highest <= 1):
        raise ValueError(f"views are drawn from uint8 images or float32 ones in [0, 1], not from {images.dtype} from "
                         f"{lowest:.4g} to {highest:.4g}; divide by the largest value that a pixel can have")


def check_canvases(canvases: Canvases) -> None:
    check_images(canvases.pixels)
    room = np.array(canvases.pixels.shape[-2:])
    if canvases.sizes.shape != (len(canvases.pixels), 2) or (canvases.sizes < 1).any():
        raise ValueError(f"{len(canvases.pixels)} canvases need the height and width of each image, at least 1 pixel, "
                         f"not sizes of shape {list(canvases.sizes.shape)} from {canvases.sizes.min(initial=0)}")
    if (too_large := (canvases.sizes > room).any(1)).any():
        raise ValueError(f"an image of {canvases.sizes[too_large][0].tolist()} pixels does not fit its canvas of "
                         f"{room.tolist()}; sizes are height, width")


# The way of a CPU: a few views at a time, which stay in its cache, and each operation on those that it changes

def cut(image: Tensor, row: np.void, spec: ViewSpec) -> Tensor:
    """One crop [3, size, size] of one uint8 image [3, H, W]: torch's native antialiased resize."""
    top, left, height, width = row["crop"].astype(int)
    flipped, vertically = row["flips"].astype(int)
    crop = image[None, :, top:top + height, left:left + width]
    crop = crop.contiguous(memory_format=torch.channels_last)                         # the native kernel's layout
    crop = F.interpolate(crop, (spec.size, spec.size), mode=spec.interpolation, antialias=True)[0]
    return crop.flip([-1] * flipped + [-2] * vertically) if flipped or vertically else crop


def sparse(source: Tensor, table: np.ndarray, spec: ViewSpec) -> Tensor:
    """A row's views [V * B, 3, size, size] of `source`: images [B, 3, H, W], or crops [V, B, 3, size, size]."""
    views, rows = crop(source, table, spec).flatten(0, 1), table.reshape(-1)
    step = max(1, PIECE // views[0].nbytes)
    for operation in operations.of(spec):
        columns = rows[operation.name]
        for group in operation.groups(columns):
            for start in range(0, len(group), step):
                places = group[start:start + step]
                if len(places) == 1:                                                    # nothing to gather
                    one = views[places[0]:places[0] + 1]
                    one.copy_(operation.change(one, columns[places], spec))
                else:
                    index = torch.from_numpy(places)
                    changed = operation.change(views.index_select(0, index), columns[places], spec)
                    views.index_copy_(0, index, changed)
    return views


def crop(source: Tensor, table: np.ndarray, spec: ViewSpec) -> Tensor:
    """Float crops [V, B, 3, size, size] of `source`, if it is not crops already; of large bytes to one level."""
    if source.ndim == 5:
        return source / 255
    crops = torch.empty(*table.shape, 3, spec.size, spec.size)
    if source.dtype == torch.uint8 and spec.size > BY_PRODUCTS:
        for view, rows in zip(crops, table, strict=True):
            for place, image, row in zip(view, source, rows, strict=True):
                place.copy_(cut(image, row, spec)).mul_(1 / 255)
        return crops
    where = torch.from_numpy(np.concatenate([table["crop"], table["flips"]], -1))
    step = max(1, 4 * PIECE // crops[:, 0].nbytes)   # two large steps, not many small ones
    for start in range(0, len(source), step):
        piece = slice(start, start + step)
        crops[:, piece] = crop_and_resize(source[piece], where[:, piece], spec.size, spec.interpolation)
    return crops


# The way of a GPU: every image takes every step, without a branch, and nothing waits

def dense(source: Tensor, crops: Tensor, changes: Sequence[Tensor], spec: ViewSpec,
          finish: Callable[[Tensor], Tensor]) -> Tensor:
    """A row's views [V * B, 3, size, size], from the crops [V, B, 6] and what each of its operations needs to know."""
    if source.ndim == 5:
        images = source / 255
    else:   # half precision for a GPU's tensor cores: bytes are exact in it
        half = source.is_cuda and source.dtype == torch.uint8
        images = crop_and_resize(source, crops, spec.size, spec.interpolation,
                                 torch.float16 if half else torch.float32)
    images = images.flatten(0, 1)
    for operation, numbers in zip(operations.of(spec), changes, strict=True):
        images = operation.change_all(images, numbers.flatten(0, 1), spec)
    return finish(images)


@functools.cache
def compiled() -> Any:
    return torch.compile(dense, fullgraph=True)
