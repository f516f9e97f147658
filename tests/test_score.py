"""Scores: what they are means of, their spread, and which differences exceed it."""

import math

import pytest
import torch

from ssl_zoo.evaluation.score import Score, difference, number


def units(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_score_is_the_mean_of_its_units():
    assert Score(units(1, 0, 0, 1, 1), "image").value == pytest.approx(0.6)


def test_the_spread_over_images_is_the_95_percent_interval_of_a_share():
    right = torch.cat([torch.ones(64), torch.zeros(36)]).double()
    expected = 1.96 * math.sqrt(0.64 * 0.36 / 99)          # the binomial's, with n - 1
    assert Score(right, "image").spread == pytest.approx(expected)
    assert Score(right, "episode").spread == pytest.approx(expected)


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
    assert interval == pytest.approx(1.96 * math.sqrt((1 / 8 - 1 / 64) * 8 / 7 / 8))
    assert interval < math.hypot(one.spread, other.spread)
    assert difference(other, one) == (pytest.approx(-1 / 8), pytest.approx(interval))


def test_scores_of_other_images_have_a_difference_without_an_interval():
    assert difference(Score(units(1, 0), "image"), Score(units(1, 1, 1), "image")) == (-0.5, None)
