"""Sheets of small images with captions, for people to look at."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ssl_zoo.files import whole

TILE, GAP, CAPTION = 96, 6, 16            # pixels
INK, PAPER = (20, 20, 20), (255, 255, 255)
WRONG = (213, 94, 0)                      # vermilion of Okabe and Ito's palette, told apart by the colour-blind


class Tile(NamedTuple):
    image: Tensor          # [C, H, W], uint8 or float in [0, 1]
    caption: str = ""
    wrong: bool = False    # framed, crossed in a corner, and its caption in colour


def sheet(rows: Sequence[Sequence[Tile]], heading: str = "", split: int = 0) -> Image.Image:
    """Draw tiles in rows under a heading, with a vertical line after the first `split` columns if that is not 0."""
    columns = max(len(row) for row in rows)
    step, line = TILE + GAP, TILE + GAP + CAPTION
    top = GAP + (CAPTION + GAP if heading else 0)
    width = max(GAP + columns * step + (GAP if split else 0), 2 * GAP + 7 * len(heading))
    picture = Image.new("RGB", (width, top + len(rows) * line), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    draw.text((GAP, GAP), heading, INK, font)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            x, y = GAP + c * step + (GAP if split and c >= split else 0), top + r * line
            picture.paste(resized(tile.image, TILE, TILE), (x, y))
            draw.text((x, y + TILE + 1), shorten(tile.caption, font), WRONG if tile.wrong else INK, font)
            if tile.wrong:
                draw.rectangle((x - 2, y - 2, x + TILE + 1, y + TILE + 1), outline=WRONG, width=4)
                for ends in ((x + 4, y + 4, x + 18, y + 18), (x + 4, y + 18, x + 18, y + 4)):
                    draw.line(ends, WRONG, 4)
    if split:
        x = GAP // 2 + split * step
        draw.line((x + GAP // 2, top, x + GAP // 2, picture.height - GAP), (160, 160, 160), 1)
    return picture


def resized(image: Tensor, width: int, height: int) -> Image.Image:
    """Resize an image [C, H, W], uint8 or float in [0, 1], of which the first three channels, or the first, are seen.

    Enlarged images are not smoothed, so that the pixels of a small view stay visible; reduced ones are antialiased.
    """
    image = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    image = image.detach().float().cpu() / (255 if image.dtype == torch.uint8 else 1)
    larger = image.shape[-2] > height or image.shape[-1] > width
    options = {"mode": "bilinear", "antialias": True} if larger else {"mode": "nearest"}
    image = F.interpolate(image[None], (height, width), **options)[0].clamp(0, 1)
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def shorten(caption: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The caption, cut with an ellipsis to the width of a tile."""
    while font.getlength(caption) > TILE:
        caption = caption.rstrip("…")[:-1] + "…"
    return caption


def publish(picture: Image.Image, name: str, folder: str | Path, logger: Any, step: int) -> None:
    """Save the picture in `folder`, and show it where the logger takes images, as those of TensorBoard and W&B do.

    A full disk costs the picture, which a warning says, and not the run.
    """
    path = Path(folder) / f"{name}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as half:
            picture.save(half, format="png")
        if (add_image := getattr(getattr(logger, "experiment", None), "add_image", None)) is not None:
            add_image(name, to_tensor(picture), step)
        elif (log_image := getattr(logger, "log_image", None)) is not None:
            log_image(name, [picture])
    except OSError as error:
        warnings.warn(f"the picture {path} could not be written ({error.strerror or error})", stacklevel=2)


def to_tensor(picture: Image.Image) -> Tensor:
    """[3, H, W] uint8, as TensorBoard takes it."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)
