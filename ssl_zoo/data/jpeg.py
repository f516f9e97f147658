"""JPEG files by the decoder of imagecodecs, which gives PIL's pixels in two thirds of the time."""

from pathlib import Path
from typing import Any

import imagecodecs
import torch
from torch import Tensor

ORIENTATION = 0x0112             # the tag of how the camera lay
SCAN, END = b"\xff\xda", b"\xff\xd9"   # markers; a scan's own bytes never look like one


def pixels_of(path: str | Path, file: Any, channels: int, content: bytes | None) -> Tensor | None:
    """The pixels [3, H, W] of an upright JPEG file of colours, the same as PIL's; None of any other, which PIL reads.

    A file that ends in the middle of its pixels is left to PIL, which refuses it: this decoder would fill up with gray.

    Args:
        path: of the file.
        file: as PIL has opened it and not yet decoded it, at its own size.
        channels: wanted of the image.
        content: of the file, where it is a part of another one.
    """
    if file.format != "JPEG" or file.mode != "RGB" or channels != 3 or file.getexif().get(ORIENTATION, 1) != 1:
        return None
    content = Path(path).read_bytes() if content is None else content
    if content.rfind(END) < content.rfind(SCAN):
        return None
    try:
        pixels = imagecodecs.jpeg8_decode(content)
    except RuntimeError:             # PIL says in its own words what is wrong
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1) if pixels.shape == (file.height, file.width, 3) else None
