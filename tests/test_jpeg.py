"""JPEG files by the faster decoder: PIL's pixels to the bit, and PIL's verdict on files that are not whole."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image

from ssl_zoo.data import jpeg
from ssl_zoo.data.decoding import Decoder, read_image
from ssl_zoo.data.scaled import read_scaled

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8).repeat(5, 0).repeat(4, 1)   # 45 x 56


def encoded(size=(56, 45), mode="RGB", **options):
    content = io.BytesIO()
    Image.fromarray(PIXELS).resize(size).convert(mode).save(content, "jpeg", **options)
    return content.getvalue()


def by_pil(content):
    with Image.open(io.BytesIO(content)) as file:
        return F.pil_to_tensor(file.convert("RGB"))


def taken(content, path=Path("x.jpg")):
    """What the faster decoder says, as `read_image` asks it."""
    with Image.open(io.BytesIO(content)) as file:
        return jpeg.pixels_of(path, file, 3, content)


@pytest.mark.parametrize("options", [
    {}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"progressive": True}, {"quality": 30, "optimize": True},
    {"keep_rgb": True}, {"restart_marker_blocks": 3}, {"size": (17, 33)}, {"size": (1, 1)}, {"size": (300, 7)},
    {"comment": "\xff\xd9\xff\xda"}], ids=str)
def test_pixels_are_those_of_pil(options, tmp_path):
    content = encoded(**options)
    (tmp_path / "x.jpg").write_bytes(content)
    found = [read_image(tmp_path / "x.jpg"), read_image("y.jpg", content=content),
             read_scaled(tmp_path / "x.jpg", Decoder(), lambda height, width: 1)]
    assert all(torch.equal(one, by_pil(content)) for one in found)
    assert taken(content) is not None or "comment" in options


@pytest.mark.parametrize("content", [encoded(mode="L"), encoded(mode="CMYK")], ids=["gray", "CMYK"])
def test_other_colours_are_left_to_pil(content):
    assert taken(content) is None
    assert torch.equal(read_image("x.jpg", content=content), by_pil(content))


def test_a_photograph_that_lay_on_its_side_is_left_to_pil_which_turns_it():
    exif = Image.Exif()
    exif[jpeg.ORIENTATION] = 6
    content = encoded(exif=exif)
    assert taken(content) is None
    assert torch.equal(read_image("x.jpg", content=content), by_pil(content).rot90(-1, (1, 2)))


@pytest.mark.parametrize("cut", [2, 20, 400])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_file_that_ends_before_its_pixels_is_refused_as_pil_does(cut, options):
    thumbnail = Image.Exif()
    thumbnail[0x010E] = encoded(size=(8, 8)).decode("latin-1")       # a whole picture within the file
    content = encoded(exif=thumbnail.tobytes(), **options)
    assert torch.equal(read_image("x.jpg", content=content), by_pil(content))
    with pytest.raises(OSError, match="truncated"):
        read_image("x.jpg", content=content[:-cut])


def test_bytes_behind_a_picture_and_bytes_destroyed_within_it_change_nothing_of_what_pil_says():
    content = encoded()
    torn = content[:900] + b"\x55" * 40 + content[940:]
    for one in (content + b"\0" * 100, content + encoded(size=(8, 8)), torn):
        assert torch.equal(read_image("x.jpg", content=one), by_pil(one))


def test_a_picture_of_too_many_pixels_is_still_reduced_while_it_is_decoded():
    assert read_image("x.jpg", Decoder(max_pixels=1000), content=encoded()).shape == (3, 23, 28)
