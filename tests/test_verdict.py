"""Verdicts: one word for an encoder, and never more than its numbers say."""

import pytest
import torch

from ssl_zoo.evaluation.accuracy import accuracies, guess
from ssl_zoo.evaluation.score import Score, number
from ssl_zoo.evaluation.verdict import judge, of_guessing, verdict


def share(right, count=100):
    return (Score(torch.tensor([1.0] * right + [0.0] * (count - right)).double(), "image"),)


HEALTHY = {"health/feature_std": (number(0.5),), "health/rankme": (number(20.0),)}


@pytest.mark.parametrize(("before", "after", "word"), [(40, 70, "learns"), (68, 70, "level"), (70, 40, "below")])
def test_a_run_is_compared_with_its_untrained_encoder_beyond_the_interval(before, after, word):
    found = verdict(HEALTHY | {"knn_dino": share(after)}, {"knn_dino": share(before)}, "the untrained encoder",
                    learnt=True)
    assert found.word == word
    assert f"knn_dino {after}.0 % is {after - before:+.1f} [" in found.reason
    assert found.reason.endswith(f"points from the untrained encoder, {before}.0 %")


def test_another_encoder_is_only_above_what_it_is_compared_with():
    assert verdict({"knn_dino": share(70)}, {"knn_dino": share(40)}, "resnet18, untrained").word == "above"


def test_three_images_show_nothing():
    assert verdict({"knn_dino": share(3, 3)}, {"knn_dino": share(0, 3)}, "it", learnt=True).word == "level"


@pytest.mark.parametrize(("std", "rank", "right", "word", "by"), [
    (0.01, 20.0, 70, "collapsed", "health/feature_std is 0.01, below 0.02"),
    (0.5, 1.1, 40, "collapsed", "health/rankme is 1.1, below 1.2"),
    (0.5, 1.1, 70, "learns", "knn_dino 70.0 %"), (0.5, 1.5, 40, "level", "knn_dino 40.0 %")])
def test_features_that_are_all_the_same_have_collapsed_but_not_those_of_few_useful_directions(std, rank, right, word,
                                                                                              by):
    found = verdict({"health/feature_std": (number(std),), "health/rankme": (number(rank),), "knn_dino": share(right)},
                    {"knn_dino": share(40)}, "it", learnt=True)
    assert found.word == word
    assert by in found.reason


def test_without_labels_one_direction_is_a_collapse():
    assert verdict({"health/rankme": (number(1.1),)}, {}, "it").word == "collapsed"


@pytest.mark.parametrize(("found", "baseline", "said"), [
    (HEALTHY, {}, "no accuracy was measured"),
    ({"knn_dino": share(70)}, {}, "there is no untrained encoder to compare it with"),
    ({"knn_dino": share(70)}, {"knn_dino": (number(0.4),)}, "measured on images that cannot be compared one by one")])
def test_what_was_not_measured_is_unknown(found, baseline, said):
    assert verdict(found, baseline, "untrained encoder").word == "unknown"
    assert said in str(verdict(found, baseline, "untrained encoder"))


def test_the_first_accuracy_that_was_measured_decides():
    assert judge({"naive_bayes": 0, "logistic": 0, "health/rankme": 0, "retrieval/map": 0}) == "logistic"
    assert judge({"logistic": 0, "knn_dino": 0, "linear_cached": 0}) == "knn_dino"
    assert judge({"linear_cached_3_epochs": 0, "health/rankme": 0}) is None


def test_always_saying_the_commonest_class_is_level_with_guessing_it_and_telling_rare_ones_is_above():
    truth = torch.tensor([0] * 90 + [1] * 30)
    for predictions, word in ((torch.zeros(120).long(), "level"), (truth, "above")):
        found = {name: (score,) for name, score in accuracies("knn_dino", predictions, truth).items()}
        said = verdict(found, of_guessing(found, guess(truth)), "guessing the commonest class")
        assert said.word == word
        assert "balanced_accuracy/knn_dino" in said.reason
        assert said.reason.endswith("guessing the commonest class, 50.0 %")
    even = {"knn_dino": share(70)}
    assert of_guessing(even, guess(truth))["knn_dino"][0].value == 0.75
    assert of_guessing(HEALTHY, guess(truth)) == {}
    assert of_guessing(even, None) == {}
