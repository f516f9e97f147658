"""Accuracies: of every test part the share that is right, and of unbalanced ones what the rare classes say."""

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from ssl_zoo.evaluation.accuracy import accuracies, guess, unbalanced
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.protocol import Context, quantity
from ssl_zoo.evaluation.protocols import find
from ssl_zoo.evaluation.protocols.linear_cached import LinearCached


def drawn(count, classes, seed):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_of_an_unbalanced_part_there_are_scikit_learns_balanced_accuracy_and_macro_f1(seed):
    truth = torch.cat([torch.zeros(30).long(), drawn(20, 3, seed), torch.tensor([1, 2])])
    predictions = torch.where(drawn(52, 2, seed + 9) == 0, truth, drawn(52, 5, seed + 5))   # two that nothing is
    found = accuracies("it", predictions, truth)
    assert found.keys() == {"it", "balanced_accuracy/it", "macro_f1/it"}
    assert found["it"].value == pytest.approx((predictions == truth).double().mean().item())
    recalls = [(predictions[truth == one] == one).double().mean().item() for one in range(3)]
    assert found["balanced_accuracy/it"].value == pytest.approx(sum(recalls) / 3)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert found["balanced_accuracy/it"].value == pytest.approx(balanced_accuracy_score(truth, predictions))
    assert found["macro_f1/it"].value == pytest.approx(f1_score(truth, predictions, average="macro"), abs=1e-6)


def test_always_saying_the_commonest_class_is_right_often_and_worth_nothing():
    truth = torch.tensor([0] * 95 + [1] * 5)
    found = accuracies("it", torch.zeros(100).long(), truth)
    assert found["it"].value == guess(truth).value == 0.95
    assert found["balanced_accuracy/it"].value == 0.5
    assert found["macro_f1/it"].value == pytest.approx((2 * 95 / 195 + 0) / 2)
    assert found["balanced_accuracy/it"].interval.high > 0.6                      # five images can hide much


@pytest.mark.parametrize(("counts", "expected"), [
    ([10, 10], False), ([19, 10], False), ([20, 10], True), ([0, 7, 6], False), ([1, 0, 2], True), ([5], False)])
def test_a_part_is_unbalanced_where_one_class_has_twice_the_images_of_another_that_occurs(counts, expected):
    truth = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    assert unbalanced(truth) == expected
    assert (len(accuracies("it", truth, truth)) == 3) == expected


def test_images_without_a_label_are_never_right_and_have_no_classes_to_average():
    found = accuracies("it", torch.tensor([0, 0, 0, -1]), torch.tensor([0, 0, 0, -1]))
    assert found.keys() == {"it"}
    assert found["it"].value == 0.75


def part(counts, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    x = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(seed))
    return Features(x + 3 * torch.eye(6)[labels], labels, torch.arange(len(labels)))


@pytest.mark.parametrize("protocol", ["knn", LinearCached(3), "linear_grid", "logistic", "naive_bayes",
                                      "nearest_class_mean"])
@pytest.mark.parametrize("running", [True, False])
def test_every_classifier_of_features_has_them_and_they_are_explained(protocol, running):
    protocol = find(protocol) if isinstance(protocol, str) else protocol
    found = protocol.measure(part([30, 10], 0), part([12, 4], 1), Context(running=running)).scores
    balanced = {name for name in found if name.startswith(("balanced_accuracy/", "macro_f1/"))}
    accuracy = {name for name in found if name not in balanced and not name.endswith("_top5")}
    assert balanced == {f"{kind}/{name}" for kind in ("balanced_accuracy", "macro_f1") for name in accuracy}
    assert "twice the images of another" in quantity(min(balanced), [protocol])[1].sentence
    even = protocol.measure(part([30, 10], 0), part([8, 8], 1), Context(running=running)).scores
    assert even.keys() == found.keys() - balanced
