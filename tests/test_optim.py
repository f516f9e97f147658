"""Which parameters decay, how LARS steps, and what of groups and options is refused."""

from functools import partial

import pytest
import torch
from torch import nn

from ssl_zoo.optim import LARS, Group, Schedules, built, constant, parameter_groups


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


W, G = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([0.0, -1.0], dtype=torch.float64)


def stepped(lr=1.0, **options):
    """w = (3, 4) with gradient g = (0, -1), as a weight and as a bias, after a step of LARS."""
    module = nn.ParameterDict({"weight": W[None].clone(), "bias": W.clone()})
    module["weight"].grad, module["bias"].grad = G[None].clone(), G.clone()
    LARS(parameter_groups(module), lr=lr, **options).step()
    return module["weight"].flatten().tolist(), module["bias"].tolist()


def test_lars_adapts_the_weights_and_steps_plainly_in_the_biases():
    """Decay 0.1: w - 0.001 * 5 / (1 + 0.5) * (g + 0.1 w), and w - g."""
    weight, bias = stepped(weight_decay=0.1)
    assert weight == pytest.approx([2.999, 4.002], abs=1e-12)
    assert bias == pytest.approx([3, 5], abs=1e-12)


def test_lars_adapts_without_a_decay_too():
    """w - 0.001 * 5 / 1 * g, a thousandth of its norm; SGD would have moved it by a fifth."""
    assert stepped()[0] == pytest.approx([3, 4.005], abs=1e-12)


@pytest.mark.parametrize("what", ["weight", "gradient"])
def test_lars_steps_plainly_where_a_weight_or_its_gradient_is_zero(what):
    weight = nn.Parameter(0 * W[None] if what == "weight" else W[None].clone())
    weight.grad = 0 * G[None] if what == "gradient" else G[None].clone()
    expected = weight.detach() - 0.5 * (weight.grad + 0.1 * weight.detach())
    LARS([weight], lr=0.5, weight_decay=0.1).step()
    assert torch.allclose(weight, expected, atol=1e-12)


def written_out(weights, gradients, *, lr, momentum, weight_decay, nesterov):
    """Algorithm 1 of arXiv:1708.03888 with torch's momentum, a number at a time."""
    momenta = [[0.0] * len(w) for w in weights]
    for step in gradients:
        for w, g, v, adapts in zip(weights, step, momenta, (True, False), strict=True):
            w_norm, g_norm = (sum(x * x for x in values) ** 0.5 for values in (w, g))
            trust = 0.001 * w_norm / (g_norm + weight_decay * w_norm) if adapts else 1
            for i in range(len(w)):
                moved = trust * (g[i] + (weight_decay * w[i] if adapts else 0))
                v[i] = momentum * v[i] + moved
                w[i] -= lr * (moved + momentum * v[i] if nesterov else v[i])
    return weights


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-6, 0.1])
def test_lars_walks_as_the_paper_and_timm_do(weight_decay, nesterov):
    timm = pytest.importorskip("timm.optim.lars")
    options = {"lr": 4.8, "momentum": 0.9, "weight_decay": weight_decay, "nesterov": nesterov}
    gradients = torch.randn(20, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = torch.arange(1.0, 7, dtype=torch.float64)
    ends = []
    for make in (LARS, partial(timm.Lars, always_adapt=True)):
        module = nn.ParameterDict({"weight": start.reshape(2, 3).clone(), "bias": start.clone()})
        optimizer = make(parameter_groups(module), **options)
        for group in optimizer.param_groups:            # timm's knows no biases
            group["always_adapt"] = group["params"][0].ndim > 1
        for of_weight, of_bias in gradients:
            module["weight"].grad, module["bias"].grad = of_weight.reshape(2, 3).clone(), of_bias.clone()
            optimizer.step()
        ends.append([module["weight"].flatten().tolist(), module["bias"].tolist()])
    paper = written_out([start.tolist(), start.tolist()], gradients.tolist(), **options)
    for ours, timms, papers in zip(*ends, paper, strict=True):
        assert ours == pytest.approx(papers, rel=1e-10)
        assert ours == pytest.approx(timms, rel=1e-6)       # timm adds 1e-8 to the norms


def test_lars_goes_on_from_the_state_that_lightlys_has_left():
    """Runs saved before ssl_zoo had a LARS of its own."""
    weight = nn.Parameter(W[None].clone())
    weight.grad = G[None].clone()
    optimizer = LARS([weight], lr=1.0, momentum=0.9, weight_decay=0.1)
    group = {"lr": 0.5, "momentum": 0.9, "dampening": 0, "weight_decay": 0.1, "nesterov": False, "eps": 1e-8,
             "trust_coefficient": 0.001, "params": [0]}
    optimizer.load_state_dict({"state": {0: {"momentum_buffer": W[None].clone()}}, "param_groups": [group]})
    optimizer.step()
    moved = 0.9 * W + 0.001 * 5 / 1.5 * (G + 0.1 * W)
    assert torch.allclose(weight[0], W - 0.5 * moved, atol=1e-12)


def test_groups_that_are_no_groups_are_refused_by_the_name_of_their_method():
    with pytest.raises(ValueError, match=r"Sequential.groups\(\) returns Groups, and here a Linear: wrap the modules"):
        parameter_groups(nn.Sequential(linear := nn.Linear(2, 2)), [linear])


@pytest.mark.parametrize("options", [{"momentum": None}, {"lr": None}, {"lr": -1.0}, {"weight_decay": "much"}])
def test_options_that_an_optimizer_does_not_take_get_a_sentence(options):
    with pytest.raises(ValueError, match="the optimizer cannot be made .*: give its options numbers that it takes"):
        built(partial(torch.optim.SGD, **{"lr": 0.1} | options), parameter_groups(nn.Linear(2, 2)))


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
