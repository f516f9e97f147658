"""The layers of a head, and which of their parameters learn."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from ssl_zoo.adaptive import PairTemperature
from ssl_zoo.heads import MultiHead, PixelPropagation, Prototypes, mlp, pixel_mlp
from tests.test_losses import TOY, normal


@pytest.mark.parametrize(("widths", "last_norm", "layers"), [
    ((6, 2), False, [nn.Linear]),
    ((6, 2), True, [nn.Linear, nn.BatchNorm1d]),
    ((6, 5, 2), False, [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]),
    ((6, 5, 4, 2), True, [*[nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2, nn.Linear, nn.BatchNorm1d]),
])
def test_mlp_has_a_norm_and_a_relu_between_linear_layers_and_none_after_the_last(widths, last_norm, layers):
    head = mlp(*widths, last_norm=last_norm)
    assert [type(layer) for layer in head] == layers
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] + [linear[-1].out_features] == list(widths)
    assert head(torch.ones(3, widths[0])).shape == (3, widths[-1])


@pytest.mark.parametrize("last_norm", [False, True])
def test_mlp_has_no_bias_before_a_norm(last_norm):
    head = mlp(6, 5, 4, 2, last_norm=last_norm)
    biased = [layer.bias is not None for layer in head if isinstance(layer, nn.Linear)]
    assert biased == [False, False, not last_norm]


def test_mlps_last_norm_scales_and_never_shifts():
    head = mlp(6, 5, 2, last_norm=True)
    optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=0.1)
    x, y = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        (head(x) - y[:, :2]).square().mean().backward()
        optimizer.step()
    hidden, last = (layer for layer in head if isinstance(layer, nn.BatchNorm1d))
    assert not last.bias.any()
    assert not (last.weight == 1).any()
    assert hidden.bias.any()
    assert torch.allclose(head(x).mean(0), torch.zeros(2), atol=1e-6)


def test_mlp_without_norms_has_biases_and_may_leave_the_last_out():
    head = mlp(6, 5, 4, 2, norm=False)
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert all(layer.bias is not None for layer in head if isinstance(layer, nn.Linear))
    assert mlp(6, 5, 2, bias=False)[-1].bias is None
    assert mlp(6, 5, 2)[-1].bias is not None


def test_mlps_last_norm_may_neither_scale_nor_shift():
    head = mlp(6, 5, 2, last_norm=True, last_scale=False)
    assert isinstance(head[-1], nn.BatchNorm1d)
    assert not list(head[-1].parameters())
    assert list(head[1].parameters())
    projections = head(normal(7, 6).float())
    assert torch.allclose(projections.std(0, correction=0), torch.ones(2), atol=1e-3)


def test_a_pixel_mlp_is_an_mlp_of_each_cell():
    head, cells = pixel_mlp(6, 5, 2), mlp(6, 5, 2)
    cells.load_state_dict({name: value.flatten(1) if value.ndim == 4 else value
                           for name, value in head.state_dict().items()})
    maps = normal(3, 6, 2, 4).float()
    flat = maps.permute(0, 2, 3, 1).reshape(-1, 6)                       # [B * h * w, D]
    assert torch.allclose(head(maps).permute(0, 2, 3, 1).reshape(-1, 2), cells(flat), atol=1e-6)


def test_several_heads_have_weights_of_their_own():
    head = MultiHead(3, 6, 5, 2)
    features = normal(4, 6).float()
    projections = head(features)
    assert projections.shape == (4, 3, 2)
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in head.modules())
    for c in range(3):
        assert torch.equal(projections[:, c], head.heads[c](features))
        assert not torch.equal(projections[:, c], projections[:, c - 1])


def test_no_heads_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="a method projects with 1 or more heads, not 0"):
        MultiHead(0, 6, 2)


# The learned temperature of AMCL


def test_a_pairs_temperature_falls_from_its_ceiling_to_its_floor_as_the_reference_says():
    products = torch.tensor([-5, -1, 0, 1, 5], dtype=torch.float64).requires_grad_()
    temperatures = PairTemperature(3, floor=1e-5, ceiling=2).of(products)
    expected = [1.986614365, 1.462119847, 1.000005, 0.537890153, 0.013395635]
    assert temperatures.tolist() == pytest.approx(expected, abs=1e-9)
    slopes, = torch.autograd.grad(temperatures.sum(), products)
    assert slopes[2].item() == pytest.approx(-0.4999975, abs=1e-12)


@pytest.mark.parametrize(("floor", "ceiling"), [(1e-5, 2.0), (0.05, 1.0)])
def test_a_pairs_temperature_stays_between_floor_and_ceiling(floor, ceiling):
    temperatures = PairTemperature(3, floor=floor, ceiling=ceiling).of(torch.tensor([-1e4, 1e4], dtype=torch.float64))
    assert temperatures.tolist() == pytest.approx([ceiling, floor], abs=1e-12)


@pytest.mark.parametrize(("floor", "ceiling"), [(0, 2), (-1, 2), (2, 2)])
def test_temperatures_of_no_range_are_refused_in_a_sentence(floor, ceiling):
    with pytest.raises(ValueError, match=f"floor above 0 and a ceiling above it, not {floor}, {ceiling}"):
        PairTemperature(3, floor=floor, ceiling=ceiling)


def test_the_network_of_temperatures_has_one_hidden_layer_and_takes_no_notice_of_autocast():
    network = PairTemperature(8, hidden=16)
    assert [type(layer) for layer in network.network] == [nn.Linear, nn.ReLU, nn.Linear]
    rows = normal(2, 5, 8).float()
    codes = network(rows)
    assert codes.shape == (2, 5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(rows), codes)
    assert network.double()(rows.double()).dtype == torch.float64


# The propagation of PixPro

CELLS = TOY.T[None, :, :, None]     # [1, 3, 4, 1]: the four toy rows as cells


def test_propagated_toy_cells_are_the_references_numbers():
    expected = [[0.524155, 0.748441, 0.406322], [0.369371, -0.383685, -0.846375], [-0.750771, -0.657226, -0.066306],
                [0.012552, 0.632827, 0.774191]]
    y = PixelPropagation(3, layers=0, gamma=2)(CELLS)
    assert torch.allclose(normalize(y, dim=1)[0, :, :, 0].T, torch.tensor(expected).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("layers", [0, 1])
def test_propagation_is_the_papers_sum_a_cell_at_a_time(gamma, layers):
    module, maps = PixelPropagation(5, layers, gamma).double(), normal(2, 5, 2, 3)
    y = module(maps)
    assert y.shape == maps.shape
    for image in range(2):
        cells, g = (x[image].flatten(1).T for x in (maps, module.transform(maps)))            # [6, 5]
        for i in range(6):
            expected = sum(max(cosine_similarity(cells[i], cells[j], dim=0).item(), 0) ** gamma * g[j] / g[j].norm()
                           for j in range(6))
            assert torch.allclose(y[image].flatten(1)[:, i], expected, rtol=0, atol=1e-12)


def test_propagation_of_orthogonal_cells_leaves_their_directions_and_a_gamma_of_zero_mixes_all_alike():
    maps = (torch.eye(4).double() * torch.arange(1, 5)).view(1, 4, 2, 2)
    assert torch.allclose(PixelPropagation(4, layers=0)(maps), torch.eye(4).double().view(1, 4, 2, 2))
    mixed = PixelPropagation(3, layers=0, gamma=0)(CELLS)[0, :, :, 0]                          # [3, 4]
    assert torch.allclose(mixed, normalize(TOY, dim=1).sum(0)[:, None].expand(3, 4))


def test_the_sharper_the_propagation_the_more_a_cell_stays_itself():
    y = PixelPropagation(3, layers=0, gamma=60)(CELLS)[0, :, :, 0].T
    assert torch.allclose(y, normalize(TOY, dim=1), atol=1e-6)


def test_propagation_computes_in_float32_and_its_similarities_have_a_gradient():
    module, maps = PixelPropagation(3, layers=0), CELLS.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(maps)
    assert y.dtype == torch.float32
    assert torch.equal(y, module(maps))
    y.sum().backward()
    assert maps.grad.isfinite().all()
    assert maps.grad.any()


def test_a_transform_of_two_layers_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="transformed by 0 or 1 layers, not 2"):
        PixelPropagation(3, layers=2)


# The prototypes of SwAV


def test_scores_are_cosines_with_prototypes_of_unit_norm():
    prototypes = Prototypes(3, 5).double()
    assert torch.allclose(prototypes.weight.norm(dim=-1), torch.ones(5).double(), atol=1e-6)
    with torch.no_grad():
        prototypes.weight.mul_(3)
    prototypes.normalize()
    assert torch.allclose(prototypes.weight.norm(dim=-1), torch.ones(5).double())
    expected = cosine_similarity(TOY[:, None], prototypes.weight[None], dim=-1)
    assert torch.allclose(prototypes(7 * TOY), expected)


def test_scores_take_no_notice_of_autocast():
    prototypes, projections = Prototypes(3, 5), TOY.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prototypes(projections), prototypes(projections))
        assert prototypes(projections.bfloat16()).dtype == torch.float32
        inside = prototypes(projections)
    assert torch.equal(inside, prototypes(projections))


@pytest.mark.parametrize("prototypes", [0, 1])
def test_fewer_than_two_prototypes_are_refused_in_a_sentence(prototypes):
    with pytest.raises(ValueError, match=f"2 or more prototypes, not {prototypes}"):
        Prototypes(3, prototypes)
