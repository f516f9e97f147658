"""What is drawn: the distributions of a table's columns, and what decides a draw."""

import math
from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from ssl_zoo.views import Augmentation, Key
from ssl_zoo.views.operations import Jitter, flat, jitter_steps
from ssl_zoo.views.specs import ViewSpec
from ssl_zoo.views.tables import COLUMNS, boxes, draw

KEY = Key(seed=7, epoch=3, batch=11, rank=1)
CHANCE = 1e-4                                    # a draw that is right fails with this probability; the seeds are fixed


def table(spec, rows, columns, images=1, seed=0, first=None):
    return draw(spec, np.array([[rows, columns]] * images), np.random.default_rng(seed), first)


def gates(drawn):
    """Whether each view is flipped, flipped vertically, jittered, gray, blurred, solarised: [..., 6]."""
    return np.stack([*np.moveaxis(drawn["flips"], -1, 0), drawn["jitter"]["applied"], drawn["gray"]["applied"],
                     drawn["blur"]["sigma"], drawn["solarize"]["applied"]], -1) > 0


def rest(drawn):
    """All numbers but the crop's: [..., numbers]."""
    return flat(drawn)[..., 4:]


# Crops

@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.05, 0.14)])
def test_crops_are_distributed_as_torchvisions(scale):
    n, image = 6000, torch.empty(3, 375, 500)
    ours = table(ViewSpec(size=8, scale=scale), 375, 500, n)["crop"][0].T
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(n)], float).T
    for mine, other in zip((*ours, ours[2] * ours[3], ours[3] / ours[2]),
                           (*theirs, theirs[2] * theirs[3], theirs[3] / theirs[2]), strict=True):
        assert stats.ks_2samp(mine, other).pvalue > CHANCE


def test_the_share_of_the_area_and_the_logarithm_of_the_ratio_are_even_where_every_crop_fits():
    drawn = table(ViewSpec(size=8, scale=(0.1, 0.5)), 4000, 4000, 20000)["crop"][0].astype(float)
    height, width, high = drawn[:, 2], drawn[:, 3], math.log(4 / 3)
    assert stats.kstest(height * width / 4000 ** 2, stats.uniform(0.1, 0.4).cdf).pvalue > CHANCE
    assert stats.kstest(np.log(width / height), stats.uniform(-high, 2 * high).cdf).pvalue > CHANCE


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 40), (37, 2), (32, 32), (375, 500)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_a_crop_is_a_pixel_or_more_of_the_image(rows, columns, overlap):
    drawn = table(ViewSpec(size=8, count=2, scale=(0.01, 1.0), overlap=overlap), rows, columns, 1000)["crop"]
    top, left, height, width = drawn.reshape(-1, 4).T
    for start, length, side in (top, height, rows), (left, width, columns):
        assert (start >= 0).all()
        assert (length >= 1).all()
        assert (start + length <= side).all()
        assert (start % 1 == 0).all()
        assert (length % 1 == 0).all()


def test_a_crop_starts_with_the_same_chance_at_every_pixel_where_it_fits():
    drawn = table(ViewSpec(size=8, scale=(0.25, 0.25), ratio=(1, 1)), 4, 4, 9000)["crop"][0]
    assert (drawn[:, 2:] == 2).all()
    starts, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    assert starts.tolist() == [list(start) for start in product(range(3), repeat=2)]
    assert stats.chisquare(counts).pvalue > CHANCE


@pytest.mark.parametrize(("rows", "columns", "ratio"), [
    (100, 400, (1, 1)), (400, 101, (1, 1)), (20, 500, (3 / 4, 4 / 3)), (500, 21, (3 / 4, 4 / 3)),
    (100, 110, (0.9, 0.9)),
])
def test_where_nothing_fits_the_crop_is_torchvisions_centre(rows, columns, ratio):
    drawn = table(ViewSpec(size=8, scale=(1, 1), ratio=ratio), rows, columns, 3)["crop"][0]
    expected = RandomResizedCrop.get_params(torch.empty(3, rows, columns), (1, 1), ratio)
    assert drawn.tolist() == [list(expected)] * 3


def test_each_image_of_a_batch_of_different_sizes_has_crops_as_its_own_size_gives():
    sizes = np.array([(40, 200), (250, 90), (17, 23), (120, 120)])
    drawn = draw(ViewSpec(size=8, scale=(0.1, 0.1), ratio=(1, 1), count=50), sizes, np.random.default_rng(0))["crop"]
    for i, (rows, columns) in enumerate(sizes):
        top, left, height, width = drawn[:, i].T
        assert (height == np.round(np.sqrt(np.float32(0.1 * rows * columns)))).all()
        assert np.ptp(top) > 0.5 * (rows - height[0])
        assert np.ptp(left) > 0.5 * (columns - width[0])


def test_a_box_is_left_top_right_bottom_as_shares_of_its_own_image():
    drawn = np.zeros((2, 2), COLUMNS)
    drawn["crop"] = [[(10, 40, 30, 120), (0, 0, 50, 20)], [(0, 0, 40, 200), (25, 5, 1, 1)]]
    expected = [[(0.2, 0.25, 0.8, 1), (0, 0, 1, 1)], [(0, 0, 1, 1), (0.25, 0.5, 0.3, 0.52)]]
    assert np.allclose(boxes(drawn, np.array([(40, 200), (50, 20)])), expected)


# Views that lie in the first one

def share(crop, other):
    """How many of the crop's pixels are the other's, counted one by one."""
    (top, left, height, width), (a, b, c, d) = crop.astype(int), other.astype(int)
    pixels = {*product(range(top, top + height), range(left, left + width))}
    return len(pixels & {*product(range(a, a + c), range(b, b + d))}) / len(pixels)


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.9])
def test_every_view_shares_as_much_with_the_first_as_its_row_asks(overlap):
    spec = ViewSpec(size=8, count=3, overlap=overlap)
    augmentation = Augmentation([spec, ViewSpec(size=8, count=2, scale=(0.05, 0.14), overlap=overlap)])
    tables = augmentation.draw(np.array([[24, 30], [31, 17]] * 30), KEY)
    firsts, differs = tables[0]["crop"][0], 0
    for drawn in tables:
        for crops in drawn["crop"]:
            assert all(share(crop, first) >= overlap for crop, first in zip(crops, firsts, strict=True))
            differs += (crops != firsts).any(1).sum()
    assert differs > 60 * 2                                  # of 60 images and four views beside the first


def test_only_the_row_that_asks_for_it_overlaps_and_it_is_the_first_row_s_first_view_that_counts():
    free, bound = ViewSpec(size=8, count=2, scale=(0.1, 0.2)), ViewSpec(size=8, count=2, scale=(0.05, 0.1), overlap=0.6)
    first, second = Augmentation([free, bound]).draw(np.array([[24, 30]] * 100), KEY)
    first, second = first["crop"], second["crop"]
    shares = np.array([[share(crop, start) for crop, start in zip(crops, first[0], strict=True)]
                       for crops in (first[1], *second)])
    assert (shares[0] < 0.6).mean() > 0.5
    assert (shares[1:] >= 0.6).all()
    others = [share(crop, start) for crop, start in zip(second[0], first[1], strict=True)]
    assert (np.array(others) < 0.6).mean() > 0.5


def test_the_first_view_is_as_it_would_be_without_the_condition_and_so_are_all_columns_but_the_crop():
    free, bound = (table(ViewSpec(size=8, count=3, jitter=0.5, blur=0.5, overlap=overlap), 40, 50, 200)
                   for overlap in (0, 0.7))
    assert np.array_equal(free[0], bound[0])
    assert np.array_equal(rest(free[1:]), rest(bound[1:]))
    assert not np.array_equal(free["crop"][1:], bound["crop"][1:])


def test_a_view_that_overlaps_by_itself_is_left_as_it_was_drawn():
    free, bound = (table(ViewSpec(size=8, count=2, overlap=overlap), 40, 50, 300)["crop"] for overlap in (0, 0.5))
    enough = np.array([share(crop, first) >= 0.5 for crop, first in zip(free[1], free[0], strict=True)])
    assert 0.2 < enough.mean() < 0.95
    assert np.array_equal(free[1, enough], bound[1, enough])
    assert (free[1, ~enough] != bound[1, ~enough]).any(1).all()


def test_where_ten_draws_do_not_overlap_the_crop_is_the_first_view_s():
    corner = np.array([[0, 0, 1, 1]] * 50, dtype=np.float32)         # a crop of half the image never lies in a pixel
    drawn = table(ViewSpec(size=8, count=2, scale=(0.5, 0.5), overlap=0.5), 40, 50, 50, first=corner)
    assert (drawn["crop"] == corner).all()


def test_a_rare_overlap_is_looked_for_eleven_times():
    spec = ViewSpec(size=8, scale=(0.01, 0.01), ratio=(1, 1), overlap=1.0)   # a pixel of 10 x 10 in the left half
    half = np.array([[0, 0, 10, 1]] * 4000, dtype=np.float32)                # hit by one draw in ten
    drawn = table(spec, 10, 10, 4000, first=half)["crop"][0]
    missed = (drawn == half).all(1).sum()
    assert stats.binomtest(int(missed), 4000, 0.9 ** 11).pvalue > CHANCE


def test_a_first_row_that_asks_for_nothing_is_drawn_as_ever_whatever_the_second_asks():
    rows = [ViewSpec(size=8, count=2), ViewSpec(size=8, overlap=0.5)]
    sizes = np.array([[40, 50]] * 20)
    assert np.array_equal(Augmentation(rows).draw(sizes, KEY)[0], Augmentation(rows[:1]).draw(sizes, KEY)[0])


# Clean rows

@pytest.mark.parametrize(("rows", "columns", "crop"), [
    (32, 32, (0, 0, 32, 32)), (40, 60, (0, 10, 40, 40)), (61, 40, (10, 0, 40, 40)), (1, 7, (0, 3, 1, 1)),
    (375, 500, (0, 62, 375, 375)),
])
def test_a_clean_view_is_the_largest_square_in_the_middle_with_nothing_changed(rows, columns, crop):
    drawn = table(ViewSpec(size=8, count=2, clean=True), rows, columns, 5)
    assert (drawn["crop"] == crop).all()
    assert not rest(drawn).any()


def test_a_clean_first_row_is_what_others_overlap_with():
    rows = [ViewSpec(size=8, clean=True), ViewSpec(size=8, overlap=0.8, count=3)]
    clean, drawn = Augmentation(rows).draw(np.array([[20, 40]] * 50), KEY)
    for crops in drawn["crop"]:
        assert all(share(crop, first) >= 0.8 for crop, first in zip(crops, clean["crop"][0], strict=True))


# Gates and amounts

def test_gates_open_as_often_as_they_say_and_independently():
    n, rates = 40000, {"flip": 0.5, "vertical_flip": 0.3, "jitter": 0.8, "gray": 0.2, "blur": 0.4, "solarize": 0.1}
    opened = gates(table(ViewSpec(size=8, **rates), 32, 32, n)[0])
    for gate, rate in zip(opened.T, rates.values(), strict=True):
        assert stats.binomtest(int(gate.sum()), n, rate).pvalue > CHANCE
    assert abs(np.corrcoef(opened.T) - np.eye(6)).max() < 4 / math.sqrt(n)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_gates_of_zero_and_one_are_certain(rate):
    spec = ViewSpec(size=8, flip=rate, vertical_flip=rate, jitter=rate, gray=rate, blur=rate, solarize=rate)
    assert (gates(table(spec, 32, 32, 3000)) == rate).all()


def test_all_24_orders_of_the_jitter_are_equally_likely():
    orders = table(ViewSpec(size=8, jitter=1), 32, 32, 24000)["jitter"]["order"][0]
    kinds, counts = np.unique(orders, axis=0, return_counts=True)
    assert (np.sort(kinds, axis=1) == range(4)).all()
    assert len(kinds) == 24
    assert stats.chisquare(counts).pvalue > CHANCE


@pytest.mark.parametrize(("column", "lowest", "highest"), [
    (lambda drawn: drawn["jitter"]["factors"][:, 0], 0.6, 1.4),
    (lambda drawn: drawn["jitter"]["factors"][:, 1], 0.7, 1.3),
    (lambda drawn: drawn["jitter"]["factors"][:, 2], 0.0, 2.5),
    (lambda drawn: drawn["jitter"]["factors"][:, 3], -0.1, 0.1),
    (lambda drawn: drawn["blur"]["sigma"], 0.5, 1.5),
], ids=["brightness", "contrast", "saturation", "hue", "sigma"])
def test_amounts_are_even_between_their_limits(column, lowest, highest):
    spec = ViewSpec(size=8, strength=0.5, brightness=0.8, contrast=0.6, saturation=3, hue=0.2, blur=1, sigma=(0.5, 1.5))
    drawn = column(table(spec, 32, 32, 6000)[0])
    assert stats.kstest(drawn, stats.uniform(lowest, highest - lowest).cdf).pvalue > CHANCE


@pytest.mark.parametrize("overlap", [0.0, 0.3])
def test_every_column_is_drawn_anew_for_every_view_and_every_image(overlap):
    spec = ViewSpec(size=8, count=2, vertical_flip=0.5, jitter=0.5, gray=0.5, blur=1, solarize=0.5, overlap=overlap)
    for first, second in np.moveaxis(flat(table(spec, 375, 500, 64)), -1, 0):
        assert (first != second).mean() > 0.2
        assert len(np.unique(first)) > 1


def test_columns_are_independent_of_one_another():
    n = 20000
    spec = ViewSpec(size=8, scale=(0.2, 0.2), ratio=(1, 1), vertical_flip=0.5, jitter=0.5, gray=0.5, blur=1,
                    solarize=0.5)
    drawn = table(spec, 400, 400, n)[0]
    orders = drawn["jitter"]["order"].copy()
    drawn["jitter"]["order"], drawn["crop"][:, 2:] = 0, 0                   # an order is one draw, and sides are alike
    numbers = flat(drawn)[:, flat(drawn).any(0)]
    assert numbers.shape == (n, 2 + 2 + 1 + 4 + 1 + 1 + 1)
    for one in orders.T:
        correlations = np.corrcoef(np.concatenate([numbers, one[:, None]], 1).T)
        assert abs(correlations - np.eye(len(correlations))).max() < 5 / math.sqrt(n)


# The jitter's orders and steps

def jittered(orders, factors=(0.5, 0.7, 1.5, 0.1), on=1):
    drawn = np.zeros((1, len(orders)), Jitter.columns)
    drawn["applied"], drawn["factors"], drawn["order"] = on, factors, orders
    return drawn


def test_views_of_one_order_are_one_group_and_what_is_not_jittered_is_in_none():
    orders = list(permutations(range(4)))
    groups = [group.tolist() for group in Jitter().groups(jittered(orders * 2)[0])]
    assert sorted(groups) == [[i, i + 24] for i in range(24)]
    assert list(Jitter().groups(jittered(orders, on=0)[0])) == []


@pytest.mark.parametrize(("order", "steps"), [
    # brightness 0.5, contrast 0.7, saturation 1.5, 0.1 turns; blends are (share of pixel, share of luma)
    ((0, 2, 3, 1), [0.5, 0, 1.5, -0.5, 1, 0, 1, 0, 0.1, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0.7]),
    ((2, 0, 3, 1), [1.5, -0.5, 0.5, 0, 1, 0, 1, 0, 0.1, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0.7]),
    ((1, 0, 3, 2), [1, 0, 1, 0, 1, 0, 1, 0, 0, 0.5, 0, 1, 0, 1, 0, 1.5, -0.5, 0.1, 0.7]),
    ((0, 1, 2, 3), [0.5, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1.5, -0.5, 1, 0, 1, 0, 0.1, 0.7]),
])
def test_steps_of_an_order_stand_where_the_order_says(order, steps):
    assert jitter_steps(jittered([order]))[0, 0].tolist() == pytest.approx(steps)


def test_every_step_of_what_is_not_jittered_is_neutral():
    neutral = [1, 0, 1, 0, 1, 0, 1, 0, 0] * 2 + [1]
    assert (jitter_steps(jittered(list(permutations(range(4))), on=0)) == neutral).all()


# What decides a draw

@pytest.mark.parametrize("part", Key._fields)
def test_each_part_of_the_key_changes_the_draw(part):
    augmentation, sizes = Augmentation([ViewSpec(size=8)]), np.array([[300, 300]] * 4)
    tables = [augmentation.draw(sizes, KEY._replace(**{part: value}))[0] for value in range(20)]
    assert len(np.unique(np.stack(tables), axis=0)) == 20


def test_keys_with_the_same_numbers_in_other_places_draw_otherwise():
    augmentation, sizes = Augmentation([ViewSpec(size=8)]), np.array([[300, 300]] * 4)
    keys = {Key(*numbers) for numbers in product(range(2), repeat=4)}
    assert len(np.unique(np.stack([augmentation.draw(sizes, key)[0] for key in keys]), axis=0)) == 16


def test_rows_of_the_same_spec_are_drawn_apart():
    spec = ViewSpec(size=8)
    first, second = Augmentation([spec, spec]).draw(np.array([[300, 300]] * 4), KEY)
    assert (first["crop"] != second["crop"]).any(-1).all()


def test_the_gates_of_a_spec_do_not_move_its_crops():
    plain, lively = (table(ViewSpec(size=8, **options), 300, 400, 20)["crop"]
                     for options in ({}, {"jitter": 1, "gray": 1, "blur": 1, "solarize": 1, "vertical_flip": 1}))
    assert np.array_equal(plain, lively)
