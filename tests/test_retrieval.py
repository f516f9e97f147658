"""Retrieval: the whole ranking against a loop and scikit-learn, and which queries count."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.retrieval import QUERIES, retrieval


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(x, labels):
    return Features(x, torch.as_tensor(labels), torch.arange(len(x)))


def noise(count, classes, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return features(normal(count, width, seed=seed), torch.randint(classes, (count,), generator=generator))


def on_the_circle(cosines):
    return torch.tensor([[cosine, math.sqrt(1 - cosine ** 2)] for cosine in cosines], dtype=torch.float64)


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def average_precision_by_a_loop(relevant):
    """Mean over the relevant images of the share of relevant ones up to their rank."""
    found, precisions = 0, []
    for rank, right in enumerate(relevant, 1):
        if right:
            found += 1
            precisions.append(found / rank)
    return sum(precisions) / len(precisions)


@pytest.mark.parametrize(("relevant", "expected"), [
    ([1, 1, 0, 0], 1), ([0, 1], 1 / 2), ([1, 0, 1], (1 + 2 / 3) / 2), ([0, 0, 1, 1], (1 / 3 + 1 / 2) / 2),
])
def test_a_ranking_has_the_precision_of_the_textbook(relevant, expected):
    bank = features(on_the_circle([0.9 - 0.2 * rank for rank in range(len(relevant))]), relevant)
    query = features(torch.tensor([[3.0, 0.0]], dtype=torch.float64), [1])
    assert average_precision_by_a_loop(relevant) == pytest.approx(expected)
    assert retrieval(bank, query)["retrieval/map"].value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_mean_average_precision_is_that_of_a_loop_and_of_scikit_learn(dtype):
    bank, queries = noise(60, 4), noise(23, 4, seed=1)
    loop, library = [], []
    for x, label in zip(queries.x, queries.labels, strict=True):
        cosines = np.array([cosine(x, row) for row in bank.x])
        relevant = (bank.labels == label).numpy()
        loop.append(average_precision_by_a_loop(relevant[np.argsort(-cosines)]))
        library.append(average_precision_score(relevant, cosines))
    scores = retrieval(bank._replace(x=bank.x.to(dtype)), queries._replace(x=queries.x.to(dtype)))
    assert scores["retrieval/map"].units.tolist() == pytest.approx(loop, abs=1e-9)
    assert loop == pytest.approx(library, abs=1e-9)


def test_recall_at_k_is_the_share_of_queries_with_one_of_their_class_among_the_k_nearest():
    labels = [0, 1, 1, 1, 2, 1, 1, 1, 1, 3, 4, 4, 4, 4]
    bank = features(on_the_circle([0.99 - 0.05 * rank for rank in range(14)]), labels)
    queries = features(torch.tensor([[1.0, 0.0]] * 5, dtype=torch.float64), [0, 1, 2, 3, 4])
    scores = retrieval(bank, queries)                                 # of their class is rank 1, 2, 5, 10 and 11
    assert scores["retrieval/recall_1"].units.tolist() == [1, 0, 0, 0, 0]
    assert scores["retrieval/recall_5"].units.tolist() == [1, 1, 1, 0, 0]
    assert scores["retrieval/recall_10"].units.tolist() == [1, 1, 1, 1, 0]
    assert list(scores) == ["retrieval/map", "retrieval/recall_1", "retrieval/recall_5", "retrieval/recall_10"]
    assert all(score.of == "image" and score.units.dtype == torch.float64 for score in scores.values())


def test_a_bank_of_fewer_images_than_k_is_searched_as_a_whole():
    bank, queries = features(on_the_circle([0.9, 0.5]), [1, 0]), features(on_the_circle([0.91]), [0])
    scores = retrieval(bank, queries)
    assert [score.value for score in scores.values()] == [0.5, 0, 1, 1]


def test_within_one_part_no_image_is_its_own_answer():
    part = noise(40, 3)
    scores, expected = retrieval(part, part), []
    for place in range(40):
        nearness = {i: cosine(part.x[place], part.x[i]) for i in range(40) if i != place}
        others = sorted(nearness, key=nearness.__getitem__, reverse=True)
        expected.append(average_precision_by_a_loop([bool(part.labels[i] == part.labels[place]) for i in others]))
    assert scores["retrieval/map"].units.tolist() == pytest.approx(expected, abs=1e-9)
    nothing_learnt = features(torch.eye(6, dtype=torch.float64), [0, 0, 1, 1, 2, 2])
    assert retrieval(nothing_learnt, nothing_learnt)["retrieval/map"].value == pytest.approx(1 / 5)


def test_images_at_one_distance_have_one_rank_whatever_their_order():
    """A collapsed encoder ranks by chance: its precision is the share of the class, also in a bank sorted by class."""
    for labels in ([0] * 3 + [1] * 9, [1] * 9 + [0] * 3):
        collapsed = features(torch.ones(12, 4, dtype=torch.float64), labels)
        query = features(torch.ones(2, 4, dtype=torch.float64), [0, 1])
        assert retrieval(collapsed, query)["retrieval/map"].units.tolist() == pytest.approx([3 / 12, 9 / 12])
    half = features(on_the_circle([0.9, 0.5, 0.5, 0.5, 0.1]), [0, 1, 0, 1, 0])
    expected = average_precision_score([1, 0, 1, 0, 1], [0.9, 0.5, 0.5, 0.5, 0.1])
    found = retrieval(half, features(on_the_circle([1]), [0]))["retrieval/map"].value
    assert found == pytest.approx(expected) == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)


def test_a_query_without_any_image_of_its_class_is_left_out():
    bank, queries = noise(30, 3), noise(9, 3, seed=1)
    strange = queries._replace(labels=torch.where(torch.arange(9) % 3 == 1, 7, queries.labels))
    for name, score in retrieval(bank, strange).items():
        assert score.units.tolist() == retrieval(bank, queries)[name].units[torch.arange(9) % 3 != 1].tolist()
    alone = features(normal(4, 3), [0, 0, 1, 2])                      # two images are the only ones of their class
    assert len(retrieval(alone, alone)["retrieval/map"].units) == 2


def test_images_without_a_label_are_neither_queries_nor_answers():
    bank, queries = noise(30, 3), noise(9, 3, seed=1)
    known = features(torch.cat([bank.x, queries.x]), torch.cat([bank.labels, torch.full((9,), -1)]))
    unknown = queries._replace(labels=torch.full((9,), -1))
    both = features(torch.cat([unknown.x, queries.x]), torch.cat([unknown.labels, queries.labels]))
    for name, score in retrieval(known, both).items():
        assert score.units.tolist() == pytest.approx(retrieval(bank, queries)[name].units.tolist(), abs=1e-12)
    with pytest.raises(ValueError, match="none of 9 queries has an image of its class among 30: .*label"):
        retrieval(bank, unknown)


def test_a_thousand_queries_are_drawn_evenly_and_always_the_same():
    bank = features(torch.eye(2, dtype=torch.float64), [0, 1])
    x = torch.zeros(4000, 2, dtype=torch.float64)
    x[torch.arange(4000), torch.arange(4000) % 2] = 1
    labels = (torch.arange(4000) % 2) * (torch.arange(4000) < 2000) + (torch.arange(4000) + 1) % 2 * (
        torch.arange(4000) >= 2000)                                   # right in the first half, wrong in the second
    state = torch.get_rng_state(), np.random.get_state()[1].copy()    # noqa: NPY002
    first, second = (retrieval(bank, features(x, labels))["retrieval/recall_1"].units for _ in range(2))
    assert len(first) == QUERIES == 1000
    assert torch.equal(first, second)
    assert torch.equal(first, first.sort(descending=True).values)     # in the order of the images
    assert first.mean() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])         # noqa: NPY002


@pytest.mark.parametrize("elements", [1, 270, 10 ** 6])
def test_chunks_change_nothing(elements, monkeypatch):
    bank, queries = noise(30, 3), noise(29, 3, seed=1)
    expected = retrieval(bank, queries)
    monkeypatch.setattr("ssl_zoo.evaluation.retrieval.ELEMENTS", elements)
    for name, score in retrieval(bank, queries).items():
        assert score.units.tolist() == pytest.approx(expected[name].units.tolist(), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lengths_and_precision_of_the_features_do_not_matter(dtype):
    labels = torch.arange(60) % 3
    centres = 10 * torch.eye(3, 8, dtype=torch.float64)
    part = features(((centres[labels] + normal(60, 8)) * torch.linspace(0.5, 2, 60)[:, None]).to(dtype), labels)
    expected = retrieval(part._replace(x=part.x.double()), part._replace(x=part.x.double()))
    scores = retrieval(part, part)
    for name, score in scores.items():
        assert score.value == pytest.approx(expected[name].value, abs=1e-3)


def test_the_ranking_keeps_no_graph():
    bank, queries = noise(30, 3), noise(9, 3, seed=1)
    scores = retrieval(bank._replace(x=bank.x.requires_grad_()), queries)
    assert not any(score.units.requires_grad for score in scores.values())
