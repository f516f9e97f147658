"""Images decoded once and kept reduced in a memory-mapped file, for folders that are read epoch after epoch.

The file starts with an index, one ENTRY for each image; the pixels follow, each image [3, H, W] uint8.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from tqdm import tqdm

from ssl_zoo.data.sources import Files, file_states, load_ahead
from ssl_zoo.views import Canvases, Crops, Key

ENTRY = np.dtype([("offset", "<i8"), ("height", "<i4"), ("width", "<i4")])   # height 0: the image could not be read
STEP = 32   # pixels: sides of canvases are multiples of it, so that a compiled pipeline sees few shapes


class Decoded(Files):
    """Images that `decode_once` has kept. A training batch holds them whole; the device cuts its crops from them."""

    def for_training(self, images: Sequence[Tensor], key: Key) -> Tensor | Canvases | Crops:
        sizes = np.array([image.shape[-2:] for image in images])
        height, width = (-(-sizes.max(0) // STEP) * STEP).tolist()
        # NumPy's zeros come in huge pages. With torch's, which do not, this takes three times as long.
        pixels = torch.from_numpy(np.zeros((len(images), 3, height, width), np.uint8))
        for canvas, image in zip(pixels, images, strict=True):
            canvas[:, :image.shape[1], :image.shape[2]] = image
        return Canvases(pixels, sizes)


def decode_once(files: Files, folder: str, size: int, workers: int) -> Decoded:
    """Read the images, reduced, from a file in `folder`; write that file first unless it matches them as they are now.

    Args:
        files: the images; their names must be paths.
        size: shorter side of the reduced images, in pixels.
        workers: processes that decode; 0 decodes in this one.
    """
    path = Path(folder).absolute() / f"canvases_{size}_{file_states(files.names)}.bin"
    if not path.is_file():
        half = path.with_suffix(f".{uuid4().hex[:8]}.half")   # a name of its own: another node may write there too
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(half, "xb") as file:
                    write(file, files, size, workers)
                half.replace(path)
            finally:
                half.unlink(missing_ok=True)
        except OSError as error:
            raise OSError(f"{len(files)} decoded images could not be kept in {path.parent} ({error.strerror or error}):"
                          " make room there, give another --data.cache, or leave it out to decode in every epoch"
                          ) from error
    return Decoded(functools.partial(read_canvas, path), files.names, files.labels, files.size)


def write(file: BinaryIO, files: Files, size: int, workers: int) -> None:
    index = np.zeros(len(files), ENTRY)
    file.seek(index.nbytes)
    calm = 0.2 if sys.stderr.isatty() else 10.0   # seconds; a log file needs no film
    images = load_ahead(Reduced(files.read, size), range(len(files)), workers)
    for i, image in enumerate(tqdm(images, "decoding images, this once", len(files), unit="image", mininterval=calm,
                                   dynamic_ncols=True, file=sys.stderr)):
        if image is not None:
            index[i] = file.tell(), *image.shape[1:]
            file.write(image.numpy())
    file.seek(0)
    file.write(index.tobytes())
    file.flush()
    os.fsync(file.fileno())   # some file systems say only now that they are full


class Reduced:
    """The reduced images, None in place of one that cannot be read."""

    def __init__(self, read: Callable[[int], Tensor], size: int):
        self.read, self.size = read, size

    def __getitem__(self, i: int) -> Tensor | None:
        try:
            return reduced(self.read(i), self.size).contiguous()
        except Exception:   # whatever a decoder raises on a damaged file; the loader names it
            return None


def reduced(image: Tensor, size: int) -> Tensor:
    """The image [3, H, W], reduced to at most `size` pixels in its shorter side and twice that in its longer one."""
    sides = image.shape[-2:]
    scale = min(Fraction(1), Fraction(size, min(sides)), Fraction(2 * size, max(sides)))
    # rounded down as torchvision's resize does, so that `centre` gets the size that it would have resized to
    return image if scale == 1 else F.resize(image, [max(1, int(side * scale)) for side in sides], antialias=True)


def read_canvas(path: Path, i: int) -> Tensor:
    kept = mapped(path)
    start, height, width = kept[i * ENTRY.itemsize:(i + 1) * ENTRY.itemsize].view(ENTRY).item()
    if not height:
        raise ValueError(f"image {i} could not be read when {path} was written")
    return torch.from_numpy(kept[start:start + 3 * height * width].reshape(3, height, width).copy())


@functools.cache
def mapped(path: Path) -> np.ndarray:
    """The bytes of a file, mapped once in each process, so that a source sent to a worker carries only the path."""
    return np.asarray(np.memmap(path, np.uint8, "r"))
