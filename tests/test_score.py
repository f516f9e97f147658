"""Scores: what they are means of, their intervals, and which differences exceed theirs."""

import math

import pytest
import torch
from scipy import stats

from ssl_zoo.evaluation.score import Interval, Score, difference, number, paired, wilson


def units(*values):
    return torch.tensor(values, dtype=torch.float64)


def images(*values):
    return Score(units(*values), "image")


def share(right, count):
    return images(*[1.0] * right, *[0.0] * (count - right))


def test_a_score_is_the_mean_of_its_units():
    assert images(1, 0, 0, 1, 1).value == pytest.approx(0.6)


@pytest.mark.parametrize(("right", "count", "low", "high"), [   # Newcombe 1998, Statistics in Medicine 17, table I
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_the_interval_of_a_share_of_images_is_wilsons(right, count, low, high):
    assert wilson(right, count) == pytest.approx((low, high), abs=5e-5)
    assert share(right, count).interval == pytest.approx((low, high), abs=5e-5)
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert share(right, count).interval == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_one_of_three_images_is_known_within_what_shares_can_be():
    assert share(1, 3).interval == pytest.approx((0.0615, 0.7923), abs=1e-4)      # 33.3 +- 143 % by Student's t
    assert share(3, 3).interval == pytest.approx((0.4385, 1.0), abs=1e-4)
    assert share(1, 1).interval == pytest.approx((0.2065, 1.0), abs=1e-4)


def test_the_interval_of_other_means_over_images_or_episodes_is_students():
    values = units(0.2, 0.4, 0.5, 0.7, 0.1)
    expected = stats.t.interval(0.95, 4, values.mean(), stats.sem(values.numpy()))
    assert Score(values, "image").interval == pytest.approx(expected)
    assert Score(values, "episode").interval == pytest.approx(expected)
    assert Score(3 * values, "image").interval == pytest.approx([3 * end for end in expected])


def test_an_interval_of_shares_ends_where_shares_do_and_one_of_other_numbers_does_not():
    assert images(0.9, 1.0, 0.2).interval == (0.0, 1.0)
    assert images(0.9, 1.1, 0.2).interval.low < 0


def test_means_that_do_not_differ_are_as_uncertain_as_shares_can_be_and_other_numbers_unknown():
    assert images(0.5, 0.5, 0.5, 0.5).interval == pytest.approx(share(2, 4).interval)
    assert images(7.0, 7.0, 7.0).interval is None
    assert images(7.0).interval is None


def test_draws_have_a_deviation_and_no_interval_and_images_the_reverse():
    draws = Score(units(0.1, 0.2, 0.6), "draw")
    assert draws.deviation == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert draws.interval is None
    assert share(1, 2).deviation is None
    assert Score(units(0.1), "draw").deviation is None


def test_one_number_alone_has_neither():
    assert number(3.5).interval is None
    assert number(3.5).deviation is None
    assert difference(number(3.5), number(3)) == (0.5, None)


@pytest.mark.parametrize(("better", "worse", "count", "low", "high"), [
    (1, 7, 21, -0.508, -0.013),             # airways of children, in Fagerland, Lydersen and Laake 2014, table VII
    (3, 0, 3, -0.1012, 1.0),                # 4/5 - 1/5 -+ z sqrt((1 - 0.36) / 5)
    (0, 0, 8, -0.2772, 0.2772)])            # z sqrt(2 / 10 / 10)
def test_paired_shares_have_bonett_and_prices_interval(better, worse, count, low, high):
    assert paired(better, worse, count) == pytest.approx((low, high), abs=5e-4)


def test_a_difference_is_paired_so_that_what_both_get_wrong_does_not_widen_it():
    one, other = images(*[1] * 60, *[0] * 40, *[1] * 4), images(*[1] * 60, *[0] * 40, *[0] * 4)
    apart, interval = difference(one, other)
    assert apart == pytest.approx(4 / 104)
    assert interval == paired(4, 0, 104)
    assert interval.high - interval.low < one.interval.high - one.interval.low
    assert difference(other, one) == (pytest.approx(-4 / 104), pytest.approx([-interval.high, -interval.low]))


def test_three_images_that_are_all_better_prove_nothing_and_twenty_do():
    assert not difference(share(3, 3), share(0, 3))[1].excludes_zero
    assert difference(share(20, 20), share(0, 20))[1].excludes_zero
    assert difference(share(0, 20), share(20, 20))[1].excludes_zero


def test_other_differences_have_students_interval_and_none_of_them_is_without_width():
    one, other = images(0.5, 0.7, 0.2, 0.9), images(0.25, 0.7, 0.1, 0.5)
    apart = (one.units - other.units).numpy()
    assert difference(one, other)[1] == pytest.approx(stats.t.interval(0.95, 3, apart.mean(), stats.sem(apart)))
    assert not difference(images(0.75, 0.75, 0.75), images(0.25, 0.25, 0.25))[1].excludes_zero
    draws = [Score(units(*values), "draw") for values in ((0.1, 0.2, 0.6), (0.2, 0.2, 0.5))]
    assert difference(*draws)[1] == pytest.approx([end / 10 for end in stats.t.interval(0.95, 2, 0, 3 ** -0.5)])


def test_scores_of_other_images_have_a_difference_without_an_interval():
    assert difference(images(1, 0), images(1, 1, 1)) == (-0.5, None)
    assert difference(images(1, 0), Score(units(1, 1), "draw")) == (-0.5, None)


# Means of the classes' own means

CLASSES = torch.tensor([0] * 90 + [1] * 10)


def by_class(first, second):
    return Score(units(*[1] * first, *[0] * (90 - first), *[1] * second, *[0] * (10 - second)), "image", CLASSES)


def test_a_balanced_score_is_the_mean_of_the_classes_shares_and_the_small_class_decides_its_interval():
    assert by_class(90, 0).value == 0.5
    low, high = by_class(81, 5).interval
    assert by_class(81, 5).value == pytest.approx(0.7)
    large, small = wilson(81, 90), wilson(5, 10)
    assert low == pytest.approx(0.7 - math.hypot(0.9 - large.low, 0.5 - small.low) / 2)
    assert high == pytest.approx(0.7 + math.hypot(large.high - 0.9, small.high - 0.5) / 2)
    assert high - low > 2 * (wilson(70, 100).high - 0.7)


def test_a_balanced_score_with_all_images_right_is_as_uncertain_as_its_small_class():
    low, high = by_class(90, 10).interval
    assert high == pytest.approx(1)
    assert low == pytest.approx(1 - math.hypot(1 - wilson(90, 90).low, 1 - wilson(10, 10).low) / 2)


def test_balanced_scores_are_compared_class_by_class():
    apart, interval = difference(by_class(90, 10), by_class(90, 0))
    assert apart == 0.5
    assert interval.low == pytest.approx(0.5 - math.hypot(paired(0, 0, 90).low, 1 - paired(10, 0, 10).low) / 2)
    assert interval.excludes_zero
    other = by_class(90, 10)._replace(classes=CLASSES.flip(0))
    assert difference(by_class(90, 10), other) == (pytest.approx(other.value * -1 + 1), None)
    assert difference(by_class(90, 10), by_class(90, 10)._replace(classes=None))[1] is None


def test_an_interval_is_two_ends():
    assert Interval(-1, -0.5).excludes_zero
    assert not Interval(-1, 0).excludes_zero
