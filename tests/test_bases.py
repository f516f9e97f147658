"""BYOL, SimSiam, VICReg, NNCLR, DenseCL, LeJEPA, VISReg, W-MSE: loss and gradients written out, others' numbers."""

import math
from statistics import NormalDist

import pytest
import torch
from lightly.loss import LeJEPALoss, VICRegLoss, VISRegLoss
from torch.nn.functional import cosine_similarity, normalize

from ssl_zoo import losses
from ssl_zoo.evaluation.health import feature_std
from ssl_zoo.losses import contrast, cross_similarities
from ssl_zoo.method import Batch
from ssl_zoo.methods import BYOL, NNCLR, WMSE, DenseCL, LeJEPA, SimSiam, VICReg, VISReg
from ssl_zoo.methods.densecl import corresponding
from ssl_zoo.methods.nnclr import nearest
from ssl_zoo.methods.vicreg import mean_square, missing_deviation, shared_variance
from ssl_zoo.methods.visreg import gaussian_parts
from ssl_zoo.methods.wmse import distance, whitened
from ssl_zoo.sketching import Directions, distance_to_centre, epps_pulley, sliced_wasserstein
from ssl_zoo.views import ViewSpec
from tests.conftest import MULTI_CROP, TWO_VIEWS, small, state, trainer
from tests.test_losses import normal
from tests.test_methods import batches, example, plain, toy_loss

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log.*")
WIDTHS = {"projector": (16, 8)}


def det(*shape, k):
    """The reference's inputs: sin((n + 1) * (0.37 + 0.11 k) + k) at place n."""
    places = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return torch.sin(places * (0.37 + 0.11 * k) + k).view(shape)


def unit_views(count, batch=4, dim=3):
    """The reference's unit views [V, B, D]."""
    return normalize(torch.stack([det(batch, dim, k=0) + 0.5 * det(batch, dim, k=v + 1) for v in range(count)]), dim=-1)


A, B = det(4, 3, k=0), det(4, 3, k=1)


def projections(method, batch):
    return [method.projector(method.encoder(view.images)) for view in batch.views]


def spread_after_training(cls, **options):
    """feature_std of a method's projections after it has learnt from one batch, sixty times."""
    torch.manual_seed(0)
    method = small(cls, **options)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.02)
    batch = next(batches(method, 1))
    for _ in range(60):
        optimizer.zero_grad()
        method.training_loss(batch).backward()
        optimizer.step()
    return feature_std(projections(method, batch)[0].detach())


def require_equal(method, batch, written):
    """A method's loss, and its gradient for every weight, are those of a sum that is written out."""
    weights = {name: p for name, p in method.named_parameters() if p.requires_grad}
    loss = method.training_loss(batch)
    assert loss.item() == pytest.approx(written.item(), abs=1e-9)
    slopes, expected = (torch.autograd.grad(x, list(weights.values()), allow_unused=True) for x in (loss, written))
    for name, slope, other in zip(weights, slopes, expected, strict=True):
        assert torch.allclose(slope, other, rtol=1e-8, atol=1e-9), name


def cosine(x, y):
    return (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())


# BYOL and SimSiam


def test_byols_loss_is_the_references_number_both_ways():
    assert toy_loss(plain(BYOL, predictor=(4,)), A, B) == pytest.approx(2 * 2.179754, abs=2e-6)


def test_byol_predicts_the_momentum_encoders_projection_of_the_other_view():
    method, batch = example(BYOL, **WIDTHS, predictor=(16,))
    with torch.no_grad():
        for weight in method.momentum_encoder.parameters():
            weight.add_(0.01 * weight.square())                       # no longer the online encoder's
    p = [method.predictor(z) for z in projections(method, batch)]
    t = [method.momentum_encoder.average(view.images) for view in batch.views]
    rows = [(p[0][i], t[1][i]) for i in range(8)] + [(p[1][i], t[0][i]) for i in range(8)]
    written = sum(((x / x.norm() - y / y.norm()).square().sum() for x, y in rows), torch.tensor(0.0).double()) / 8
    require_equal(method, batch, written)


def test_simsiams_loss_is_the_references_number():
    assert toy_loss(plain(SimSiam, predictor=(4,)), A, B) == pytest.approx(0.089877, abs=1e-6)


def test_simsiam_predicts_the_other_views_projection_without_a_gradient_through_it():
    method, batch = example(SimSiam, **WIDTHS, predictor=(4,))
    z = projections(method, batch)
    p = [method.predictor(x) for x in z]
    written = -sum(cosine(p[a][i], z[b][i].detach()) for a, b in ((0, 1), (1, 0)) for i in range(8)) / 16
    require_equal(method, batch, written)


def test_simsiams_predictor_keeps_its_learning_rate(tmp_path, data):
    method = small(SimSiam, **WIDTHS, predictor=(4,))
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=4, limit_val_batches=0)
    run.fit(method, data)
    predictor = {id(p) for p in method.predictor.parameters()}
    for group in run.optimizers[0].param_groups:
        own = {id(p) for p in group["params"]}
        assert own <= predictor or not own & predictor
        assert group["lr"] == pytest.approx(0.05 if own <= predictor else 0.0, abs=1e-9)      # the cosine is at its end


def test_simsiams_heads_are_the_papers():
    method = small(SimSiam)
    norms = [module for module in method.projector if isinstance(module, torch.nn.BatchNorm1d)]
    assert [norm.affine for norm in norms] == [True, True, False]
    assert [tuple(m.weight.shape) for m in method.predictor if isinstance(m, torch.nn.Linear)] == [(512, 2048),
                                                                                                 (2048, 512)]


# VICReg


def test_vicregs_loss_and_its_parts_are_the_references_numbers():
    assert toy_loss(plain(VICReg), A, B) == pytest.approx(30.188206, abs=1e-5)      # of parts to 1e-6
    assert mean_square(A, B).item() == pytest.approx(0.945734, abs=1e-6)
    assert (missing_deviation(A) + missing_deviation(B)).item() / 2 == pytest.approx(0.219613, abs=1e-6)
    assert (shared_variance(A) + shared_variance(B)).item() == pytest.approx(1.054531, abs=1e-6)


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.3, 2.0)])
def test_vicreg_is_its_three_sums(weights):
    names = ("invariance_weight", "variance_weight", "covariance_weight")
    method, batch = example(VICReg, **WIDTHS, **dict(zip(names, weights, strict=True)))
    views = projections(method, batch)
    invariance = sum((views[0][i, d] - views[1][i, d]) ** 2 for i in range(8) for d in range(8)) / 64
    variance, covariance = torch.tensor(0.0).double(), torch.tensor(0.0).double()
    for z in views:
        columns = [[z[i, d] - sum(z[:, d]) / 8 for i in range(8)] for d in range(8)]
        c = [[sum(x * y for x, y in zip(columns[d], columns[e], strict=True)) / 7 for e in range(8)] for d in range(8)]
        variance = variance + sum(torch.relu(1 - (c[d][d] + 1e-4).sqrt()) for d in range(8)) / 8 / 2
        covariance = covariance + sum(c[d][e] ** 2 for d in range(8) for e in range(8) if d != e) / 8
    require_equal(method, batch, weights[0] * invariance + weights[1] * variance + weights[2] * covariance)


@pytest.mark.parametrize("batch", [2, 7])
def test_vicregs_loss_is_lightlys(batch):
    z1, z2 = (z.requires_grad_() for z in 0.3 * normal(2, batch, 3))
    ours = 25 * mean_square(z1, z2) + 12.5 * (missing_deviation(z1) + missing_deviation(z2)) + (
        shared_variance(z1) + shared_variance(z2))
    theirs = VICRegLoss()(z1, z2)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    for slope, other in zip(torch.autograd.grad(ours, (z1, z2)), torch.autograd.grad(theirs, (z1, z2)), strict=True):
        assert torch.allclose(slope, other, rtol=0, atol=1e-9)


def test_vicregs_variance_of_a_collapsed_encoder_has_its_closed_form_and_a_finite_gradient():
    z = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    loss = missing_deviation(z)
    assert loss.item() == pytest.approx(1 - math.sqrt(1e-4), abs=1e-12)
    loss.backward()
    assert z.grad.isfinite().all()


# NNCLR


def test_nnclrs_neighbours_and_loss_are_the_references_numbers():
    z1, z2 = unit_views(2)
    bank = normalize(det(6, 3, k=5), dim=-1)
    neighbour, cosine_, place = nearest(3 * z1, bank)
    assert place.tolist() == [5, 5, 1, 4]
    assert torch.allclose(cosine_, (z1 * bank[place]).sum(1))
    assert contrast(*cross_similarities(neighbour, z2), 0.1).item() == pytest.approx(2.394015, abs=5e-6)


def test_nnclr_whose_bank_is_the_batch_is_info_nce():
    z1, z2 = unit_views(2)
    neighbour, _, place = nearest(z1, z1)
    assert place.tolist() == [0, 1, 2, 3]
    assert torch.equal(neighbour, z1)


def test_nnclr_finds_predictions_by_neighbours_in_a_queue_that_does_not_know_the_batch_yet():
    method, batch = example(NNCLR, **WIDTHS, predictor=(16,), queue=20, temperature=0.3, steps=2)
    queue = method.queue.keys.clone()
    z = projections(method, batch)
    p = [method.predictor(x) for x in z]
    terms = []
    for a, b in ((0, 1), (1, 0)):
        for i in range(8):
            neighbour = max(queue, key=lambda n, x=z[a][i]: (n @ x).item())
            scores = torch.stack([cosine(neighbour, p[b][j]) / 0.3 for j in range(8)])
            terms.append(scores.logsumexp(0) - scores[i])
    head = method.queue.head.item()
    require_equal(method, batch, sum(terms) / 16)
    slots = [(head + i) % 20 for i in range(8)]
    assert torch.allclose(method.queue.keys[slots], normalize(z[0], dim=-1))
    assert torch.equal(method.queue.index[slots], batch.index)


def test_nnclr_logs_how_many_neighbours_are_of_their_own_image(monkeypatch):
    method, batch = example(NNCLR, **WIDTHS, predictor=(16,), queue=20, steps=2)
    logged = {}
    monkeypatch.setattr(method, "log_dict", lambda values, **_: logged.update(values))
    with torch.no_grad():
        method.queue.keys[:8] = normalize(projections(method, batch)[0], dim=-1)
    method.queue.index[:8] = torch.where(torch.arange(8) < 3, batch.index, -1)
    method.training_loss(batch)
    assert logged["neighbour/same_image"].item() == pytest.approx(3 / 8)
    assert logged["neighbour/cosine"].item() == pytest.approx(1, abs=1e-6)


def test_cross_similarities_give_a_gradient_to_the_keys():
    query, key = (z.clone().requires_grad_() for z in unit_views(2))
    contrast(*cross_similarities(query, key), 0.2).backward()
    assert query.grad.any()
    assert key.grad.any()


# DenseCL


@pytest.mark.parametrize("dense_weight", [0.0, 0.3, 1.0])
def test_densecl_is_moco_and_a_contrast_of_each_cell_with_the_most_similar_of_the_other_view(dense_weight):
    method, batch = example(DenseCL, **WIDTHS, queue=20, dense_weight=dense_weight, splits=2, steps=2)
    encoder, head, pixel_head = method.momentum_encoder
    queue, pixel_queue = method.queue.keys.clone(), method.pixel_queue.keys.clone()
    first, second = (view.images for view in batch.views)
    maps = method.encoder.maps(first)
    keys = torch.empty(8, 8).double()
    key_maps, key_cells = torch.empty_like(maps), torch.empty(8, 8, *maps.shape[2:]).double()
    for group in range(2):                                            # image i is of group i mod splits
        key_maps[group::2] = encoder.maps(second[group::2])
        key_cells[group::2] = pixel_head(key_maps[group::2])
        keys[group::2] = head(key_maps[group::2].mean((2, 3)))

    def term(query, key, others):
        scores = torch.cat([cosine(query, key)[None], others @ query / query.norm()]) / 0.2
        return scores.logsumexp(0) - scores[0]
    queries, cells = method.projector(maps.mean((2, 3))), method.pixel_projector(maps)
    whole = sum(term(queries[i], keys[i], queue) for i in range(8)) / 8
    terms = []
    for i in range(8):
        x, y, values = maps[i].flatten(1).T, key_maps[i].flatten(1).T, key_cells[i].flatten(1).T
        for n, cell in enumerate(cells[i].flatten(1).T):
            match = max(range(16), key=lambda m, x=x, y=y, n=n: cosine_similarity(x[n], y[m], dim=0).item())
            terms.append(term(cell, values[match], pixel_queue))
    assert len(terms) == 8 * 16
    slots = [(method.queue.head.item() + i) % 20 for i in range(8)]
    written = (1 - dense_weight) * whole + dense_weight * sum(terms) / len(terms)
    require_equal(method, batch, written)
    assert torch.allclose(method.queue.keys[slots], normalize(keys, dim=-1))
    assert torch.allclose(method.pixel_queue.keys[slots], normalize(key_cells.mean((2, 3)), dim=-1))
    assert torch.equal(method.pixel_queue.index[slots], batch.index)


def test_corresponding_cells_of_a_turned_map_are_its_own():
    features, order = normal(1, 9, 5), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    values = normal(1, 9, 2, seed=1)
    assert torch.equal(corresponding(features, 7 * features[:, order], values[:, order]), values)


# LeJEPA and VISReg


def gaussian_integral(rows, directions, knots, limit):
    """SIGReg of one view, a direction and a frequency at a time."""
    total = 0.0
    for direction in directions.T:
        heights = []
        for k in range(knots):
            t = limit * k / (knots - 1)
            angles = [t * (row @ direction).item() for row in rows]
            real, imaginary = (sum(map(f, angles)) / len(rows) for f in (math.cos, math.sin))
            phi = math.exp(-t * t / 2)
            heights.append(((real - phi) ** 2 + imaginary ** 2) * phi)
        area = sum((a + b) / 2 for a, b in zip(heights, heights[1:], strict=False)) * limit / (knots - 1)
        total += 2 * len(rows) * area / directions.shape[1]
    return total


def sorted_distance(rows, directions):
    total = 0.0
    for direction in directions.T:
        found = sorted((row @ direction).item() for row in rows)
        total += sum((x - NormalDist().inv_cdf((i + 1) / (len(rows) + 1))) ** 2 for i, x in enumerate(found))
    return total / len(rows) / directions.shape[1]


@pytest.mark.parametrize(("knots", "limit"), [(17, 3.0), (5, 2.0)])
def test_the_distance_of_characteristic_functions_is_the_papers_integral(knots, limit):
    z, directions = normal(3, 5, 4), normalize(normal(4, 6, seed=1), dim=0)
    expected = sum(gaussian_integral(rows, directions, knots, limit) for rows in z) / 3
    assert epps_pulley(z, directions, knots, limit).item() == pytest.approx(expected, abs=1e-9)


def test_the_distance_of_characteristic_functions_tells_gaussians_from_others():
    directions = normalize(normal(4, 20, seed=1), dim=0)
    gaussian = epps_pulley(normal(1, 4000, 4), directions).item()
    assert gaussian < 4                                    # about 1 of any number of samples
    assert epps_pulley(2 * normal(1, 4000, 4), directions).item() > 100 * gaussian
    assert epps_pulley(0 * normal(1, 4000, 4), directions).item() == pytest.approx(4000 * 0.40, rel=0.01)


def test_the_distance_of_sorted_projections_is_that_of_the_quantiles():
    z, directions = normal(3, 5, 4), normalize(normal(4, 6, seed=1), dim=0)
    expected = sum(sorted_distance(rows, directions) for rows in z) / 3
    assert sliced_wasserstein(z, directions).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rows", [(TWO_VIEWS,), (ViewSpec(16, 3),), MULTI_CROP])
def test_lejepa_weighs_the_distance_from_the_global_mean_and_from_a_gaussian(rows):
    method, batch = example(LeJEPA, *rows, **WIDTHS, directions=6, gaussian_weight=0.3, knots=5, limit=2.0)
    z = projections(method, batch)
    directions = normalize(normal(8, 6), dim=0)
    method.directions.forward = lambda: directions
    centre = sum(z[v] for v in ((0, 1) if rows == MULTI_CROP else range(len(z))))
    centre = centre / (2 if rows == MULTI_CROP else len(z))
    prediction = sum((x[i] - centre[i]).square().sum() for x in z for i in range(8)) / (len(z) * 64)
    gaussian = sum(gaussian_integral(x, directions, 5, 2.0) for x in z) / len(z)
    assert method.training_loss(batch).item() == pytest.approx(0.7 * prediction.item() + 0.3 * gaussian, abs=1e-9)


@pytest.mark.parametrize("rows", [(TWO_VIEWS,), MULTI_CROP])
def test_visreg_weighs_the_distance_from_the_global_mean_and_the_parts_of_a_gaussian(rows):
    method, batch = example(VISReg, *rows, **WIDTHS, directions=6, gaussian_weight=0.6, shape_weight=0.5,
                            scale_weight=2.0, centre_weight=3.0)
    z = projections(method, batch)
    directions = normalize(normal(8, 6), dim=0)
    method.directions.forward = lambda: directions
    centre = (z[0] + z[1]) / 2
    prediction = sum((x[i] - centre[i]).square().sum() for x in z for i in range(8)) / (len(z) * 64)
    gaussian = torch.tensor(0.0).double()
    for x in z:
        mean = sum(x) / 8
        deviation = (sum((row - mean).square() for row in x) / 8).sqrt()
        gaussian += (0.5 * sorted_distance((x - mean) / (deviation + 1e-4), directions)
                     + 2.0 * (1 - deviation).square().sum() / 8 + 3.0 * mean.square().sum() / 8).detach() / len(z)
    expected = 0.4 * prediction.item() + 0.6 * gaussian.item()
    assert method.training_loss(batch).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("theirs", [LeJEPALoss(sigreg_num_vectors=7, lambda_param=0.3),
                                    VISRegLoss(num_slices=7, lambda_param=0.3, lambda_scale=2.0, lambda_center=3.0)])
def test_lejepas_and_visregs_losses_and_gradients_are_lightlys(theirs, monkeypatch):
    z = normal(5, 8, 3).requires_grad_()
    drawn = normal(3, 7, seed=1)
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: drawn.clone())
    expected = theirs.double()(global_proj=z[:2], local_proj=z[2:])
    directions = normalize(drawn, dim=0)
    if isinstance(theirs, LeJEPALoss):
        theirs.sigreg.t = torch.linspace(0, 3, 17).double()
        gaussian = epps_pulley(z, directions)
    else:
        shape, scale, centre = gaussian_parts(z, directions)
        gaussian = shape + 2 * scale + 3 * centre
    ours = 0.7 * distance_to_centre(z, [0, 1]) + 0.3 * gaussian
    assert ours.item() == pytest.approx(expected.item(), abs=1e-6)           # their frequencies are of float32
    slopes = [torch.autograd.grad(loss, z)[0] for loss in (ours, expected)]
    assert torch.allclose(*slopes, rtol=0, atol=1e-6)


def test_the_gradients_of_the_sketches_are_their_slopes():
    z, directions = normal(2, 5, 3).requires_grad_(), normalize(normal(3, 4, seed=1), dim=0)
    assert torch.autograd.gradcheck(lambda z: epps_pulley(z, directions), z)
    assert torch.autograd.gradcheck(lambda z: sliced_wasserstein(z, directions), z)
    assert torch.autograd.gradcheck(lambda z: distance_to_centre(z, [0]), z)


def test_visregs_shape_gives_no_gradient_to_the_scale_and_its_scale_still_pulls_at_collapse():
    z, directions = normal(1, 8, 3), normalize(normal(3, 4, seed=1), dim=0)
    z = (1e-3 * z).requires_grad_()                                          # near collapse
    (slope,) = torch.autograd.grad(gaussian_parts(z, directions)[1], z)
    assert (slope * (z - z.mean(1))).sum().item() < 0                         # outwards
    assert slope.norm() > 0.1
    (vanishing,) = torch.autograd.grad(epps_pulley(z, directions), z)
    assert vanishing.norm() < 0.1 * slope.norm()                             # SIGReg's does: fig. 2 of the paper


def test_directions_are_unit_vectors_all_over_the_sphere_and_new_each_time():
    torch.manual_seed(0)
    drawn = Directions(3, 2000)
    first, second = drawn(), drawn()
    for vectors in (first, second):
        assert vectors.shape == (3, 2000)
        assert torch.allclose(vectors.norm(dim=0), torch.ones(2000), atol=1e-6)
        assert vectors.mean(1).abs().max() < 0.06                            # 1 / sqrt(3 * 2000) is 0.013
        assert torch.allclose(vectors @ vectors.T / 2000, torch.eye(3) / 3, atol=0.03)
    assert (first * second).sum(0).mean().abs() < 0.06
    torch.manual_seed(1)
    assert not torch.allclose(Directions(3, 2000)(), first)


def test_directions_go_on_from_a_checkpoint():
    drawn, again = Directions(3, 4), Directions(3, 4)
    drawn()
    again.load_state_dict(state(drawn))
    assert torch.equal(drawn(), again())


# What they refuse, and how a collapse looks


# W-MSE


@pytest.mark.parametrize(("rows", "least"), [((TWO_VIEWS,), 3), (MULTI_CROP, 4)])        # 8 images are 2 slices of 4
def test_wmse_compares_all_views_of_slices_that_are_whitened_view_by_view(rows, least):
    method, batch = example(WMSE, *rows, projector=(16, least - 1), slice_size=least, slicings=2)
    z = projections(method, batch)
    number = method.draws.number.clone()
    expected = []
    for _ in range(2):
        order = method.draws.order(8).tolist()
        for places in (order[:4], order[4:]):
            white = []
            for x in z:
                centred = [x[i] - sum(x[j] for j in places) / 4 for i in places]
                covariance = sum(torch.outer(row, row) for row in centred) / 3
                white.append([torch.linalg.inv(torch.linalg.cholesky(covariance)) @ row for row in centred])
            for i in range(4):
                expected += [(normalize(a[i], dim=0) - normalize(b[i], dim=0)).square().sum()
                             for n, a in enumerate(white) for b in white[:n]]
    method.draws.number.copy_(number)
    require_equal(method, batch, sum(expected) / len(expected))


def test_whitened_rows_have_no_mean_and_the_identity_as_covariance_whatever_they_were_mixed_of():
    z, mixing = normal(2, 9, 3), torch.tensor([[2.0, 0, 0], [1, 0.1, 0], [-3, 5, 7]]).double()
    white = whitened(z)
    assert white.mean(1).abs().max() < 1e-12
    for rows in white:
        assert (rows.T.cov() - torch.eye(3)).abs().max() < 1e-12
    # a lower triangular mixing has a lower triangular inverse, which Cholesky's factor contains
    torch.testing.assert_close(whitened(z @ mixing.T + 4), white)


def test_wmse_is_0_for_views_that_are_triangular_mixtures_of_each_other_and_at_most_4():
    z, mixing = normal(9, 3), torch.tensor([[2.0, 0, 0], [1, 0.1, 0], [-3, 5, 7]]).double()
    assert distance(whitened(torch.stack([z, z @ mixing.T]))).max() < 1e-12
    torch.testing.assert_close(distance(torch.stack([z, -z])), torch.full((9,), 4.0).double())
    assert distance(torch.stack([z, z, z, z])).abs().max() < 1e-12


def test_wmse_of_a_collapsed_batch_is_nan_for_the_run_to_stop_at():
    twice = torch.tensor([2.0, -2, 2, -2, 0]).double()
    assert whitened(torch.stack([twice, twice, torch.arange(5)], 1)[None]).isnan().all()    # one column fails
    assert not whitened(torch.stack([normal(8, 3), normal(8, 3, seed=1)])).isnan().any()


def test_wmse_refuses_a_batch_that_is_smaller_than_a_slice():
    method, batch = example(WMSE, projector=(16, 3), slice_size=9)
    with pytest.raises(ValueError, match="slices of 9 images, and this batch has 8 over all processes: raise"):
        method.training_loss(batch)


def test_wmse_without_whitening_collapses_and_the_health_measure_says_so(monkeypatch):
    found = {}
    for name in ("whitened", "as it is"):
        if name == "as it is":
            monkeypatch.setattr("ssl_zoo.methods.wmse.whitened", lambda z: z)
        found[name] = spread_after_training(WMSE, projector=(16, 3), slice_size=8)
    assert found["as it is"] < 0.1
    assert found["whitened"] > 0.7, found


@pytest.mark.parametrize(("cls", "options", "sentence"), [
    (LeJEPA, {"gaussian_weight": 1.5}, "gaussian_weight is a share of the loss, 0 to 1, not 1.5"),
    (VISReg, {"gaussian_weight": -1.0}, "gaussian_weight is a share of the loss, 0 to 1, not -1.0"),
    (DenseCL, {"queue": 8, "dense_weight": 2.0}, "dense_weight is a share of the loss, 0 to 1, not 2.0"),
    (LeJEPA, {"directions": 0}, "seen along 1 or more directions, not 0"),
    (VISReg, {"directions": 0}, "seen along 1 or more directions, not 0"),
    (LeJEPA, {"knots": 1}, "at 2 or more frequencies above 0, not 1 up to 3.0"),
    (LeJEPA, {"limit": 0.0}, "at 2 or more frequencies above 0, not 17 up to 0.0"),
    (WMSE, {"slice_size": 8}, "whitens 8 outputs in slices of more images than that, best of twice as many, and 1 or "
                              "more times; not 1 times in slices of 8"),
    (WMSE, {"slice_size": 9, "slicings": 0}, "not 0 times in slices of 9"),
    (NNCLR, {"queue": 0}, "a queue holds 1 or more keys"),
    (NNCLR, {"temperature": 0.0, "queue": 8}, "a temperature must be above 0"),
])
def test_a_base_refuses_what_it_cannot_be_built_of(cls, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(cls, **WIDTHS | options)


@pytest.mark.parametrize(("cls", "options"), [(NNCLR, {"predictor": (16,)}), (DenseCL, {})])
def test_a_batch_larger_than_the_queue_is_refused(cls, options):
    method = small(cls, **WIDTHS, queue=7, **options)
    for batch in batches(method, 1):
        with pytest.raises(ValueError, match="a batch of 8 keys does not fit a queue of 7: make the queue longer"):
            method.training_loss(batch)


@pytest.mark.parametrize("cls", [VICReg, VISReg])
def test_a_batch_of_one_image_is_refused(cls):
    method = small(cls, projector=(8,))                               # no BatchNorm, which would refuse it too
    for batch in batches(method, 1):
        views = [view._replace(images=view.images[:1]) for view in batch.views]
        with pytest.raises(ValueError, match=f"{cls.__name__} compares the images of a batch, and this batch has 1"):
            method.training_loss(Batch(batch.images[:1], batch.labels[:1], batch.index[:1], views, batch.key))


@pytest.mark.parametrize("cls", [LeJEPA, VISReg])
def test_alignment_alone_collapses_and_the_health_measure_says_so(cls):
    found = {}
    for weight in (0.5, 0.0):
        found[weight] = spread_after_training(cls, **WIDTHS, directions=16, gaussian_weight=weight)
    assert found[0.0] < 0.1
    assert found[0.5] > 0.7, found


def test_a_loss_of_two_views_needs_two_images_or_says_so():
    with pytest.raises(ValueError, match="this batch has 1: raise the batch size"):
        losses.require_two_images(torch.zeros(1, 3), "VICReg")
