"""The crop against torchvision's antialiased resize, and the resampling matrices against their closed forms."""

import pytest
import torch
import torchvision.transforms.v2.functional as torchvision

from ssl_zoo.geometry import crop_and_resize, resampling_matrices

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


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def crops(images, box, size, interpolation="bilinear", flipped=0):
    """[B, C, size, size]: the same box of each image."""
    places = torch.tensor([*box, flipped], dtype=torch.float32)[:, None, None].expand(-1, 1, len(images))
    return crop_and_resize(images, *places, size, interpolation)[0]


def torchvision_crop(images, box, size, interpolation):
    mode = getattr(torchvision.InterpolationMode, interpolation.upper())
    return torchvision.resized_crop(images, *box, [size, size], interpolation=mode, antialias=True).clamp(0, 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [1, 8, 33, 96])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_a_crop_is_torchvision_s_antialiased_resize_of_the_box(box, size, interpolation):
    images = noise(2, 3, ROWS, COLUMNS)
    expected = torchvision_crop(images, box, size, interpolation)
    for flipped, picture in (0, expected), (1, expected.flip(-1)):
        assert (crops(images, box, size, interpolation, flipped) - picture).abs().max() < 1e-3 * LEVEL


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_of_a_photograph_s_size_is_torchvision_s(interpolation):
    images, box = noise(1, 3, 375, 500), (12, 101, 333, 298)
    expected = torchvision_crop(images, box, 64, interpolation)
    assert (crops(images, box, 64, interpolation) - expected).abs().max() < 1e-3 * LEVEL


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_bytes_and_unit_floats_give_the_same_crop(interpolation):
    pixels = (256 * noise(2, 3, ROWS, COLUMNS)).to(torch.uint8)
    from_bytes = crops(pixels, BOXES["odd"], 20, interpolation)
    assert from_bytes.dtype == torch.float32
    assert torch.equal(from_bytes, crops(pixels / 255, BOXES["odd"], 20, interpolation))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_each_view_of_each_image_has_its_own_box_and_flip(channels):
    images = noise(2, channels, ROWS, COLUMNS)
    boxes = torch.tensor([[(0, 0, 45, 61), (3, 8, 31, 17)], [(20, 1, 3, 59), (1, 50, 43, 2)],
                          [(30, 40, 15, 21), (7, 5, 1, 1)]])                                   # [V, B, 4]
    flipped = torch.tensor([[0, 1], [1, 1], [0, 0]])
    views = crop_and_resize(images, *boxes.float().unbind(-1), flipped.float(), 12, "bilinear")
    assert views.shape == (3, 2, channels, 12, 12)
    for v in range(3):
        for i in range(2):
            alone = crops(images[i:i + 1], boxes[v, i].tolist(), 12, flipped=flipped[v, i].item())[0]
            assert torch.allclose(views[v, i], alone, atol=1e-6)


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
def test_weights_of_an_output_sum_to_one_and_mirror_in_the_box(outputs, interpolation):
    start, length = torch.tensor([0.0, 4.0, 11.0]), torch.tensor([30.0, 13.0, 1.0])
    matrices = resampling_matrices(start, length, 30, outputs, interpolation)
    assert torch.allclose(matrices.sum(-1), torch.ones(3, outputs))
    inside = matrices[1, :, 4:17]
    assert torch.allclose(inside, inside.flip(0, 1), atol=1e-6)
    flipped = resampling_matrices(start, length, 30, outputs, interpolation, torch.tensor([0, 1, 1]))
    assert torch.equal(flipped, torch.stack([matrices[0], matrices[1].flip(0), matrices[2].flip(0)]))
