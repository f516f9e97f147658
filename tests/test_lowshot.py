"""Few labels: which images are drawn, what is left out and why, and the accuracies worked out anew."""

import math
from collections import Counter

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.lowshot import draw, lowshot, sizes


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def part(count, classes=4, width=6, spread=1.0, seed=0):
    """Overlapping clouds around one centre for each class."""
    labels = torch.arange(count) % classes
    x = normal(classes, width, seed=99)[labels] + spread * normal(count, width, seed=seed) + 2
    return Features(x, labels, torch.arange(count))


def counted(*counts):
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


# Which sizes there are

def test_every_size_is_drawn_where_each_class_has_more_images():
    found, left_out = sizes(torch.tensor([1000, 2000, 555]), ())
    assert {name: wanted.tolist() for name, wanted in found.items()} == {
        "1": [1, 1, 1], "2": [2, 2, 2], "5": [5, 5, 5], "10": [10, 10, 10], "100": [100, 100, 100],
        "1%": [10, 20, 6], "10%": [100, 200, 56]}
    assert left_out == []


def test_a_size_that_a_class_lacks_images_for_is_left_out_with_the_class():
    found, left_out = sizes(torch.tensor([60, 200, 50]), ("cat", "dog", "frog"))
    assert list(found) == ["1", "2", "5", "10", "1%", "10%"]
    assert left_out == ["lowshot at 100 labels per class: class frog has 50 images"]
    assert sizes(torch.tensor([60, 200, 50]), ())[1] == ["lowshot at 100 labels per class: class 2 has 50 images"]
    assert "lowshot at 2 labels per class: class cat has 1 image" in sizes(torch.tensor([1, 3]), ("cat", "dog"))[1]


def test_the_whole_train_part_is_no_draw():
    found, left_out = sizes(torch.tensor([10, 10]), ())
    assert list(found) == ["1", "2", "5", "10%"]
    assert left_out == ["lowshot at 10 labels per class: these are all the images",
                        "lowshot at 100 labels per class: class 0 has 10 images",
                        "lowshot at 1% of the labels: of 20 images that is less than one for each of 2 classes"]
    found, left_out = sizes(torch.tensor([1, 1]), ())
    assert not found
    assert left_out[0] == "lowshot at 1 label per class: these are all the images"


def test_a_share_takes_at_least_one_image_of_a_rare_class():
    assert sizes(torch.tensor([1000, 3]), ())[0]["1%"].tolist() == [10, 1]


def test_a_class_that_only_the_test_part_has_is_not_drawn_and_leaves_nothing_out():
    found, left_out = sizes(torch.tensor([200, 0, 200]), ())
    assert left_out == []
    assert found["5"].tolist() == [5, 0, 5]
    assert found["1%"].tolist() == [2, 0, 2]


# Which images are drawn

def test_a_draw_has_what_is_wanted_of_each_class_and_no_image_twice():
    labels = torch.cat([counted(7, 0, 30, 5), counted(3, 0, 9, 8)])
    rows = draw(labels, torch.tensor([10, 0, 1, 4]), 0)
    assert len(set(rows.tolist())) == len(rows) == 15
    assert Counter(labels[rows].tolist()) == {0: 10, 2: 1, 3: 4}


def test_a_larger_draw_holds_the_smaller_one_of_its_number():
    labels = counted(50, 70, 20)[torch.randperm(140, generator=torch.Generator().manual_seed(0))]
    sizes_ = [set(draw(labels, torch.tensor(wanted), 3).tolist()) for wanted in ([1, 1, 1], [5, 2, 1], [20, 20, 20])]
    assert sizes_[0] < sizes_[1] < sizes_[2]


def test_draws_differ_and_repeat_without_a_trace():
    labels, wanted, state = counted(50, 50), torch.tensor([5, 5]), torch.get_rng_state()
    draws = [draw(labels, wanted, seed).tolist() for seed in range(5)]
    assert len({tuple(rows) for rows in draws}) == 5
    torch.manual_seed(1)
    assert draws == [draw(labels, wanted, seed).tolist() for seed in range(5)]
    torch.set_rng_state(state)


def test_every_image_of_a_class_is_drawn_equally_often():
    seen = Counter(row for seed in range(600) for row in draw(counted(6, 4), torch.tensor([2, 1]), seed).tolist())
    for row in range(10):
        share = 2 / 6 if row < 6 else 1 / 4
        assert abs(seen[row] - 600 * share) < 4 * math.sqrt(600 * share * (1 - share))


# The accuracies

def test_scores_are_the_shares_of_right_test_images_over_five_draws():
    train, test = part(480), part(100, seed=1)
    scores, left_out = lowshot(train, test)
    assert list(scores) == [f"lowshot/{size}/{name}" for size in ("1", "2", "5", "10", "100", "1%", "10%")
                            for name in ("knn", "logistic", "naive_bayes")]
    assert left_out == []
    for score in scores.values():
        assert score.of == "draw"
        assert score.units.shape == (5,)
        assert score.units.dtype == torch.float64
        assert torch.allclose((100 * score.units).round(), 100 * score.units, atol=1e-9)
        assert score.units.min() > 0.25


@pytest.mark.parametrize(("size", "wanted"), [("1", 1), ("10", 10), ("10%", 12)])
def test_scores_are_those_of_scikit_learn_on_the_same_draws(size, wanted):
    train, test = part(480), part(100, seed=1)
    scores, _ = lowshot(train, test)
    mean, std, truth = train.x.mean(0), train.x.std(0, correction=0), test.labels.numpy()
    x, queries = (train.x - mean) / std, (test.x - mean) / std
    for seed in range(5):
        rows = draw(train.labels, torch.full((4,), wanted), seed)
        labels = train.labels[rows].numpy()
        reference = LogisticRegression(tol=1e-8, max_iter=10000).fit(x[rows].numpy(), labels)
        accuracy = reference.score(queries.numpy(), truth)
        assert scores[f"lowshot/{size}/logistic"].units[seed] == pytest.approx(accuracy, abs=1e-9)
        votes = KNeighborsClassifier(min(20, 4 * wanted), metric="cosine", algorithm="brute",
                                     weights=lambda distance: torch.from_numpy((1 - distance) / 0.07).exp().numpy())
        accuracy = votes.fit(train.x[rows].numpy(), labels).score(test.x.numpy(), truth)
        assert scores[f"lowshot/{size}/knn"].units[seed] == pytest.approx(accuracy, abs=1e-9)
        means = torch.stack([x[rows][train.labels[rows] == c].mean(0) for c in range(4)])
        variance = (x[rows] - means[train.labels[rows]]).square().mean(0) + 1e-9
        nearest = ((queries[:, None] - means).square() / variance).sum(-1).argmin(1)
        assert scores[f"lowshot/{size}/naive_bayes"].units[seed] == pytest.approx(
            (nearest == test.labels).double().mean().item(), abs=1e-9)


def test_naive_bayes_needs_fewer_labels_than_logistic_regression_where_channels_differ_in_noise():
    labels, noise = torch.arange(1000) % 5, 3 * torch.logspace(-0.5, 0.5, 40)
    train, test = (Features(normal(5, 40, seed=99)[labels] + noise * normal(1000, 40, seed=seed), labels, labels)
                   for seed in (0, 1))
    scores, _ = lowshot(train, test)
    assert scores["lowshot/10/naive_bayes"].value > scores["lowshot/10/logistic"].value + 0.02
    assert scores["lowshot/1/logistic"].value > scores["lowshot/1/knn"].value + 0.1


def test_classes_without_train_images_are_never_right_and_hinder_nobody():
    train, test = part(400), part(100, seed=1)
    more = Features(torch.cat([test.x, test.x]), torch.cat([test.labels, torch.full((100,), 6)]), torch.arange(200))
    one, other = lowshot(train, test)[0], lowshot(train, more)[0]
    assert one.keys() == other.keys()
    for name in one:
        assert torch.allclose(other[name].units, one[name].units / 2)


def test_an_encoder_is_compared_on_the_same_draws_whatever_its_features():
    train, test = part(400), part(100, seed=1)
    turned = torch.linalg.qr(normal(6, 6, seed=5)).Q
    again = [Features(some.x @ turned, *some[1:]) for some in (train, test)]
    one, other = lowshot(train, test)[0], lowshot(*again)[0]
    assert (one["lowshot/10/knn"].units - other["lowshot/10/knn"].units).abs().max() < 0.03


def test_images_without_a_label_are_not_drawn():
    train, test = part(400), part(100, seed=1)
    labels = train.labels.where(torch.arange(400) < 200, -1)
    assert draw(labels, torch.full((4,), 50), 0).sort().values.tolist() == list(range(200))
    scores, left_out = lowshot(Features(train.x, labels, train.places), test)
    assert left_out[0] == "lowshot at 100 labels per class: class 0 has 50 images"
    assert "lowshot/10%/logistic" in scores
    with pytest.raises(ValueError, match=r"^no train image has a label: "):
        lowshot(Features(train.x, torch.full((400,), -1), train.places), test)


def test_test_images_without_a_label_are_refused():
    train, test = part(40), part(10, seed=1)
    with pytest.raises(ValueError, match=r"^3 of 10 test images have no label: accuracy needs them all"):
        lowshot(train, Features(test.x, torch.where(torch.arange(10) < 3, -1, test.labels), test.places))


def test_features_that_are_not_finite_are_named_with_their_part():
    train, test = part(40), part(10, seed=1)
    test.x[7, 2] = math.nan
    with pytest.raises(ValueError, match=r"^the features of 1 of 10 images are .* row 7 of the test part,"):
        lowshot(train, test)
    with pytest.raises(ValueError, match=r"^the features of 1 of 10 images are .* row 7 of the training part"):
        lowshot(test, train)


def test_lowshot_leaves_the_run_as_it_was():
    train, test = part(60), part(500, seed=1)
    state = torch.get_rng_state()
    outside = lowshot(train, test)[0]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = lowshot(train, test)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(outside[name].units, inside[name].units) for name in outside)
