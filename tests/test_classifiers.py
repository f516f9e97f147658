"""Linear classifiers against scikit-learn, the densities they stand for, and solutions by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import StandardScaler

from ssl_zoo.evaluation import classifiers
from ssl_zoo.evaluation.classifiers import (
    Linear,
    cross_entropy,
    logistic,
    moments,
    naive_bayes,
    nearest_class_mean,
)

ALL = [logistic, naive_bayes, nearest_class_mean]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clouds(count, width, classes, spread=1.0, seed=0):
    """Features [count, width] that overlap, with labels; channels differ in mean and deviation."""
    labels = torch.arange(count) % classes
    x = normal(classes, width, seed=99)[labels] + spread * normal(count, width, seed=seed)
    return x * (1 + torch.arange(width)) + 3, labels


def regression(x, labels, C=1.0):
    return LogisticRegression(C=C, tol=1e-10, max_iter=10000).fit(x.numpy(), labels.numpy())


# Logistic regression

SIZES = [(60, 5, 3), (200, 7, 10), (12, 40, 4), (9, 9, 3), (3, 20, 3), (500, 2, 3)]


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-4), (torch.float32, 1e-3)])
@pytest.mark.parametrize(("count", "width", "classes"), SIZES)
def test_logistic_has_scikit_learns_coefficients(count, width, classes, dtype, atol):
    x, labels = clouds(count, width, classes)
    scaler = StandardScaler().fit(x.numpy())
    reference = regression(torch.from_numpy(scaler.transform(x.numpy())), labels)
    x = x.to(dtype)
    mean, std = moments(x)
    found = logistic(x, labels, classes)
    assert found.weight.dtype == found.bias.dtype == dtype
    assert torch.allclose(found.weight.double() * std, torch.from_numpy(reference.coef_), atol=atol)
    intercept = found.bias.double() + found.weight.double() @ mean
    assert torch.allclose(intercept, torch.from_numpy(reference.intercept_), atol=atol)
    others = clouds(50, width, classes, seed=1)[0]
    probabilities = torch.from_numpy(reference.predict_proba(scaler.transform(others.numpy())))
    assert torch.allclose(found.scores(others.to(dtype)).softmax(-1).double(), probabilities, atol=atol)
    assert (found.predict(others.to(dtype)).numpy() == probabilities.argmax(-1).numpy()).all()


def test_features_are_taken_as_they_are_where_they_shall_not_be_standardised():
    x, labels = clouds(30, 4, 3)
    reference = regression(x, labels)
    found = logistic(x, labels, 3, standardise=False)
    assert torch.allclose(found.weight, torch.from_numpy(reference.coef_), atol=1e-4)
    assert torch.allclose(found.bias, torch.from_numpy(reference.intercept_), atol=1e-3)


@pytest.mark.parametrize("known", [2, 4])
@pytest.mark.parametrize("width", [5, 60])
def test_two_classes_are_scikit_learns_binary_regression_whatever_other_classes_have_no_images(width, known):
    """W_1 = -W_0 = w / 2, so |W|^2 is |w|^2 / 2, which scikit-learn adds to the sum of the losses."""
    x, labels = clouds(40, width, 2)
    scaler = StandardScaler().fit(x.numpy())
    reference = regression(torch.from_numpy(scaler.transform(x.numpy())), labels)
    found, std = logistic(x, labels, known), moments(x)[1]
    assert torch.allclose((found.weight[1] - found.weight[0]) * std, torch.from_numpy(reference.coef_[0]), atol=1e-4)
    others = clouds(30, width, 2, spread=3.0, seed=1)[0]
    probabilities = torch.from_numpy(reference.predict_proba(scaler.transform(others.numpy())))
    assert torch.allclose(found.scores(others).softmax(-1)[:, :2], probabilities, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_one_image_of_each_class_along_its_own_axis_is_solved_by_one_equation(classes):
    """With p for the right class W has a (1 - p) on its diagonal and -a (1 - p) / (C - 1) elsewhere, so that

    log(p (C - 1) / (1 - p)) = a^2 (1 - p) C / (C - 1). Of two classes W, penalised twice, is half of that.
    """
    a, low, high, halved = 3.0, 1 / classes, 1 - 1e-12, 2 if classes == 2 else 1
    for _ in range(100):
        p = (low + high) / 2
        right_of_it = math.log(p * (classes - 1) / (1 - p)) > a ** 2 * (1 - p) * classes / (classes - 1) / halved
        low, high = (low, p) if right_of_it else (p, high)
    expected = torch.full((classes, classes), -a * (1 - p) / (classes - 1), dtype=torch.float64)
    expected = expected.fill_diagonal_(a * (1 - p)) / halved
    x = a * torch.eye(classes, classes + 4, dtype=torch.float64)
    found = logistic(x, torch.arange(classes), classes, standardise=False)
    assert torch.allclose(found.weight[:, :classes], expected, atol=1e-4)
    assert torch.allclose(found.weight[:, classes:], torch.zeros(classes, 4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.bias, torch.zeros(classes, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("width", [3, 30])
def test_problems_solved_together_are_those_solved_alone(width):
    x = normal(4, 15, width)
    labels = torch.stack([torch.randperm(15, generator=torch.Generator().manual_seed(i)) % 3 for i in range(4)])
    labels[0] %= 2                                                        # class 2 is missing in one of them
    together = logistic(x, labels, 3, standardise=False)
    assert together.weight.shape == (4, 3, width)
    assert together.predict(x).shape == (4, 15)
    for i in range(4):
        alone = logistic(x[i], labels[i], 3, standardise=False)
        assert torch.allclose(together.weight[i], alone.weight, atol=1e-4)
        assert torch.equal(together.bias[i].isneginf(), alone.bias.isneginf())
        assert torch.allclose(together.scores(x)[i], alone.scores(x[i]), atol=1e-3)


def test_moments_are_mean_and_deviation_and_what_never_changes_is_infinitely_wide():
    x = torch.cat([normal(3000, 3).float() * 2 + 5, torch.full((3000, 1), 0.1), torch.zeros(3000, 1)], 1)
    mean, std = moments(x)
    assert torch.allclose(mean, x.double().mean(0))
    assert torch.allclose(std[:3], x[:, :3].double().std(0, correction=0))
    assert std[3:].tolist() == [math.inf, math.inf]
    assert torch.allclose(moments(1e-9 * x)[1], 1e-9 * std)               # and what is small is not constant


def test_a_channel_that_never_changes_changes_nothing():
    x, labels = clouds(30, 4, 3)
    wide = torch.cat([x, torch.full((30, 1), 0.1, dtype=torch.float64)], 1)
    one, other = logistic(x, labels, 3), logistic(wide, labels, 3)
    assert torch.allclose(one.weight, other.weight[:, :4], atol=1e-6)
    assert torch.equal(other.weight[:, 4], torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(one.bias, other.bias, atol=1e-5)


def test_logistic_is_blind_to_each_channels_shift_and_scale():
    x, labels = clouds(30, 4, 3)
    moved = x * torch.tensor([0.01, 1, -3, 100]) + torch.tensor([1, 0, -7, 50])
    one, other = logistic(x, labels, 3), logistic(moved, labels, 3)
    assert torch.allclose(one.scores(x), other.scores(moved), atol=1e-4)


def different_directions():
    """Features [300, 20] far from 0 whose principal deviations are 0.01 to 100."""
    x = normal(300, 20) * torch.logspace(-2, 2, 20) @ torch.linalg.qr(normal(20, 20, seed=1)).Q + 50
    return x, (x @ normal(20, 3, seed=2) + 200 * normal(300, 3, seed=3)).argmax(-1)


def test_logistic_is_solved_where_directions_differ_ten_thousandfold():
    x, labels = different_directions()
    reference = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(x.numpy(), labels.numpy())
    found = logistic(x, labels, 3, standardise=False)
    assert torch.allclose(found.weight, torch.from_numpy(reference.coef_), atol=1e-4)
    assert torch.allclose(found.scores(x).softmax(-1), torch.from_numpy(reference.predict_proba(x.numpy())), atol=1e-4)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_logistic_looks_at_all_images_less_than_eighty_times_where_directions_differ(chunk, monkeypatch):
    looks = []
    monkeypatch.setattr(classifiers, "cross_entropy", lambda *args: looks.append(1) or cross_entropy(*args))
    monkeypatch.setattr(classifiers, "CHUNK", chunk)
    x, labels = different_directions()
    logistic(x, labels, 3, standardise=False)
    assert len(looks) < 80


def test_cross_entropy_has_the_derivative_that_autograd_finds():
    x, labels, weight = normal(30, 4), clouds(30, 4, 3)[1], normal(3, 5, seed=2).requires_grad_()
    expected = F.cross_entropy(F.linear(x, weight[:, :-1], weight[:, -1]), labels, reduction="sum")
    expected.backward()
    loss, slope = cross_entropy(x, labels, weight.detach(), torch.zeros(3).double())
    assert float(loss) == pytest.approx(expected.item())
    assert torch.allclose(slope, weight.grad)


# Naive Bayes

def posterior_by_densities(x, labels, queries):
    """log p(c | query) from Gaussian densities around the class means, with one variance for each channel."""
    classes = labels.unique().tolist()
    shares = [(labels == c).double().mean() for c in classes]
    means = [x[labels == c].mean(0) for c in classes]
    variance = sum(share * (x[labels == c].var(0, correction=0) + 1e-9)
                   for share, c in zip(shares, classes, strict=True))
    joint = [[math.log(share) + sum(-0.5 * math.log(2 * math.pi * v) - (q - m) ** 2 / (2 * v)
                                    for q, m, v in zip(query, mean.tolist(), variance.tolist(), strict=True))
              for share, mean in zip(shares, means, strict=True)] for query in queries.tolist()]
    return torch.tensor(joint, dtype=torch.float64).log_softmax(-1)


def test_naive_bayes_is_bayes_rule_for_gaussian_densities():
    x, labels = clouds(50, 4, 3)
    labels[:20] = 0                                                       # unequal shares
    queries = clouds(20, 4, 3, seed=1)[0]
    found, expected = naive_bayes(x, labels, 3), posterior_by_densities(x, labels, queries)
    assert torch.allclose(found.scores(queries).log_softmax(-1), expected, atol=1e-7)
    assert torch.equal(found.predict(queries), expected.argmax(-1))


def test_naive_bayes_gives_the_papers_weights_but_for_what_all_classes_share():
    """W_c = mu_c / v and b_c = log pi_c - sum(mu_c^2 / v) / 2, for the reference's means and variance."""
    means = torch.tensor([[0.511069, 0.423497], [0.925244, 0.803083]], dtype=torch.float64)
    v = torch.tensor([0.386152, 0.386071], dtype=torch.float64)
    x = torch.cat([means + v.sqrt(), means - v.sqrt()])
    found = naive_bayes(x, torch.tensor([0, 1, 0, 1]), 2)
    assert (found.weight[1] - found.weight[0]).tolist() == pytest.approx([2.39606 - 1.32349, 2.08014 - 1.09694],
                                                                         abs=2e-5)
    assert float(found.bias[1] - found.bias[0]) == pytest.approx(-2.63688 + 1.26362, abs=2e-5)


def test_equal_variances_and_shares_make_naive_bayes_the_nearest_mean():
    means, noise = 2 * normal(4, 6), normal(1, 6) * torch.tensor([[1.0], [-1.0]])
    noise = noise / noise.std(0, correction=0)                            # one variance for all channels
    x = (means[:, None] + noise).flatten(0, 1)
    queries = 2 * normal(100, 6, seed=2)
    distances = torch.stack([(queries - mean).square().sum(-1) for mean in means], 1)
    assert torch.equal(naive_bayes(x, torch.arange(4).repeat_interleave(2), 4).predict(queries), distances.argmin(1))


def test_naive_bayes_is_scikit_learns_where_all_classes_have_the_same_variances():
    noise = normal(20, 5) * torch.tensor([1.0, 2, 3, 4, 5])
    means = normal(3, 5, seed=1)[[0, 1, 2, 2]]                            # class 2 has its images twice
    x, labels = (means[:, None] + noise).flatten(0, 1), torch.tensor([0, 1, 2, 2]).repeat_interleave(20)
    reference = GaussianNB(var_smoothing=0).fit(x.numpy(), labels.numpy())
    queries = 3 * normal(30, 5, seed=2)
    expected = torch.from_numpy(reference.predict_log_proba(queries.numpy()))
    assert torch.allclose(naive_bayes(x, labels, 3).scores(queries).log_softmax(-1), expected, atol=1e-6)


def test_one_image_of_each_class_makes_naive_bayes_the_nearest_image():
    x, queries = normal(5, 8).float(), normal(200, 8, seed=1).float()
    distances = torch.cdist(queries.double(), x.double())
    assert torch.equal(naive_bayes(x, torch.arange(5), 5).predict(queries), distances.argmin(1))


def test_naive_bayes_bears_channels_that_never_change_and_features_far_from_zero():
    x, labels = clouds(60, 4, 3, spread=2.0)
    queries = clouds(200, 4, 3, spread=2.0, seed=1)[0]
    expected = naive_bayes(x, labels, 3).predict(queries)
    constant = torch.tensor([[0.1, 0.0, 7.3]])
    wide = [torch.cat([part.float() + 300, constant.expand(len(part), 3)], 1) for part in (x, queries)]
    assert (naive_bayes(wide[0], labels, 3).predict(wide[1]) == expected).double().mean() > 0.99


# Nearest class mean

def test_nearest_class_mean_is_the_largest_cosine_with_the_mean_of_unit_features():
    x, labels = clouds(40, 5, 4)
    queries = clouds(30, 5, 4, seed=1)[0]
    for query, found in zip(queries, nearest_class_mean(x, labels, 4).predict(queries).tolist(), strict=True):
        means = [sum(row / row.norm() for row in x[labels == c]) for c in range(4)]
        assert found == max(range(4), key=lambda c: float(query @ means[c] / means[c].norm()))


def test_nearest_class_mean_is_blind_to_the_length_of_every_feature():
    x, labels = clouds(40, 5, 4)
    queries = clouds(30, 5, 4, seed=1)[0]
    lengths = normal(40, 1, seed=3).exp()
    assert torch.equal(nearest_class_mean(lengths * x, labels, 4).predict(100 * queries),
                       nearest_class_mean(x, labels, 4).predict(queries))


def test_a_class_that_scatters_is_as_near_as_one_that_does_not():
    x = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.2, 1.0]])
    found = nearest_class_mean(x, torch.tensor([0, 0, 1]), 2)
    assert found.weight.norm(dim=-1).tolist() == pytest.approx([1, 1])
    assert found.predict(torch.tensor([[1.0, 0.0, 0.9]])).tolist() == [0]


# All three

@pytest.mark.parametrize("classify", ALL)
def test_a_class_without_images_is_never_predicted_and_changes_nothing(classify):
    x, labels = clouds(30, 5, 3)
    queries = clouds(40, 5, 3, spread=5.0, seed=1)[0]
    dense, sparse = classify(x, labels, 3), classify(x, torch.tensor([1, 4, 5])[labels], 8)
    assert sparse.weight.shape == (8, 5)
    assert torch.equal(sparse.bias.isneginf().nonzero().flatten(), torch.tensor([0, 2, 3, 6, 7]))
    assert torch.equal(sparse.predict(queries), torch.tensor([1, 4, 5])[dense.predict(queries)])
    assert torch.allclose(sparse.scores(queries)[:, [1, 4, 5]], dense.scores(queries), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("classify", ALL)
def test_one_class_alone_is_always_predicted(classify):
    found = classify(normal(6, 3), torch.full((6,), 2), 4)
    assert found.predict(normal(5, 3, seed=1)).tolist() == [2] * 5


@pytest.mark.parametrize("classify", ALL)
@pytest.mark.parametrize("chunk", [1, 7, 30])
def test_the_chunk_changes_nothing(classify, chunk, monkeypatch):
    x, labels = clouds(30, 5, 3)
    whole = classify(x, labels, 3)
    monkeypatch.setattr(classifiers, "CHUNK", chunk)
    assert torch.allclose(classify(x, labels, 3).scores(x), whole.scores(x), atol=1e-4)


@pytest.mark.parametrize("classify", ALL)
def test_well_separated_classes_are_told_apart(classify):
    x, labels = clouds(60, 20, 6, spread=0.1)
    queries, truth = clouds(60, 20, 6, spread=0.1, seed=1)
    assert torch.equal(classify(x.float(), labels, 6).predict(queries.float()), truth)


@pytest.mark.parametrize("classify", ALL)
def test_classifiers_give_the_same_bits_anywhere_in_a_run_and_leave_no_trace(classify):
    x, labels = (part.float() if part.is_floating_point() else part for part in clouds(40, 6, 3))
    alone = classify(x, labels, 3)
    kept, scores, state = x.clone(), alone.scores(x), torch.get_rng_state()
    x.requires_grad_()
    within_graph = classify(x, labels, 3)
    with torch.inference_mode():
        inferred = classify(x.clone(), labels.clone(), 3)
        predicted = inferred.predict(x.clone())
    with torch.autocast("cpu", torch.bfloat16):
        cast = classify(x, labels, 3)
        assert torch.equal(cast.scores(kept), scores)
    for found in (within_graph, inferred, cast):
        assert torch.equal(found.weight, alone.weight)
        assert torch.equal(found.bias, alone.bias)
        assert not found.weight.requires_grad
    assert torch.equal(predicted, alone.predict(kept))
    assert torch.equal(x, kept)
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("classify", ALL)
@pytest.mark.parametrize("width", [6, 60])
def test_no_tensor_is_made_on_another_device_than_the_features(classify, width):
    x, labels = clouds(40, width, 3)
    with torch.device("meta"):                                            # where a tensor goes that names no device
        found = classify(x, labels, 3)
        assert found.predict(x).device == found.weight.device == found.bias.device == x.device


@pytest.mark.parametrize("classify", ALL)
def test_features_in_half_precision_are_judged_in_single(classify):
    x, labels = clouds(40, 6, 3)
    half = x.half()
    found, expected = classify(half, labels, 3), classify(half.float(), labels, 3)
    assert found.weight.dtype == found.scores(half).dtype == torch.float32
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.scores(half), expected.scores(half.float()))


@pytest.mark.parametrize("classify", ALL)
def test_labels_and_features_that_no_class_has_are_named(classify):
    x = normal(4, 2)
    with pytest.raises(ValueError, match=r"^labels go from -1 to 2, and 3 classes are 0 to 2: leave out the images"):
        classify(x, torch.tensor([0, 1, 2, -1]), 3)
    with pytest.raises(ValueError, match=r"^labels go from 0 to 3, and 3 classes are 0 to 2"):
        classify(x, torch.tensor([0, 1, 2, 3]), 3)
    with pytest.raises(ValueError, match=r"^4 features have 3 labels: "):
        classify(x, torch.tensor([0, 1, 2]), 3)
    with pytest.raises(ValueError, match=r"^0 images: "):
        classify(x[:0], torch.zeros(0).long(), 3)
    x[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"^the features of 1 of 4 images are not finite, such as those of row 2,"):
        classify(x, torch.tensor([0, 1, 2, 0]), 3)


def test_scores_and_predictions_are_those_of_a_linear_layer():
    found = Linear(normal(3, 4), normal(3, seed=1))
    x = normal(7, 4, seed=2)
    assert torch.allclose(found.scores(x), F.linear(x, found.weight, found.bias))
    assert np.array_equal(found.predict(x), F.linear(x, found.weight, found.bias).argmax(-1))
