"""Views: where each comes from, that nothing but images and key decides it, and that both ways of making it agree."""

import collections
import io
import math
import os
import random
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.metrics
import torchvision.transforms.v2.functional as torchvision
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssl_zoo.views import Augmentation, Canvases, Crops, Key, colour, pipeline
from ssl_zoo.views.crops import cell_centres
from ssl_zoo.views.operations import OPERATIONS
from ssl_zoo.views.pipeline import compiled
from ssl_zoo.views.specs import ViewSpec

KEY = Key(seed=7, epoch=3, batch=11, rank=1)
LEVEL = 1 / 255
STILL = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}
LIVELY = {"vertical_flip": 0.4, "jitter": 0.8, "gray": 0.3, "blur": 0.5, "sigma": (0.3, 2.0), "solarize": 0.3}


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def noise_bytes(*shape, seed=0):
    return (256 * noise(*shape, seed=seed)).to(torch.uint8)


def coordinates(rows, columns):
    """[3, rows, columns]: each pixel holds its place as shares of the width and of the height."""
    x, y = (torch.arange(columns) + 0.5) / columns, (torch.arange(rows) + 0.5) / rows
    return torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns), torch.zeros(rows, columns)])


def same(views, others):
    return all(torch.equal(view.images, other.images) and torch.equal(view.boxes, other.boxes)
               and torch.equal(view.flipped, other.flipped) for view, other in zip(views, others, strict=True))


def densely(augmentation, batch):
    """Views by the way of a GPU, which takes every step for every image, uncompiled."""
    with torch.compiler.set_stance("force_eager"):
        return Augmentation(augmentation.views, compile=True)(batch, KEY)


# What decides a draw

def test_the_same_key_gives_the_same_bits():
    augmentation = Augmentation([ViewSpec(size=16, count=2, **LIVELY), ViewSpec(size=8, **LIVELY)])
    images = noise_bytes(6, 3, 24, 30)
    assert same(augmentation(images, KEY), augmentation(images, KEY))


def test_drawing_leaves_the_global_random_states_as_they_were():
    def states():
        kind, words, *rest = np.random.get_state()    # noqa: NPY002
        return torch.get_rng_state().tolist(), kind, words.tolist(), rest, random.getstate()

    before = states()
    augmentation, images = Augmentation([ViewSpec(size=16, count=2, **LIVELY)]), noise_bytes(4, 3, 20, 20)
    augmentation(images, KEY)
    augmentation(augmentation.cut(list(images), KEY), KEY)
    assert states() == before


def test_the_global_random_states_do_not_change_a_draw():
    augmentation, images = Augmentation([ViewSpec(size=16, count=2, **LIVELY)]), noise_bytes(4, 3, 20, 20)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = augmentation(images, KEY)
        torch.manual_seed(1)
        second = augmentation(images, KEY)
    assert same(first, second)


@pytest.mark.parametrize("where", ["device", "worker"])
def test_an_image_does_not_change_the_views_of_another(where):
    augmentation = Augmentation([ViewSpec(size=16, count=3, jitter=1, gray=0.3, blur=0.5, solarize=0.3)])
    images = noise_bytes(8, 3, 24, 30)
    other = images.clone()
    other[5] = 255 - other[5] // 2
    before, after = (augmentation(x if where == "device" else augmentation.cut(list(x), KEY), KEY)
                     for x in (images, other))
    rest = [0, 1, 2, 3, 4, 6, 7]
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a.images[rest], b.images[rest])
        assert not torch.equal(a.images[5], b.images[5])


# Where a view comes from

@pytest.mark.parametrize("way", ["sparse", "dense"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [21, 56, 300])
def test_a_view_shows_the_places_that_its_box_and_flips_say(size, interpolation, way):
    rows, columns = 101, 130
    spec = ViewSpec(size=size, count=4, scale=(0.05, 1.0), interpolation=interpolation, vertical_flip=0.5)
    augmentation, images = Augmentation([spec]), coordinates(rows, columns).expand(4, -1, -1, -1)
    for view in augmentation(images, KEY) if way == "sparse" else densely(augmentation, images):
        centres = cell_centres(view.boxes, view.flipped, size, size).permute(0, 3, 1, 2)
        pixels = (view.boxes[:, 2:] - view.boxes[:, :2]) * torch.tensor([columns, rows]) / size
        step = pixels.clamp_min(1) / torch.tensor([columns, rows])            # the larger kind of pixel, as shares
        off = (view.images[:, :2] - centres).abs() / step[:, :, None, None]
        assert off.max() < 0.501
        edge = max(2, math.ceil(2 * size / 20))       # the smallest crop is 20 pixels wide, a bicubic kernel reaches 2
        assert off[..., edge:-edge, edge:-edge].max() < 0.12
    kinds = {tuple(flips) for view in augmentation(images, KEY) for flips in view.flipped.tolist()}
    assert len(kinds) == 4


def test_crops_of_images_of_different_sizes_show_the_places_that_their_boxes_say():
    sizes, size = [(40, 200), (250, 90), (17, 23), (120, 120)], 24
    images = [torch.stack([torch.arange(columns).expand(rows, -1), torch.arange(rows)[:, None].expand(-1, columns),
                           torch.zeros(rows, columns)]).to(torch.uint8) for rows, columns in sizes]
    augmentation = Augmentation([ViewSpec(size=size, count=6, vertical_flip=0.5)])
    for view in augmentation(augmentation.cut(images, KEY), KEY):
        centres = cell_centres(view.boxes, view.flipped, size, size)
        for i, (rows, columns) in enumerate(sizes):
            wide, high = ((view.boxes[i, 2:] - view.boxes[i, :2]) * torch.tensor([columns, rows]) / size).tolist()
            x, y = (centres[i] * torch.tensor([columns, rows]) - 0.5).unbind(-1)       # a byte holds its pixel's index
            assert (255 * view.images[i, 0] - x).abs().max() < 0.5 * max(1, wide) + 1  # and is rounded twice
            assert (255 * view.images[i, 1] - y).abs().max() < 0.5 * max(1, high) + 1


@pytest.mark.parametrize(("interpolation", "levels"), [
    ("bilinear", 1.01), ("bicubic", 1.14),      # rounded after each direction, and a cubic's weights add up to 1.25
])
@pytest.mark.parametrize("size", [12, 48])
def test_a_worker_cuts_what_the_device_would_crop_to_one_level(size, interpolation, levels):
    images = torchvision.gaussian_blur(noise_bytes(5, 3, 40, 56), [3, 3])
    augmentation = Augmentation([ViewSpec(size=size, count=3, interpolation=interpolation, vertical_flip=0.5),
                                 ViewSpec(size=8)])
    there, here = augmentation(images, KEY), augmentation(augmentation.cut(list(images), KEY), KEY)
    for device, worker in zip(there, here, strict=True):
        assert (device.images - worker.images).abs().max() < levels * LEVEL
        assert torch.equal(device.boxes, worker.boxes)
        assert torch.equal(device.flipped, worker.flipped)


def test_a_worker_cuts_each_image_as_it_would_cut_it_in_any_company():
    images = [noise_bytes(3, rows, columns) for rows, columns in ((30, 50), (64, 20), (9, 9))]
    augmentation = Augmentation([ViewSpec(size=16, count=4, vertical_flip=0.5)])
    crops = augmentation.cut(images, KEY)
    assert crops.sizes.tolist() == [[30, 50], [64, 20], [9, 9]]
    for pixels, drawn in zip(crops.pixels[0], crops.tables[0], strict=True):
        for crop, image, row in zip(pixels, images, drawn, strict=True):
            top, left, height, width, flipped, vertically = (int(x) for x in (*row["crop"], *row["flips"]))
            expected = torchvision.resized_crop(image / 255, top, left, height, width, [16, 16], antialias=True)
            expected = torchvision.horizontal_flip(expected) if flipped else expected
            expected = torchvision.vertical_flip(expected) if vertically else expected
            assert (crop / 255 - expected).abs().max() < 1.01 * LEVEL


# What comes out

def by_torchvision(image, row, spec):
    """The view [3, size, size] of a float image by torchvision's functions, one after another."""
    top, left, height, width = row["crop"].astype(int).tolist()
    jitter, sigma = row["jitter"], float(row["blur"]["sigma"])
    mode = torchvision.InterpolationMode(spec.interpolation)
    view = torchvision.resized_crop(image, top, left, height, width, [spec.size, spec.size], mode, antialias=True)
    view = view.clamp(0, 1)
    if row["flips"][0]:
        view = torchvision.horizontal_flip(view)
    if row["flips"][1]:
        view = torchvision.vertical_flip(view)
    if jitter["applied"]:
        adjust = (torchvision.adjust_brightness, torchvision.adjust_contrast, torchvision.adjust_saturation,
                  torchvision.adjust_hue)
        for operation in jitter["order"].astype(int):
            view = adjust[operation](view, float(jitter["factors"][operation]))
    if row["gray"]["applied"]:
        view = torchvision.rgb_to_grayscale(view, 3)
    if sigma:
        view = torchvision.gaussian_blur(view, [spec.blur_kernel] * 2, [sigma] * 2)
    return torchvision.solarize(view, spec.threshold) if row["solarize"]["applied"] else view


@pytest.mark.parametrize("way", ["sparse", "dense"])
def test_views_are_what_torchvisions_functions_make_of_the_table(way):
    specs = [ViewSpec(size=24, count=2, **LIVELY),
             ViewSpec(size=40, kernel=7, threshold=0.3, interpolation="bicubic", **LIVELY)]
    augmentation, images = Augmentation(specs), noise_bytes(16, 3, 30, 36)
    views = iter(augmentation(images, KEY) if way == "sparse" else densely(augmentation, images))
    for spec, drawn in zip(specs, augmentation.draw(np.array([[30, 36]] * 16), KEY), strict=True):
        for rows in drawn:
            expected = torch.stack([by_torchvision(image / 255, row, spec)
                                    for image, row in zip(images, rows, strict=True)])
            wrong = (next(views).images - expected).abs() > 1e-4
            assert wrong.float().mean() < 1e-4      # a value at the very threshold may be solarised by one of the two


@pytest.mark.parametrize("where", ["device", "worker"])
def test_views_come_in_the_order_of_their_specs_with_their_size_count_and_kinds(where):
    augmentation = Augmentation([ViewSpec(size=12, count=2, role="global", **LIVELY),
                                 ViewSpec(size=7, count=3, role="local", **LIVELY)])
    images = noise_bytes(5, 3, 20, 26)
    views = augmentation(images if where == "device" else augmentation.cut(list(images), KEY), KEY)
    assert augmentation.count == len(views) == 5
    assert [list(view.images.shape) for view in views] == [[5, 3, size, size] for size in (12, 12, 7, 7, 7)]
    for view in views:
        assert view.images.dtype == view.boxes.dtype == torch.float32
        assert view.flipped.dtype == torch.bool
        assert view.boxes.shape == (5, 4)
        assert view.flipped.shape == (5, 2)
        assert view.boxes.min() >= 0
        assert view.boxes.max() <= 1
        assert view.images.min() >= 0
        assert view.images.max() <= 1 + 1e-6
    assert not any(same([first], [second]) for first, second in ((views[0], views[1]), (views[2], views[3])))
    assert [view.role for view in views] == ["global"] * 2 + ["local"] * 3


@pytest.mark.parametrize("where", ["device", "worker"])
def test_with_everything_off_a_view_is_the_image(where):
    augmentation, images = Augmentation([ViewSpec(size=16, **STILL)]), noise_bytes(4, 3, 16, 16)
    view, = augmentation(images if where == "device" else augmentation.cut(list(images), KEY), KEY)
    assert torch.allclose(view.images, images / 255, atol=1e-6)
    assert torch.equal(view.boxes, torch.tensor([[0.0, 0, 1, 1]] * 4))
    assert not view.flipped.any()


@pytest.mark.parametrize("where", ["device", "worker"])
@pytest.mark.parametrize(("flips", "sides"), [((1, 0), [-1]), ((0, 1), [-2]), ((1, 1), [-1, -2])])
def test_a_certain_flip_mirrors_the_image_and_keeps_its_box(flips, sides, where):
    spec = ViewSpec(size=16, **{**STILL, "flip": flips[0], "vertical_flip": flips[1]})
    augmentation, images = Augmentation([spec]), noise_bytes(4, 3, 16, 16)
    view, = augmentation(images if where == "device" else augmentation.cut(list(images), KEY), KEY)
    assert torch.allclose(view.images, images.flip(sides) / 255, atol=1e-6)
    assert torch.equal(view.boxes, torch.tensor([[0.0, 0, 1, 1]] * 4))
    assert view.flipped.tolist() == [[flip == 1 for flip in flips]] * 4


@pytest.mark.parametrize("where", ["device", "worker"])
def test_crops_are_coloured_wherever_they_were_cut(where):
    spec = ViewSpec(size=16, **STILL, gray=1, solarize=1)
    augmentation, images = Augmentation([spec]), noise_bytes(4, 3, 16, 16)
    view, = augmentation(images if where == "device" else augmentation.cut(list(images), KEY), KEY)
    expected = torchvision.solarize(torchvision.rgb_to_grayscale(images / 255, 3), 128 / 255)
    assert torch.allclose(view.images, expected, atol=1e-6)


def test_bytes_and_unit_floats_give_the_same_views_and_stay_unchanged():
    spec = ViewSpec(size=16, count=2, **{**LIVELY, "solarize": 0})
    augmentation, images = Augmentation([spec]), noise_bytes(4, 3, 16, 16)
    floats = images / 255
    before = floats.clone()
    for view, other in zip(augmentation(images, KEY), augmentation(floats, KEY), strict=True):
        assert torch.allclose(view.images, other.images, rtol=0, atol=1e-5)
        assert torch.equal(view.boxes, other.boxes)
    assert torch.equal(floats, before)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_large_views_of_bytes_are_within_a_level_of_those_of_floats(interpolation):
    """Where a CPU resizes bytes, which rounds after each direction; a cubic's weights add up to 1.25."""
    images = torchvision.gaussian_blur(noise_bytes(4, 3, 90, 100), [3, 3])
    augmentation = Augmentation([ViewSpec(size=72, count=3, vertical_flip=0.5, interpolation=interpolation)])
    for view, other in zip(augmentation(images, KEY), augmentation(images / 255, KEY), strict=True):
        assert (view.images - other.images).abs().max() < (1.01 if interpolation == "bilinear" else 1.14) * LEVEL
        assert torch.equal(view.boxes, other.boxes)
        assert torch.equal(view.flipped, other.flipped)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision_views_are_the_full_ones_rounded_once(dtype, channels_last):
    rows, images = [ViewSpec(size=16, count=2, **LIVELY), ViewSpec(size=9)], noise_bytes(4, 3, 24, 30)
    halves = Augmentation(rows, dtype=dtype, channels_last=channels_last)(images, KEY)
    for view, half in zip(Augmentation(rows)(images, KEY), halves, strict=True):
        assert torch.equal(half.images, view.images.to(getattr(torch, dtype)))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert half.images.is_contiguous(memory_format=layout)
        assert half.boxes.dtype == torch.float32


def test_under_autocast_views_are_computed_in_full():
    augmentation, images = Augmentation([ViewSpec(size=16, count=2, **LIVELY)]), noise_bytes(4, 3, 24, 30)
    expected = augmentation(images, KEY), densely(augmentation, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(augmentation(images, KEY), expected[0])
        assert same(densely(augmentation, images), expected[1])


def test_a_clean_view_is_the_square_in_the_middle_resized():
    images = noise_bytes(3, 3, 40, 61)
    view, = Augmentation([ViewSpec(size=16, clean=True, flip=1)])(images, KEY)
    expected = torchvision.resize(images[..., 10:50] / 255, [16, 16], antialias=True)
    assert torch.allclose(view.images, expected, atol=1e-5)
    assert torch.allclose(view.boxes, torch.tensor([10 / 61, 0, 50 / 61, 1]).expand(3, -1))
    assert not view.flipped.any()


def test_one_channel_is_three_equal_ones():
    augmentation, images = Augmentation([ViewSpec(size=16, count=2, **LIVELY)]), noise_bytes(4, 1, 20, 20)
    assert same(augmentation(images, KEY), augmentation(images.repeat(1, 3, 1, 1), KEY))


# Images of different sizes on canvases

def on_canvases(images, rows, columns, fill):
    """Canvases [B, 3, rows, columns] of `fill`, with each image in the upper left corner."""
    pixels = torch.full((len(images), 3, rows, columns), fill, dtype=torch.uint8)
    for place, image in zip(pixels, images, strict=True):
        place[:, :image.shape[1], :image.shape[2]] = image
    return Canvases(pixels, np.array([image.shape[1:] for image in images]))


@pytest.mark.parametrize("way", ["sparse", "dense"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [4, 20, 70])
def test_nothing_of_a_canvas_beside_its_image_reaches_a_view(size, interpolation, way):
    images = [torch.full((3, *shape), 10, dtype=torch.uint8) for shape in [(24, 31), (7, 40), (33, 1), (1, 1)]]
    canvases = on_canvases(images, 33, 41, 255)
    augmentation = Augmentation([ViewSpec(size=size, count=6, vertical_flip=0.5, interpolation=interpolation)])
    for view in augmentation(canvases, KEY) if way == "sparse" else densely(augmentation, canvases):
        assert (view.images - 10 * LEVEL).abs().max() < 1e-6


@pytest.mark.parametrize("way", ["sparse", "dense"])
@pytest.mark.parametrize("size", [12, 70])
def test_an_image_on_a_canvas_has_the_views_that_it_has_alone(size, way):
    images = [noise_bytes(3, *shape, seed=seed) for seed, shape in enumerate([(24, 31), (7, 40), (33, 12), (1, 1)])]
    augmentation = Augmentation([ViewSpec(size=size, count=4, **LIVELY), ViewSpec(size=8, clean=True)])
    canvases, crops = on_canvases(images, 33, 41, 128), augmentation.cut(images, KEY)
    views = augmentation(canvases, KEY) if way == "sparse" else densely(augmentation, canvases)
    drawn = [rows for table in augmentation.draw(canvases.sizes, KEY) for rows in table]
    assert all(np.array_equal(a, b) for a, b in zip(augmentation.draw(canvases.sizes, KEY), crops.tables, strict=True))
    for view, rows, spec in zip(views, drawn, [augmentation.views[0]] * 4 + [augmentation.views[1]], strict=True):
        expected = torch.stack([by_torchvision(image / 255, row, spec)
                                for image, row in zip(images, rows, strict=True)])
        if spec.clean or size == 12 or way == "dense":
            assert ((view.images - expected).abs() > 1e-4).float().mean() < 1e-4
        for i, image in enumerate(images):
            shape = np.array([image.shape[2], image.shape[1]] * 2)
            top, left, height, width = rows["crop"][i]
            box = np.array([left, top, left + width, top + height]) / shape
            assert np.allclose(view.boxes[i], box, atol=1e-6)
    for view, other in zip(augmentation(canvases, KEY), augmentation(crops, KEY), strict=True):
        assert torch.equal(view.boxes, other.boxes)
        assert torch.equal(view.flipped, other.flipped)


@pytest.mark.parametrize(("sizes", "sentence"), [
    ([[8, 8], [9, 8]], r"an image of \[9, 8\] pixels does not fit its canvas of \[8, 10\]; sizes are height, width"),
    ([[8, 11], [8, 8]], r"an image of \[8, 11\] pixels does not fit its canvas of \[8, 10\]"),
    ([[8, 0], [8, 8]], "2 canvases need the height and width of each image, at least 1 pixel"),
    ([[8, 8]], r"2 canvases need the height and width .* not sizes of shape \[1, 2\]"),
    ([[8, 8, 3]] * 2, r"2 canvases need the height and width .* not sizes of shape \[2, 3\]"),
])
def test_sizes_that_do_not_fit_their_canvases_are_refused(sizes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Augmentation([ViewSpec(size=4)])(Canvases(torch.zeros(2, 3, 8, 10, dtype=torch.uint8), np.array(sizes)), KEY)


# The way of a GPU: every image takes every step

@pytest.mark.parametrize("kind", ["bytes", "floats", "crops"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_both_ways_give_the_same_views(interpolation, kind):
    rows = [ViewSpec(size=24, count=3, interpolation=interpolation, **LIVELY),
            ViewSpec(size=17, count=2, interpolation=interpolation, kernel=7, **LIVELY),
            ViewSpec(size=9, interpolation=interpolation, flip=0)]
    augmentation, images = Augmentation(rows), noise_bytes(16, 3, 37, 29)
    batch = {"bytes": images, "floats": images / 255, "crops": augmentation.cut(list(images), KEY)}[kind]
    ours, others = augmentation(batch, KEY), densely(augmentation, batch)
    changed = 0
    for view, other in zip(ours, others, strict=True):
        off = (view.images - other.images).abs() > 1e-5
        assert off.float().mean() < 1e-4            # a value at the very threshold may be solarised by one of the two
        changed += off.any().item()
        assert torch.equal(view.boxes, other.boxes)
        assert torch.equal(view.flipped, other.flipped)
        assert view.role == other.role
    assert changed <= 2
    table = augmentation.draw(np.array([[37, 29]] * 16), KEY)[0]
    for taken in (*np.moveaxis(table["flips"], -1, 0), *(table[one.name][one.columns.names[0]] for one in OPERATIONS)):
        assert 0 < (taken > 0).mean() < 1                             # each step is taken by some views, not by all


@pytest.mark.parametrize("change", [{}, {"jitter": 1}, {"gray": 1}, {"blur": 1}, {"solarize": 1}])
def test_a_row_of_one_change_is_the_same_by_both_ways(change):
    augmentation, images = Augmentation([ViewSpec(size=16, count=2, kernel=5, **change)]), noise_bytes(12, 3, 20, 20)
    plain = Augmentation([ViewSpec(size=16, count=2)])(images, KEY)
    for view, other, bare in zip(augmentation(images, KEY), densely(augmentation, images), plain, strict=True):
        assert ((view.images - other.images).abs() > 1e-5).float().mean() < 1e-4
        assert torch.equal(view.images, bare.images) == (not change)


def test_an_image_does_not_change_the_views_of_another_by_the_way_of_a_gpu():
    augmentation, images = Augmentation([ViewSpec(size=16, count=2, **LIVELY)]), noise_bytes(8, 3, 24, 30)
    other = images.clone()
    other[5] = 255 - other[5] // 2
    rest = [0, 1, 2, 3, 4, 6, 7]
    for a, b in zip(densely(augmentation, images), densely(augmentation, other), strict=True):
        assert torch.equal(a.images[rest], b.images[rest])
        assert not torch.equal(a.images[5], b.images[5])


def test_compiled_views_are_those_of_both_other_ways_and_take_few_kernels():
    spec = ViewSpec(size=16, count=2, kernel=5, **LIVELY)
    augmentation, images = Augmentation([spec]), noise_bytes(6, 3, 20, 23)
    compiled.cache_clear()
    torch.compiler.reset()
    torch._inductor.metrics.reset()
    views = Augmentation([spec], compile=True)(images, KEY)
    assert 0 < torch._inductor.metrics.generated_kernel_count <= 25          # beside the products
    for other in augmentation(images, KEY), densely(augmentation, images):
        for a, b in zip(views, other, strict=True):
            assert ((a.images - b.images).abs() > 1e-5).float().mean() < 1e-3
            assert torch.equal(a.boxes, b.boxes)
            assert torch.equal(a.flipped, b.flipped)
    assert same(views, Augmentation([spec], compile=True)(images, KEY))


class Launches(TorchDispatchMode):
    """What a GPU would be asked for: kernels, copies to it, and whatever waits for it.

    Stands on a FakeTensorMode, whose tensors have no content but know where they are.
    """

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "item")

    def __init__(self):
        super().__init__()
        self.kernels, self.waits, self.copies, self.products = collections.Counter(), [], [], []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name, kwargs = operation.overloadpacket.__name__, kwargs or {}
        if name == "_pin_memory":                       # which fake tensors lack; the same tensor, still on the host
            return args[0]
        result = operation(*args, **kwargs)
        came, went = ([x for x in tree_leaves(some) if isinstance(x, torch.Tensor)]
                      for some in ((args, kwargs), result))
        devices = {x.device.type for x in came + went}
        if operation.namespace != "aten" or "cuda" not in devices:
            return result
        if name in ("_to_copy", "copy_"):
            source, target = came[-1].device.type, result.device.type
            if (source, target) == ("cpu", "cuda"):
                self.copies.append(kwargs.get("non_blocking", False))
                return result
            if (source, target) == ("cuda", "cpu"):
                self.waits.append(name)
        elif any(x.device.type == "cpu" and x.ndim for x in came + went) or name.startswith(self.WAITS):
            self.waits.append(name)               # a number on the host needs no copy: it is an argument of the kernel
        if name.startswith("index"):
            self.waits += [name for x in tree_leaves(args[1:]) if isinstance(x, torch.Tensor) and x.dtype == torch.bool]
        if name == "bmm":
            self.products.append(result.dtype)
        if not operation.is_view and not name.startswith(("empty", "_unsafe_view")):
            self.kernels[name] += 1
        return result


def launched(augmentation, make):
    """What the views of the batch that `make` makes ask of a GPU that is not here."""
    torch._C._ensureCUDADeviceGuardSet()
    colour.mirrored_taps.cache_clear()             # or a tensor without content would stay in it
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Launches() as launches:
            views = augmentation(make(), KEY)
            assert all(x.device.type == "cuda" for view in views for x in view[:3])
    finally:
        colour.mirrored_taps.cache_clear()
    return launches, views


def bytes_on_a_gpu():
    return torch.empty(8, 3, 40, 50, dtype=torch.uint8, device="cuda")


def canvases_on_a_gpu():
    return Canvases(bytes_on_a_gpu(), np.array([[40, 50], [3, 9]] * 4))


@pytest.mark.parametrize("make", [bytes_on_a_gpu, canvases_on_a_gpu])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_gpu_never_waits_and_gets_one_copy_and_few_kernels_for_each_row(interpolation, make):
    spec = ViewSpec(size=32, count=2, interpolation=interpolation, overlap=0.3, **LIVELY)
    rows = [spec, replace(spec, size=24, count=6)]
    launches, views = launched(Augmentation(rows, dtype="bfloat16", channels_last=True), make)
    assert not launches.waits
    assert launches.copies == [True] * 2                # one for each row, which the host does not wait for either
    assert launches.products == [torch.float16] * 8     # tensor cores: two for the crop, two for the blur
    assert 100 < launches.kernels.total() / 2 < 400     # 330 measured, 357 with bicubic
    assert [list(view.images.shape) for view in views] == [[8, 3, 32, 32]] * 2 + [[8, 3, 24, 24]] * 6


def test_a_gpu_gets_no_more_kernels_for_more_images_or_views():
    row = ViewSpec(size=32, count=2, **LIVELY)
    totals = set()
    for batch, count in (4, 2), (64, 2), (4, 9):
        launches, _ = launched(Augmentation([replace(row, count=count)]), lambda batch=batch: torch.empty(
            batch, 3, 40, 50, dtype=torch.uint8, device="cuda"))
        totals.add(launches.kernels.total())
    assert len(totals) == 1


def test_a_gpu_does_not_wait_for_the_crops_of_a_worker():
    augmentation = Augmentation([ViewSpec(size=8, count=2, **LIVELY)])
    crops = augmentation.cut(list(noise_bytes(4, 3, 20, 20)), KEY)
    launches, _ = launched(augmentation, lambda: Crops([torch.empty(2, 4, 3, 8, 8, dtype=torch.uint8, device="cuda")],
                                                       crops.tables, crops.sizes))
    assert not launches.waits
    assert launches.copies == [True]


def test_a_second_copy_to_a_gpu_would_have_been_seen():
    with FakeTensorMode(allow_non_fake_inputs=True), Launches() as launches:
        x = torch.empty(4, 2, device="cuda")
        x + torch.tensor(1.0).to("cuda") + torch.zeros(2).to("cuda", non_blocking=True) + 1.0
        x.copy_(torch.zeros(4, 2))
    assert launches.copies == [False, True, False]
    assert launches.kernels == {"add": 3}


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.cpu(), lambda x: x.tolist(),
                                  lambda x: x.nonzero(), lambda x: torch.zeros(4, 2).copy_(x)])
def test_what_a_gpu_waits_for_would_have_been_seen(wait):
    with FakeTensorMode(allow_non_fake_inputs=True), Launches() as launches:
        x = torch.empty(4, 2, device="cuda")
        try:
            wait(x)
        except Exception:     # a fake tensor has no value to wait for
            launches.waits.append("no value")
    assert launches.waits


# What is refused

@pytest.mark.parametrize("shape", [(2, 8, 8, 4), (2, 8, 8, 3), (2, 8, 8, 1), (0, 3, 8, 8), (3, 8, 8)])
def test_images_that_have_no_views_are_refused_with_their_shape(shape):
    with pytest.raises(ValueError, match=rf"views are drawn from images .* not from \[{str(list(shape))[1:-1]}\]"):
        Augmentation([ViewSpec(size=8)])(torch.zeros(shape), KEY)


def test_an_augmentation_of_no_views_is_refused():
    with pytest.raises(ValueError, match="an augmentation needs at least one row of views"):
        Augmentation([])


@pytest.mark.parametrize("images", [
    torch.full((1, 3, 8, 8), 1.01), torch.full((1, 3, 8, 8), -0.01), torch.full((1, 3, 8, 8), float("nan")),
    torch.full((1, 3, 8, 8), float("inf")), torch.zeros(1, 3, 8, 8).double(), torch.zeros(1, 3, 8, 8).half(),
    torch.zeros(1, 3, 8, 8).int(),
])
def test_floats_outside_the_unit_range_and_other_dtypes_are_refused(images):
    with pytest.raises(ValueError, match=r"views are drawn from uint8 images or float32 ones in \[0, 1\], not from"):
        Augmentation([ViewSpec(size=8)])(images, KEY)


def test_one_pixel_that_is_no_number_among_many_that_are_is_refused():
    images = noise(4, 3, 8, 8)
    images[2, 1, 5, 5] = float("nan")
    with pytest.raises(ValueError, match="to nan"):
        Augmentation([ViewSpec(size=8)])(images, KEY)


@pytest.mark.parametrize("images", [[], [torch.zeros(3, 8, 8)], [torch.zeros(3, 8, 8).byte(), torch.zeros(3, 8, 8)]])
def test_a_worker_refuses_what_it_cannot_cut(images):
    with pytest.raises(ValueError, match="a worker cuts crops from at least one image, of uint8 pixels"):
        Augmentation([ViewSpec(size=8)]).cut(images, KEY)


@pytest.mark.parametrize(("jitter", "within"), [(0.0, 1.0), (1.0, 3.0)])
@pytest.mark.parametrize("by_worker", [True, False])
def test_crops_in_whole_grey_levels_are_as_near_the_exact_ones_as_the_readme_says(by_worker, jitter, within,
                                                                                  monkeypatch):
    pack = Path(os.environ.get("SSL_ZOO_DATA", "")) / "imagenet_sample256.tar.gz"
    if not pack.is_file():
        pytest.skip("needs photographs: set SSL_ZOO_DATA to a folder with imagenet_sample256.tar.gz")
    photos = []
    with tarfile.open(pack) as content:
        for member in content:
            if member.name.endswith("JPEG") and len(photos) < 8:
                photo = Image.open(io.BytesIO(content.extractfile(member).read())).convert("RGB").resize((256, 256))
                photos.append(torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous())
            elif len(photos) == 8:
                break
    augment = Augmentation([ViewSpec(96, interpolation="bicubic", jitter=jitter, strength=1.0)])
    view, = augment(augment.cut(photos, KEY) if by_worker else torch.stack(photos), KEY)
    monkeypatch.setattr(pipeline, "BY_PRODUCTS", 96)
    exact, = augment(torch.stack(photos), KEY)
    apart = 255 * (view.images - exact.images).abs().flatten()
    assert apart.kthvalue(round(0.999 * len(apart))).values <= within
    assert 0.1 < apart.mean() < 0.3
    assert apart.max() < 12.5
