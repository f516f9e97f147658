"""linear_lbfgs: the solution of logistic in few steps, and the accuracy of linear_cached."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ssl_zoo.evaluation.classifiers import logistic
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.linear import train_head
from ssl_zoo.evaluation.protocol import Context
from ssl_zoo.evaluation.protocols import find
from ssl_zoo.evaluation.protocols.linear_lbfgs import descended


def digits(seed, width=96):
    """Features of real images by a random layer, whose scales differ a hundredfold: training part, then test part."""
    found, generator = load_digits(), torch.Generator().manual_seed(seed)
    x = torch.from_numpy(found.data).float() / 16
    weight = torch.randn(64, width, generator=generator) * torch.logspace(-1, 1, width)
    x, labels = (x @ weight + 3).relu(), torch.from_numpy(found.target.astype(np.int64))
    order = torch.randperm(len(x), generator=generator)
    return [Features(x[rows], labels[rows], rows) for rows in (order[:1000], order[1000:])]


def test_with_enough_steps_it_is_the_logistic_regression_of_scikit_learns_penalty():
    train, test = digits(0, 24)
    ours, expected = (fit(train.x, train.labels, 10).scores(test.x).softmax(-1)
                      for fit in (lambda *given: descended(*given, steps=300), logistic))
    assert (ours - expected).abs().max() < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_its_accuracy_is_that_of_linear_cached(seed):
    """Within five of 797 images, where half a point is four."""
    train, test = digits(seed)
    right = (train_head(train, 10, epochs=90)(test.x).argmax(1) == test.labels).float().mean()
    found = find("linear_lbfgs").measure(train, test, Context()).scores
    assert list(found) == ["linear_lbfgs"]
    assert found["linear_lbfgs"].value == pytest.approx(right.item(), abs=5 / 797)


@pytest.mark.parametrize("images", [1, 5, 40])
def test_few_images_of_many_numbers_and_classes_without_images_are_no_trouble(images):
    train, test = digits(0)
    few = Features(*(column[:images] for column in train))
    linear = descended(few.x, few.labels, 12)
    assert linear.weight.isfinite().all()
    assert set(linear.predict(test.x).tolist()) <= set(few.labels.tolist())
    assert (linear.predict(few.x) == few.labels).all()


def test_neither_scale_nor_shift_of_the_features_matters():
    train, test = digits(1)
    other = descended(1000 * train.x + 50, train.labels, 10).predict(1000 * test.x + 50)
    assert (other == descended(train.x, train.labels, 10).predict(test.x)).float().mean() > 0.99
