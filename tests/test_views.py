"""Views: what is drawn, where each view comes from, and that nothing but images and key decides it."""

import math
import random
from itertools import product

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as torchvision
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from ssl_zoo.views import COLUMNS, Augmentation, Column, Key, ViewSpec, draw

KEY = Key(seed=7, epoch=3, batch=11, rank=1)
LEVEL = 1 / 255
CHANCE = 1e-4                                    # a draw that is right fails with this probability; the seeds are fixed
STILL = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}
LIVELY = {"jitter": 0.8, "gray": 0.3, "blur": 0.5, "sigma": (0.3, 2.0), "solarize": 0.3}


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def noise_bytes(*shape, seed=0):
    return (256 * noise(*shape, seed=seed)).to(torch.uint8)


def table(spec, rows, columns, images=1, seed=0):
    return draw(spec, np.array([[rows, columns]] * images), np.random.default_rng(seed))


def same(views, others):
    return all(torch.equal(a, b) for view, other in zip(views, others, strict=True)
               for a, b in zip(view, other, strict=True))


# What is drawn

@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.05, 0.14)])
def test_crops_are_distributed_as_torchvisions(scale):
    n, image = 6000, torch.empty(3, 375, 500)
    ours = table(ViewSpec(size=8, scale=scale), 375, 500, n)[0, :, :4].T
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(n)], float).T
    for mine, other in zip((*ours, ours[2] * ours[3], ours[3] / ours[2]),
                           (*theirs, theirs[2] * theirs[3], theirs[3] / theirs[2]), strict=True):
        assert stats.ks_2samp(mine, other).pvalue > CHANCE


def test_the_share_of_the_area_and_the_logarithm_of_the_ratio_are_even_where_every_crop_fits():
    drawn = table(ViewSpec(size=8, scale=(0.1, 0.5)), 4000, 4000, 20000)[0].astype(float)
    height, width, high = drawn[:, Column.HEIGHT], drawn[:, Column.WIDTH], math.log(4 / 3)
    assert stats.kstest(height * width / 4000 ** 2, stats.uniform(0.1, 0.4).cdf).pvalue > CHANCE
    assert stats.kstest(np.log(width / height), stats.uniform(-high, 2 * high).cdf).pvalue > CHANCE


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 40), (37, 2), (32, 32), (375, 500)])
def test_a_crop_is_a_pixel_or_more_of_the_image(rows, columns):
    top, left, height, width = table(ViewSpec(size=8, scale=(0.01, 1.0)), rows, columns, 2000)[0, :, :4].T
    for start, length, side in (top, height, rows), (left, width, columns):
        assert (start >= 0).all()
        assert (length >= 1).all()
        assert (start + length <= side).all()
        assert (start % 1 == 0).all()
        assert (length % 1 == 0).all()


def test_a_crop_starts_with_the_same_chance_at_every_pixel_where_it_fits():
    drawn = table(ViewSpec(size=8, scale=(0.25, 0.25), ratio=(1, 1)), 4, 4, 9000)[0]
    assert (drawn[:, Column.HEIGHT:Column.WIDTH + 1] == 2).all()
    starts, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    assert starts.tolist() == [list(start) for start in product(range(3), repeat=2)]
    assert stats.chisquare(counts).pvalue > CHANCE


@pytest.mark.parametrize(("rows", "columns", "ratio"), [
    (100, 400, (1, 1)), (400, 101, (1, 1)), (20, 500, (3 / 4, 4 / 3)), (500, 21, (3 / 4, 4 / 3)),
    (100, 110, (0.9, 0.9)),
])
def test_where_nothing_fits_the_crop_is_torchvisions_centre(rows, columns, ratio):
    drawn = table(ViewSpec(size=8, scale=(1, 1), ratio=ratio), rows, columns, 3)[0, :, :4]
    expected = RandomResizedCrop.get_params(torch.empty(3, rows, columns), (1, 1), ratio)
    assert drawn.tolist() == [list(expected)] * 3


def test_gates_open_as_often_as_they_say_and_independently():
    n, rates = 40000, {"flip": 0.5, "jitter": 0.8, "gray": 0.2, "blur": 0.4, "solarize": 0.1}
    drawn = table(ViewSpec(size=8, **rates), 32, 32, n)[0]
    gates = drawn[:, [Column.FLIPPED, Column.JITTERED, Column.GRAY, Column.SIGMA, Column.SOLARIZED]] > 0
    for gate, rate in zip(gates.T, rates.values(), strict=True):
        assert stats.binomtest(int(gate.sum()), n, rate).pvalue > CHANCE
    assert abs(np.corrcoef(gates.T) - np.eye(5)).max() < 4 / math.sqrt(n)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_gates_of_zero_and_one_are_certain(rate):
    spec = ViewSpec(size=8, flip=rate, jitter=rate, gray=rate, blur=rate, solarize=rate)
    drawn = table(spec, 32, 32, 3000)[0]
    gates = drawn[:, [Column.FLIPPED, Column.JITTERED, Column.GRAY, Column.SIGMA, Column.SOLARIZED]] > 0
    assert (gates == rate).all()


def test_all_24_orders_of_the_jitter_are_equally_likely():
    orders = table(ViewSpec(size=8, jitter=1), 32, 32, 24000)[0, :, Column.ORDER:Column.ORDER + 4]
    kinds, counts = np.unique(orders, axis=0, return_counts=True)
    assert (np.sort(kinds, axis=1) == range(4)).all()
    assert len(kinds) == 24
    assert stats.chisquare(counts).pvalue > CHANCE


@pytest.mark.parametrize(("column", "lowest", "highest"), [
    (Column.BRIGHTNESS, 0.6, 1.4), (Column.CONTRAST, 0.7, 1.3), (Column.SATURATION, 0.0, 2.5), (Column.HUE, -0.1, 0.1),
    (Column.SIGMA, 0.5, 1.5),
])
def test_amounts_are_even_between_their_limits(column, lowest, highest):
    spec = ViewSpec(size=8, strength=0.5, brightness=0.8, contrast=0.6, saturation=3, hue=0.2, blur=1, sigma=(0.5, 1.5))
    drawn = table(spec, 32, 32, 6000)[0, :, column]
    assert stats.kstest(drawn, stats.uniform(lowest, highest - lowest).cdf).pvalue > CHANCE


def test_every_column_is_drawn_anew_for_every_view_and_every_image():
    first, second = table(ViewSpec(size=8, count=2, jitter=0.5, gray=0.5, blur=1, solarize=0.5), 375, 500, 64)
    for column in range(COLUMNS):
        assert (first[:, column] != second[:, column]).mean() > 0.2
        assert len(np.unique(first[:, column])) > 1


# What decides a draw

def test_the_same_key_gives_the_same_bits():
    augmentation = Augmentation([ViewSpec(size=16, count=2, **LIVELY), ViewSpec(size=8, **LIVELY)])
    images = noise_bytes(6, 3, 24, 30)
    assert same(augmentation(images, KEY), augmentation(images, KEY))


@pytest.mark.parametrize("part", Key._fields)
def test_each_part_of_the_key_changes_the_draw(part):
    augmentation, sizes = Augmentation([ViewSpec(size=8)]), np.array([[300, 300]] * 4)
    tables = [augmentation.draw(sizes, KEY._replace(**{part: value}))[0] for value in range(20)]
    assert len(np.unique(np.stack(tables), axis=0)) == 20


def test_keys_with_the_same_numbers_in_other_places_draw_otherwise():
    augmentation, sizes = Augmentation([ViewSpec(size=8)]), np.array([[300, 300]] * 4)
    keys = {Key(*numbers) for numbers in product(range(2), repeat=4)}
    assert len(np.unique(np.stack([augmentation.draw(sizes, key)[0] for key in keys]), axis=0)) == 16


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

def predicted(view, size):
    """The shares of the source's width and height, [B, size] each, where the view's columns and rows should lie."""
    left, top, right, bottom = view.boxes.double()[:, :, None].unbind(1)                     # [B, 1]
    place = (torch.arange(size) + 0.5).double() / size
    mirrored = torch.where(view.flipped[:, None], 1 - place, place)
    return left + mirrored * (right - left), top + place * (bottom - top)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [20, 56, 300])
def test_a_view_shows_the_places_that_its_box_and_flip_say(size, interpolation):
    rows, columns = 100, 130
    x, y = (torch.arange(columns) + 0.5) / columns, (torch.arange(rows) + 0.5) / rows
    ramp = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns), torch.zeros(rows, columns)])
    spec = ViewSpec(size=size, count=4, scale=(0.05, 1.0), interpolation=interpolation)
    views = Augmentation([spec])(ramp.expand(4, -1, -1, -1), KEY)
    for view in views:
        across, down = predicted(view, size)
        wide = ((view.boxes[:, 2] - view.boxes[:, 0]) * columns / size).clamp_min(1) / columns    # a source pixel times
        high = ((view.boxes[:, 3] - view.boxes[:, 1]) * rows / size).clamp_min(1) / rows          # the scale, as shares
        off_x = (view.images[:, 0] - across[:, None]).abs() / wide[:, None, None]
        off_y = (view.images[:, 1] - down[:, :, None]).abs() / high[:, None, None]
        assert off_x.max() < 0.501
        assert off_y.max() < 0.501
        edge = max(2, math.ceil(2 * size / 20))       # the smallest crop is 20 pixels wide, a bicubic kernel reaches 2
        assert off_x[..., edge:-edge].max() < 0.12
        assert off_y[:, edge:-edge].max() < 0.12
    flipped = torch.stack([view.flipped for view in views])
    assert flipped.any()
    assert not flipped.all()


def test_crops_of_images_of_different_sizes_show_the_places_that_their_boxes_say():
    sizes, size = [(40, 200), (250, 90), (17, 23), (120, 120)], 24
    images = [torch.stack([torch.arange(columns).expand(rows, -1), torch.arange(rows)[:, None].expand(-1, columns),
                           torch.zeros(rows, columns)]).to(torch.uint8) for rows, columns in sizes]
    augmentation = Augmentation([ViewSpec(size=size, count=6)])
    for view in augmentation(augmentation.cut(images, KEY), KEY):
        across, down = predicted(view, size)
        for i, (rows, columns) in enumerate(sizes):
            wide, high = ((view.boxes[i, 2:] - view.boxes[i, :2]) * torch.tensor([columns, rows]) / size).tolist()
            x, y = across[i] * columns - 0.5, down[i] * rows - 0.5                     # a byte holds its pixel's index
            assert (255 * view.images[i, 0] - x).abs().max() < 0.5 * max(1, wide) + 1  # and is rounded twice
            assert (255 * view.images[i, 1] - y[:, None]).abs().max() < 0.5 * max(1, high) + 1


@pytest.mark.parametrize(("interpolation", "levels"), [
    ("bilinear", 1.01), ("bicubic", 1.14),      # rounded after each direction, and a cubic's weights add up to 1.25
])
@pytest.mark.parametrize("size", [12, 48])
def test_a_worker_cuts_what_the_device_would_crop_to_one_level(size, interpolation, levels):
    images = torchvision.gaussian_blur(noise_bytes(5, 3, 40, 56), [3, 3])
    augmentation = Augmentation([ViewSpec(size=size, count=3, interpolation=interpolation), ViewSpec(size=8)])
    there, here = augmentation(images, KEY), augmentation(augmentation.cut(list(images), KEY), KEY)
    for device, worker in zip(there, here, strict=True):
        assert (device.images - worker.images).abs().max() < levels * LEVEL
        assert torch.equal(device.boxes, worker.boxes)
        assert torch.equal(device.flipped, worker.flipped)


def test_a_worker_cuts_each_image_as_it_would_cut_it_in_any_company():
    images = [noise_bytes(3, rows, columns) for rows, columns in ((30, 50), (64, 20), (9, 9))]
    augmentation = Augmentation([ViewSpec(size=16, count=2)])
    crops = augmentation.cut(images, KEY)
    assert crops.sizes.tolist() == [[30, 50], [64, 20], [9, 9]]
    for pixels, drawn in zip(crops.pixels[0], crops.tables[0], strict=True):
        for crop, image, row in zip(pixels, images, drawn, strict=True):
            top, left, height, width, flipped = row[:5].astype(int).tolist()
            expected = torchvision.resized_crop(image / 255, top, left, height, width, [16, 16], antialias=True)
            expected = expected.flip(-1) if flipped else expected
            assert (crop / 255 - expected).abs().max() < 1.01 * LEVEL


# What comes out

def by_torchvision(image, row, spec):
    """The view [3, size, size] of a float image by torchvision's functions, one after another."""
    top, left, height, width = row[:4].astype(int).tolist()
    view = torchvision.resized_crop(image, top, left, height, width, [spec.size, spec.size], antialias=True)
    if row[Column.FLIPPED]:
        view = torchvision.hflip(view)
    if row[Column.JITTERED]:
        adjust = (torchvision.adjust_brightness, torchvision.adjust_contrast, torchvision.adjust_saturation,
                  torchvision.adjust_hue)
        for k in range(4):
            operation = int(row[Column.ORDER + k])
            view = adjust[operation](view, float(row[Column.BRIGHTNESS + operation]))
    if row[Column.GRAY]:
        view = torchvision.rgb_to_grayscale(view, 3)
    if row[Column.SIGMA]:
        view = torchvision.gaussian_blur(view, [spec.blur_kernel] * 2, [float(row[Column.SIGMA])] * 2)
    return torchvision.solarize(view, spec.threshold) if row[Column.SOLARIZED] else view


def test_views_are_what_torchvisions_functions_make_of_the_table():
    specs = [ViewSpec(size=24, count=2, **LIVELY), ViewSpec(size=40, kernel=7, threshold=0.3, **LIVELY)]
    augmentation, images = Augmentation(specs), noise_bytes(16, 3, 30, 36)
    views = iter(augmentation(images, KEY))
    for spec, drawn in zip(specs, augmentation.draw(np.array([[30, 36]] * 16), KEY), strict=True):
        for rows in drawn:
            expected = torch.stack([by_torchvision(image / 255, row, spec)
                                    for image, row in zip(images, rows, strict=True)])
            wrong = (next(views).images - expected).abs() > 1e-4
            assert wrong.float().mean() < 1e-4      # a value at the very threshold may be solarised by one of the two


@pytest.mark.parametrize("where", ["device", "worker"])
def test_views_come_in_the_order_of_their_specs_with_their_size_count_and_kinds(where):
    augmentation = Augmentation([ViewSpec(size=12, count=2, **LIVELY), ViewSpec(size=7, count=3, **LIVELY)])
    images = noise_bytes(5, 3, 20, 26)
    views = augmentation(images if where == "device" else augmentation.cut(list(images), KEY), KEY)
    assert augmentation.count == len(views) == 5
    assert [list(view.images.shape) for view in views] == [[5, 3, size, size] for size in (12, 12, 7, 7, 7)]
    for view in views:
        assert view.images.dtype == view.boxes.dtype == torch.float32
        assert view.flipped.dtype == torch.bool
        assert view.boxes.shape == (5, 4)
        assert view.flipped.shape == (5,)
        assert view.boxes.min() >= 0
        assert view.boxes.max() <= 1
        assert view.images.min() >= 0
        assert view.images.max() <= 1 + 1e-6
    assert not any(same([first], [second]) for first, second in ((views[0], views[1]), (views[2], views[3])))


@pytest.mark.parametrize("where", ["device", "worker"])
def test_with_everything_off_a_view_is_the_image(where):
    augmentation, images = Augmentation([ViewSpec(size=16, **STILL)]), noise_bytes(4, 3, 16, 16)
    view, = augmentation(images if where == "device" else augmentation.cut(list(images), KEY), KEY)
    assert torch.allclose(view.images, images / 255, atol=1e-6)
    assert torch.equal(view.boxes, torch.tensor([[0.0, 0, 1, 1]] * 4))
    assert not view.flipped.any()


@pytest.mark.parametrize("where", ["device", "worker"])
def test_a_certain_flip_mirrors_the_image_and_keeps_its_box(where):
    augmentation, images = Augmentation([ViewSpec(size=16, **{**STILL, "flip": 1.0})]), noise_bytes(4, 3, 16, 16)
    view, = augmentation(images if where == "device" else augmentation.cut(list(images), KEY), KEY)
    assert torch.allclose(view.images, images.flip(-1) / 255, atol=1e-6)
    assert torch.equal(view.boxes, torch.tensor([[0.0, 0, 1, 1]] * 4))
    assert view.flipped.all()


@pytest.mark.parametrize("where", ["device", "worker"])
def test_crops_are_coloured_wherever_they_were_cut(where):
    spec = ViewSpec(size=16, **STILL, gray=1, solarize=1)
    augmentation, images = Augmentation([spec]), noise_bytes(4, 3, 16, 16)
    view, = augmentation(images if where == "device" else augmentation.cut(list(images), KEY), KEY)
    expected = torchvision.solarize(torchvision.rgb_to_grayscale(images / 255, 3), 128 / 255)
    assert torch.allclose(view.images, expected, atol=1e-6)


def test_bytes_and_unit_floats_give_the_same_views_and_stay_unchanged():
    augmentation, images = Augmentation([ViewSpec(size=16, count=2, **LIVELY)]), noise_bytes(4, 3, 16, 16)
    floats = images / 255
    before = floats.clone()
    assert same(augmentation(images, KEY), augmentation(floats, KEY))
    assert torch.equal(floats, before)


def test_one_channel_is_three_equal_ones():
    augmentation, images = Augmentation([ViewSpec(size=16, count=2, **LIVELY)]), noise_bytes(4, 1, 20, 20)
    assert same(augmentation(images, KEY), augmentation(images.repeat(1, 3, 1, 1), KEY))


@pytest.mark.parametrize(("spec", "kernel"), [
    (ViewSpec(size=32), 3), (ViewSpec(size=8), 1), (ViewSpec(size=96), 9), (ViewSpec(size=224), 13),
    (ViewSpec(size=224, sigma=(0.1, 5.0)), 23), (ViewSpec(size=224, kernel=23), 23),
])
def test_the_blur_is_a_tenth_of_the_side_but_no_wider_than_three_sigma(spec, kernel):
    assert spec.blur_kernel == kernel


# What is refused

@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"size": 0}, "a view's size must be at least 1, not 0"),
    ({"count": 0}, "a view's count must be at least 1, not 0"),
    ({"flip": 1.5}, "a view's flip must be between 0 and 1, not 1.5"),
    ({"jitter": -0.1}, "a view's jitter must be between 0 and 1, not -0.1"),
    ({"threshold": 128}, "a view's threshold must be between 0 and 1, not 128"),
    ({"brightness": -1}, "a view's brightness must be at least 0, not -1"),
    ({"strength": -1}, "a view's strength must be at least 0, not -1"),
    ({"hue": 0.3, "strength": 2}, "a view's hue must be at most half a turn with strength 2, not 0.3"),
    ({"scale": (0.0, 1.0)}, r"a view's scale must be two rising shares .* not \(0.0, 1.0\)"),
    ({"scale": (0.8, 0.2)}, r"a view's scale must be two rising shares .* not \(0.8, 0.2\)"),
    ({"scale": (0.5, 1.1)}, r"a view's scale must be two rising shares .* not \(0.5, 1.1\)"),
    ({"ratio": (2, 1)}, r"a view's ratio must be two rising numbers above 0, not \(2, 1\)"),
    ({"sigma": (0, 2)}, r"a view's sigma must be two rising numbers of pixels above 0, not \(0, 2\)"),
    ({"kernel": 4}, "a view's kernel must be an odd number of pixels that the view can hold, not 4"),
    ({"kernel": 65}, "a view's kernel must be an odd number of pixels that the view can hold, not 65"),
])
def test_a_spec_names_its_wrong_value_and_the_rule(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ViewSpec(**{"size": 32, **arguments})


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 2, 8, 8), (0, 3, 8, 8), (3, 8, 8)])
def test_images_that_have_no_views_are_refused_with_their_shape(shape):
    with pytest.raises(ValueError, match=rf"views are drawn from images .* not from \[{str(list(shape))[1:-1]}\]"):
        Augmentation([ViewSpec(size=8)])(torch.zeros(shape), KEY)


def test_an_augmentation_of_no_views_is_refused():
    with pytest.raises(ValueError, match="an augmentation needs at least one row of views"):
        Augmentation([])
