"""Nearest neighbours and their vote: the equations as loops, and a brute force in float64."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize

from ssl_zoo.evaluation import nearest as module
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.knn import VOTES, Vote, knn, knn_classes, knn_scores
from ssl_zoo.evaluation.nearest import nearest, nearest_by_chunk
from ssl_zoo.evaluation.protocols.knn import Knn
from tests.conftest import measured


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(count, classes, seed=0):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def features(x, labels):
    return Features(x, torch.as_tensor(labels), torch.arange(len(x)))


def blobs(count, classes=3, width=8, spread=0.5, seed=0):
    """Features around one centre for each class: far apart for a small spread."""
    labels = torch.arange(count) % classes
    return features(4 * normal(classes, width, seed=99)[labels] + spread * normal(count, width, seed=seed), labels)


def as_floats(part):
    return part._replace(x=part.x.float())


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def brute_force(queries, bank, k):
    """All cosines in float64, sorted."""
    unit = [x.double() / x.double().norm(dim=1, keepdim=True) for x in (queries, bank)]
    return (unit[0] @ unit[1].T).topk(min(k, len(bank)))


WAYS = ["search", "guessing", "sieve", "sort"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Small tiles, and one of the searches: by exact products, with a guess, with rough ones first, or a GPU's."""
    for name, value in (("TILE_QUERIES", 6), ("TILE_ROWS", 16), ("SAMPLE", 8 if request.param == "guessing" else 32)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "fast_bfloat16", lambda: request.param == "sieve")
    if request.param == "sort":
        monkeypatch.setattr(module, "tile", lambda device: (6, 16))
        monkeypatch.setattr(module, "fastest", lambda bank, inverse, k: module.sort)
    return request.param


# The nearest

@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("images", [160, 333])
def test_the_nearest_are_those_of_a_brute_force(way, images, k, dtype):
    bank, queries = normal(images, 24).to(dtype), normal(19, 24, seed=1).to(dtype)
    expected = brute_force(queries, bank, k)
    cosines, places = nearest(queries, bank, k)
    assert torch.equal(places, expected.indices)
    assert torch.allclose(cosines.double(), expected.values, atol=1e-12 if dtype == torch.float64 else 1e-6)


def test_a_gpu_is_never_asked_for_a_number():
    with FakeTensorMode():                              # tensors without values: to read one of them is an error
        queries, bank = (torch.empty(rows, 4, device="cuda") for rows in (5000, 40000))
        cosines, places = nearest(queries, bank, 20, own=torch.arange(5000, device="cuda"))
    assert cosines.shape == places.shape == (5000, 20)


@pytest.mark.parametrize(("queries", "rows", "sample"), [(1, 1, 1), (2, 3, 5), (7, 7, 20), (100, 100, 100)])
@pytest.mark.parametrize("k", [1, 20, 99])
def test_tiles_change_no_neighbour(queries, rows, sample, k, monkeypatch):
    for name, value in (("TILE_QUERIES", queries), ("TILE_ROWS", rows), ("SAMPLE", sample)):
        monkeypatch.setattr(module, name, value)
    bank, queried = normal(99, 3), normal(7, 3, seed=1)
    for fast in (False, True):
        monkeypatch.setattr(module, "fast_bfloat16", lambda fast=fast: fast)
        cosines, places = nearest(queried, bank, k)
        expected = brute_force(queried, bank, k)
        assert torch.equal(places, expected.indices)
        assert torch.allclose(cosines, expected.values, atol=1e-12)


def test_the_nearest_are_those_of_scikit_learn():
    bank, queries = normal(500, 20), normal(30, 20, seed=1)
    library = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(bank)
    distances, places = library.kneighbors(queries)
    found = nearest(queries, bank, 7)
    assert found[0].numpy() == pytest.approx(1 - distances, abs=1e-12)
    assert found[1].tolist() == places.tolist()


def sieved(monkeypatch):
    """How many queries each search by exact products alone was asked for."""
    asked = []
    search = module.search
    monkeypatch.setattr(module, "search", lambda queries, *rest: asked.append(len(queries)) or search(queries, *rest))
    return asked


@pytest.mark.parametrize(("fast", "rows"), [(True, 20000), (False, 40000)])
def test_a_guess_settles_nearly_all_queries(monkeypatch, fast, rows):
    """At the true sizes: the few that the guess misses are searched for again."""
    monkeypatch.setattr(module, "fast_bfloat16", lambda: fast)
    bank, queries = normal(rows, 32).float(), normal(700, 32, seed=1).float()
    asked = sieved(monkeypatch)
    cosines, places = nearest(queries, bank, 50)
    expected = brute_force(queries, bank, 50)
    assert sum(asked) < 20
    assert torch.allclose(cosines.double(), expected.values, atol=1e-6)
    assert (places == expected.indices).float().mean() > 0.999       # float32 swaps a few that are equally near


@pytest.mark.parametrize("find", [module.search, module.sieve])
def test_queries_of_which_the_guess_is_too_high_are_searched_for_again(monkeypatch, find):
    bank, queries = normalize(normal(400, 24), dim=1), normalize(normal(9, 24, seed=1), dim=1)
    asked, expected = sieved(monkeypatch), brute_force(queries, bank, 5)
    sample = bank[expected.indices[0, :4]]                            # the second best of them is the guess
    cosines, places = module.guessing(queries, bank, torch.ones(400).double(), 5, sample, find)
    assert 0 < asked[-1] < 9
    found = module.nearest_first(cosines, places, None)
    assert torch.equal(found[1], expected.indices)
    assert torch.allclose(found[0], expected.values, atol=1e-12)


@pytest.mark.parametrize("place", ["front", "back"])
def test_a_bank_in_which_the_nearest_stand_together_is_searched_as_well(way, place):
    near, far = normal(40, 24) * 0.1 + 1, normal(300, 24)
    bank = torch.cat([near, far] if place == "front" else [far, near])
    queries = normal(9, 24, seed=1) * 0.1 + 1
    expected = brute_force(queries, bank, 8)
    cosines, places = nearest(queries, bank, 8)
    assert torch.equal(places, expected.indices)
    assert torch.allclose(cosines, expected.values, atol=1e-12)


def test_cosines_nearer_to_each_other_than_bfloat16_tells_are_told_apart(way, monkeypatch):
    asked = sieved(monkeypatch)
    bank, queries = 1 + 1e-3 * normal(200, 24), 1 + 1e-3 * normal(9, 24, seed=1)     # an encoder that has collapsed
    expected = brute_force(queries, bank, 5)
    assert expected.values.min() > 1 - 1e-4
    assert torch.equal(nearest(queries, bank, 5)[1], expected.indices)
    assert way != "sieve" or sum(asked) >= 9                          # one by one, not a dot product for each pair


@pytest.mark.parametrize("sign", [-1, 0])
def test_neighbours_that_point_away_are_found_in_order(way, sign):
    """The rough search looks for nothing below 0: what is nearest at less is searched for."""
    bank = torch.cat([normal(300, 3) * 0.3, torch.full((300, 1), float(sign))], 1)
    queries = torch.cat([0.2 * normal(8, 3, seed=1), torch.ones(8, 1)], 1)
    expected = brute_force(queries, bank, 5)
    assert (expected.values.max() < 0) == (sign < 0)
    assert torch.equal(nearest(queries, bank, 5)[1], expected.indices)


def test_neighbours_at_right_angles_are_all_found(monkeypatch):
    """Where the k-th cosine is smaller than what a rough one may be wrong by, of either sign."""
    monkeypatch.setattr(module, "fast_bfloat16", lambda: True)
    query, bank = normalize(normal(1, 128), dim=1), normal(9000, 128, seed=1)
    cosines = torch.cat([torch.linspace(-2e-4, 2e-4, 60).double(), torch.linspace(-0.5, -0.05, 8940).double()])
    bank = normalize(bank - bank @ query.T * query, dim=1) + cosines[:, None] * query
    bank = bank[torch.randperm(9000, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(nearest(query, bank, 20)[1], brute_force(query, bank, 20).indices)


def test_lengths_of_features_do_not_matter(way):
    bank, queries = normal(200, 4), normal(5, 4, seed=1)
    longer = nearest(queries * 1e-3, bank * torch.logspace(-5, 5, 200, dtype=torch.float64)[:, None], 5)
    for one, other in zip(nearest(queries, bank, 5), longer, strict=True):
        assert torch.allclose(one, other)


def test_a_feature_of_length_zero_is_as_near_as_a_right_angle(way):
    bank, queries = normal(200, 4), normal(3, 4, seed=1)
    bank[7], queries[1] = 0, 0
    cosines, places = nearest(queries, bank, 200)
    assert (cosines[places == 7] == 0).all()
    assert (cosines[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_in_half_precision_are_compared_in_single(way, dtype):
    bank, queries = (300 * normal(160, 24)).to(dtype), (300 * normal(9, 24, seed=1)).to(dtype)
    cosines, places = nearest(queries, bank, 5)
    expected = brute_force(queries, bank, 5)
    assert cosines.dtype == torch.float32
    assert torch.equal(places, expected.indices)
    assert torch.allclose(cosines.double(), expected.values, atol=1e-6)


@pytest.mark.parametrize("k", [3, 200])
def test_no_image_is_its_own_neighbour_where_its_place_is_told(way, k):
    x = normal(200, 6)
    x[40] = x[3] + 1e-6                                                # a twin is a neighbour
    own = torch.tensor([3, 77, 199])
    cosines, places = nearest(x[own], x, k, own)
    full = brute_force(x[own], x, 200).indices.tolist()
    expected = [[place for place in row if place != itself][:k] for row, itself in zip(full, own.tolist(), strict=True)]
    assert places.tolist() == expected
    assert places[0, 0] == 40
    assert cosines[0, 0] == pytest.approx(1)


def test_the_whole_is_what_the_chunks_are_together(way):
    bank, queries = normal(200, 6), normal(20, 6, seed=1)
    chunks = list(nearest_by_chunk(queries, bank, 5))
    assert [len(cosines) for cosines, _ in chunks] == [6, 6, 6, 2]
    for column, whole in zip(zip(*chunks, strict=True), nearest(queries, bank, 5), strict=True):
        assert torch.equal(torch.cat(column), whole)


def test_cosines_stay_exact_where_the_run_multiplies_in_less(way):
    bank, queries = normal(200, 64).float(), normal(9, 64, seed=1).float()
    expected = brute_force(queries, bank, 5)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("medium", "high", "highest"):
            torch.set_float32_matmul_precision(precision)
            with torch.autocast("cpu", torch.bfloat16):
                cosines, places = nearest(queries, bank, 5)
            assert torch.allclose(cosines.double(), expected.values, atol=1e-6)
            assert torch.equal(places, expected.indices)
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_neither_a_graph_nor_a_warning_nor_a_random_number_is_left_behind(way):
    bank, queries = normal(200, 6).requires_grad_(), normal(9, 6, seed=1).requires_grad_()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()     # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cosines, _ = nearest(queries, bank, 5)
    assert not cosines.requires_grad
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])          # noqa: NPY002
    with torch.inference_mode():
        assert torch.equal(nearest(queries, bank, 5)[0], cosines)


# Their vote

def scores_by_a_loop(bank, labels, query, k, temperature, classes):
    """Sec. 3.4 of InstDisc, arXiv:1805.01978, with each class's share of all votes."""
    everyone = [(cosine(row, query), label) for row, label in zip(bank.tolist(), labels.tolist(), strict=True)]
    neighbours = sorted(everyone, reverse=True)[:k]
    votes = [0.0] * classes
    for similarity, label in neighbours:
        votes[label] += math.exp(similarity / temperature)
    return [vote / sum(votes) for vote in votes]


def accuracy(train, test, protocol):
    return knn(train, test, {"it": protocol})["it"].value


@pytest.mark.parametrize("temperature", [0.07, 0.1, 10.0])
@pytest.mark.parametrize("k", [1, 2, 7, 30, 200])
def test_scores_classes_and_accuracy_are_those_of_the_equation_as_a_loop(k, temperature):
    bank, queries, labels, wanted = normal(30, 4), normal(12, 4, seed=1), labels_of(30, 7), labels_of(12, 7, seed=1)
    expected = torch.tensor([scores_by_a_loop(bank, labels, query, k, temperature, 7) for query in queries.tolist()],
                            dtype=torch.float64)
    cosines, places = nearest(queries, bank, k)
    assert torch.allclose(knn_scores(cosines, labels[places], temperature, 7), expected, atol=1e-12)
    train, test, protocols = features(bank, labels), features(queries, wanted), {"it": Vote(k, temperature)}
    chosen = [[c if row[c] > 0 else -1 for c in sorted(range(7), key=row.__getitem__, reverse=True)[:5]]
              for row in expected.tolist()]
    assert knn_classes(train, test, protocols)["it"].tolist() == chosen
    scores = knn(train, test, protocols)
    truth = wanted.tolist()
    assert scores["it"].units.tolist() == [row[0] == label for row, label in zip(chosen, truth, strict=True)]
    assert scores["it_top5"].units.tolist() == [label in row for row, label in zip(chosen, truth, strict=True)]
    assert all(score.of == "image" and score.units.dtype == torch.float64 for score in scores.values() if score.of)


@pytest.mark.parametrize(("k", "temperature", "expected"), [
    (1, 0.07, [1, 0, 0]),
    (3, 0.07, [0.584863723, 0.415136277, 0]),
    (3, 0.1, [0.559364944, 0.440635056, 0]),
    (3, 10.0, [0.341080016, 0.658919984, 0]),
    (4, 0.07, [0.584863723, 0.415136277, 0]),
])
def test_scores_are_those_of_the_reference(k, temperature, expected):
    bank = torch.tensor([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], dtype=torch.float64)
    labels, query = torch.tensor([0, 1, 1, 2]), torch.tensor([[0.96, 0.28]], dtype=torch.float64)
    cosines, places = nearest(query, bank, k)
    assert cosines[0].tolist() == pytest.approx([0.96, 0.936, 0.28, -0.96][:k])
    assert places[0].tolist() == [0, 1, 2, 3][:k]
    assert knn_scores(cosines, labels[places], temperature, 3)[0].tolist() == pytest.approx(expected, abs=1e-9)
    for right in range(3):
        found = accuracy(features(bank, labels), features(query, [right]), Vote(k, temperature))
        assert found == (right == expected.index(max(expected)))


def test_all_protocols_from_one_search_are_those_of_one_search_each(way):
    train, test = blobs(250, classes=8, spread=9.0), blobs(40, classes=8, spread=9.0, seed=1)
    scores = knn(train, test)
    assert list(scores) == [f"{name}{suffix}" for name in VOTES for suffix in ("", "_top5")]
    assert scores["knn_dino_10"].value != scores["knn_dino_200"].value
    for name, protocol in VOTES.items():
        for suffix in ("", "_top5"):
            alone = knn(train, test, {name: protocol})[name + suffix]
            assert torch.equal(scores[name + suffix].units, alone.units)


def test_more_neighbours_than_the_bank_has_are_all_of_it():
    train, test = blobs(7), blobs(5, seed=1)
    assert nearest(test.x, train.x, 200)[1].sort().values.tolist() == [list(range(7))] * 5
    for protocol in VOTES.values():
        assert accuracy(train, test, protocol) == accuracy(train, test, Vote(7, protocol.temperature))


@pytest.mark.parametrize("train_labels", [[0, 1, 5], [5, 1, 0]])
def test_a_class_that_one_of_the_parts_lacks_is_no_trouble(train_labels):
    x = torch.eye(3, dtype=torch.float64)
    train = features(x, train_labels)
    assert accuracy(train, features(x[:1], train_labels[:1]), Vote(1, 0.1)) == 1      # the test part lacks two
    assert accuracy(train, features(x[:2], [train_labels[0], 7]), Vote(1, 0.1)) == 0.5      # training lacks 7


def test_a_class_without_any_vote_is_not_among_the_five():
    train = features(torch.eye(8, dtype=torch.float64), list(range(8)))
    test = features(torch.eye(8, dtype=torch.float64)[[6, 6, 6]], [6, 0, 7])
    assert knn_classes(train, test, {"one": Vote(1, 0.1)})["one"].tolist() == [[6, -1, -1, -1, -1]] * 3
    assert knn(train, test, {"one": Vote(1, 0.1)})["one_top5"].units.tolist() == [1, 0, 0]


@pytest.mark.parametrize("classes", [1, 3])
def test_of_fewer_than_five_classes_each_is_among_the_five(classes):
    train, test = blobs(30, classes=classes), blobs(9, classes=classes, seed=1)
    assert knn_classes(train, test)["knn_dino"].shape == (9, classes)
    assert knn(train, test)["knn_instdisc_top5"].value == 1


def test_images_without_a_label_do_not_vote():
    train, test = blobs(6), blobs(3, seed=1)
    unknown = train._replace(labels=torch.tensor([0, -1, 2, 0, -1, 2]))
    with pytest.raises(ValueError, match="2 of 6 training images have no label, and neighbours vote for labels: leave"):
        knn(unknown, test)


def test_no_test_image_of_unknown_class_counts_as_right():
    """Where nobody votes for a fifth class its place is -1, as a label that is unknown."""
    train, test = blobs(30), blobs(3, seed=1)
    unknown = test._replace(labels=torch.tensor([-1, -1, -1]))
    assert knn(train, unknown, {"one": Vote(1, 0.1)})["one_top5"].units.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_votes_do_not_overflow_in_half_precision(dtype, temperature):
    cosines = torch.tensor([[1.0, 0.99, 0.5, -1.0], [1.0, 1.0, 1.0, 1.0]])      # exp(1 / 0.07) is beyond float16
    scores = knn_scores(cosines.to(dtype), torch.tensor([[0, 1, 1, 2], [2, 2, 1, 2]]), temperature, 3)
    assert scores.isfinite().all()
    assert scores.float().sum(1).tolist() == pytest.approx([1, 1], abs=0.01)
    assert scores.argmax(1).tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_finds_the_classes_that_double_precision_finds(dtype):
    train, test = blobs(60), blobs(30, seed=1)
    halves = [part._replace(x=(100 * part.x).to(dtype)) for part in (train, test)]
    for protocol in (Vote(5, 0.07), Vote(20, 0.1)):
        assert accuracy(*halves, protocol) == accuracy(train, test, protocol) == 1


def test_the_protocols_are_those_that_the_papers_name():
    assert VOTES == {"knn_instdisc": (200, 0.1), "knn_dino": (20, 0.07), "knn_dino_10": (10, 0.07),
                         "knn_dino_100": (100, 0.07), "knn_dino_200": (200, 0.07)}
    train, test = as_floats(blobs(50, spread=6.0)), as_floats(blobs(40, spread=6.0, seed=1))
    assert measured(Knn(), train, test) == {name: accuracy(train, test, VOTES[name])
                                          for name in ("knn_instdisc", "knn_dino")}
    assert list(measured(Knn(("knn_dino",)), train, test)) == ["knn_dino"]
