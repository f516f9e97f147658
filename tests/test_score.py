"""Scores: what they are means of, their spread, and which differences exceed it."""

import math

import pytest
import torch
from scipy import stats

from ssl_zoo.evaluation.score import Score, difference, half_interval, number


def units(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_score_is_the_mean_of_its_units():
    assert Score(units(1, 0, 0, 1, 1), "image").value == pytest.approx(0.6)


def test_the_spread_over_images_is_the_95_percent_interval_of_a_share():
    right = torch.cat([torch.ones(64), torch.zeros(36)]).double()
    expected = stats.t.ppf(0.975, 99) * math.sqrt(0.64 * 0.36 / 99)
    assert Score(right, "image").spread == pytest.approx(expected, rel=1e-4)
    assert Score(right, "episode").spread == pytest.approx(expected, rel=1e-4)


def test_the_spread_over_draws_is_their_standard_deviation():
    assert Score(units(0.1, 0.2, 0.6), "draw").spread == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))


@pytest.mark.parametrize("score", [number(3.5), Score(units(1.0), "image")])
def test_one_number_alone_has_no_spread(score):
    assert score.spread is None
    assert difference(score, score) == (0, None)


def test_a_difference_is_paired_so_that_what_both_get_wrong_does_not_widen_it():
    one, other = Score(units(1, 1, 1, 1, 0, 0, 0, 1), "image"), Score(units(1, 1, 1, 1, 0, 0, 0, 0), "image")
    apart, interval = difference(one, other)
    assert apart == pytest.approx(1 / 8)
    assert interval == pytest.approx(stats.t.ppf(0.975, 7) * math.sqrt((1 / 8 - 1 / 64) / 7), rel=0.01)
    assert interval < math.hypot(one.spread, other.spread)
    assert difference(other, one) == (pytest.approx(-1 / 8), pytest.approx(interval))


def test_scores_of_other_images_have_a_difference_without_an_interval():
    assert difference(Score(units(1, 0), "image"), Score(units(1, 1, 1), "image")) == (-0.5, None)


@pytest.mark.parametrize(("count", "error"), [(5, 0.02), (10, 0.003), (600, 1e-5)])
def test_few_draws_are_known_less_well_than_the_normal_distribution_says(count, error):
    values = torch.linspace(0, 1, count, dtype=torch.float64)
    expected = stats.t.interval(0.95, count - 1, scale=stats.sem(values.numpy()))[1]
    assert half_interval(values) == pytest.approx(expected, rel=error)
