"""Which parameters decay, and what LARS makes of the two groups."""

import pytest
import torch
from torch import nn

from ssl_zoo.optim import LARS, Group, Schedules, constant, parameter_groups


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


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1))


def test_parameters_of_a_group_follow_the_others_with_weights_and_biases_apart():
    module = network()
    module[2].bias.requires_grad_(False)
    made = parameter_groups(module, [Group([module[2].weight], lr_scale=0.1), Group([module[1]], weight_decay=0.4)])
    known = {parameter: name for name, parameter in module.named_parameters()}
    assert [[known[p] for p in group["params"]] for group in made] == [["0.weight"], ["0.bias"], ["2.weight"],
                                                                       ["1.weight"], ["1.bias"]]
    assert [group.get("weight_decay") for group in made] == [None, 0.0, None, 0.4, 0.0]
    assert [group.get("place") for group in made] == [None, None, 0, 1, 1]


def test_a_parameter_in_two_groups_is_refused():
    module = network()
    with pytest.raises(ValueError, match=r"groups\(\) names 2 parameters twice: give each parameter one group"):
        parameter_groups(module, [Group([module[0], module[1]]), Group([module[1]])])


def rates_and_decays(module, groups, steps=4):
    """At each step the rate and the decay of each parameter."""
    optimizer = torch.optim.SGD(parameter_groups(module, groups), lr=0.5, weight_decay=0.25)
    schedule = Schedules(optimizer, lambda progress: 1 - progress, groups, lambda step: step / steps)
    known = {parameter: name for name, parameter in module.named_parameters()}
    for _ in range(steps):
        yield {(known[p], kind): group[kind] for group in optimizer.param_groups for p in group["params"]
               for kind in ("lr", "weight_decay")}
        optimizer.step()
        schedule.step()


def test_a_groups_rate_decay_and_schedules_are_its_own_and_the_others_keep_the_recipes():
    module = network()
    groups = [Group([module[1]], lr_scale=0.1, schedule=constant, weight_decay=lambda progress: 0.04 + progress),
              Group([module[2]], lr_scale=2.0)]
    for step, found in enumerate(rates_and_decays(module, groups)):
        falling = 1 - step / 4
        expected = {
            "0.weight": (0.5 * falling, 0.25), "0.bias": (0.5 * falling, 0),
            "1.weight": (0.05, 0.04 + step / 4), "1.bias": (0.05, 0),
            "2.weight": (1.0 * falling, 0.25), "2.bias": (1.0 * falling, 0)}
        assert found == pytest.approx({(name, kind): value for name, values in expected.items()
                                       for kind, value in zip(("lr", "weight_decay"), values, strict=True)})


def test_a_schedule_goes_on_from_its_state_which_holds_no_function():
    module = network()
    groups = [Group([module[1]], weight_decay=lambda progress: progress)]
    optimizers = [torch.optim.SGD(parameter_groups(module, groups), lr=1.0, weight_decay=0.25) for _ in range(2)]
    first, second = (Schedules(optimizer, lambda progress: 1 - progress, groups, lambda step: step / 8)
                     for optimizer in optimizers)
    for _ in range(3):
        optimizers[0].step()
        first.step()
    assert not {"groups", "progress"} & first.state_dict().keys()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    second.load_state_dict(first.state_dict())
    optimizers[1].step()
    second.step()
    assert [(g["lr"], g["weight_decay"]) for g in optimizers[1].param_groups] == [(0.5, 0.25), (0.5, 0), (0.5, 0.5),
                                                                                  (0.5, 0)]
