"""The layers of a head, and which of their parameters learn."""

import pytest
import torch
from torch import nn

from ssl_zoo.heads import mlp


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
