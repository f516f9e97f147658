"""The linear grid: each head of the batched run against the same head trained alone by torch.optim.SGD."""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.grid import CELLS, Cell, kept_and_held, linear_grid, statistics, train_heads


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(count, classes=3, width=8, spread=6.0, seed=0, dtype=torch.float32):
    """Features around one centre for each class, which overlap for a large spread."""
    labels = torch.arange(count) % classes
    x = 4 * normal(classes, width, seed=99)[labels] + spread * normal(count, width, seed=seed)
    return Features(x.to(dtype), labels, torch.arange(count))


def alone(inputs, labels, lr, weight_decay, *, classes, epochs=90, batch=256):
    """One head by torch's own layer, loss, gradient, optimiser and schedule, in float64."""
    head = nn.Linear(inputs.shape[1], classes, dtype=torch.float64)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    steps = epochs * math.ceil(len(inputs) / batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(head(inputs[rows].double()), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return head


# The batched run

def test_every_head_equals_the_same_head_trained_alone():
    train, kept = blobs(80, dtype=torch.float64), torch.arange(0, 80, 2).flip(0)
    lr = torch.tensor([[0.001, 0.03, 1.0, 0.01], [0.1, 0.3, 0.002, 0.05]]).double()
    decay = torch.tensor([[0.0, 0.1, 0.01, 1e-4], [0.02, 0.0, 0.0, 0.1]]).double()
    mean, std = torch.stack([normal(8), normal(8, seed=1)]), torch.stack([normal(8, seed=2).exp(), torch.ones(8)])
    weights = train_heads(train, kept, mean, std, lr, decay, classes=4, epochs=5, batch=16)
    assert weights.shape == (2, 4, 4, 9)                              # from batches of 16, 16 and 8
    for i in range(2):
        for j in range(4):
            head = alone((train.x[kept] - mean[i]) / std[i], train.labels[kept], lr[i, j].item(), decay[i, j].item(),
                         classes=4, epochs=5, batch=16)
            assert torch.allclose(weights[i, j, :, :8], head.weight, rtol=0, atol=1e-9)
            assert torch.allclose(weights[i, j, :, 8], head.bias, rtol=0, atol=1e-9)


def one_head(train, lr, weight_decay, epochs):
    """[3, 9] of a single plain head."""
    width = train.x.shape[1]
    plain = train.x.new_zeros(1, width), train.x.new_ones(1, width)
    rates = (train.x.new_tensor([[value]]) for value in (lr, weight_decay))
    return train_heads(train, torch.arange(len(train.x)), *plain, *rates, classes=3, epochs=epochs)[0, 0]


def test_the_first_step_from_zero_is_nesterovs_one_point_nine_gradients():
    train = blobs(30, dtype=torch.float64)
    weights = one_head(train, 0.5, 0.1, epochs=1)
    for c in range(3):
        gradient = sum((1 / 3 - (label == c)) * torch.cat([x, torch.ones(1)])
                       for x, label in zip(train.x, train.labels.tolist(), strict=True)) / 30
        assert torch.allclose(weights[c], -0.5 * 1.9 * gradient)


def test_decay_and_many_steps_end_at_ridge_logistic_regression():
    train = blobs(60, dtype=torch.float64)
    ones = torch.cat([train.x, torch.ones(60, 1)], 1).numpy()         # SGD decays the bias as well
    reference = LogisticRegression(C=1 / (60 * 0.05), fit_intercept=False, tol=1e-10, max_iter=1000)
    reference.fit(ones, train.labels.numpy())
    assert np.allclose(one_head(train, 0.03, 0.05, epochs=1500), reference.coef_, atol=1e-5)


def test_a_head_that_overflows_leaves_the_others_bit_equal():
    train, kept = blobs(50), torch.arange(50)
    run = [train_heads(train, kept, torch.zeros(2, 8), torch.ones(2, 8), torch.tensor([lr, lr]), torch.zeros(2, 3),
                       classes=3, epochs=4, batch=16) for lr in ([0.1, 0.2, 0.3], [0.1, 1e38, 0.3])]
    assert run[1][:, 1].isnan().any()
    assert torch.equal(run[0][:, ::2], run[1][:, ::2])


# The held-out slice

@pytest.mark.parametrize(("count", "held"), [(1, 0), (2, 1), (9, 1), (19, 1), (20, 2), (100, 10)])
def test_a_tenth_of_each_class_is_held_out_and_one_of_a_small_class(count, held):
    labels = torch.cat([torch.full((count,), 3), torch.full((50,), 1)])[normal(count + 50).argsort()]
    kept, out = kept_and_held(labels)
    assert (labels[out] == 3).sum() == held
    assert (labels[out] == 1).sum() == 5
    assert torch.equal(torch.cat([kept, out]).sort().values, torch.arange(count + 50))


def test_what_is_held_out_is_drawn_and_the_same_each_time():
    labels = torch.arange(1000) % 10
    kept, held = kept_and_held(labels)
    assert torch.equal(kept_and_held(labels)[1], held)
    assert torch.equal(kept.sort().values, kept)
    assert torch.equal(held.sort().values, held)
    assert 400 < held.double().mean() < 600                           # neither the first nor the last of each class
    assert len((held // 10).unique()) > 50                            # nor the same of every class


# The grid

def test_the_grid_is_24_cells_with_even_steps_of_the_rate():
    assert len(CELLS) == len(set(CELLS)) == 24
    for batchnorm, weight_decay in ((False, 0), (False, 1e-4), (True, 0), (True, 1e-4)):
        rates = [cell.lr for cell in CELLS if cell[1:] == (weight_decay, batchnorm)]
        assert len(rates) == 6
        assert np.allclose(np.diff(np.log(rates)), math.log(4), atol=0.07)


def test_the_grid_is_its_cells_trained_alone_on_the_kept_and_judged_on_the_held_out():
    parts = (blobs(300, width=30, spread=9.0, seed=seed) for seed in (0, 1))
    train, test = (Features(0.1 * part.x, *part[1:]) for part in parts)
    kept, held = kept_and_held(train.labels)
    x, grid, losses = train.x[kept].double(), linear_grid(train, test), {}
    for cell in [cell for cell in CELLS if cell.lr < 0.5]:            # the others are chaotic in float32
        mean, std = (x.mean(0), x.std(0, correction=0)) if cell.batchnorm else (torch.zeros(30), torch.ones(30))
        head = alone((x - mean) / std, train.labels[kept], cell.lr, cell.weight_decay, classes=3)
        votes = head((train.x[held].double() - mean) / std)
        losses[cell] = F.cross_entropy(votes, train.labels[held]).item()
        assert grid.losses[cell] == pytest.approx(losses[cell], abs=1e-5)
        assert grid.validation[cell] == pytest.approx((votes.argmax(1) == train.labels[held]).float().mean())
        if cell == grid.cell:
            expected = head((test.x.double() - mean) / std)
            assert torch.allclose(grid.head(test.x).double(), expected, atol=1e-4)
            assert torch.equal(grid.predictions, expected.argmax(1))
    assert grid.cell in losses
    assert list(grid.validation) == list(grid.losses) == list(CELLS)
    assert grid.losses[grid.cell] == min(grid.losses.values())
    assert len(set(grid.validation.values())) > 4


def test_the_score_has_a_unit_for_each_test_image():
    test = blobs(100, seed=1)
    grid = linear_grid(blobs(300), test)
    assert grid.score.of == "image"
    assert grid.score.units.dtype == torch.float64
    assert torch.equal(grid.score.units, (grid.predictions == test.labels).double())
    assert torch.equal(grid.predictions, grid.head(test.x).argmax(1))
    assert 0.5 < grid.score.value < 1


def test_the_test_part_chooses_nothing():
    train, test = blobs(200), blobs(50, seed=1)
    other = Features(7 * test.x.flip(0)[:20], torch.full((20,), 5), test.places[:20])
    grids = linear_grid(train, test), linear_grid(train, other)
    assert grids[0].cell == grids[1].cell
    assert grids[0].validation == grids[1].validation
    assert grids[0].losses == grids[1].losses
    assert all(torch.equal(value, grids[1].head.state_dict()[name])
               for name, value in grids[0].head.state_dict().items())
    assert grids[1].score.value == 0                                  # no training image has that class


def test_heads_that_overflow_are_not_chosen():
    train, test = blobs(200), blobs(100, seed=1)
    grid, large = linear_grid(train, test), linear_grid(*(Features(1e18 * p.x, *p[1:]) for p in (train, test)))
    lost = [cell for cell, each in large.losses.items() if not math.isfinite(each)]
    assert Cell(30.0, 0.0, False) in lost
    assert not any(cell.batchnorm for cell in lost)
    assert large.cell not in lost
    standard = [cell for cell in CELLS if cell.batchnorm]
    assert [large.losses[cell] for cell in standard] == pytest.approx(
        [grid.losses[cell] for cell in standard], rel=1e-3)


def test_batchnorm_removes_scale_and_offset_of_the_features():
    train, moved = blobs(120), blobs(120)
    moved = Features(moved.x * torch.logspace(-3, 3, 8) + 50, *moved[1:])
    rows = torch.arange(120)
    for part, other in zip(statistics(train.x), statistics(moved.x), strict=True):
        assert part.shape == other.shape == (2, 8)
    weights = [train_heads(part, rows, *statistics(part.x), torch.full((2, 1), 0.1), torch.zeros(2, 1), classes=3,
                           epochs=3, batch=64) for part in (train, moved)]
    assert torch.allclose(weights[0][1], weights[1][1], atol=2e-3)
    assert not torch.allclose(weights[0][0], weights[1][0], atol=0.1)


@pytest.mark.parametrize("value", [0.0, 3.0, 1 / 3, 3e7])
def test_a_feature_that_changes_by_rounding_at_most_does_no_harm(value):
    train, test = blobs(120), blobs(40, seed=1)
    almost = torch.full((120, 1), value)
    almost[1::2] += 2.0 * (value == 3e7)                              # the next number in float32
    seen = Features(torch.cat([train.x, almost], 1), *train[1:])
    mean, std = statistics(seen.x)
    assert torch.equal(((seen.x - mean[1]) / std[1])[:, 8], torch.zeros(120))
    grid = linear_grid(seen, Features(torch.cat([test.x, torch.full((40, 1), value + 1)], 1), *test[1:]))
    assert grid.head.linear.weight.isfinite().all()
    assert grid.score.value > 0.5


def test_the_head_without_batchnorm_reads_features_as_they_are():
    mean, std = statistics(blobs(50).x)
    assert torch.equal(mean[0], torch.zeros(8))
    assert torch.equal(std[0], torch.ones(8))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_grid_runs_within_evaluation_and_its_head_can_be_trained_further(mode):
    with mode(), torch.autocast("cpu", torch.bfloat16):
        train, test = blobs(90), blobs(50, seed=1)
        grid = linear_grid(train, test)
    assert torch.equal(grid.predictions, linear_grid(blobs(90), blobs(50, seed=1)).predictions)
    assert not grid.score.units.requires_grad
    assert grid.head.linear.weight.grad_fn is None
    grid.head(blobs(10).x).sum().backward()
    assert grid.head.linear.weight.grad.isfinite().all()


def test_the_grid_is_deterministic_and_leaves_the_global_random_states_alone():
    heads = []
    for run_seed in (1, 2):
        torch.manual_seed(run_seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()   # noqa: NPY002
        heads.append(linear_grid(blobs(100), blobs(10)).head.linear.weight)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])                           # noqa: NPY002
        assert before[2] == random.getstate()
    assert torch.equal(*heads)


# Bad input

def test_what_the_grid_cannot_use_is_said():
    train, test = blobs(30), blobs(30, seed=1)
    unknown = Features(train.x, torch.where(train.labels == 2, -1, train.labels), train.places)
    with pytest.raises(ValueError, match="10 of 30 train images have no label"):
        linear_grid(unknown, test)
    with pytest.raises(ValueError, match="10 of 30 test images have no label"):
        linear_grid(train, unknown)
    with pytest.raises(ValueError, match="one class"):
        linear_grid(Features(train.x, torch.full((30,), 4), train.places), test)
    with pytest.raises(ValueError, match="3 classes of one image each"):
        linear_grid(Features(*(column[:3] for column in train)), test)
    with pytest.raises(ValueError, match="not finite"):
        linear_grid(Features(train.x.where(train.labels[:, None] < 2, math.nan), *train[1:]), test)
