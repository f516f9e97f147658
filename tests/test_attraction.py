"""CACR and GroCo: loss and gradients written out, and the reference's numbers."""

import math

import pytest
import torch

from ssl_zoo.losses import contrast, key_similarities
from ssl_zoo.methods import CACR, CACRMoCoV3, GroCo, MoCoV3
from ssl_zoo.methods.cacr import momentum_attraction
from ssl_zoo.methods.groco import group_order, sorted_places
from ssl_zoo.multi_view import attraction, repulsion
from ssl_zoo.views import ViewSpec
from tests.conftest import MULTI_CROP, TWO_VIEWS, small, state
from tests.test_bases import cosine, projections, require_equal, unit_views
from tests.test_losses import normal
from tests.test_methods import batches, example

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log.*")
WIDTHS = {"projector": (16, 8)}


def far(x, y):
    return (x / x.norm() - y / y.norm()).square().sum()


def weighed(distances, sharpness):
    """The mean of distances, weighted by the softmax of sharpness times themselves."""
    heat = [(sharpness * d).exp() for d in distances]
    return sum(h * d for h, d in zip(heat, distances, strict=True)) / sum(heat)


# CACR


@pytest.mark.parametrize(("views", "attracted", "repelled"), [(2, 0.910095, -1.145521), (4, 0.744723, -1.024608)])
def test_cacrs_two_terms_are_the_references_numbers(views, attracted, repelled):
    z = unit_views(views)
    assert attraction(3 * z, 1.0).item() == pytest.approx(attracted, abs=1e-6)
    assert repulsion(3 * z, 0.9).item() == pytest.approx(repelled, abs=1e-6)


@pytest.mark.parametrize(("views", "attracted", "repelled"), [(2, 0.910095, -2.160286), (4, 0.542004, -2.294987)])
def test_cacrs_terms_without_weights_are_plain_means(views, attracted, repelled):
    z = unit_views(views)
    assert attraction(z, 0.0).item() == pytest.approx(attracted, abs=1e-6)
    assert repulsion(z, 0.0).item() == pytest.approx(repelled, abs=1e-6)


def test_cacrs_weights_pull_the_farther_views_and_push_the_nearer_images():
    z = unit_views(2)
    assert attraction(z, 1.0).item() == pytest.approx((z[0] - z[1]).square().sum(1).mean().item(), abs=1e-12)
    assert repulsion(z, 500.0).item() == pytest.approx(-1.004023, abs=1e-6)       # the nearest image alone
    for seed in range(3):
        z = normal(3, 5, 4, seed=seed)
        assert attraction(z, 1.0) >= attraction(z, 0.0)
        assert repulsion(z, 0.9) >= repulsion(z, 0.0)


@pytest.mark.parametrize("rows", [(TWO_VIEWS,), (ViewSpec(16, 3),), MULTI_CROP], ids=["2", "3", "multi-crop"])
def test_cacr_is_its_sums_with_gradients_through_the_weights(rows):
    method, batch = example(CACR, *rows, **WIDTHS, positive_sharpness=1.5, negative_sharpness=0.7)
    z = projections(method, batch)
    views = range(len(z))
    attracted = [weighed([far(z[x][i], z[v][i]) for v in views if v != x], 1.5) for x in views for i in range(8)]
    repelled = [-weighed([far(z[x][i], z[y][j]) for j in range(8) if j != i], -0.7)
                for x in views for y in views if x < y for i in range(8)]
    require_equal(method, batch, sum(attracted) / len(attracted) + sum(repelled) / len(repelled))


def test_cacrs_gradients_are_its_slopes_at_equal_projections_too():
    assert torch.autograd.gradcheck(lambda z: attraction(z, 1.0) + repulsion(z, 0.9), normal(3, 4, 3).requires_grad_())
    z = torch.ones(3, 4, 3, dtype=torch.float64, requires_grad=True)
    (attraction(z, 1.0) + repulsion(z, 0.9)).backward()
    assert z.grad.isfinite().all()


def test_cacr_on_moco_v3_with_one_query_is_info_nce_and_half_of_moco_v3():
    z1, z2 = unit_views(2)
    one = momentum_attraction([z1], z2, 1.0)
    assert one.item() == pytest.approx(2.361031, abs=1e-6)
    assert one.item() == pytest.approx(2 * contrast(*key_similarities(z1, z2), 1.0).item(), abs=1e-12)
    options = WIDTHS | {"predictor": (16,), "temperature": 0.3}
    method, batch = example(CACRMoCoV3, **options)
    other, _ = example(MoCoV3, **options)
    other.load_state_dict(state(method))
    assert method.training_loss(batch).item() == pytest.approx(other.training_loss(batch).item() / 2, abs=1e-12)


@pytest.mark.parametrize(("rows", "keys"), [((ViewSpec(16, 3),), [0, 1, 2]), (MULTI_CROP, [0, 1])])
def test_cacr_on_moco_v3_weighs_the_queries_of_each_key_by_their_distance(rows, keys):
    method, batch = example(CACRMoCoV3, *rows, **WIDTHS, predictor=(16,), temperature=0.3)
    queries = [method.predictor(z) for z in projections(method, batch)]
    terms = []
    for g in keys:
        key = method.momentum_encoder.average(batch.views[g].images)
        for i in range(8):
            others = [q for v, q in enumerate(queries) if v != g]
            losses = []
            for q in others:
                scores = torch.stack([cosine(q[i], key[j]) / 0.3 for j in range(8)])
                losses.append(scores.logsumexp(0) - scores[i])
            weights = torch.softmax(torch.stack([far(q[i], key[i]) / 0.3 for q in others]).detach(), 0)
            terms.append(2 * 0.3 * sum(w * one for w, one in zip(weights, losses, strict=True)))
    require_equal(method, batch, sum(terms) / len(terms))


# GroCo


def written_places(scores, steepness):
    """The odd-even network, one comparison at a time: the share [item][place] of each score that ends at each place."""
    n = len(scores)
    values, shares = list(scores), [[torch.tensor(float(i == p)).double() for p in range(n)] for i in range(n)]
    for layer in range(n):
        for a in range(layer % 2, n - 1, 2):
            b = a + 1
            stay = 0.5 + torch.atan(steepness * (values[b] - values[a])) / math.pi
            values[a], values[b] = stay * values[a] + (1 - stay) * values[b], (1 - stay) * values[a] + stay * values[b]
            for row in shares:
                row[a], row[b] = stay * row[a] + (1 - stay) * row[b], (1 - stay) * row[a] + stay * row[b]
    return shares


def written_order(positives, negatives, steepness):
    scores = sorted(negatives, key=lambda s: s.item()) + sorted(positives, key=lambda s: s.item())
    shares, count, terms = written_places(scores, steepness), len(negatives), []
    for item, row in enumerate(shares):
        above, below = sum(row[count:]), sum(row[:count])
        terms += [-above.log(), -(1 - below).log()] if item >= count else [-(1 - above).log(), -below.log()]
    return sum(terms) / len(terms)


def order_of(positives, negatives, steepness=1.0, count=None):
    rows = (torch.tensor(x, dtype=torch.float64)[None] for x in (positives, negatives))
    return group_order(*rows, count or len(negatives), steepness).item()


@pytest.mark.parametrize(("positives", "negatives", "steepness", "value"), [
    ([0.9], [0.1], 1.0, 0.335785), ([1.0], [-1.0], 1.0, 0.159680), ([0.3], [0.3], 1.0, math.log(2)),
    ([0.7, 0.5], [0.6, 0.2, -0.1], 1.0, 0.427253), ([0.7, 0.5], [0.6, 0.2, -0.1], 10.0, 0.404624),
    ([0.8], torch.linspace(-0.5, 0.6, 10).tolist(), 1.0, 0.190405),
])
def test_the_order_of_a_few_cosines_costs_the_references_number(positives, negatives, steepness, value):
    assert order_of(positives, negatives, steepness) == pytest.approx(value, abs=1e-6)


def test_one_positive_and_one_negative_have_the_closed_form():
    for s in (-0.4, 0.0, 0.3):
        assert order_of([s], [0.1]) == pytest.approx(-math.log(0.5 + math.atan(s - 0.1) / math.pi), abs=1e-12)


def test_separated_groups_cost_nothing_in_a_steep_network():
    assert order_of([0.9, 0.8], [0.1, 0.2, -0.3], 1e6) == pytest.approx(0, abs=1e-4)
    assert order_of([0.1], [0.9], 1e6) > 10


@pytest.mark.parametrize("n", [2, 5, 8])
def test_each_score_ends_somewhere_and_each_place_is_filled(n):
    places = sorted_places(normal(3, n), 2.0)
    assert torch.allclose(places.sum(1), torch.ones(3, n).double())
    assert torch.allclose(places.sum(2), torch.ones(3, n).double())
    for row, scores in zip(places, normal(3, n), strict=True):
        assert torch.allclose(row, torch.tensor(written_places(scores, 2.0)).double(), atol=1e-12)


def test_the_gradient_of_the_order_is_its_slope():
    positive, negative = normal(2, 2).requires_grad_(), normal(2, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, n: group_order(p, n, 3, 1.0), (positive, negative))


@pytest.mark.parametrize(("views", "negatives", "value"), [(2, 3, 0.419780), (4, 2, 0.322940)])
def test_grocos_loss_of_all_anchors_is_the_references_number(views, negatives, value):
    z, terms = unit_views(views), []
    for a in range(views):
        positive = torch.stack([(z[a] * z[v]).sum(1) for v in range(views) if v != a], 1)
        cosines = (z[a] @ z[a].T).masked_fill(torch.eye(4, dtype=torch.bool), -math.inf)
        terms.append(group_order(positive, cosines, negatives, 1.0))
    assert sum(terms).item() / views == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("rows", "large"), [((), [0, 1]), ((ViewSpec(16, 3),), [0, 1, 2]), (MULTI_CROP, [0, 1])])
def test_groco_sorts_large_views_of_the_image_above_the_nearest_images_of_the_same_view(rows, large):
    method, batch = example(GroCo, *rows, **WIDTHS, negatives=3, steepness=2.0)
    z, terms = projections(method, batch), []
    for a, anchors in enumerate(z):
        for i in range(8):
            positives = [cosine(anchors[i], z[v][i].detach()) for v in large if v != a]
            others = [cosine(anchors[i], anchors[j].detach()) for j in range(8) if j != i]
            terms.append(written_order(positives, sorted(others, key=lambda s: -s.item())[:3], 2.0))
    require_equal(method, batch, sum(terms) / len(terms))


def test_the_only_global_view_of_groco_has_no_positive_and_is_one_for_the_others():
    method, batch = example(GroCo, *MULTI_CROP, **WIDTHS, negatives=3)
    of_two = method.training_loss(batch)
    method.positives = method.positives[:1]
    of_one = method.training_loss(batch)
    assert of_one.isfinite()
    assert not torch.isclose(of_one, of_two)


def test_grocos_head_is_the_papers():
    method = small(GroCo)
    assert [tuple(m.weight.shape) for m in method.projector if isinstance(m, torch.nn.Linear)] == [
        (2048, 8), (2048, 2048), (2048, 2048)]
    assert not method.projector[-1].affine


# What they refuse, and how a collapse looks


@pytest.mark.parametrize(("cls", "options", "sentence"), [
    (GroCo, {"negatives": 0}, "GroCo sorts 1 or more negatives, not 0"),
    (GroCo, {"steepness": 0.0}, "a sorting network is steeper than 0, not 0.0"),
    (CACR, {"positive_sharpness": -1.0}, "CACR weighs pairs with a sharpness of 0 or more, not 1.0 and -1.0|-1.0 and"),
    (CACRMoCoV3, {"temperature": 0.0}, "a temperature must be above 0"),
])
def test_a_method_refuses_what_it_cannot_be_built_of(cls, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(cls, **WIDTHS | options)


@pytest.mark.parametrize("cls", [CACR, CACRMoCoV3, GroCo])
def test_one_view_is_too_few(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} learns from 2 views of each image, and this recipe draws 1"):
        small(cls, ViewSpec(16), **WIDTHS)


def test_a_batch_with_too_few_other_images_is_refused():
    method = small(GroCo, **WIDTHS, negatives=8)
    for batch in batches(method, 1):
        with pytest.raises(ValueError, match="8 most similar other images, and a batch of 8 has 7: lower negatives"):
            method.training_loss(batch)


def test_one_image_has_no_others_to_be_pushed_from():
    with pytest.raises(ValueError, match="CACR compares the images of a batch, and this batch has 1: raise the batch"):
        repulsion(normal(2, 1, 3), 0.9)
