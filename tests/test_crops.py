"""The crop against torchvision's antialiased resize, and places of a view in its source against closed forms."""

import math
from itertools import product

import pytest
import torch
import torchvision.transforms.v2.functional as torchvision

from ssl_zoo.views.crops import (
    area,
    cell_centres,
    cell_distances,
    crop_and_resize,
    intersection,
    inverse_sample,
    overlap,
    resampling_matrices,
)

ROWS, COLUMNS = 45, 61
LEVEL = 1 / 255
BOXES = {   # top, left, height, width
    "whole": (0, 0, ROWS, COLUMNS),
    "odd": (3, 8, 31, 17),
    "flat": (20, 1, 3, 59),
    "tall": (1, 50, 43, 2),
    "pixel": (7, 5, 1, 1),
    "last pixel": (ROWS - 1, COLUMNS - 1, 1, 1),
    "bottom right": (30, 40, 15, 21),
}
FLIPS = list(product((0, 1), repeat=2))     # left-right, top-bottom
FULL = (0, 0, 1, 1)


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def noise_bytes(*shape, seed=0):
    return (256 * noise(*shape, seed=seed)).to(torch.uint8)


def crops(images, box, size, interpolation="bilinear", flips=(0, 0), dtype=torch.float32):
    """[B, C, size, size]: the same box of each image."""
    places = torch.tensor([*box, *flips], dtype=torch.float32).expand(1, len(images), -1)
    return crop_and_resize(images, places, size, interpolation, dtype)[0]


def torchvision_crop(images, box, size, interpolation, flips=(0, 0)):
    mode = getattr(torchvision.InterpolationMode, interpolation.upper())
    view = torchvision.resized_crop(images, *box, [size, size], interpolation=mode, antialias=True).clamp(0, 1)
    view = torchvision.horizontal_flip(view) if flips[0] else view
    return torchvision.vertical_flip(view) if flips[1] else view


def rows_of(*boxes):
    return torch.tensor(boxes, dtype=torch.float64)


VIEWS = rows_of((0.1, 0.2, 0.7, 0.9), (0.0, 0.3, 0.5, 1.0), (0.25, 0.0, 1.0, 0.5), (0.4, 0.4, 0.6, 0.6))
TURNS = torch.tensor(FLIPS).bool()           # every pair of flips, one for each of the four


# Crop and resize

@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [1, 8, 33, 96])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_a_crop_is_torchvision_s_antialiased_resize_of_the_box_with_every_flip(box, size, interpolation):
    images = noise(2, 3, ROWS, COLUMNS)
    for flips in FLIPS:
        expected = torchvision_crop(images, box, size, interpolation, flips)
        assert (crops(images, box, size, interpolation, flips) - expected).abs().max() < 1e-3 * LEVEL


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_of_a_photograph_s_size_is_torchvision_s(interpolation):
    images, box = noise(1, 3, 375, 500), (12, 101, 333, 298)
    expected = torchvision_crop(images, box, 64, interpolation)
    assert (crops(images, box, 64, interpolation) - expected).abs().max() < 1e-3 * LEVEL


@pytest.mark.parametrize("kind", ["bytes", "floats"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 96])
def test_half_precision_operands_are_off_by_less_than_half_a_level(size, interpolation, kind):
    pixels = noise_bytes(4, 3, ROWS, COLUMNS)
    images = pixels if kind == "bytes" else pixels / 255
    for box in BOXES["whole"], BOXES["odd"]:
        exact = torchvision_crop(pixels / 255, box, size, interpolation, (1, 0))
        half = crops(images, box, size, interpolation, (1, 0), torch.float16)
        assert half.dtype == torch.float32
        assert 0 < (half - exact).abs().max() < 0.5 * LEVEL
        assert (half - exact).abs().mean() < 0.06 * LEVEL


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_bytes_and_unit_floats_give_the_same_crop(interpolation):
    pixels = noise_bytes(2, 3, ROWS, COLUMNS)
    from_bytes = crops(pixels, BOXES["odd"], 20, interpolation)
    assert from_bytes.dtype == torch.float32
    assert torch.allclose(from_bytes, crops(pixels / 255, BOXES["odd"], 20, interpolation), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_each_view_of_each_image_has_its_own_box_and_flips(channels):
    images = noise(2, channels, ROWS, COLUMNS)
    places = torch.tensor([[(0, 0, 45, 61, 0, 1), (3, 8, 31, 17, 1, 0)], [(20, 1, 3, 59, 1, 1), (1, 50, 43, 2, 0, 0)],
                           [(30, 40, 15, 21, 0, 0), (7, 5, 1, 1, 1, 1)]])                      # [V, B, 6]
    views = crop_and_resize(images, places.float(), 12, "bilinear")
    assert views.shape == (3, 2, channels, 12, 12)
    for v, i in product(range(3), range(2)):
        *box, across, down = places[v, i].tolist()
        expected = torchvision_crop(images[i:i + 1], box, 12, "bilinear", (across, down))[0]
        assert torch.allclose(views[v, i], expected, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [4, 40])
def test_nothing_from_outside_the_box_reaches_the_view(size, interpolation):
    images = torch.ones(1, 1, ROWS, COLUMNS)
    top, left, height, width = BOXES["odd"]
    images[..., top:top + height, left:left + width] = 0
    assert not crops(images, BOXES["odd"], size, interpolation).any()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_one_pixel_box_gives_that_pixel_everywhere(interpolation):
    images = noise(1, 3, ROWS, COLUMNS)
    pixel = images[0, :, 7, 5, None, None].expand(3, 9, 9)
    assert torch.allclose(crops(images, BOXES["pixel"], 9, interpolation)[0], pixel, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_whole_image_at_its_own_size_stays_as_it_is(interpolation):
    images = noise(2, 3, 24, 24)
    assert torch.allclose(crops(images, (0, 0, 24, 24), 24, interpolation), images, atol=1e-6)


def test_bicubic_overshoot_is_cut_off_at_black_and_white():
    edge = torch.zeros(1, 1, 16, 16)
    edge[..., 8:] = 1
    beyond = torchvision.resize(edge, [40, 40], interpolation=torchvision.InterpolationMode.BICUBIC)
    assert beyond.min() < 0
    assert beyond.max() > 1
    view = crops(edge, (0, 0, 16, 16), 40, "bicubic")
    assert view.min() == 0
    assert view.max() == 1


@pytest.mark.parametrize(("inputs", "outputs", "weights"), [
    (2, 4, [[1, 0], [3 / 4, 1 / 4], [1 / 4, 3 / 4], [0, 1]]),             # a pixel's centre is half a pixel inside
    (4, 2, [[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]]),         # a triangle two pixels to each side
    (3, 1, [[2 / 7, 3 / 7, 2 / 7]]),
])
def test_bilinear_weights_have_their_closed_form(inputs, outputs, weights):
    start, length = torch.tensor([2.0]), torch.tensor([float(inputs)])
    matrix = resampling_matrices(start, length, inputs + 5, outputs, "bilinear")[0]
    assert torch.allclose(matrix[:, 2:2 + inputs], torch.tensor(weights))
    assert not matrix[:, :2].any()
    assert not matrix[:, 2 + inputs:].any()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("outputs", [1, 5, 64])
@pytest.mark.parametrize("total", [1.0, 1 / 255])
def test_weights_of_an_output_sum_to_the_total_and_mirror_in_the_box(outputs, interpolation, total):
    start, length = torch.tensor([0.0, 4.0, 11.0]), torch.tensor([30.0, 13.0, 1.0])
    matrices = resampling_matrices(start, length, 30, outputs, interpolation, total=total)
    assert torch.allclose(matrices.sum(-1), torch.full((3, outputs), total), rtol=1e-6)
    inside = matrices[1, :, 4:17]
    assert torch.allclose(inside, inside.flip(0, 1), atol=1e-6)
    flipped = resampling_matrices(start, length, 30, outputs, interpolation, torch.tensor([0, 1, 1]), total)
    assert torch.equal(flipped, torch.stack([matrices[0], matrices[1].flip(0), matrices[2].flip(0)]))


# Where the cells of a view lie

@pytest.mark.parametrize(("flips", "x", "y"), [
    ((False, False), (0.25, 0.35, 0.45, 0.55), (0.2, 0.4, 0.6)),
    ((True, False), (0.55, 0.45, 0.35, 0.25), (0.2, 0.4, 0.6)),
    ((False, True), (0.25, 0.35, 0.45, 0.55), (0.6, 0.4, 0.2)),
    ((True, True), (0.55, 0.45, 0.35, 0.25), (0.6, 0.4, 0.2)),
])
def test_cells_of_a_box_lie_half_a_cell_from_its_edges(flips, x, y):
    centres = cell_centres(rows_of((0.2, 0.1, 0.6, 0.7)), torch.tensor([flips]), 3, 4)
    assert centres.shape == (1, 3, 4, 2)
    for i, j in product(range(3), range(4)):
        assert centres[0, i, j].tolist() == pytest.approx([x[j], y[i]])


def test_each_image_has_its_own_cells_and_one_cell_is_the_middle_of_its_box():
    boxes = rows_of((0.2, 0.1, 0.6, 0.7), (0, 0.5, 0.5, 1))
    flipped = torch.tensor([[True, False], [False, True]])
    together = cell_centres(boxes, flipped, 5, 7)
    for i in range(2):
        assert torch.equal(together[i:i + 1], cell_centres(boxes[i:i + 1], flipped[i:i + 1], 5, 7))
    assert torch.allclose(cell_centres(boxes, flipped, 1, 1)[:, 0, 0], rows_of((0.4, 0.4), (0.25, 0.75)))


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("size", [7, 20, 33])
@pytest.mark.parametrize(("box", "image"), [((3, 8, 31, 17), (45, 61)), ((0, 0, 45, 60), (45, 61)),
                                            ((5, 2, 11, 13), (17, 19))])
def test_a_crop_of_coordinates_holds_the_cell_centres_of_its_box(box, image, size, flips):
    (top, left, height, width), (rows, columns) = box, image
    x, y = (torch.arange(columns) + 0.5) / columns, (torch.arange(rows) + 0.5) / rows
    coordinates = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)])[None]
    view = crops(coordinates, box, size, flips=flips)[0]
    share = torch.tensor([[left / columns, top / rows, (left + width) / columns, (top + height) / rows]])
    predicted = cell_centres(share, torch.tensor([flips]).bool(), size, size)[0].permute(2, 0, 1)
    step = torch.tensor([max(width / size, 1) / columns, max(height / size, 1) / rows])[:, None, None]
    off = (view - predicted).abs() / step                                       # pixels, the larger of the two kinds
    assert off.max() <= 0.5 + 1e-4
    middle = slice(math.ceil(size / 4), -math.ceil(size / 4))
    assert off[:, middle, middle].max() < 0.05


@pytest.mark.parametrize(("one", "flip", "other", "other_flip", "threshold", "positives"), [
    (FULL, (0, 0), FULL, (0, 0), 0.7, 49),                       # P1: the nearest other is 1 / sqrt(2) = 0.7071 away
    (FULL, (0, 0), FULL, (0, 0), 0.71, 217),
    ((0, 0, 0.5, 1), (0, 0), (0, 0, 0.5, 1), (0, 0), 0.7, 133),  # P2: neighbours in a row are 1 / sqrt(5) away
    (FULL, (0, 0), FULL, (1, 0), 0.7, 49),                       # P3
    (FULL, (0, 0), FULL, (0, 1), 0.7, 49),
    ((0, 0, 0.4, 1), (0, 0), (0.6, 0, 1, 1), (0, 0), 0.7, 0),    # P4
    ((0, 0, 0.5, 0.5), (0, 0), FULL, (0, 0), 0.7, 133),          # P5
    ((0.1, 0.2, 0.7, 0.9), (0, 0), (0.3, 0.1, 0.9, 0.6), (0, 0), 0.7, 86),      # P6
    ((0.1, 0.2, 0.7, 0.9), (0, 0), (0.3, 0.1, 0.9, 0.6), (1, 0), 0.7, 86),
])
def test_positives_of_pixpro_are_as_many_as_its_authors_rule_gives(one, flip, other, other_flip, threshold, positives):
    views = [(rows_of(box), torch.tensor([flips]).bool()) for box, flips in ((one, flip), (other, other_flip))]
    here, there = (cell_centres(*view, 7, 7).view(49, 2).tolist() for view in views)
    diagonal = max(math.hypot(box[2] - box[0], box[3] - box[1]) / 7 for box in (one, other))
    distances = [[math.dist(a, b) / diagonal for b in there] for a in here]
    near = [(i, j) for i, j in product(range(49), range(49)) if distances[i][j] < threshold]
    assert len(near) == positives
    assert torch.allclose(cell_distances(*views[0], *views[1], 7, 7)[0], torch.tensor(distances).double(), atol=1e-6)
    if other_flip == (1, 0) and one == FULL:
        assert [j for i, j in near if i < 7] == [6, 5, 4, 3, 2, 1, 0]           # the partners of the first row
    if one == (0, 0, 0.5, 0.5):
        assert len({i for i, _ in near}) == 49


def test_distances_of_cells_are_measured_in_the_larger_diagonal_of_each_image_by_itself():
    boxes, others = rows_of(FULL, (0, 0, 0.2, 0.2)), rows_of((0, 0, 0.5, 0.5), (0.1, 0.1, 0.4, 0.5))
    still = torch.zeros(2, 2, dtype=torch.bool)
    distances = cell_distances(boxes, still, others, still, 2, 3)
    assert distances.shape == (2, 6, 6)
    first = math.dist((1 / 6, 1 / 4), (1 / 12, 1 / 8)) / math.hypot(1 / 3, 1 / 2)
    second = math.dist((0.2 / 6, 0.05), (0.15, 0.2)) / math.hypot(0.1, 0.2)
    assert distances[:, 0, 0].tolist() == pytest.approx([first, second])
    assert torch.allclose(cell_distances(others, still, boxes, still, 2, 3), distances.transpose(1, 2))


def test_a_map_of_one_cell_is_refused_where_cells_are_matched():
    with pytest.raises(ValueError, match="feature maps of more than one cell, .* is 1x1: draw larger views"):
        cell_distances(VIEWS, TURNS, VIEWS, TURNS, 1, 1)


# What boxes share

@pytest.mark.parametrize(("box", "other", "shared", "share", "back"), [
    ((0, 0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75), (0.25, 0.25, 0.5, 0.5), 1 / 4, 1 / 4),
    (FULL, (0.2, 0.3, 0.6, 0.5), (0.2, 0.3, 0.6, 0.5), 0.08, 1),                        # nested
    ((0.1, 0.2, 0.7, 0.9), (0.3, 0.1, 0.9, 0.6), (0.3, 0.2, 0.7, 0.6), 0.16 / 0.42, 0.16 / 0.30),
    ((0.1, 0.1, 0.3, 0.9), (0.3, 0.1, 0.9, 0.9), (0.3, 0.1, 0.3, 0.9), 0, 0),           # an edge in common
])
def test_boxes_share_what_a_drawing_shows(box, other, shared, share, back):
    box, other = rows_of(box), rows_of(other)
    for one, two in (box, other), (other, box):
        assert torch.allclose(intersection(one, two), rows_of(shared))
    assert overlap(box, other).item() == pytest.approx(share)
    assert overlap(other, box).item() == pytest.approx(back)


@pytest.mark.parametrize("other", [
    (0.6, 0.1, 0.9, 0.2), (0.0, 0.7, 0.3, 0.9), (0.6, 0.7, 0.9, 0.9), (0.0, 0.0, 0.1, 0.1),
])
def test_boxes_that_lie_apart_share_nothing(other):
    box, other = rows_of((0.2, 0.2, 0.5, 0.5)), rows_of(other)
    for one, two in (box, other), (other, box):
        assert area(intersection(one, two)).item() == 0
        assert overlap(one, two).item() == 0


def test_area_is_width_times_height_of_each_box():
    assert area(rows_of(FULL, (0.1, 0.2, 0.6, 0.4), (0.5, 0.5, 0.5, 0.9))).tolist() == pytest.approx([1, 0.1, 0])


# What a view's map says about places of the source

@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 8), (1, 3)])
def test_a_map_at_its_own_cells_is_the_map(height, width):
    maps = noise(4, 6, height, width).double()
    sampled, inside = inverse_sample(maps, VIEWS, TURNS, cell_centres(VIEWS, TURNS, height, width))
    assert inside.all()
    assert torch.allclose(sampled, maps, atol=1e-6)


@pytest.mark.parametrize("turns", [TURNS, TURNS.flip(0), TURNS.roll(1, 0), ~TURNS.roll(2, 0)])
def test_a_map_of_coordinates_holds_in_another_view_s_frame_what_that_frame_says(turns):
    theirs = rows_of((0.2, 0.1, 0.9, 0.6), (0.1, 0.4, 0.4, 0.8), (0.0, 0.2, 0.9, 0.9), (0.3, 0.45, 0.55, 0.7))
    coordinates = cell_centres(VIEWS, TURNS, 9, 12).permute(0, 3, 1, 2)                 # what each cell is about
    places = cell_centres(theirs, turns, 8, 7)
    sampled, inside = inverse_sample(coordinates, VIEWS, TURNS, places)
    counts = [0, 0]
    for b, i, j in product(range(4), range(8), range(7)):
        (left, top, right, bottom), (x, y) = VIEWS[b].tolist(), places[b, i, j].tolist()
        within = left <= x <= right and top <= y <= bottom
        counts[within] += 1
        assert inside[b, i, j].item() == within
        half = (right - left) / 24, (bottom - top) / 18                                  # of a cell: kept to there
        expected = [min(max(x, left + half[0]), right - half[0]),
                    min(max(y, top + half[1]), bottom - half[1])] if within else [0, 0]
        assert sampled[b, :, i, j].tolist() == pytest.approx(expected, abs=1e-7)
    assert min(counts) > 10


def test_half_way_between_two_cells_lies_their_mean_and_beyond_the_last_its_own_value():
    maps = torch.tensor([1.0, 5.0]).view(1, 1, 1, 2)
    places = torch.tensor([[[(0.25, 0.5), (0.5, 0.5), (0.6, 0.5), (0.01, 0.9), (0.99, 0.1), (1.01, 0.5), (0.5, -0.1)]]])
    for flips, expected in ((False, False), (1, 3, 3.8, 1, 5, 0, 0)), ((True, False), (5, 3, 2.2, 5, 1, 0, 0)):
        sampled, inside = inverse_sample(maps, torch.tensor([FULL]).float(), torch.tensor([flips]), places)
        assert sampled.flatten().tolist() == pytest.approx(expected)
        assert inside.flatten().tolist() == [True] * 5 + [False] * 2


def test_a_map_in_half_precision_is_sampled_in_it():
    maps = noise(4, 2, 7, 7).half()
    sampled, _ = inverse_sample(maps, VIEWS.float(), TURNS, cell_centres(VIEWS.float(), TURNS, 7, 7))
    assert sampled.dtype == torch.float16
    assert (sampled - maps).abs().max() < 0.01
