"""Pictures of a recipe's views: where each view comes from, what it looks like, and which cells of two views match."""

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ssl_zoo.pictures import GAP, INK, PAPER, resized
from ssl_zoo.views.crops import cell_distances
from ssl_zoo.views.pipeline import View

SIDE = 160          # side of a view and longer side of a source, pixels
MATCHED = 320       # side of a view in a picture of matches, pixels
CELLS, NEAR = 7, 0.7   # PixPro's feature map is 7 x 7, and cells match below 0.7 diagonals
LINE = 24           # height of a line of text, pixels
NUMBER = (16, 13)   # width and height of a number on its ground, pixels
# Okabe and Ito's palette, with gray for black: colours that colour-blind readers can tell apart
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (0, 114, 178), (213, 94, 0), (240, 228, 66),
           (90, 90, 90))


def view_sheet(images: Sequence[Tensor], views: Sequence[View]) -> Image.Image:
    """Show each image with the boxes of its views, and the views beside it in frames of the same colours.

    Args:
        images: [C, H, W] each, the sources; uint8, or float in [0, 1].
        views: of these images, in the same order.

    Returns:
        A picture with one strip for each image.
    """
    font = ImageFont.load_default(13)
    step = SIDE + 2 * GAP
    heading = "sources with the boxes of their views; < > left and right changed, ^ v top and bottom changed"
    width = max(GAP + (1 + len(views)) * step, math.ceil(font.getlength(heading)) + 2 * GAP)
    picture = Image.new("RGB", (width, LINE + len(images) * (step + LINE)), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((GAP, 2), heading, INK, font)
    for i, image in enumerate(images):
        top = LINE + i * (step + LINE)
        height, width = image.shape[-2:]
        scale = SIDE / max(height, width)
        across, down = max(1, round(width * scale)), max(1, round(height * scale))
        picture.paste(resized(image, across, down), (GAP, top))
        boxes = torch.stack([view.boxes[i] for view in views]).cpu() * torch.tensor([across, down, across, down])
        draw_boxes(pen, (GAP, top), boxes.tolist(), (across, down))
        for v, view in enumerate(views):
            colour, x = COLOURS[v % len(COLOURS)], GAP + (1 + v) * step
            picture.paste(resized(view.images[i], SIDE, SIDE), (x, top))
            pen.rectangle((x - 3, top - 3, x + SIDE + 2, top + SIDE + 2), outline=colour, width=3)
            turned = " <>" * bool(view.flipped[i, 0]) + " ^v" * bool(view.flipped[i, 1]) + " moved" * view.moved
            size = f"{view.images.shape[-1]} px"
            pen.text((x, top + SIDE + 4), f"{v + 1} {view.role} {size}{turned}".replace("  ", " "), INK, font)
    return picture


def draw_boxes(pen: ImageDraw.ImageDraw, corner: tuple[int, int], boxes: Sequence[Sequence[float]],
               size: tuple[int, int]) -> None:
    """Frame each box, in pixels from `corner`, and then number all, each on a ground of its box's colour."""
    x, y = corner
    for v, (left, top, right, bottom) in enumerate(boxes):
        pen.rectangle((x + left, y + top, x + right - 1, y + bottom - 1), outline=COLOURS[v % len(COLOURS)], width=2)
    width, height = NUMBER
    for v, (across, down) in enumerate(places_of_numbers(boxes, size)):
        red, green, blue = colour = COLOURS[v % len(COLOURS)]
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 95
        pen.rectangle((x + across, y + down, x + across + width - 1, y + down + height - 1), colour)
        pen.text((x + across + width / 2, y + down + height / 2), str(v + 1), PAPER if dark else INK,
                 ImageFont.load_default(11), anchor="mm")


def places_of_numbers(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> list[tuple[int, int]]:
    """The upper left corner of each box's number: on its frame, where it covers no other number if there is room.

    Args:
        boxes: left, top, right, bottom of each, in pixels.
        size: width and height of what they lie in, which the numbers do not leave.
    """
    width, height = NUMBER
    taken: list[tuple[int, int]] = []
    for left, top, right, bottom in boxes:
        across = [left + (right - left - width) * share / 8 for share in (0, 8, 4, 2, 6, 1, 7, 3, 5)]
        down = [top + (bottom - top - height) * share / 8 for share in (4, 2, 6, 1, 7, 3, 5)]
        frame = [(x, y) for y in (top, bottom - height) for x in across]
        frame += [(x, y) for x in (left, right - width) for y in down]
        inside = [(round(min(max(x, 0), size[0] - width)), round(min(max(y, 0), size[1] - height))) for x, y in frame]
        free = [(x, y) for x, y in inside if all(abs(x - a) >= width or abs(y - b) >= height for a, b in taken)]
        taken.append((free or inside)[0])
    return taken


def match_sheet(first: View, second: View) -> Image.Image:
    """Show which cells of two views match, by lines between the centres of the cells.

    A cell of the first view is joined to the nearest cell of the second if PixPro, arXiv:2011.10043, sec. 3.1, counts
    the two as the same place: their distance in the source is below 0.7 diagonals of the larger cell.

    Args:
        first: views [B, C, S, S] of some images.
        second: other views of the same images.

    Returns:
        A picture with one strip for each image.
    """
    distances = cell_distances(first.boxes, first.flipped, second.boxes, second.flipped, CELLS, CELLS).cpu()
    drop = MATCHED // 4   # lowers the second view, so that lines from neighbouring cells do not cover each other
    strip, apart = MATCHED + drop + LINE + GAP, MATCHED // 2
    picture = Image.new("RGB", (2 * GAP + 2 * MATCHED + apart, len(distances) * strip), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for i, distance in enumerate(distances):
        near, partner = distance.min(1)
        matching = torch.nonzero(near < NEAR)[:, 0].tolist()
        top, right = i * strip + LINE, GAP + MATCHED + apart
        pen.text((GAP, top - LINE + 2), f"{len(matching)} of {CELLS ** 2} cells of the first view have a match in the "
                                         "second", INK, font)
        corners = (GAP, top), (right, top + drop)
        for view, corner in zip((first, second), corners, strict=True):
            picture.paste(resized(view.images[i], MATCHED, MATCHED), corner)
        for cell in matching:
            colour = COLOURS[cell // CELLS]
            ends = [(left + (c % CELLS + 0.5) * MATCHED / CELLS, upper + (c // CELLS + 0.5) * MATCHED / CELLS)
                    for (left, upper), c in zip(corners, (cell, int(partner[cell])), strict=True)]
            pen.line(ends, colour, 1)
            for across, down in ends:
                pen.ellipse((across - 4, down - 4, across + 4, down + 4), colour, INK)
    return picture
