"""FT and HaLP: loss and gradients written out, the reference's numbers, and what they draw."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from ssl_zoo.clusters import kmeans_step
from ssl_zoo.evaluation.health import feature_std
from ssl_zoo.heads import mlp
from ssl_zoo.losses import contrast
from ssl_zoo.methods import CACR, FT, GroCo, HaLP, MoCo
from ssl_zoo.methods.ft import beta_quantiles
from ssl_zoo.mixing import extrapolated, towards
from ssl_zoo.views import ViewSpec
from tests.conftest import small, state
from tests.test_bases import cosine, projections, require_equal, unit_views
from tests.test_losses import normal
from tests.test_methods import batches, example

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log.*")
WIDTHS = {"projector": (16, 8)}


# What is drawn


@pytest.mark.parametrize("alpha", [2.0, 1.6, 0.3])
def test_quantiles_of_a_beta_distribution_are_those_of_its_draws(alpha):
    quantiles = beta_quantiles(alpha)
    assert quantiles[0] > 0
    assert torch.allclose(quantiles + quantiles.flip(0), torch.ones(4096), atol=1e-5)       # symmetric
    assert quantiles.double().var(correction=0).item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-3)


# FT


@pytest.mark.parametrize(("score", "share", "value"), [(0.8, 1.3, 0.644), (0.8, 1.0, 0.8), (0.8, 2.0, 0.0),
                                                       (0.2, 1.5, -1.0), (0.8, -0.3, 0.644)])
def test_an_extrapolated_pair_has_the_references_cosine(score, share, value):
    query, key = torch.tensor([[1.0, 0], [score, math.sqrt(1 - score ** 2)]], dtype=torch.float64).split(1)
    query, key = extrapolated(query, key, torch.tensor(share, dtype=torch.float64))
    assert (query * key).sum().item() == pytest.approx(value, abs=1e-12)


def test_extrapolated_queries_have_the_references_norms():
    query, _ = extrapolated(*unit_views(2), torch.tensor(1.3).double())
    assert query.norm(dim=1).tolist() == pytest.approx([1.0044, 1.0135, 1.4884, 1.0809], abs=1e-4)


@pytest.mark.parametrize("kind", ["info_nce", "decoupled"])
def test_ft_contrasts_extrapolated_pairs_with_interpolated_keys_and_remembers_the_keys_as_they_are(kind):
    method, batch = example(FT, **WIDTHS, queue=20, temperature=0.4, splits=2, contrast=kind, steps=2)
    queue, draws = method.queue.keys.clone(), copy.deepcopy(method.draws)
    first, second = draws.order(4096)[:2]
    extrapolation, interpolation = 1 + method.extrapolations[first].item(), method.interpolations[second].item()
    order = draws.order(20)
    assert 1 < extrapolation < 2
    first, second = (view.images for view in batch.views)
    queries, keys = normalize(method.projector(method.encoder(first)), dim=1), torch.empty(8, 8).double()
    for group in range(2):
        keys[group::2] = normalize(method.momentum_encoder.average(second[group::2]), dim=1).detach()
    others = [interpolation * queue[j] + (1 - interpolation) * queue[k] for j, k in enumerate(order)]
    terms = []
    for q, k in zip(queries, keys, strict=True):
        query, key = extrapolation * q + (1 - extrapolation) * k, extrapolation * k + (1 - extrapolation) * q
        positive, negatives = (query @ key) / 0.4, [(query @ n) / 0.4 for n in others]
        rivals = [positive, *negatives] if kind == "info_nce" else negatives
        terms.append(torch.stack(rivals).logsumexp(0) - positive)
    slots = [(method.queue.head.item() + i) % 20 for i in range(8)]
    require_equal(method, batch, sum(terms) / 8)
    assert torch.allclose(method.queue.keys[slots], keys)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_ft_that_transforms_nothing_is_moco(share):
    options = WIDTHS | {"queue": 20, "temperature": 0.4}
    method, batch = example(FT, **options)
    other, _ = example(MoCo, **options)
    other.load_state_dict({name: value for name, value in state(method).items() if not name.startswith("draws")})
    method.extrapolations.fill_(0)
    method.interpolations.fill_(share)                        # each key stays, or another takes its place
    assert method.training_loss(batch).item() == pytest.approx(other.training_loss(batch).item(), abs=1e-12)


# HaLP


def test_the_way_towards_a_prototype_ends_where_two_are_equally_near():
    nearest, other = torch.tensor([1.0, 0]).double(), torch.tensor([0.0, 1]).double()
    z = normalize(torch.tensor([1.0, 0.2]).double(), dim=0)
    end = towards(z, nearest, other, torch.tensor(1.0).double())
    assert end.tolist() == pytest.approx([0.707107, 0.707107], abs=1e-6)
    angle = math.acos(z @ other)
    moved = math.acos((z @ end).item()) / angle
    assert moved == pytest.approx(0.428136, abs=1e-6)                       # the reference's largest share of the way
    half = towards(z, nearest, other, torch.tensor(0.5).double())
    assert math.acos((z @ half).item()) / angle == pytest.approx(0.428136 / 2, abs=1e-6)


def test_positives_lie_on_the_great_circle_and_stay_with_their_prototype():
    prototypes = normalize(normal(6, 4), dim=1)
    for z in normalize(normal(20, 4, seed=1), dim=1):
        order = (prototypes @ z).argsort(descending=True)
        for other in prototypes[order[1:]]:
            for share in (0.0, 0.3, 0.999):
                made = towards(z, prototypes[order[0]], other, torch.tensor(share).double())
                assert made.norm().item() == pytest.approx(1, abs=1e-9)
                assert prototypes[order[0]] @ made >= other @ made - 1e-9
                assert torch.linalg.matrix_rank(torch.stack([z, other, made]), tol=1e-7) <= 2


def test_equal_prototypes_or_keys_on_them_make_finite_positives():
    one = normalize(torch.ones(3), dim=0)
    for z, other in ((one, one), (one, -one), (-one, one)):
        assert towards(z, one, other, torch.tensor(0.5)).isfinite().all()


def written_kmeans(keys, prototypes):
    """One step of spherical k-means; a prototype without keys goes to the key that is farthest from its own."""
    nearest = [max(range(len(prototypes)), key=lambda p, k=k: (prototypes[p] @ k).item()) for k in keys]
    far = sorted(range(len(keys)), key=lambda i: (prototypes[nearest[i]] @ keys[i]).item())
    new = []
    for p in range(len(prototypes)):
        members = [k for k, n in zip(keys, nearest, strict=True) if n == p]
        new.append(normalize(sum(members), dim=0) if members else keys[far.pop(0)])
    return torch.stack(new)


def test_prototypes_take_a_step_of_spherical_k_means_and_empty_ones_start_again():
    keys, prototypes = normalize(normal(30, 4), dim=1), normalize(normal(5, 4, seed=1), dim=1)
    assert torch.allclose(kmeans_step(prototypes, keys), written_kmeans(keys, prototypes))
    keys, prototypes = (normalize(normal(n, 4, seed=n) + 2, dim=1) for n in (30, 5))
    prototypes[[1, 3]] *= -1                                                # near no key
    found = kmeans_step(prototypes, keys)
    assert torch.allclose(found, written_kmeans(keys, prototypes))
    assert all((found[p] == keys).all(1).any() for p in (1, 3))
    assert not torch.equal(found[1], found[3])


def test_k_means_finds_clusters_that_are_there():
    centres = torch.eye(5).double()
    keys = normalize(centres.repeat(20, 1) + 0.05 * normal(100, 5), dim=1)
    prototypes = keys[[0, 6, 12, 18, 24]] + 0.5 * keys[[1, 7, 13, 19, 20]]      # each between two
    for _ in range(20):
        prototypes = kmeans_step(prototypes, keys)
    assert torch.allclose((prototypes @ centres).max(0).values, torch.ones(5).double(), atol=0.01)


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.5, 3.0)])
def test_halp_adds_the_cosines_of_positives_that_keep_their_prototype(progress, weight):
    method, batch = example(HaLP, **WIDTHS, queue=20, temperature=0.4, prototypes=5, positives=6, weight=3.0,
                            newest=16, start=0.5, steps=2)
    method.after_step()
    batch = batch._replace(progress=torch.tensor(progress))
    queue, prototypes, draws = method.queue.keys.clone(), method.prototypes.clone(), copy.deepcopy(method.draws)
    drawn = (draws(8, 12).view(8, 6, 2) / 2 ** 32).double()
    queries = normalize(method.projector(method.encoder(batch.views[0].images)), dim=1)
    keys = normalize(method.momentum_encoder.average(batch.views[1].images), dim=1).detach()
    terms, made = [], []
    for i, (q, k) in enumerate(zip(queries, keys, strict=True)):
        scores = torch.stack([q @ k, *(queue @ q)]) / 0.4
        terms.append(scores.logsumexp(0) - scores[0])
        order = (prototypes @ k).argsort(descending=True)
        for choice, share in drawn[i]:
            other = order[1 + min(int(choice * 4), 3)]
            positive = towards(k, prototypes[order[0]], prototypes[other], 1 - 0.8 * share)
            if (prototypes @ positive).argmax() == order[0]:
                made.append(-cosine(q, positive) / 0.4)
    assert 0 < len(made) <= 48
    require_equal(method, batch, sum(terms) / 8 + weight * sum(made) / len(made))


def test_halps_prototypes_follow_the_newest_keys_with_each_step():
    method, batch = example(HaLP, **WIDTHS, queue=20, prototypes=5, newest=6)
    method.training_loss(batch)
    before = method.prototypes.clone()
    method.after_step()
    newest = method.queue.keys[:8][2:]                                      # of the eight that were written
    assert torch.equal(method.queue.newest(6).sort(0).values, newest.sort(0).values)
    assert torch.allclose(method.prototypes, written_kmeans(method.queue.newest(6), before))


def test_the_newest_keys_of_a_queue_go_round_its_end():
    method, _ = example(HaLP, **WIDTHS, queue=20, prototypes=5, newest=6, steps=4)
    assert method.queue.head.item() == 4
    newest = [(4 - 6 + i) % 20 for i in range(6)]
    assert torch.equal(method.queue.newest(6), method.queue.keys[newest])


@pytest.mark.parametrize(("cls", "options", "sentence"), [
    (FT, {"extrapolation": 0.0}, "Beta distribution's parameter must be above 0, not 0.0"),
    (FT, {"interpolation": -1.0}, "Beta distribution's parameter must be above 0, not -1.0"),
    (FT, {"contrast": "soft"}, "there is no contrast soft"),
    (HaLP, {"prototypes": 1}, "HaLP moves keys between 2 or more prototypes, not 1"),
    (HaLP, {"newest": 9}, "the newest 9 keys of a queue of 8"),
    (HaLP, {"newest": 4, "prototypes": 5}, "5 prototypes of 4 keys"),
    (HaLP, {"positives": 0, "newest": 8}, "HaLP makes 1 or more positives, not 0"),
    (HaLP, {"start": 1.5, "newest": 8}, "start is a share of training, 0 to 1, not 1.5"),
])
def test_a_method_refuses_what_it_cannot_be_built_of(cls, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(cls, **WIDTHS | {"queue": 8} | ({"prototypes": 3} if cls is HaLP else {}) | options)


@pytest.mark.parametrize("cls", [FT, HaLP])
def test_three_views_are_too_many_and_a_batch_above_the_queue_is_refused(cls):
    options = WIDTHS | {"queue": 7} | ({"prototypes": 3, "newest": 7} if cls is HaLP else {})
    with pytest.raises(ValueError, match=f"{cls.__name__} learns from 2 views of each image, and this recipe draws 3"):
        small(cls, ViewSpec(16, 3), **options)
    method = small(cls, **options)
    for batch in batches(method, 1):
        with pytest.raises(ValueError, match="a batch of 8 keys does not fit a queue of 7"):
            method.training_loss(batch)


def test_the_gradient_of_ft_reaches_the_query_through_both_ends_of_a_pair():
    query, key = normal(3, 4).requires_grad_(), normal(3, 4, seed=1)
    queue = normal(5, 4, seed=2)

    def loss(query):
        q, k = extrapolated(query, key, torch.tensor(1.4).double())
        return contrast((q * k).sum(1), q @ queue.T, 0.5)
    assert torch.autograd.gradcheck(loss, query)
    assert np.isfinite(loss(query).item())


# What pulls alone collapses


def pull(positive, *_, **__):
    return -positive.mean()


@pytest.mark.parametrize(("cls", "options", "losses"), [
    (CACR, {}, {"ssl_zoo.methods.cacr.repulsion": lambda z, sharpness: torch.zeros(())}),
    (GroCo, {"negatives": 3}, {"ssl_zoo.methods.groco.group_order": pull}),
    (FT, {"queue": 16}, {"ssl_zoo.methods.ft.contrast": pull}),
    (HaLP, {"queue": 16, "prototypes": 4, "newest": 16, "positives": 8, "start": 0.0, "weight": 0.1},
     {"ssl_zoo.methods.halp.contrast": pull}),
], ids=["CACR", "GroCo", "FT", "HaLP"])
def test_positives_alone_collapse_and_the_health_measure_says_so(cls, options, losses, monkeypatch):
    found = []
    for patches in ({}, losses):
        for name, loss in patches.items():
            monkeypatch.setattr(name, loss)
        torch.manual_seed(0)
        method = small(cls, **WIDTHS, **{"momentum": 0.9} if "queue" in options else {}, **options)
        if "queue" not in options:
            method.projector = mlp(8, 16, 8)                              # without the BatchNorm that ends it
        lr = 0.005 if "queue" in options else 0.02
        optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, method.parameters()), lr=lr)
        batch = next(batches(method, 1))
        for _ in range(60):
            optimizer.zero_grad()
            method.training_loss(batch).backward()
            optimizer.step()
            method.after_step()
        found.append(feature_std(projections(method, batch)[0].detach()))
    assert found[1] < 0.1, found
    assert found[0] > 3 * found[1], found
