"""Health of features: closed forms, the equations as loops, the reference's numbers."""

import math

import numpy as np
import pytest
import torch

from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.health import BINS, alignment, feature_std, rankme, similarities, tolerance, uniformity
from ssl_zoo.evaluation.protocols.health import Health
from tests.conftest import measured


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(x, labels=None):
    return Features(x, torch.full((len(x),), -1) if labels is None else torch.as_tensor(labels), torch.arange(len(x)))


def toy():
    """The two views of four images whose values the reference has."""
    i, j = torch.arange(4, dtype=torch.float64)[:, None], torch.arange(3, dtype=torch.float64)
    one = torch.sin(1 + 1.7 * i + 0.9 * j)
    return one, one + 0.3 * torch.cos(2 + 0.7 * i + 1.3 * j)


def other_toy():
    """One view of the four images of the other reference."""
    def det(k):
        return torch.sin((torch.arange(12, dtype=torch.float64).view(4, 3) + 1) * (0.37 + 0.11 * k) + k)
    return det(0) + 0.5 * det(1)


def circle(points):
    angles = 2 * torch.pi * torch.arange(points, dtype=torch.float64) / points
    return torch.stack([angles.cos(), angles.sin()], 1)


def unit_rows(x):
    return [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in x.tolist()]


def squared_distance(a, b):
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


# Deviation

def test_feature_std_is_one_where_features_fill_the_sphere_and_nothing_at_a_collapse():
    assert feature_std(normal(4000, 32)) == pytest.approx(1, abs=0.01)
    assert feature_std(torch.eye(8)) == pytest.approx(1, abs=1e-6)
    assert feature_std(torch.ones(7, 3)) == pytest.approx(0, abs=1e-6)
    assert feature_std(torch.arange(1, 8)[:, None] * torch.tensor([[3.0, -4.0]])) == pytest.approx(0, abs=1e-6)
    assert feature_std(toy()[0]) / math.sqrt(3) == pytest.approx(0.663793496, abs=1e-9)


# Effective rank

@pytest.mark.parametrize(("x", "expected"), [
    (torch.eye(8), 8.0000069),
    (torch.outer(torch.arange(1, 8), torch.tensor([1.0, -2, 0.5, 3, 1])), 1.0000063),
    (torch.diag(torch.tensor([4.0, 3, 2, 1])), 3.596116197),
    (torch.diag(torch.tensor([4.0, 3, 2, 1])) * 1e-4, 3.596116197),
    (torch.diag(torch.tensor([4.0, 3, 2, 1], dtype=torch.float64)) * 1e-30, 3.596116197),
    (torch.eye(8)[:, torch.randperm(8, generator=torch.Generator().manual_seed(0))].repeat(3, 1), 8.0000069),
    (toy()[0], 1.978020503),
])
def test_rankme_is_that_of_the_reference(x, expected):
    assert rankme(x) == pytest.approx(expected, abs=1e-7)


def rankme_by_singular_values(x):
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    shares = values / values.sum() + 1e-7
    return math.exp(-sum(p * math.log(p) for p in shares))


SPECTRA = {"flat": lambda i: torch.ones_like(i), "a tenth each": lambda i: 10.0 ** -i,
           "slowly to 1e-12": lambda i: 10.0 ** (-12 * i / len(i)), "deficient": lambda i: (i < 5).double(),
           "half of them at 1e-7": lambda i: torch.where(i < len(i) // 2, 1.0, 1e-7)}


@pytest.mark.parametrize("shape", [(60, 20), (20, 60), (40, 40)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_rankme_is_the_exponential_of_the_entropy_of_the_singular_values(spectrum, shape):
    rank = min(shape)
    values = SPECTRA[spectrum](torch.arange(rank, dtype=torch.float64))
    left, right = (torch.linalg.qr(normal(side, rank, seed=side)).Q for side in shape)
    x = left * values @ right.T
    assert rankme(x) == pytest.approx(rankme_by_singular_values(x), rel=1e-5)
    assert rankme(x.float()) == pytest.approx(rankme_by_singular_values(x.float()), rel=1e-5)


@pytest.mark.parametrize(("smallest", "bound"), [(0, 1e-10), (1e-9, 1e-3), (3e-8, 1e-3), (1e-7, 1e-6), (1e-5, 1e-9)])
@pytest.mark.parametrize("large", [1, 20])
def test_rankme_bears_directions_that_hardly_exist(large, smallest, bound):
    """Between nothing and what rounding leaves of it: as from the singular values to within what the text says."""
    left, right = (torch.linalg.qr(normal(side, 150, seed=side)).Q for side in (200, 150))
    values = torch.where(torch.arange(150) < large, 1.0, smallest).double()
    x = left * values @ right.T
    assert rankme(x) == pytest.approx(rankme_by_singular_values(x), rel=bound)


def test_rankme_takes_no_mean_away():
    assert rankme(100 + 0.01 * normal(30, 6)) == pytest.approx(1, abs=0.01)
    assert rankme(normal(30, 6)) > 5


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_chunks_do_not_change_rankme(chunk):
    for x in (normal(40, 9), normal(9, 40)):
        assert rankme(x, chunk) == pytest.approx(rankme(x), rel=1e-9)


@pytest.mark.parametrize("x", [torch.zeros(5, 3), torch.zeros(1, 4)])
def test_features_that_are_all_zero_have_no_rank(x):
    assert rankme(x) < 1.01


# Uniformity

def uniformity_by_a_loop(x, t):
    unit = unit_rows(x)
    terms = [math.exp(-t * squared_distance(unit[i], unit[j])) for i in range(len(unit)) for j in range(i)]
    return math.log(sum(terms) / len(terms))


@pytest.mark.parametrize("t", [2.0, 0.5])
@pytest.mark.parametrize("rows", [2, 7, 12])
def test_uniformity_is_the_equation_as_a_loop_over_pairs(rows, t):
    x = normal(rows, 3)
    for chunk in (1, 5, 7, 1000):
        assert uniformity(x, t, chunk) == pytest.approx(uniformity_by_a_loop(x, t), abs=1e-9)


@pytest.mark.parametrize(("x", "expected"), [
    (torch.eye(5, dtype=torch.float64), -4),
    (torch.tensor([[2.0, 0.0], [-1.0, 0.0]], dtype=torch.float64), -8),
    (torch.tensor([[2.0, 0.0], [-1.0, 0.0]]), -8),
    (torch.ones(7, 3), 0),
    (circle(2000), -1.576945),
    (toy()[0], -3.548315385),
    (other_toy(), -1.792432),
])
def test_uniformity_is_that_of_the_reference(x, expected):
    assert uniformity(x) == pytest.approx(expected, abs=1e-6)


def test_one_image_has_no_pairs():
    assert math.isnan(uniformity(torch.ones(1, 3)))


# Alignment

def test_alignment_is_that_of_the_reference():
    assert alignment(*toy()) == pytest.approx(0.045059481, abs=1e-9)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_alignment_is_the_mean_squared_distance_of_the_unit_features_of_two_views(chunk):
    x, y = normal(9, 4), normal(9, 4, seed=1)
    expected = sum(squared_distance(a, b) for a, b in zip(unit_rows(x), unit_rows(y), strict=True)) / 9
    assert alignment(x, y, chunk) == pytest.approx(expected, abs=1e-12)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(torch.eye(4)[:2], torch.eye(4)[2:]) == pytest.approx(2)


def test_views_of_different_numbers_of_images_are_refused():
    for measure in (alignment, similarities):
        with pytest.raises(ValueError, match=r"two views of the same images, not \[4, 3\] and \[5, 3\]"):
            measure(torch.ones(4, 3), torch.ones(5, 3))


# Tolerance

def test_tolerance_is_that_of_the_reference():
    assert tolerance(toy()[0], torch.tensor([0, 0, 1, 1])) == pytest.approx((0.180822906, -0.276708377), abs=1e-9)
    assert tolerance(other_toy(), torch.tensor([0, 0, 1, 1])).conditional == pytest.approx(0.810200, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_tolerance_is_the_expectation_over_pairs_as_a_loop(chunk):
    x, labels = normal(11, 4), torch.tensor([5, 2, 2, 0, 5, 5, 2, 2, 9, 5, 2])
    unit, same = unit_rows(x), labels[:, None] == labels
    cosines = [[dot(a, b) for b in unit] for a in unit]
    joint = sum(cosines[i][j] for i in range(11) for j in range(11) if same[i, j]) / 11 ** 2
    pairs = [cosines[i][j] for i in range(11) for j in range(11) if same[i, j] and i != j]
    assert tolerance(x, labels, chunk) == pytest.approx((joint, sum(pairs) / len(pairs)), abs=1e-12)


def test_tolerance_of_classes_at_one_point_each_is_their_share_of_the_pairs():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    assert tolerance(torch.eye(4)[labels], labels) == pytest.approx(((9 + 1 + 4) / 36, 1))


def test_images_without_a_label_do_not_count_and_single_images_have_no_pair():
    x, labels = normal(6, 3), torch.tensor([0, -1, 1, -1, 0, 1])
    assert tolerance(x, labels) == pytest.approx(tolerance(x[labels >= 0], labels[labels >= 0]), abs=1e-12)
    assert tolerance(x[:2], torch.tensor([0, 1])).joint == pytest.approx(0.5)
    assert math.isnan(tolerance(x[:2], torch.tensor([0, 1])).conditional)
    with pytest.raises(ValueError, match="tolerance compares images of one class, and none of 6 has a label"):
        tolerance(x, torch.full((6,), -1))


# Similarities

@pytest.mark.parametrize("chunk", [1, 4, 9, 1000])
def test_similarities_are_those_of_each_image_to_itself_and_to_every_other_as_a_loop(chunk):
    x, y = normal(9, 4), normal(9, 4, seed=1)
    one, other = unit_rows(x), unit_rows(y)
    wanted = ([dot(a, b) for a, b in zip(one, other, strict=True)],
              [dot(one[i], other[j]) for i in range(9) for j in range(9) if i != j])
    for found, cosines in zip(similarities(x, y, chunk), wanted, strict=True):
        assert found.counts.tolist() == np.histogram(cosines, BINS, (-1, 1))[0].tolist()
        assert found.mean == pytest.approx(np.mean(cosines), abs=1e-12)
        assert found.variance == pytest.approx(np.var(cosines), abs=1e-12)


def test_the_negatives_of_a_collapse_are_all_one_and_vary_by_nothing():
    for x in (torch.ones(30, 7), torch.full((30, 7), 0.3)):            # a cosine may round to a little more than 1
        for found, pairs in zip(similarities(x, x), (30, 30 * 29), strict=True):
            assert found.counts[-1] == found.counts.sum() == pairs
            assert (found.mean, found.variance) == pytest.approx((1, 0), abs=1e-6)
            assert found.variance >= 0


def test_similarities_of_features_that_are_not_finite_are_no_numbers():
    """The recorder looks at a run whose weights may have overflowed, and must not stop it."""
    x = torch.ones(6, 3)
    x[2] = torch.nan
    for found in similarities(x, x):
        assert math.isnan(found.mean)
        assert math.isnan(found.variance)


def test_one_image_has_positives_and_its_negatives_are_no_numbers():
    found = similarities(torch.ones(1, 3), torch.ones(1, 3))
    assert found.positives.mean == pytest.approx(1)
    assert math.isnan(found.negatives.mean)
    assert found.negatives.counts.sum() == 0


def test_opposite_views_fall_into_the_first_bin():
    x = normal(30, 5).float()
    assert similarities(x, -x).positives.counts[0] == 30


# Of all

@pytest.mark.parametrize("measure", [feature_std, uniformity, lambda x: alignment(x, x.flip(0)),
                                     lambda x: tolerance(x, torch.arange(12) % 3),
                                     lambda x: [part.mean for part in similarities(x, x.flip(0))]])
def test_the_lengths_of_the_features_do_not_matter(measure):
    x = normal(12, 5)
    longer = x * torch.logspace(-4, 4, 12, dtype=torch.float64)[:, None]
    assert measure(longer) == pytest.approx(measure(x), abs=1e-9)


def test_rankme_knows_the_lengths_and_not_their_unit():
    x = normal(12, 5)
    assert rankme(1e6 * x) == pytest.approx(rankme(x), rel=1e-9) == pytest.approx(rankme(1e-9 * x), rel=1e-9)
    assert rankme(x * torch.tensor([100.0] + [1] * 11)[:, None]) < rankme(x) - 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_changes_little(dtype):
    x, labels = 30 * normal(60, 8), torch.arange(60) % 3
    exact, half = x.to(dtype).double(), x.to(dtype)
    for measure in (feature_std, rankme, uniformity, lambda x: alignment(x, x.flip(0)),
                    lambda x: tolerance(x, labels), lambda x: [part.mean for part in similarities(x, x.flip(0))]):
        assert measure(half) == pytest.approx(measure(exact), abs=1e-5)


# The callback

def test_health_warns_of_a_collapse_and_of_nothing_else(recwarn):
    healthy = features(normal(40, 8).float())
    numbers = measured(Health(), healthy, healthy)
    assert list(numbers) == ["health/feature_std", "health/rankme", "health/uniformity"]
    assert list(numbers.values()) == [feature_std(healthy.x), rankme(healthy.x), uniformity(healthy.x)]
    assert not recwarn
    collapsed = features(torch.ones(40, 8) + 1e-4 * normal(40, 8).float())
    with pytest.warns(UserWarning, match="the encoder has collapsed; try a lower learning rate"):
        measured(Health(), collapsed, collapsed)


def test_health_looks_at_five_thousand_images_from_everywhere():
    x = torch.ones(6000, 2)
    x[5500:, 1] = -1                                                  # every twelfth image is another
    share = 1 / 12
    expected = math.sqrt(2) * math.sqrt(0.5 * 4 * share * (1 - share)) / 2
    assert measured(Health(), features(x), features(x))["health/feature_std"] == pytest.approx(expected, rel=0.01)
