"""Which parameters decay, and what LARS makes of the two groups."""

import pytest
import torch
from torch import nn

from ssl_zoo.optim import LARS, parameter_groups


def names(module):
    """The parameter names of each group."""
    known = {parameter: name for name, parameter in module.named_parameters()}
    return [[known[parameter] for parameter in group["params"]] for group in parameter_groups(module)]


def test_biases_and_norms_are_spared_and_all_other_parameters_decay():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2))
    assert names(module) == [["0.weight", "3.weight"], ["0.bias", "1.weight", "1.bias", "3.bias", "4.weight", "4.bias"]]
    decaying, spared = parameter_groups(module)
    assert "weight_decay" not in decaying
    assert spared["weight_decay"] == 0


def test_parameters_that_do_not_train_are_in_no_group():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    assert names(module) == [["1.weight"], ["1.bias"]]


@pytest.mark.parametrize(("module", "group"), [
    (nn.Linear(3, 2, bias=False), ["weight"]), (nn.BatchNorm1d(3), ["weight", "bias"]),
])
def test_an_empty_group_is_left_out(module, group):
    assert names(module) == [group]


def test_the_optimizers_decay_reaches_the_first_group_alone():
    module = nn.Linear(2, 2)
    before = [p.detach().clone() for p in module.parameters()]
    module.weight.grad, module.bias.grad = torch.zeros(2, 2), torch.zeros(2)
    torch.optim.SGD(parameter_groups(module), lr=1.0, weight_decay=0.1).step()
    assert torch.allclose(module.weight, 0.9 * before[0])
    assert torch.equal(module.bias, before[1])


def test_lars_adapts_the_first_group_and_steps_plainly_in_the_second():
    """w = (3, 4), g = (0, -1), decay 0.1: w - 0.001 * 5 / (1 + 0.5) * (g + 0.1 w), and w - g."""
    w, g = torch.tensor([[3.0, 4.0], [0.0, -1.0]], dtype=torch.float64)
    module = nn.ParameterDict({"weight": w[None].clone(), "bias": w.clone()})
    module["weight"].grad, module["bias"].grad = g[None].clone(), g.clone()
    LARS(parameter_groups(module), lr=1.0, weight_decay=0.1).step()
    assert module["weight"].flatten().tolist() == pytest.approx([2.999, 4.002], abs=1e-9)
    assert module["bias"].tolist() == pytest.approx([3, 5], abs=1e-12)
