"""Images decoded once and kept reduced in one file, for folders that are read epoch after epoch.

The file starts with a checksum of its index; the index has one ENTRY for each image, and the pixels follow, each image
[C, H, W] uint8. For an image that could not be read they are a sentence that says why.
"""

import functools
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from tqdm import tqdm

from ssl_zoo.data.decoding import Unread
from ssl_zoo.data.sources import Files, file_states
from ssl_zoo.data.workers import load_ahead
from ssl_zoo.views import Canvases, Crops, Key

# height 0: the image could not be read, for a reason of so many bytes as its width
ENTRY = np.dtype([("offset", "<i8"), ("height", "<i4"), ("width", "<i4"), ("checksum", "<u4")])
CHECKSUM = 4   # bytes
STEP = 32   # pixels: sides of canvases are multiples of it, so that a compiled pipeline sees few shapes


class Decoded(Files):
    """Images that `decode_once` has kept. A training batch holds them whole; the device cuts its crops from them."""

    def for_training(self, images: Sequence[Any], key: Key) -> Tensor | Canvases | Crops:
        sizes = np.array([image.shape[-2:] for image in images])
        height, width = (-(-sizes.max(0) // STEP) * STEP).tolist()
        # NumPy's zeros come in huge pages. With torch's, which do not, this takes three times as long.
        pixels = torch.from_numpy(np.zeros((len(images), self.decoder.channels, height, width), np.uint8))
        for canvas, image in zip(pixels, images, strict=True):
            canvas[:, :image.shape[1], :image.shape[2]] = image
        return Canvases(pixels, sizes)


def decode_once(files: Files, folder: str, size: int, workers: int) -> Decoded:
    """Read the images, reduced, from a file in `folder`; write that file first unless it matches them as they are now.

    A file that is not whole is written again, and so is an image whose bytes have changed since.

    Args:
        files: the images; their names must be paths.
        size: shorter side of the reduced images, in pixels.
        workers: processes that decode; 0 decodes in this one.
    """
    state = hashlib.blake2b(f"{file_states(files.names)}{files.decoder}".encode(), digest_size=8).hexdigest()
    path = Path(folder).absolute() / f"canvases_{size}_{state}.bin"
    if not is_whole(path, len(files), files.decoder.channels):
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
            if error.errno is None:   # of an image, not of the cache
                raise
            raise OSError(f"{len(files)} decoded images could not be kept in {path.parent} ({error.strerror or error}):"
                          " make room there, give another --data.cache, or leave it out to decode in every epoch"
                          ) from error
        mapped.cache_clear()
    return Decoded(Canvas(path, Reduced(files, size)), files.names, files.labels, files.size, files.decoder,
                   files.left_out)


def is_whole(path: Path, images: int, channels: int) -> bool:
    """Whether a file of canvases is there with its whole index and has the length that it says."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        index = read_index(file.fileno(), images)
    return index is not None and path.stat().st_size == index[-1]["offset"] + length(index[-1], channels)


def read_index(file: int, images: int) -> np.ndarray | None:
    """An ENTRY for each image; None if it is not as it was written."""
    content = os.pread(file, CHECKSUM + images * ENTRY.itemsize, 0)
    whole = len(content) == CHECKSUM + images * ENTRY.itemsize and checksum(content[CHECKSUM:]) == content[:CHECKSUM]
    return np.frombuffer(content, ENTRY, offset=CHECKSUM) if whole else None


def checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM, "little")


def length(entry: np.void, channels: int) -> int:
    """Bytes of an image."""
    return int(entry["width"]) * (int(entry["height"]) * channels if entry["height"] else 1)


def write(file: BinaryIO, files: Files, size: int, workers: int) -> None:
    index = np.zeros(len(files), ENTRY)
    file.seek(CHECKSUM + index.nbytes)
    calm = 0.2 if sys.stderr.isatty() else 10.0   # seconds; a log file needs no film
    images = load_ahead(Reduced(files, size), range(len(files)), workers)
    for i, found in enumerate(tqdm(images, "decoding images, this once", len(files), unit="image", mininterval=calm,
                                   dynamic_ncols=True, file=sys.stderr)):
        if isinstance(found, Unread):
            content = json.dumps(found.require_disk()).encode()
            shape = 0, len(content)
        else:
            content, shape = found.numpy().tobytes(), tuple(found.shape[1:])
        index[i] = file.tell(), *shape, zlib.crc32(content)
        file.write(content)
    file.seek(0)
    file.write(checksum(index.tobytes()) + index.tobytes())
    file.flush()
    os.fsync(file.fileno())   # some file systems say only now that they are full


class Reduced:
    """The reduced images, or why there is none."""

    def __init__(self, files: Files, size: int):
        self.files, self.size = files, size

    def __getitem__(self, i: int) -> Tensor | Unread:
        found = self.files.attempt(i)
        return found if isinstance(found, Unread) else shrunk(found, self.size).contiguous()


def shrunk(image: Tensor, size: int) -> Tensor:
    """The image [C, H, W], reduced to at most `size` pixels in its shorter side and twice that in its longer one."""
    sides = image.shape[-2:]
    scale = min(Fraction(1), Fraction(size, min(sides)), Fraction(2 * size, max(sides)))
    # rounded down as torchvision's resize does, so that `centre` gets the size that it would have resized to
    return image if scale == 1 else F.resize(image, [max(1, int(side * scale)) for side in sides], antialias=True)


class Canvas:
    """Reads images from a file of canvases.

    One whose bytes are not those that were written is decoded again and put back. The file is not mapped: a process
    that reads beyond the end of a mapped file, which may have been cut, ends without a word.
    """

    def __init__(self, path: Path, images: Reduced):
        self.path, self.images = path, images

    def __call__(self, i: int) -> Tensor:
        file, index = mapped(self.path, len(self.images.files))
        entry, channels = index[i], self.images.files.decoder.channels
        content = bytearray(os.pread(file, length(entry, channels), entry["offset"]))
        if len(content) < length(entry, channels) or zlib.crc32(content) != entry["checksum"]:
            return self.renewed(i, entry)
        if entry["height"]:
            return torch.frombuffer(content, dtype=torch.uint8).view(channels, entry["height"], entry["width"])
        why = Unread(*json.loads(content))
        return self.renewed(i, None) if why.kind == "not opened" else why.refuse()   # it may be there by now

    def renewed(self, i: int, entry: Any) -> Tensor:
        if isinstance(found := self.images[i], Unread):
            return found.refuse()
        if entry is not None and found.shape[1:] == (entry["height"], entry["width"]):
            with suppress(OSError), open(self.path, "r+b") as again:   # where it cannot be kept, the image is right
                os.pwrite(again.fileno(), found.numpy().tobytes(), entry["offset"])
        return found


@functools.cache
def mapped(path: Path, images: int) -> tuple[int, np.ndarray]:
    """A file and its index, read once in each process, so that a source sent to a worker carries only the path."""
    file = os.open(path, os.O_RDONLY)
    index = read_index(file, images)
    if index is None:
        raise ValueError(f"the decoded images in {path} have changed while they were in use: start again, which writes "
                         "them anew")
    return file, index
