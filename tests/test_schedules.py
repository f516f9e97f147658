"""Schedules at the points where their value is known."""

import math

import pytest
import torch

from ssl_zoo.schedules import WarmupCosine, cosine, through


@pytest.mark.parametrize(("progress", "value"), [(0, 0.1), (0.05, 0.55), (0.1, 1), (0.55, 0.51), (1, 0.02)])
def test_warmup_cosine_rises_in_a_line_and_falls_as_half_a_cosine(progress, value):
    assert WarmupCosine(warmup=0.1, start=0.1, final=0.02)(progress) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("quarter", range(5))
def test_without_warmup_it_is_half_a_cosine_from_one_to_zero(quarter):
    value = (1 + math.cos(math.pi * quarter / 4)) / 2
    assert WarmupCosine()(quarter / 4) == pytest.approx(value, abs=1e-12)
    assert cosine(1, 0, quarter / 4) == pytest.approx(value, abs=1e-12)


def test_warmup_meets_the_cosine_without_a_jump():
    schedule = WarmupCosine(warmup=0.3, start=0.5, final=0.1)
    assert schedule(0.3 - 1e-9) == pytest.approx(schedule(0.3 + 1e-9), abs=1e-7)


def test_it_only_rises_in_the_warmup_and_only_falls_after_it():
    values = [WarmupCosine(warmup=0.25)(step / 100) for step in range(101)]
    assert values[:26] == sorted(values[:26])
    assert values[25:] == sorted(values[25:], reverse=True)
    assert max(values) == values[25] == 1


def test_progress_past_the_end_stays_at_the_final_value():
    assert WarmupCosine(warmup=0.5, final=0.2)(1.5) == pytest.approx(0.2, abs=1e-12)


@pytest.mark.parametrize(("start", "end", "progress", "value"), [
    (0.99, 1, 0, 0.99), (0.99, 1, 0.25, 0.991464466), (0.99, 1, 0.5, 0.995), (0.99, 1, 0.75, 0.998535534),
    (0.99, 1, 1, 1),
])
def test_cosine_gives_moco_v3s_momentum(start, end, progress, value):
    assert cosine(start, end, progress) == pytest.approx(value, abs=1e-9)


def test_cosine_of_a_tensor_is_the_tensor_of_the_cosine():
    values = cosine(0.2, 1, torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64))
    assert values.tolist() == pytest.approx([cosine(0.2, 1, progress) for progress in (0, 0.3, 1)], abs=1e-15)


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 10])
def test_a_warmup_in_epochs_is_refused(warmup):
    with pytest.raises(ValueError, match=f"at least 0 and below 1, not {warmup}; divide the warm-up epochs"):
        WarmupCosine(warmup=warmup)


@pytest.mark.parametrize("options", [{"start": -0.5}, {"final": -1}])
def test_a_learning_rate_below_zero_is_refused(options):
    with pytest.raises(ValueError, match="start and final multiply the learning rate, and are at least 0, not"):
        WarmupCosine(**options)


@pytest.mark.parametrize(("steps", "shares"), [(1, [0]), (2, [0, 1]), (5, [0, 0.25, 0.5, 0.75, 1, 1])])
def test_the_first_step_is_at_the_start_and_the_last_at_the_end(steps, shares):
    assert [through(step, steps) for step in range(len(shares))] == shares
