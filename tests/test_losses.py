"""Each loss against its closed form, its written-out definition, its symmetries, and the reference's numbers."""

import math

import pytest
import torch
from lightly.loss import BarlowTwinsLoss, DCLLoss, DCLWLoss, NTXentLoss
from torch.nn.functional import cosine_similarity, normalize, softplus

from ssl_zoo.adaptive import PairTemperature, adaptive_contrast, adaptive_correlation, omega, temperature_quantiles
from ssl_zoo.losses import (
    batch_products,
    batch_similarities,
    contrast,
    cross_correlation,
    key_similarities,
    mean_similarities,
    negative_cosine,
    nt_xent,
    off_diagonal,
    pair_weights,
    queue_similarities,
    standardized,
)

FEW = torch.arange(4, dtype=torch.float64)[:, None]      # image
WIDE = torch.arange(3, dtype=torch.float64)              # width
TOY = torch.sin(1 + 1.7 * FEW + 0.9 * WIDE)              # the two toy tensors of the reference
TOY_TOO = TOY + 0.3 * torch.cos(2 + 0.7 * FEW + 1.3 * WIDE)
QUEUE = normalize(torch.sin(0.4 + 2.1 * torch.arange(6, dtype=torch.float64)[:, None] + 1.1 * WIDE), dim=-1)
TURNED = (torch.eye(2, dtype=torch.float64), torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=torch.float64))
KINDS = ["info_nce", "decoupled", "weighted_decoupled"]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out_nt_xent(z1, z2, temperature):
    """The 2B terms of Eq. (1) of SimCLR, a pair at a time."""
    z, terms = torch.cat([z1, z2]), []
    for i in range(len(z)):
        similarities = [cosine_similarity(z[i], z[k], dim=0).item() / temperature for k in range(len(z))]
        positive = similarities[(i + len(z1)) % len(z)]
        others = sum(math.exp(s) for k, s in enumerate(similarities) if k != i)
        terms.append(math.log(others) - positive)
    return terms


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_is_the_papers_sum(batch, temperature):
    z1, z2 = normal(2, batch, 5)
    rows = nt_xent(z1, z2, temperature, reduction="none")
    assert rows.tolist() == pytest.approx(written_out_nt_xent(z1, z2, temperature), abs=1e-12)


@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_nt_xent_of_a_collapsed_encoder_is_the_log_of_its_choices(batch, temperature):
    z = torch.ones(batch, 3, dtype=torch.float64)
    assert nt_xent(z, z, temperature).item() == pytest.approx(math.log(2 * batch - 1), abs=1e-12)


@pytest.mark.parametrize(("batch", "temperature", "value"), [
    (4, 0.5, 0.594437664), (4, 0.2, 0.039631861), (4, 0.1, 0.000272362), (4, 0.07, 0.000003749),
    (256, 0.1, 0.022889978),
])
def test_nt_xent_of_equal_views_of_orthogonal_images_has_its_closed_form(batch, temperature, value):
    z = torch.eye(batch, dtype=torch.float64)
    loss = nt_xent(z, z, temperature).item()
    assert loss == pytest.approx(math.log1p((2 * batch - 2) * math.exp(-1 / temperature)), abs=1e-12)
    assert loss == pytest.approx(value, abs=1e-9)


def test_nt_xent_of_two_turned_pairs_has_the_references_number_for_each_anchor():
    z1 = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    z2 = torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=torch.float64)
    rows = nt_xent(z1, z2, 0.5, reduction="none")
    assert rows.tolist() == pytest.approx([0.233257497, 0.627123057, 0.627123057, 0.233257497], abs=1e-9)
    assert nt_xent(z1, z2, 0.5).item() == pytest.approx(0.430190277, abs=1e-9)


@pytest.mark.parametrize(("temperature", "value"), [(0.5, 0.553550044), (0.1, 0.005983696), (0.07, 0.000629828)])
def test_nt_xent_of_the_toy_tensors_is_the_references_number(temperature, value):
    assert nt_xent(TOY, TOY_TOO, temperature).item() == pytest.approx(value, abs=1e-9)


def test_nt_xent_ignores_scale_the_order_of_images_and_the_order_of_views():
    loss = nt_xent(TOY, TOY_TOO, 0.1).item()
    order = [2, 0, 3, 1]
    for z1, z2 in (3 * TOY, 0.2 * TOY_TOO), (TOY[order], TOY_TOO[order]), (TOY_TOO, TOY):
        assert nt_xent(z1, z2, 0.1).item() == pytest.approx(loss, abs=1e-14)
    assert nt_xent(TOY, TOY_TOO[order], 0.1).item() > loss + 1


def test_the_gradient_of_nt_xent_is_orthogonal_to_every_projection():
    z = torch.stack([TOY, TOY_TOO]).requires_grad_()
    gradient, = torch.autograd.grad(nt_xent(*z, 0.1), z)
    assert gradient.norm(dim=-1).min() > 0
    assert (gradient * z).sum(-1).abs().max() < 1e-14


def test_the_gradient_of_nt_xent_is_its_slope():
    z1, z2 = (z.clone().requires_grad_() for z in (TOY, TOY_TOO))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (z1, z2))


@pytest.mark.parametrize("batch", [2, 7])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent_is_lightlys(batch, temperature):
    z1, z2 = normal(2, batch, 16)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(NTXentLoss(temperature)(z1, z2).item(), abs=1e-12)


def test_nt_xents_sum_and_mean_are_those_of_its_rows_with_the_first_views_in_front():
    z1, z2 = normal(2, 5, 4)
    rows = nt_xent(z1, z2, 0.2, reduction="none")
    assert rows.shape == (10,)
    assert nt_xent(z1, z2, 0.2, reduction="sum").item() == pytest.approx(rows.sum().item(), abs=1e-12)
    assert nt_xent(z1, z2, 0.2, reduction="mean").item() == pytest.approx(rows.mean().item(), abs=1e-12)
    assert torch.allclose(nt_xent(z2, z1, 0.2, reduction="none"), rows.roll(5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.01, 0.07])
def test_nt_xent_computes_half_precision_projections_in_float32(dtype, temperature):
    z1, z2 = (z.to(dtype) for z in normal(2, 16, 32))
    exact = nt_xent(z1.double(), z2.double(), temperature).item()
    loss = nt_xent(z1, z2, temperature)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nt_xent_takes_no_notice_of_autocast(dtype):
    z1, z2 = (z.float().requires_grad_() for z in normal(2, 16, 32))
    outside = nt_xent(z1, z2, 0.07)
    with torch.autocast("cpu", dtype=dtype):
        inside = nt_xent(z1, z2, 0.07)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(inside, outside)
    for z, slope in zip((z1, z2), torch.autograd.grad(inside, (z1, z2)), strict=True):
        assert torch.equal(slope, torch.autograd.grad(outside, z, retain_graph=True)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_projection_of_zeros_leaves_the_loss_and_the_other_rows_gradients_finite(dtype):
    z1, z2 = (z.to(dtype) for z in normal(2, 4, 8))
    z1[0] = 0
    z1.requires_grad_()
    loss = nt_xent(z1, z2, 0.07)
    loss.backward()
    assert loss.isfinite()
    assert z1.grad[1:].isfinite().all()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_mean_similarities_are_the_means_over_pairs(batch):
    z1, z2 = normal(2, batch, 5)
    cosines = [[cosine_similarity(a, b, dim=0).item() for b in z2] for a in z1]
    positives = [cosines[i][i] for i in range(batch)]
    negatives = [cosines[i][k] for i in range(batch) for k in range(batch) if k != i]
    expected = [sum(positives) / batch, sum(negatives) / max(len(negatives), 1)]
    assert mean_similarities(z1, z2).tolist() == pytest.approx(expected, abs=1e-12)


def test_mean_similarities_of_opposite_views_of_orthogonal_images_are_minus_one_and_zero():
    z = torch.eye(4)
    assert mean_similarities(z, -3 * z).tolist() == pytest.approx([-1, 0], abs=1e-7)


def test_mean_similarities_have_no_gradient_and_full_precision():
    z = normal(2, 4, 8).bfloat16().requires_grad_()
    similarities = mean_similarities(*z)
    assert not similarities.requires_grad
    assert similarities.tolist() == pytest.approx(mean_similarities(*z.double()).tolist(), abs=1e-6)


# Similarities: what is compared with what

def matrices(z1, z2, compare=batch_similarities):
    positive, negative = compare(z1, z2)
    return positive, negative.matrix()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_batch_similarities_are_the_cosines_of_each_row_with_its_positive_and_all_but_itself(batch):
    z1, z2 = normal(2, batch, 5)
    z = torch.cat([z1, z2])
    positive, negative = matrices(z1, z2)
    for i in range(2 * batch):
        partner = (i + batch) % (2 * batch)
        expected = [-math.inf if k in (i, partner) else cosine_similarity(z[i], z[k], dim=0).item()
                    for k in range(2 * batch)]
        assert positive[i].item() == pytest.approx(cosine_similarity(z[i], z[partner], dim=0).item(), abs=1e-12)
        assert negative[i].tolist() == pytest.approx(expected, abs=1e-12)


def test_batch_products_are_not_normalised():
    positive, negative = matrices(3 * TOY, TOY_TOO, batch_products)
    assert torch.allclose(positive, (3 * TOY * TOY_TOO).sum(1).repeat(2))
    assert negative[0, 1].item() == pytest.approx(9 * (TOY[0] @ TOY[1]).item())


def test_queue_similarities_have_a_row_for_each_query_and_a_column_for_each_key():
    positive, negative = queue_similarities(5 * TOY, TOY_TOO, QUEUE)
    assert torch.allclose(positive, cosine_similarity(TOY, TOY_TOO))
    assert torch.allclose(negative.matrix(), cosine_similarity(TOY[:, None], QUEUE[None], dim=-1))


def test_key_similarities_leave_out_only_a_querys_own_key():
    positive, negative = key_similarities(5 * TOY, TOY_TOO)
    expected = cosine_similarity(TOY[:, None], TOY_TOO[None], dim=-1)
    assert torch.allclose(positive, expected.diagonal())
    assert torch.allclose(negative, expected.masked_fill(torch.eye(4, dtype=torch.bool), -math.inf))


def test_no_gradient_reaches_the_keys_of_a_batch():
    query, key = TOY.clone().requires_grad_(), TOY_TOO.clone().requires_grad_()
    contrast(*key_similarities(query, key), 0.2).backward()
    assert query.grad.any()
    assert key.grad is None


# MoCo: info_nce against a queue, and MoCo v3's against the batch's keys


@pytest.mark.parametrize(("queue", "value"), [(4096, 8.318010278), (65536, 11.090370148)])
def test_info_nce_at_chance_is_the_log_of_its_choices(queue, value):
    loss = contrast(torch.full((2,), 0.3).double(), torch.full((2, queue), 0.3).double(), 0.07).item()
    assert loss == pytest.approx(math.log(1 + queue), abs=1e-12)
    assert loss == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(("queue", "temperature", "value"), [
    (4096, 0.1, 0.170550981), (4096, 0.2, 3.353358846), (65536, 0.07, 0.040135492), (65536, 0.2, 6.092616934),
    (6, 0.2, 0.039631861),
])
def test_info_nce_of_a_perfect_query_against_an_orthogonal_queue_has_its_closed_form(queue, temperature, value):
    loss = contrast(torch.ones(1).double(), torch.zeros(1, queue).double(), temperature).item()
    assert loss == pytest.approx(math.log1p(queue * math.exp(-1 / temperature)), abs=1e-12)
    assert loss == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(("temperature", "value"), [(0.2, 0.860302825), (0.07, 0.650150261)])
def test_info_nce_of_the_toy_queue_is_the_references_number(temperature, value):
    assert contrast(*queue_similarities(TOY, TOY_TOO, QUEUE), temperature).item() == pytest.approx(value, abs=1e-9)


def test_info_nce_of_the_toy_queue_in_both_directions_is_the_references_number():
    losses = [contrast(*queue_similarities(q, k, QUEUE), 0.2).item() for q, k in ((TOY, TOY_TOO), (TOY_TOO, TOY))]
    assert sum(losses) == pytest.approx(1.690173012, abs=1e-9)


@pytest.mark.parametrize("kind", ["info_nce", "decoupled"])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_contrast_is_the_papers_sum(kind, batch):
    positive, negative = normal(batch, seed=1).tanh(), normal(batch, 5, seed=2).tanh()
    expected = []
    for p, row in zip(positive.tolist(), negative.tolist(), strict=True):
        others = sum(math.exp(n / 0.2) for n in row) + (math.exp(p / 0.2) if kind == "info_nce" else 0)
        expected.append(math.log(others) - p / 0.2)
    assert contrast(positive, negative, 0.2, kind, reduction="none").tolist() == pytest.approx(expected, abs=1e-12)
    assert contrast(positive, negative, 0.2, kind).item() == pytest.approx(sum(expected) / batch, abs=1e-12)
    assert contrast(positive, negative, 0.2, kind, reduction="sum").item() == pytest.approx(sum(expected), abs=1e-12)


def test_moco_v3s_loss_of_the_toy_tensors_is_the_references_number():
    losses = [contrast(*key_similarities(q, k), 0.2).item() for q, k in ((TOY, TOY_TOO), (TOY_TOO, TOY))]
    assert 2 * 0.2 * sum(losses) == pytest.approx(0.039506206, abs=1e-9)


def test_moco_v3s_loss_of_a_collapsed_encoder_is_the_log_of_the_batch():
    z = torch.ones(4, 3).double()
    loss = contrast(*key_similarities(z, z), 0.2).item()
    assert loss == pytest.approx(math.log(4), abs=1e-12)
    assert 4 * 0.2 * loss == pytest.approx(1.109035489, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_of_a_contrast_is_lost_where_it_is_far_too_sharp(kind):
    positive, negative = torch.tensor([0.5, -0.5]), torch.tensor([[0.9, -0.9], [0.1, -math.inf]])
    positive.requires_grad_()
    loss = contrast(positive, negative, 1e-4, kind)
    loss.backward()
    assert loss.isfinite()
    assert positive.grad.isfinite().all()


# DCL and DCLW


def dcl(z1, z2, temperature, kind="decoupled", **options):
    return contrast(*batch_similarities(z1, z2), temperature, kind, **options)


def test_dcl_of_a_collapsed_encoder_is_the_log_of_its_negatives():
    z = torch.ones(4, 3).double()
    assert dcl(z, z, 0.1).item() == pytest.approx(math.log(6), abs=1e-12)
    assert dcl(z, z, 0.1).item() == pytest.approx(1.791759469, abs=1e-9)
    assert dcl(z, z, 0.1, "weighted_decoupled").item() == pytest.approx(math.log(6), abs=1e-12)


def test_dcl_of_equal_views_of_orthogonal_images_has_its_closed_form():
    z = torch.eye(4).double()
    assert dcl(z, z, 0.1).item() == pytest.approx(math.log(6) - 10, abs=1e-12)
    assert dcl(z, z, 0.1).item() == pytest.approx(-8.208240531, abs=1e-9)


@pytest.mark.parametrize(("temperature", "value"), [(0.5, -0.317824064), (0.1, -5.950156935), (0.07, -8.734972224)])
def test_dcl_of_the_toy_tensors_is_the_references_number(temperature, value):
    assert dcl(TOY, TOY_TOO, temperature).item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(("temperature", "value"), [(0.1, -5.942255119), (0.5, -0.316243701)])
def test_dclw_of_the_toy_tensors_is_the_references_number(temperature, value):
    assert dcl(TOY, TOY_TOO, temperature, "weighted_decoupled").item() == pytest.approx(value, abs=1e-9)


def test_dclws_weights_of_the_toy_tensors_are_the_references_numbers():
    weights = pair_weights(cosine_similarity(TOY, TOY_TOO), 0.5)
    assert weights.tolist() == pytest.approx([0.967704148, 1.059515498, 1.011894105, 0.960886249], abs=1e-9)
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_dclws_weights_are_one_on_average_at_most_two_and_larger_for_a_harder_pair(batch, sigma):
    positive = normal(batch).tanh().sort().values
    weights = pair_weights(positive, sigma)
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)
    assert weights.max() <= 2
    assert torch.equal(weights.sort(descending=True).values, weights)


def test_dclws_weights_carry_no_gradient():
    positive = normal(4).tanh().requires_grad_()
    slope, = torch.autograd.grad(contrast(positive, torch.zeros(4, 3).double(), 0.1, "weighted_decoupled"), positive)
    assert torch.allclose(slope, -pair_weights(positive, 0.5) / 0.1 / 4)


def test_dcl_of_two_turned_pairs_is_the_references_number_and_dclw_the_same_for_they_are_equally_hard():
    assert dcl(*TURNED, 0.5).item() == pytest.approx(-0.736717533, abs=1e-9)
    assert dcl(*TURNED, 0.5, "weighted_decoupled").item() == pytest.approx(-0.736717533, abs=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_the_softplus_of_dcl(temperature):
    rows = dcl(TOY, TOY_TOO, temperature, reduction="none")
    assert torch.allclose(nt_xent(TOY, TOY_TOO, temperature, reduction="none"), softplus(rows), rtol=0, atol=1e-12)


def test_a_gradient_of_nt_xent_is_dcls_times_the_references_factor():
    factors = [0.011991774, 0.000126142, 0.001894707, 0.013409468, 0.009721548, 0.002541747, 0.000278241, 0.007660606]
    z = torch.stack([TOY, TOY_TOO]).requires_grad_()
    assert dcl(*z, 0.1, reduction="none").sigmoid().tolist() == pytest.approx(factors, abs=1e-9)
    for row, factor in enumerate(factors):
        ours, = torch.autograd.grad(nt_xent(*z, 0.1, reduction="none")[row], z)
        theirs, = torch.autograd.grad(dcl(*z, 0.1, reduction="none")[row], z)
        assert torch.allclose(ours, factor * theirs, atol=1e-8)


@pytest.mark.parametrize("batch", [2, 7])
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_dcl_and_dclw_are_lightlys(batch):
    z1, z2 = normal(2, batch, 16)
    assert dcl(z1, z2, 0.1).item() == pytest.approx(DCLLoss(0.1)(z1, z2).item(), abs=1e-12)
    weighted = contrast(*batch_similarities(z1, z2), 0.1, "weighted_decoupled", 0.4).item()
    assert weighted == pytest.approx(DCLWLoss(0.1, 0.4)(z1, z2).item(), abs=1e-12)


# Barlow Twins and what else is not contrastive


CORRELATION = [[0.997242, 0.451569, -0.277309], [0.689344, 0.968720, 0.563660], [-0.055335, 0.817556, 0.984766]]


def barlow_twins(c, redundancy_weight=0.005):
    n = len(c)
    return sum((c[i, j].item() - 1) ** 2 if i == j else redundancy_weight * c[i, j].item() ** 2
               for i in range(n) for j in range(n))


def test_the_cross_correlation_of_the_toy_tensors_is_the_references():
    assert torch.allclose(cross_correlation(TOY, TOY_TOO), torch.tensor(CORRELATION).double(), rtol=0, atol=6e-7)
    assert barlow_twins(cross_correlation(TOY, TOY_TOO)) == pytest.approx(0.009944021, abs=1e-9)


def test_cross_correlation_is_pearsons_whatever_scale_and_offset():
    z1, z2 = normal(2, 50, 3)
    expected = torch.corrcoef(torch.cat([z1, z2], 1).T)[:3, 3:]
    assert torch.allclose(cross_correlation(7 * z1 + 3, 0.1 * z2 - 5), expected, rtol=0, atol=1e-9)


def test_standardized_projections_have_mean_zero_and_deviation_one_and_a_constant_is_zero():
    z = torch.cat([5 * normal(7, 2) + 3, torch.full((7, 1), 2.0)], 1).requires_grad_()
    u = standardized(z)
    assert torch.allclose(u.mean(0), torch.zeros(3).double(), atol=1e-12)
    assert u.std(0, correction=0).tolist() == pytest.approx([1, 1, 0], abs=1e-9)
    u.square().sum().backward()
    assert z.grad.isfinite().all()


def test_barlow_twins_is_lightlys_up_to_the_epsilon_of_its_batch_norm():
    z1, z2 = normal(2, 16, 5)
    assert barlow_twins(cross_correlation(z1, z2)) == pytest.approx(BarlowTwinsLoss()(z1, z2).item(), rel=1e-4)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_off_diagonal_is_every_element_off_it_once(n):
    matrix = torch.arange(n * n).view(n, n)
    assert off_diagonal(matrix).tolist() == [i * n + j for i in range(n) for j in range(n) if i != j]


def test_negative_cosine_is_from_minus_one_to_one_and_no_gradient_reaches_its_target():
    target = TOY.clone().requires_grad_()
    assert negative_cosine(3 * TOY, TOY).item() == pytest.approx(-1)
    assert negative_cosine(TOY, -2 * TOY).item() == pytest.approx(1)
    loss = negative_cosine(prediction := TOY_TOO.clone().requires_grad_(), target)
    assert loss.item() == pytest.approx(-cosine_similarity(TOY, TOY_TOO).mean().item())
    loss.backward()
    assert prediction.grad.any()
    assert target.grad is None


# AMCL


@pytest.mark.parametrize(("width", "value"), [(3, 0.891802338), (128, -202.168517335), (2048, -6073.827128934)])
def test_omega_is_least_at_two_over_the_width(width, value):
    least = torch.tensor(2 / width, dtype=torch.float64)
    assert omega(least, width).item() == pytest.approx(value, abs=1e-8)
    assert min(omega(least * 0.99, width), omega(least * 1.01, width)) > omega(least, width)
    slope, = torch.autograd.grad(omega(t := least.clone().requires_grad_(), width), t)
    assert slope.item() == pytest.approx(0, abs=1e-8)


def test_omega_is_what_a_gaussians_density_adds_to_a_cosine_over_its_temperature():
    u, v = normalize(TOY, dim=-1), normalize(TOY_TOO, dim=-1)
    for temperature in (0.01, 0.4, 2.0):
        gaussian = torch.distributions.MultivariateNormal(torch.zeros(3).double(), temperature * torch.eye(3).double())
        added = omega(torch.tensor(temperature, dtype=torch.float64), 3) + 1.5 * math.log(2 * math.pi)
        expected = added - (u * v).sum(1) / temperature
        assert torch.allclose(-gaussian.log_prob(u - v), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("weight", "temperature", "value"), [
    (1e-4, 1e-5, -89990), (0.01, 1e-5, -89007), (0.5, 1e-5, -40368), (0.999, 0.001548, None), (1, 0.0015625, None)])
def test_a_solved_positives_best_temperature_is_the_floor_unless_the_regulariser_outweighs_its_cosine(
        weight, temperature, value):
    temperatures = torch.logspace(-5, math.log10(2), 100001, dtype=torch.float64)
    terms = -0.9 / temperatures + weight * omega(temperatures, 128)
    assert temperatures[terms.argmin()].item() == pytest.approx(temperature, rel=1e-3)
    assert value is None or terms.min().item() == pytest.approx(value, abs=1)


def adaptive(positive_temperature, negative_temperature, weight, form, views=(TOY, TOY_TOO), **options):
    positive, negative = matrices(*views)
    return adaptive_contrast(positive, negative, torch.full_like(positive, positive_temperature),
                             torch.full_like(negative, negative_temperature), 3, weight, form, **options)


@pytest.mark.parametrize(("hardest", "value"), [(1, -1.261494102), (2, -1.392648285), (6, -2.594490227)])
def test_the_papers_adaptive_contrast_of_the_toy_tensors_is_the_references_number(hardest, value):
    assert adaptive(0.5, 0.5, 0, "paper", hardest=hardest).item() == pytest.approx(value, abs=1e-9)


def test_the_papers_adaptive_contrast_is_below_dcl_by_at_most_the_log_of_the_negatives():
    gap = dcl(TOY, TOY_TOO, 0.5, reduction="none") - adaptive(0.5, 0.5, 0, "paper", reduction="none")
    assert gap.mean().item() == pytest.approx(0.943670, abs=1e-6)
    assert 0 < gap.min() <= gap.max() < math.log(6)


def test_the_papers_adaptive_contrast_with_two_temperatures_is_the_references_number():
    assert adaptive(0.4, 0.6, 0.01, "paper").item() == pytest.approx(-1.863552278, abs=1e-9)


@pytest.mark.parametrize("weight", [0, 1e-4, 0.5])
@pytest.mark.parametrize("form", ["bounded", "paper"])
def test_equal_temperatures_need_no_regulariser(form, weight):
    assert adaptive(0.5, 0.5, weight, form).item() == pytest.approx(adaptive(0.5, 0.5, 0, form).item(), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_adaptive_contrast_with_one_temperature_is_nt_xent(temperature):
    rows = adaptive(temperature, temperature, 0, "bounded", reduction="none")
    assert torch.allclose(rows, nt_xent(TOY, TOY_TOO, temperature, reduction="none"), rtol=0, atol=1e-12)


def test_adaptive_contrast_with_one_temperature_is_info_nce_on_a_queue():
    positive, negative = queue_similarities(TOY, TOY_TOO, QUEUE)
    alike = torch.full_like(positive, 0.2)
    loss = adaptive_contrast(positive, negative.matrix(), alike, alike[:, None].expand(-1, len(QUEUE)), 3, 0)
    assert loss.item() == pytest.approx(0.860302825, abs=1e-9)


@pytest.mark.parametrize(("temperature", "value"), [(0.1, -4), (0.01, -40)])
def test_the_papers_form_falls_without_bound_with_a_shared_temperature(temperature, value):
    positive, negative = (torch.tensor(cosines, dtype=torch.float64) for cosines in ([0.9], [[0.5, 0.1]]))
    loss = adaptive_contrast(positive, negative, torch.full_like(positive, temperature),
                             torch.full_like(negative, temperature), 3, 1e-4, "paper")
    assert loss.item() == pytest.approx(value, abs=1e-9)


# the reference's -0.074060827 has the sum over the negatives alone, which is not bounded either
@pytest.mark.parametrize(("form", "value"), [("paper", -1.346452635), ("bounded", 0.657588650)])
def test_adaptive_contrast_with_learned_temperatures_is_the_references_number(form, value):
    network = PairTemperature(3, floor=1e-5)
    u1, u2 = (normalize(z, dim=-1) for z in (TOY, TOY_TOO))
    positive, negative = (network.of(r) for r in matrices(u1, u2, batch_products))      # the network is the identity
    assert positive[:4].tolist() == pytest.approx([0.540347624, 0.558909105, 0.549017512, 0.539050611], abs=1e-9)
    assert adaptive_contrast(*matrices(u1, u2), positive, negative, 3, 1e-4, form).item() == pytest.approx(
        value, abs=1e-9)


def test_adaptive_contrast_is_its_equation_a_pair_at_a_time():
    positive, negative = normal(3).tanh(), normal(3, 4, seed=1).tanh()
    hot, cold = normal(3, seed=2).sigmoid(), normal(3, 4, seed=3).sigmoid()
    negative[1, 2] = -math.inf

    def o(t):
        return 2.5 * math.log(t) + 1 / t

    for form in ("bounded", "paper"):
        rows = adaptive_contrast(positive, negative, hot, cold, 5, 0.1, form, reduction="none")
        for i in range(3):
            there = [k for k in range(4) if negative[i, k] > -math.inf]
            pull = positive[i].item() / hot[i].item()
            pushes = {k: negative[i, k].item() / cold[i, k].item() for k in there}
            hardest = max(there, key=lambda k, i=i: negative[i, k].item())
            if form == "paper":
                expected = pushes[hardest] - pull + 0.1 * (o(hot[i].item()) - o(cold[i, hardest].item()))
            else:
                expected = math.log(math.exp(pull) + sum(map(math.exp, pushes.values()))) - pull + 0.1 * (
                    o(hot[i].item()) - sum(o(cold[i, k].item()) for k in there) / len(there))
            assert rows[i].item() == pytest.approx(expected, abs=1e-12)


def test_a_negative_that_is_not_there_has_no_gradient_and_no_part_in_adaptive_contrast():
    positive, negative = matrices(TOY, TOY_TOO)
    for form in ("bounded", "paper"):
        cold = torch.rand(8, 8, dtype=torch.float64).requires_grad_()
        loss = adaptive_contrast(positive, negative, torch.full_like(positive, 0.5), cold, 3, 0.1, form)
        slope, = torch.autograd.grad(loss, cold)
        assert slope.isfinite().all()
        assert not slope[negative == -math.inf].any()


def test_adaptive_correlation_with_temperatures_of_one_is_barlow_twins():
    c = cross_correlation(TOY, TOY_TOO)
    loss = adaptive_correlation(c, torch.ones(3, 3).double(), 0.005, 0).item()
    assert loss == pytest.approx(barlow_twins(c), abs=1e-12)
    assert loss == pytest.approx(0.009944021, abs=1e-9)


def test_adaptive_correlation_of_the_toy_tensors_at_a_lower_temperature_is_the_references_number():
    c = cross_correlation(TOY, TOY_TOO)
    loss = adaptive_correlation(c, torch.full((3, 3), 0.8, dtype=torch.float64), 0.005, 0).item()
    assert loss == pytest.approx(0.169515755, abs=1e-9)


@pytest.mark.parametrize("form", ["bounded", "paper"])
def test_adaptive_correlation_is_its_equation_an_element_at_a_time(form):
    c, t = normal(4, 4).tanh(), normal(4, 4, seed=1).sigmoid()
    expected = 0.0
    for i in range(4):
        for j in range(4):
            element, temperature = c[i, j].item(), t[i, j].item()
            o = 2 * math.log(temperature) + 1 / temperature
            if i == j:
                expected += (1 - element / temperature) ** 2 + 0.1 * o
            else:
                expected += 0.3 * element ** 2 / temperature - (0.1 * o if form == "paper" else 0)
    assert adaptive_correlation(c, t, 0.3, 0.1, form).item() == pytest.approx(expected, abs=1e-12)


def test_quantiles_of_temperatures_are_of_their_logarithms():
    temperatures = torch.linspace(-1, 1, 101).exp()
    found = temperature_quantiles([temperatures], [temperatures.repeat(20, 1)])
    assert [v.item() for v in found.values()] == pytest.approx([-0.9, 0, 0.9] * 2, abs=1e-5)
    assert list(found) == [f"log_temperature/{side}_{share}" for side in ("positive", "negative")
                           for share in (5, 50, 95)]


def test_pairs_that_are_not_compared_have_no_part_in_the_quantiles():
    negative = torch.tensor([[1.0, math.nan, math.e, math.nan, math.e ** 2]])
    found = temperature_quantiles([torch.ones(1)], [negative])
    assert found["log_temperature/negative_50"].item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [
    lambda a, b: contrast(*batch_similarities(a, b), 0.01, "decoupled"),
    lambda a, b: contrast(*queue_similarities(a, b, b), 0.01),
    lambda a, b: contrast(*key_similarities(a, b), 0.01),
    negative_cosine, cross_correlation, lambda a, b: standardized(a),
], ids=["decoupled", "queue", "keys", "negative_cosine", "cross_correlation", "standardized"])
def test_losses_compute_half_precision_in_float32_and_take_no_notice_of_autocast(loss, dtype):
    z1, z2 = (z.to(dtype) for z in normal(2, 16, 32))
    expected = loss(z1.float(), z2.float())
    with torch.autocast("cpu", dtype=dtype):
        inside = loss(z1, z2)
    assert inside.dtype == torch.float32
    assert torch.allclose(inside, expected, rtol=1e-5, atol=1e-6)
