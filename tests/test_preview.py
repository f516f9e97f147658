"""The preview shows where views come from: boxes where they are, and matches where places are the same."""

import numpy as np
import torch
from PIL import Image

from ssl_zoo.data import ImageFolder
from ssl_zoo.monitor import ViewsPicture
from ssl_zoo.pictures import GAP, INK
from ssl_zoo.views import View
from ssl_zoo.views.preview import (
    CELLS,
    COLOURS,
    LINE,
    MATCHED,
    NUMBER,
    SIDE,
    match_sheet,
    places_of_numbers,
    view_sheet,
)
from tests.conftest import simclr, trainer

GRAY = torch.full((3, 80, 160), 128, dtype=torch.uint8)


def view(box, flipped=(False, False), size=14):
    return View(torch.full((1, 3, size, size), 0.5), torch.tensor([box]), torch.tensor([flipped]), "global")


def colours(picture, area):
    return {tuple(pixel) for row in np.asarray(picture.crop(area)) for pixel in row}


def test_a_box_is_drawn_where_the_view_comes_from():
    picture = view_sheet([GRAY], [view((0.25, 0.5, 0.75, 1.0))])
    x, y = GAP, LINE                                     # of the source, 160 x 80 pixels as the picture shows it
    assert picture.getpixel((x + 40 + 60, y + 40)) == COLOURS[0]          # its upper edge
    assert picture.getpixel((x + 119, y + 60)) == COLOURS[0]              # its right edge
    assert picture.getpixel((x + 20, y + 20)) == (128, 128, 128)          # nothing outside
    assert COLOURS[0] not in colours(picture, (x, y, x + 160, y + 38))


def test_each_view_is_framed_in_the_colour_of_its_box():
    picture = view_sheet([GRAY], [view((0, 0, 0.5, 1.0)), view((0.5, 0, 1.0, 1.0))])
    for v in range(2):
        x = GAP + (1 + v) * (SIDE + 2 * GAP)
        assert picture.getpixel((x - 2, LINE + 40)) == COLOURS[v]
        assert picture.getpixel((x + SIDE // 2, LINE + SIDE // 2)) == (128, 128, 128)


def dots(picture, corner):
    """Which cells of the view at `corner` have a dot: row and column."""
    found = set()
    for row in range(CELLS):
        for column in range(CELLS):
            x, y = (round(start + (place + 0.5) * MATCHED / CELLS) for start, place in
                    zip(corner, (column, row), strict=True))
            if INK in colours(picture, (x - 5, y - 5, x + 6, y + 6)):
                found.add((row, column))
    return found


def test_equal_views_match_cell_by_cell_and_disjoint_ones_nowhere():
    whole, left, right = view((0.0, 0, 1, 1)), view((0.0, 0, 0.4, 1)), view((0.6, 0, 1, 1))
    assert len(dots(match_sheet(whole, whole), (GAP, LINE))) == CELLS ** 2
    assert not dots(match_sheet(left, right), (GAP, LINE))


def test_half_a_view_matches_the_half_that_it_shows():
    whole, left = view((0.0, 0, 1, 1)), view((0.0, 0, 0.5, 1))
    rows_and_columns = dots(match_sheet(whole, left), (GAP, LINE))
    assert {column for _, column in rows_and_columns} == {0, 1, 2, 3}


def test_a_flip_moves_the_partner_to_the_other_side():
    whole, left = view((0.0, 0, 1, 1)), view((0.0, 0, 0.5, 1))
    second = (GAP + MATCHED + MATCHED // 2, LINE + MATCHED // 4)
    plain, flipped = (match_sheet(left, whole._replace(flipped=torch.tensor([flip]))) for flip in
                      ((False, False), (True, False)))
    assert {column for _, column in dots(plain, second)} == {0, 1, 2, 3}
    assert {column for _, column in dots(flipped, second)} == {3, 4, 5, 6}


def test_numbers_of_crowded_boxes_lie_on_their_frames_and_cover_no_other():
    same = [(40.0, 30.0, 120.0, 110.0)] * 10
    small = [(70.0, 50.0, 90.0, 70.0), (150.0, 100.0, 160.0, 120.0), (0.0, 0.0, 6.0, 5.0)]
    places = places_of_numbers(same + small, (160, 120))
    width, height = NUMBER
    for i, (x, y) in enumerate(places):
        assert 0 <= x <= 160 - width
        assert 0 <= y <= 120 - height
        assert not any(abs(x - a) < width and abs(y - b) < height for a, b in places[:i])
    for x, y in places[:10]:
        assert x in (40, 120 - width) or y in (30, 110 - height)
    assert len(places_of_numbers([(0, 0, 20, 20)] * 30, (20, 20))) == 30      # where there is no room they cover others


def test_a_run_on_a_folder_shows_the_sources_of_its_views_at_their_own_shapes(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (80, 40), (200, 10 * i, 50)).save(tmp_path / "images" / f"{i}.png")
    data = ImageFolder(str(tmp_path / "images"), batch_size=4, evaluation_size=16)
    trainer(tmp_path, ViewsPicture(), max_steps=1).fit(simclr(), data)
    picture = Image.open(tmp_path / "views.png")
    assert picture.width >= GAP + 3 * (SIDE + 2 * GAP)                           # a source and two views
    assert picture.height == LINE + 4 * (SIDE + 2 * GAP + LINE)
    levels = set()
    for i in range(4):
        top = LINE + i * (SIDE + 2 * GAP + LINE)
        source = picture.crop((GAP, top, GAP + SIDE, top + SIDE // 2))           # 2 : 1, as the images are
        levels |= {pixel for _, pixel in source.getcolors() if pixel[0] == 200 and pixel[2] == 50}
        assert picture.getpixel((GAP + SIDE // 2, top + SIDE // 2 + 20)) == (255, 255, 255)
    assert levels == {(200, 10 * i, 50) for i in range(4)}
