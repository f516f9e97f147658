"""Each loss against its closed form, its written-out definition, its symmetries, and the reference's numbers."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch.nn.functional import cosine_similarity

from ssl_zoo.losses import mean_similarities, nt_xent

FEW = torch.arange(4, dtype=torch.float64)[:, None]      # image
WIDE = torch.arange(3, dtype=torch.float64)              # width
TOY = torch.sin(1 + 1.7 * FEW + 0.9 * WIDE)              # the two toy tensors of the reference
TOY_TOO = TOY + 0.3 * torch.cos(2 + 0.7 * FEW + 1.3 * WIDE)


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
