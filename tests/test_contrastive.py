"""MV-InfoNCE, MV-DHEL, SogCLR, iSogCLR and the hard contrastive loss: written out, and the reference's numbers."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from ssl_zoo.data import ArrayImages
from ssl_zoo.losses import batch_similarities, contrast, global_contrast, key_similarities, nt_xent, queue_similarities
from ssl_zoo.methods import (
    MVDHEL,
    HardContrastive,
    HardContrastiveMoCo,
    ISogCLR,
    MoCo,
    MVInfoNCE,
    SimCLR,
    SogCLR,
    ViewAggregate,
)
from ssl_zoo.methods.hard_contrastive import hard_contrast, keep
from ssl_zoo.multi_view import average, mv_dhel, mv_info_nce, pairwise, poly_view
from ssl_zoo.views import ViewSpec
from tests.conftest import MULTI_CROP, TWO_VIEWS, small, trainer
from tests.test_bases import cosine, projections, require_equal, unit_views
from tests.test_losses import normal
from tests.test_methods import PAIRS, batches, example, state

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log.*")
WIDTHS = {"projector": (16, 8)}


def exponentials(z, temperature):
    """e[a, i, b, j]: exp(cosine / temperature) of view a of image i and view b of image j."""
    z = normalize(z, dim=-1)
    return (torch.einsum("aid,bjd->aibj", z, z) / temperature).exp()


def written_mv_info_nce(z, temperature, same_view):
    e, (views, batch, _), terms = exponentials(z, temperature), z.shape, []
    for i in range(batch):
        pairs = sum(e[a, i, b, i] for a in range(views) for b in range(views) if a != b)
        every = sum(e[a, i, b, j] for a in range(views) for b in range(views) for j in range(batch)
                    if a != b or (same_view and i != j))
        terms.append(every.log() - pairs.log())
    return sum(terms) / batch


def written_mv_dhel(z, temperature):
    e, (views, batch, _), terms = exponentials(z, temperature), z.shape, []
    for i in range(batch):
        spread = sum(sum(e[a, i, a, j] for j in range(batch) if j != i).log() for a in range(views))
        terms.append(spread - sum(e[a, i, b, i] for a in range(views) for b in range(a)).log())
    return sum(terms) / batch


def written_poly_view(z, temperature):
    e, (views, batch, _), terms = exponentials(z, temperature), z.shape, []
    for i in range(batch):
        for a in range(views):
            others = sum(e[a, i, b, j] for b in range(views) for j in range(batch) if j != i)
            terms += [(others + e[a, i, b, i]).log() - e[a, i, b, i].log() for b in range(views) if b != a]
    return sum(terms) / len(terms)


# MV-InfoNCE and MV-DHEL


@pytest.mark.parametrize(("loss", "temperature", "values"), [
    (mv_info_nce, 0.5, (1.951403, 1.209890, 1.016733)), (mv_info_nce, 0.1, (5.151280, 1.311060, 1.008741)),
    (lambda z, t: mv_info_nce(z, t, False), 0.5, (1.498067, 0.975876, 0.859753)),
    (lambda z, t: mv_info_nce(z, t, False), 0.1, (4.780186, 1.078520, 0.853064)),
    (mv_dhel, 0.5, (2.537928, 2.342519, 2.677732)), (mv_dhel, 0.1, (9.086116, 9.341505, 12.559306)),
    (poly_view, 0.5, (1.928762, 1.860682, 1.909274)),
], ids=["released", "released, cold", "formula", "formula, cold", "DHEL", "DHEL, cold", "PVC"])
def test_losses_of_two_three_and_four_views_are_the_references_numbers(loss, temperature, values):
    for views, value in zip((2, 3, 4), values, strict=True):
        assert loss(unit_views(views), temperature).item() == pytest.approx(value, abs=1e-6)


LOSSES = {"MVInfoNCE": mv_info_nce, "MVDHEL": mv_dhel, "poly_view": poly_view, "average": average,
          "pairwise": pairwise}


@pytest.mark.parametrize("rows", [(TWO_VIEWS,), (ViewSpec(16, 3),), MULTI_CROP], ids=["2", "3", "multi-crop"])
@pytest.mark.parametrize(("cls", "options", "written"), [
    (MVInfoNCE, {}, lambda z: written_mv_info_nce(z, 0.3, True)),
    (MVInfoNCE, {"same_view_negatives": False}, lambda z: written_mv_info_nce(z, 0.3, False)),
    (MVDHEL, {}, lambda z: written_mv_dhel(z, 0.3)),
    (ViewAggregate, {"aggregate": "poly_view"}, lambda z: written_poly_view(z, 0.3)),
], ids=["MVInfoNCE", "MVInfoNCE, paper", "MVDHEL", "poly-view"])
def test_multi_view_methods_are_their_sums_over_views_and_images(cls, options, written, rows):
    method, batch = example(cls, *rows, **WIDTHS, **options, temperature=0.3)
    require_equal(method, batch, written(torch.stack(projections(method, batch))))


def test_aggregates_of_three_views_are_means_over_pairs_and_over_views_with_the_mean_of_the_others():
    z = normal(3, 5, 4)
    pairs = [nt_xent(z[a], z[b], 0.3) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert pairwise(z, 0.3).item() == pytest.approx((sum(pairs) / 3).item(), abs=1e-12)
    u = normalize(z, dim=-1)
    with_mean = [nt_xent(u[a], (u[b] + u[c]) / 2, 0.3) for a, b, c in ((0, 1, 2), (1, 0, 2), (2, 0, 1))]
    assert average(z, 0.3).item() == pytest.approx((sum(with_mean) / 3).item(), abs=1e-12)


@pytest.mark.parametrize("loss", [poly_view, average, pairwise])
def test_each_aggregate_of_two_views_is_nt_xent(loss):
    z = normal(2, 5, 4)
    assert loss(z, 0.3).item() == pytest.approx(nt_xent(*z, 0.3).item(), abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_views_does_not_matter_and_the_gradient_is_the_slope(name):
    z = normal(3, 4, 3).requires_grad_()
    assert LOSSES[name](z[[2, 0, 1]], 0.3).item() == pytest.approx(LOSSES[name](z, 0.3).item(), abs=1e-12)
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, 0.3), z)


@pytest.mark.parametrize("views", [2, 5])
def test_mv_dhel_of_equal_projections_has_its_closed_form(views):
    value = views * math.log(6) + (views - 1) / 0.2 - math.log(views * (views - 1) / 2)
    assert mv_dhel(torch.ones(views, 7, 3).double(), 0.2).item() == pytest.approx(value, abs=1e-12)


def test_mv_info_nce_of_two_views_is_at_least_nt_xent():
    for seed in range(5):
        z = normal(2, 6, 4, seed=seed)
        assert mv_info_nce(z, 0.3).item() >= nt_xent(*z, 0.3).item()


def test_many_cold_views_do_not_overflow():
    z = normal(8, 64, 16).float()                # the product of the sums is beyond float32
    for loss in (mv_info_nce, mv_dhel):
        assert loss(z, 0.05).item() == pytest.approx(loss(z.double(), 0.05).item(), rel=1e-5)


# SogCLR and iSogCLR


def written_global_contrast(z1, z2, old, temperature, gamma):
    """One step, a view of an image at a time: loss, new averages, and log of the average less the weighted mean."""
    views, batch = [normalize(z, dim=-1) for z in (z1, z2)], len(z1)
    losses, averages, uneven = [], torch.zeros(batch).double(), torch.zeros(batch).double()
    for i in range(batch):
        t = temperature[i].item()
        for v, z in enumerate(views):
            scores = [z[i] @ other[j] for other in views for j in range(batch) if j != i]
            newest = sum(math.exp(s.item() / t) for s in scores) / len(scores)
            u = (1 - gamma) * old[i].item() + gamma * newest if old[i] > 0 else newest
            pushed = sum(math.exp(s.item() / t) / u * s for s in scores) / len(scores)
            losses.append(pushed - z[i] @ views[1 - v][i])
            averages[i] += u / 2
            uneven[i] += (math.log(u) - pushed.item() / t) / 2
    return sum(losses) / batch, averages, uneven


def test_a_step_from_averages_of_one_has_the_references_numbers():
    z1, z2 = unit_views(2)
    loss, averages, uneven = global_contrast(z1, z2, torch.ones(4).double(), torch.full((4,), 0.5).double(), 0.9)
    assert loss.item() == pytest.approx(0.662957, abs=1e-6)
    assert averages.tolist() == pytest.approx([3.237431, 3.335511, 3.173644, 1.107626], abs=1e-6)
    assert (uneven + 0.3).tolist() == pytest.approx([-0.488287, -0.465737, -0.454121, -0.873010], abs=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_a_first_step_has_the_references_numbers_for_a_gamma_of_one(gamma):
    z1, z2 = unit_views(2)
    loss, averages, _ = global_contrast(z1, z2, torch.zeros(4).double(), torch.full((4,), 0.5).double(), gamma)
    assert loss.item() == pytest.approx(0.558450, abs=1e-6)
    assert averages.tolist() == pytest.approx([3.486035, 3.595012, 3.415160, 1.119584], abs=1e-6)


def test_a_step_of_a_gamma_of_one_has_the_gradient_of_decoupled_contrast():
    z1, z2 = (z.requires_grad_() for z in normal(2, 5, 4))
    loss = global_contrast(z1, z2, torch.ones(5).double(), torch.full((5,), 0.3, dtype=torch.float64), 1.0)[0]
    decoupled = 2 * 0.3 * contrast(*batch_similarities(z1, z2), 0.3, "decoupled")
    for slope, other in zip(*(torch.autograd.grad(x, (z1, z2)) for x in (loss, decoupled)), strict=True):
        assert torch.allclose(slope, other, rtol=0, atol=1e-12)


def test_at_a_temperatures_fixed_point_the_weights_diverge_from_even_ones_by_rho():
    z1, z2 = unit_views(2)
    temperature = torch.full((4,), 0.5).double()
    for _ in range(2000):
        uneven = global_contrast(z1, z2, torch.zeros(4), temperature, 1.0)[2]
        temperature = (temperature - 0.03 * (uneven + 0.3)).clamp(0.05, 10)
    assert (uneven + 0.3).abs().max() < 1e-6
    assert temperature.tolist() == pytest.approx([0.9736, 0.9115, 0.8537, 1.0529], abs=1e-4)


@pytest.mark.parametrize(("cls", "options"), [(SogCLR, {"temperature": 0.3}), (ISogCLR, {"temperature": 0.3})])
def test_each_image_has_an_average_of_its_own_and_its_first_batch_is_its_first_average(cls, options):
    method, batch = example(cls, **WIDTHS, images=32, **options, gamma=0.7)
    table = method.table
    table.average[batch.index[:4]] = torch.tensor([2.0, 3.0, 4.0, 5.0]).double()          # the other four are new
    if cls is ISogCLR:
        table.temperature[batch.index] = torch.linspace(0.2, 0.6, 8).double()
        table.gradient[batch.index] = torch.linspace(-1, 1, 8).double()
    before = {name: value.clone() for name, value in state(table).items()}
    temperature = before.get("temperature", torch.full((32,), 0.3, dtype=torch.float64))[batch.index]
    written, averages, uneven = written_global_contrast(*projections(method, batch), before["average"][batch.index],
                                                        temperature, 0.7)
    require_equal(method, batch, written)
    assert torch.allclose(table.average[batch.index], averages, rtol=1e-6)
    assert table.average.count_nonzero() == 8
    if cls is ISogCLR:
        gradient = 0.5 * before["gradient"][batch.index] + 0.5 * (uneven + 0.4).clamp(-3, 3)
        assert torch.allclose(table.gradient[batch.index], gradient, rtol=1e-6)
        assert torch.allclose(table.temperature[batch.index], (temperature - 0.03 * gradient).clamp(0.05, 1.0))
        assert table.temperature[8:].eq(table.temperature[8]).all()


def test_temperatures_stay_between_the_coldest_and_the_hottest():
    for rho, end in ((100.0, 0.05), (-100.0, 0.2)):       # gradients clipped at 3 and -3
        method, batch = example(ISogCLR, **WIDTHS, images=32, temperature=0.1, hottest=0.2, rho=rho, temperature_lr=1.0)
        method.training_loss(batch)
        assert torch.allclose(method.table.temperature[batch.index], torch.full((8,), end).double())


@pytest.mark.parametrize("cls", [SogCLR, ISogCLR])
def test_a_table_of_another_size_than_the_data_is_refused_before_anything_runs(cls, tmp_path, arrays):
    method = small(cls, **WIDTHS, images=61)
    with pytest.raises(ValueError, match="the method keeps a table of 61 images, and the training part has 60"):
        trainer(tmp_path).fit(method, ArrayImages(str(arrays), batch_size=8))


@pytest.mark.parametrize(("cls", "options", "sentence"), [
    (SogCLR, {"images": 8, "temperature": 0.01}, "needs a temperature of 0.02 or more, not 0.01"),
    (ISogCLR, {"images": 8, "coldest": 0.01}, "needs a temperature of 0.02 or more, not 0.01"),
    (SogCLR, {"images": 8, "gamma": 0.0}, "gamma is a share, above 0 and up to 1, not 0.0"),
    (ISogCLR, {"images": 8, "beta": 1.5}, "beta is a share, above 0 and up to 1, not 1.5"),
    (ISogCLR, {"images": 8, "temperature": 2.0}, "between the coldest and the hottest, 0.05 and 1.0, not at 2.0"),
    (SogCLR, {"images": 0}, "a table has 1 or more rows and columns, not 0 rows"),
    (ViewAggregate, {"aggregate": "mean"}, "there is no aggregate mean: it is one of pairwise, average, poly_view"),
    (HardContrastive, {"hardest": 0.0}, "hardest is a share, above 0 and up to 1, not 0.0"),
    (HardContrastiveMoCo, {"hardest": 1.1, "queue": 8}, "hardest is a share, above 0 and up to 1, not 1.1"),
])
def test_a_method_refuses_what_it_cannot_be_built_of(cls, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(cls, **WIDTHS | options)


@pytest.mark.parametrize(("cls", "options"), [(MVInfoNCE, {}), (MVDHEL, {}), (SogCLR, {"images": 8}),
                                              (HardContrastive, {})])
def test_a_batch_of_one_image_is_refused(cls, options):
    method = small(cls, projector=(8,), **options)
    method.projector = torch.nn.Identity()
    for batch in batches(method, 1):
        views = [view._replace(images=view.images[:1]) for view in batch.views]
        with pytest.raises(ValueError, match="compares the images of a batch, and this batch has 1: raise the batch"):
            method.training_loss(batch._replace(index=batch.index[:1], views=views))


# The hard contrastive loss


@pytest.mark.parametrize(("share", "value"), [(1.0, 1.836662), (0.1, 1.650698)])
def test_the_hard_contrast_of_all_or_one_negative_is_the_references_number(share, value):
    positive, negative = key_similarities(*unit_views(2))
    assert contrast(positive, keep(negative, share, absent=1), 0.3).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("share", "count"), [(1.0, 10), (0.3, 3), (0.31, 4), (0.01, 1)])
def test_the_hardest_are_the_largest_and_their_number_is_rounded_up(share, count):
    negative = torch.cat([normal(3, 10), torch.full((3, 2), -math.inf).double()], 1)
    kept = keep(negative, share, absent=2)
    assert kept.tolist() == [sorted(row.tolist(), reverse=True)[:count] for row in negative]


def written_hard(positive, negatives, temperature, count):
    hardest = torch.stack(sorted(negatives, key=lambda s: -s.item())[:count])
    return torch.cat([positive[None], hardest]).div(temperature).logsumexp(0) - positive / temperature


@pytest.mark.parametrize(("rows", "pairs"), [((), [(0, 1)]), (MULTI_CROP, PAIRS)])
def test_hard_contrastive_compares_each_view_with_its_hardest_negatives(rows, pairs):
    method, batch = example(HardContrastive, *rows, **WIDTHS, temperature=0.4, hardest=0.3)
    z, terms = projections(method, batch), []
    for a, b in pairs:
        both = torch.cat([z[a], z[b]])
        for i in range(16):
            negatives = [cosine(both[i], both[k]) for k in range(16) if k % 8 != i % 8]
            terms.append(written_hard(cosine(both[i], both[(i + 8) % 16]), negatives, 0.4, 5))      # 0.3 of 14: 4.2
    require_equal(method, batch, sum(terms) / len(terms))


def test_the_hard_contrast_of_a_large_batch_is_read_in_blocks(monkeypatch):
    z1, z2 = (z.requires_grad_() for z in normal(2, 9, 4))
    whole = hard_contrast(z1, z2, 0.4, 0.3)
    monkeypatch.setattr("ssl_zoo.blocks.PLAIN", 1)
    monkeypatch.setattr("ssl_zoo.blocks.BLOCK", {"cpu": 50})
    blocks = hard_contrast(z1, z2, 0.4, 0.3)
    assert blocks.item() == pytest.approx(whole.item(), abs=1e-12)
    for slope, other in zip(*(torch.autograd.grad(x, (z1, z2)) for x in (whole, blocks)), strict=True):
        assert torch.allclose(slope, other, rtol=0, atol=1e-12)


def test_hard_contrastive_on_a_queue_compares_each_query_with_its_hardest_keys():
    method, batch = example(HardContrastiveMoCo, **WIDTHS, queue=20, temperature=0.4, hardest=0.23, steps=2)
    queue = method.queue.keys.clone()
    query = method.projector(method.encoder(batch.views[0].images))
    key = method.momentum_encoder.average(batch.views[1].images)
    terms = [written_hard(cosine(q, k), [(q / q.norm()) @ n for n in queue], 0.4, 5)
             for q, k in zip(query, key, strict=True)]
    head = method.queue.head.item()
    require_equal(method, batch, sum(terms) / 8)
    slots = [(head + i) % 20 for i in range(8)]
    assert torch.allclose(method.queue.keys[slots], normalize(key, dim=-1))


def test_keeping_all_negatives_is_simclr_and_moco():
    options = WIDTHS | {"temperature": 0.4}
    for cls, other, more in ((HardContrastive, SimCLR, {}), (HardContrastiveMoCo, MoCo, {"queue": 20})):
        method, batch = example(cls, **options, **more, hardest=1.0)
        plain, _ = example(other, **options, **more)
        plain.load_state_dict(state(method))
        assert method.training_loss(batch).item() == pytest.approx(plain.training_loss(batch).item(), abs=1e-12)


def test_the_gradients_of_a_kept_negative_are_its_share_and_the_others_have_none():
    positive, queue = torch.tensor([0.6]).double().requires_grad_(), torch.tensor([[0.5, -0.2, 0.1]]).double()
    negative = queue.requires_grad_()
    contrast(positive, keep(negative, 0.5), 0.3).backward()
    shares = torch.softmax(torch.tensor([0.6, 0.5, 0.1]).double() / 0.3, 0).tolist()
    assert negative.grad[0].tolist() == pytest.approx([shares[1] / 0.3, 0, shares[2] / 0.3], abs=1e-12)
    assert positive.grad.item() == pytest.approx(-(shares[1] + shares[2]) / 0.3, abs=1e-12)


def test_an_images_penalty_is_spread_more_evenly_at_a_higher_temperature():
    entropies = []
    _, negative = key_similarities(*unit_views(2))
    for temperature in (0.07, 0.3, 1.0):
        p = torch.softmax(negative[0] / temperature, 0)
        entropies.append(-(p[p > 0] * p[p > 0].log()).sum().item())
    assert entropies == pytest.approx([0.641727, 0.698267, 0.906596], abs=1e-6)
    assert np.all(np.diff(entropies) > 0)


def test_queue_similarities_of_one_key_keep_it():
    _, negative = queue_similarities(normal(3, 4), normal(3, 4, seed=1), normalize(normal(1, 4, seed=2), dim=-1))
    assert torch.equal(keep(negative.matrix(), 0.0819), negative.matrix())
