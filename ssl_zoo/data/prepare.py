"""Files as the images that an encoder has learnt from: for whoever has its two files and pictures of their own."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ssl_zoo.data.decoding import COLOURS, Unread
from ssl_zoo.data.sources import Files
from ssl_zoo.encoders import Encoder


def read_images(paths: Sequence[str | Path], encoder: Encoder, size: int | None = None) -> Tensor:
    """Read files as an evaluation of the encoder does: uint8 [N, C, size, size], for the encoder to take.

    Args:
        paths: of the files.
        encoder: says how its images were read, if a run or `load_encoder` has told it.
        size: side of the images in pixels; that of the encoder's last evaluation if left out.

    Raises:
        ValueError: a file cannot be read, or the size is unknown.
    """
    size = size or encoder.preprocessing.get("size")
    if size is None:
        raise ValueError("this encoder does not know the size of its images: give size, in pixels")
    decoder = COLOURS.like({**encoder.preprocessing, "channels": encoder.channels})
    files = Files(None, [str(path) for path in paths], torch.full((len(paths),), -1), size, decoder)
    images = []
    for place in range(len(files)):
        if isinstance(found := files.attempt(place), Unread):
            found.refuse()
        images.append(found)
    return files.plain(images)
