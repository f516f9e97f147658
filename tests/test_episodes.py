"""Few-shot episodes: what is drawn, each classifier as a loop, and transport against its equations."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sklearn.linear_model import LogisticRegression

from ssl_zoo.evaluation import episodes
from ssl_zoo.evaluation.episodes import (
    accuracy,
    align,
    by_class_mean,
    by_transport,
    draw,
    fewshot,
    standardise,
    transport_plan,
    with_images,
)
from ssl_zoo.evaluation.features import Features

NAMES = ["fewshot/5way_1shot", "fewshot/opta_transductive_5way_1shot", "fewshot/5way_5shot",
         "fewshot/opta_transductive_5way_5shot"]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def part(count, classes=7, width=12, spread=1.0, seed=0):
    labels = torch.arange(count) % classes
    return Features((normal(classes, width, seed=99)[labels] + spread * normal(count, width, seed=seed)).float(),
                    labels, torch.arange(count))


def episode(ways=5, shots=1, queries=15, width=12, spread=1.0, seed=0):
    """Support [ways, shots, D] and queries [ways * queries, D] of overlapping clouds."""
    x = normal(ways, 1, width, seed=99) + spread * normal(ways, shots + queries, width, seed=seed)
    return x[:, :shots], x[:, shots:].flatten(0, 1)


# Which images an episode has

def test_an_episode_has_five_classes_and_no_image_twice():
    labels = torch.arange(300) % 8
    rows = draw(with_images(labels, 20), 20)
    assert rows.shape == (600, 5, 20)
    assert torch.equal(labels[rows], labels[rows][:, :, :1].expand(-1, -1, 20))
    for of_classes, of_images in zip(labels[rows][:, :, 0].tolist(), rows.flatten(1).tolist(), strict=True):
        assert len(set(of_classes)) == 5
        assert len(set(of_images)) == 100


def test_classes_and_images_are_drawn_equally_often():
    labels = torch.arange(200) % 8
    drawn = draw(with_images(labels, 16), 16).flatten().bincount(minlength=200)
    expected = 600 * 5 / 8 * 16 / 25
    assert (drawn - expected).abs().max() < 5 * math.sqrt(expected)
    support = draw(with_images(labels, 16), 16)[:, :, 0].flatten().bincount(minlength=200)
    assert support.min() > 0


def test_classes_with_too_few_images_and_unknown_images_are_not_drawn():
    labels = torch.arange(200) % 8
    labels[(labels == 2).nonzero().flatten()[15:]] = -1                    # 15 images are one too few,
    labels[(labels == 3).nonzero().flatten()[16:]] = -1                    # 16 are enough,
    labels[labels == 4] = -1                                               # and of those unknown there are more
    assert labels[draw(with_images(labels, 16), 16)].unique().tolist() == [0, 1, 3, 5, 6, 7]


def test_draws_repeat_without_a_trace():
    labels, state = torch.arange(200) % 8, torch.get_rng_state()
    rows = draw(with_images(labels, 16), 16)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(draw(with_images(labels, 16), 16), rows)
    assert len(rows[:, :, 0].unique(dim=0)) > 590
    torch.set_rng_state(state)


# Nearest class mean

@pytest.mark.parametrize("shots", [1, 3])
def test_by_class_mean_is_the_largest_cosine_with_the_mean_of_unit_features(shots):
    support, queries = episode(shots=shots, queries=40)
    support = support + torch.arange(5)[:, None, None] * normal(*support.shape, seed=1)      # some classes scatter
    support = support * normal(5, shots, 1, seed=2).exp()                                     # and lengths differ
    means = [sum(row / row.norm() for row in of_class) for of_class in support]
    expected = [max(range(5), key=lambda c: float(query @ means[c]) / float(means[c].norm())) for query in queries]
    assert by_class_mean(support[None], queries[None])[0].tolist() == expected
    assert by_class_mean(7 * support[None], 3 * queries[None])[0].tolist() == expected


# Transport

def test_prototypes_move_to_where_the_reference_says():
    prototypes = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
    queries = torch.tensor([[[0.2, 0.0], [0.2, 0.1], [1.3, 0.0], [1.3, 0.1]]])
    assert torch.allclose(align(prototypes, queries), torch.tensor([[[0.2, 0.05], [1.2989, 0.05]]]), atol=1e-4)


def plan_by_loops(prototypes, queries, epsilon=0.05, iterations=5000):
    """Sinkhorn's iterations in exponentials for uniform marginals, until they no longer move."""
    cost = np.array([[float((p - q).square().sum()) for q in queries] for p in prototypes])
    kernel = np.exp(-cost / cost.max() / epsilon)
    rows, columns = np.ones(len(prototypes)), np.ones(len(queries))
    for _ in range(iterations):
        rows = 1 / len(prototypes) / (kernel @ columns)
        columns = 1 / len(queries) / (kernel.T @ rows)
    return rows[:, None] * kernel * columns


def test_shares_are_the_rows_of_sinkhorns_plan():
    prototypes, queries = normal(5, 6), normal(30, 6, seed=1)
    plan = plan_by_loops(prototypes, queries)
    assert plan.sum(1).tolist() == pytest.approx([1 / 5] * 5)
    found = transport_plan(prototypes[None], queries[None])[0]
    assert torch.allclose(found, torch.from_numpy(5 * plan), atol=2e-4)
    assert torch.allclose(found.sum(1), torch.ones(5).double())
    assert torch.allclose(found.sum(0), torch.full((30,), 1 / 6).double(), atol=1e-3)   # each query is given away


def test_little_entropy_gives_the_best_transport(monkeypatch):
    """For epsilon -> 0 the plan is that of the linear programme; here each prototype gets the 4 queries about it."""
    prototypes, queries = episode(ways=3, queries=4, spread=0.5)
    prototypes = prototypes[:, 0]
    cost = torch.cdist(prototypes, queries).square().numpy()
    sums = np.concatenate([np.kron(np.eye(3), np.ones(12)), np.kron(np.ones(3), np.eye(12))])
    best = linprog(cost.flatten(), A_eq=sums, b_eq=[1 / 3] * 3 + [1 / 12] * 12).x.reshape(3, 12)
    monkeypatch.setattr(episodes, "EPSILON", 0.002)
    assert torch.allclose(transport_plan(prototypes[None], queries[None])[0], torch.from_numpy(3 * best), atol=1e-3)


def test_endless_entropy_moves_every_prototype_to_the_mean_of_the_queries(monkeypatch):
    monkeypatch.setattr(episodes, "EPSILON", 1e6)
    queries = normal(1, 30, 6, seed=1)
    assert torch.allclose(align(normal(1, 5, 6), queries), queries.mean(1, keepdim=True).expand(1, 5, 6), atol=1e-5)


def test_one_point_that_is_all_prototypes_and_queries_moves_nowhere():
    point = torch.full((1, 5, 6), 2.0)
    assert torch.allclose(align(point, point.repeat(1, 3, 1)), point)


def opta_by_loops(support, queries):
    """Sec. 3.3 of arXiv:2402.02444 for one episode, with scikit-learn's regression at its end."""
    shots = support.shape[1]
    support, queries = ((x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) for x in (support, queries))
    prototypes = support.mean(1)
    for _ in range(5 if shots == 1 else 1):
        plan = torch.from_numpy(plan_by_loops(prototypes, queries))
        moved = (plan / plan.sum(1, keepdim=True)) @ queries
        prototypes = moved if shots == 1 else 0.7 * moved + 0.3 * prototypes
    regression = LogisticRegression(tol=1e-8, max_iter=1000).fit(prototypes.numpy(), np.arange(len(support)))
    return regression.predict(queries.numpy()).tolist()


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("seed", range(3))
def test_by_transport_is_the_papers_algorithm_as_loops(shots, seed):
    support, queries = episode(shots=shots, queries=6, width=20, spread=1.5, seed=seed)
    assert by_transport(support[None], queries[None])[0].tolist() == opta_by_loops(support, queries)


@pytest.mark.parametrize("classify", [by_class_mean, by_transport])
def test_episodes_together_are_those_alone_and_follow_their_order(classify):
    support, queries = (torch.stack(both).float() for both in zip(
        *(episode(shots=2, width=40, spread=1.5, seed=seed) for seed in range(6)), strict=True))
    together = classify(support, queries)
    assert together.shape == (6, 75)
    alone = torch.cat([classify(support[i:i + 1], queries[i:i + 1]) for i in range(6)])
    assert (together == alone).double().mean() > 0.99
    turned = classify(support.flip(1), queries.flip(1))
    assert (4 - turned.flip(1) == together).double().mean() > 0.99


def test_transport_helps_where_one_image_says_little(monkeypatch):
    monkeypatch.setattr(episodes, "EPISODES", 200)
    scores, _ = fewshot(part(700, width=40, spread=2.0))
    assert scores[NAMES[1]].value > scores[NAMES[0]].value + 0.05
    assert scores[NAMES[2]].value > scores[NAMES[0]].value + 0.05


# Scores

def test_a_score_has_the_share_of_right_queries_of_each_of_600_episodes():
    test = part(700)
    scores, left_out = fewshot(test)
    assert list(scores) == NAMES
    assert left_out == []
    for score in scores.values():
        assert score.of == "episode"
        assert score.units.shape == (600,)
        assert score.units.dtype == torch.float64
        assert torch.allclose((75 * score.units).round(), 75 * score.units)
    for shots in (1, 5):
        for i, rows in enumerate(draw(with_images(test.labels, shots + 15), shots + 15)[:3]):
            support, queries = test.x[rows[:, :shots]], test.x[rows[:, shots:]].flatten(0, 1)
            right = by_class_mean(support[None], queries[None])[0] == torch.arange(5).repeat_interleave(15)
            assert scores[f"fewshot/5way_{shots}shot"].units[i] == pytest.approx(right.double().mean().item())


def test_classes_far_apart_are_told_apart_and_equal_ones_by_chance(monkeypatch):
    monkeypatch.setattr(episodes, "EPISODES", 200)
    apart, alike = fewshot(part(350, spread=0.05))[0], fewshot(Features(normal(350, 8).float(),
                                                                      torch.arange(350) % 7, torch.arange(350)))[0]
    assert all(score.value == 1 for score in apart.values())
    assert all(abs(score.value - 0.2) < 0.03 for score in alike.values())


def test_the_chunk_changes_nothing(monkeypatch):
    test = part(350)
    monkeypatch.setattr(episodes, "EPISODES", 40)
    whole = fewshot(test)[0]
    monkeypatch.setattr(episodes, "CHUNK", 7)
    pieces = fewshot(test)[0]
    for name in NAMES:
        assert (whole[name].units - pieces[name].units).abs().mean() < 0.002


def test_episodes_that_cannot_be_drawn_are_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr(episodes, "EPISODES", 10)
    scores, left_out = fewshot(part(7 * 19))
    assert list(scores) == NAMES[:2]
    assert left_out == ["fewshot/5way_5shot: 0 classes have the 20 test images that an episode takes of each of 5"]
    assert fewshot(part(5 * 20, classes=5))[1] == []
    scores, left_out = fewshot(part(400, classes=4))
    assert not scores
    assert left_out == ["fewshot/5way_1shot: 4 classes have the 16 test images that an episode takes of each of 5",
                        "fewshot/5way_5shot: 4 classes have the 20 test images that an episode takes of each of 5"]


@pytest.mark.parametrize("classify", [by_class_mean, by_transport])
def test_no_tensor_is_made_on_another_device_than_the_features(classify):
    x = normal(3, 5, 16, 12)
    with torch.device("meta"):                                             # where a tensor goes that names no device
        assert accuracy(classify, x, 1).device == x.device


def test_features_that_are_not_finite_are_named():
    test = part(200)
    test.x[3, 1] = math.inf
    with pytest.raises(ValueError, match=r"^the features of 1 of 200 images are .* row 3 of the test part,"):
        fewshot(test)


def test_fewshot_leaves_the_run_as_it_was(monkeypatch):
    monkeypatch.setattr(episodes, "EPISODES", 60)
    test = part(150)
    state, kept = torch.get_rng_state(), test.x.clone()
    outside = fewshot(test)[0]
    test.x.requires_grad_()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = fewshot(test)[0]
    with_graph = fewshot(test)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(test.x, kept)
    for name in outside:
        assert torch.equal(outside[name].units, inside[name].units)
        assert torch.equal(outside[name].units, with_graph[name].units)


def test_a_feature_of_equal_numbers_is_standardised_to_zero():
    support, queries = episode()
    queries[4] = 0.1
    queries[5] = 0
    found = standardise(queries.float())
    assert torch.equal(found[4:6], torch.zeros(2, 12))
    assert torch.allclose(found[6:].mean(-1), torch.zeros(69), atol=1e-6)
    assert torch.allclose(found[6:].std(-1), torch.ones(69))
    assert by_transport(support[None], queries[None]).shape == (1, 75)
