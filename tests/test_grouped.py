"""One pass in groups is what a pass over each group makes: keys, running statistics, and the number of batches."""

import copy

import pytest
import torch
from torch import nn

from ssl_zoo import grouped
from ssl_zoo.encoders import NarrowResNet


def networks(dtype=torch.float64):
    """The same network twice: as it is, and with statistics of groups."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.BatchNorm1d(6, affine=False))
    network = nn.Sequential(NarrowResNet(width=4, stages=3), head).to(dtype)
    other = copy.deepcopy(network)
    grouped.by_groups(other)
    return network, other


class Calls:
    def __init__(self, module):
        self.module, self.count = module, 0

    def __call__(self, images):
        self.count += 1
        return self.module(images)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("batch", "groups", "passes"), [(8, 2, 1), (12, 4, 1), (9, 3, 1), (7, 3, 3), (6, 1, 1)])
def test_one_pass_is_what_a_pass_over_each_group_makes(batch, groups, passes, dtype, tolerance):
    one, other = networks(dtype)
    forward = Calls(other)
    for step in range(3):
        images = torch.rand(batch, 3, 16, 16, dtype=dtype, generator=torch.Generator().manual_seed(step))
        keys = grouped.encode(forward, other, images, groups)
        assert forward.count == passes * (step + 1)
        for group in range(groups):
            assert torch.allclose(keys[group::groups], one(images[group::groups]), atol=tolerance, rtol=tolerance)
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.allclose(other.state_dict()[name], value, atol=tolerance, rtol=tolerance), name


def test_channels_last_and_autocast_give_the_same_keys_too():
    one, other = networks(torch.float32)
    images = torch.rand(8, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        keys, expected = grouped.encode(other, other, images, 2), torch.empty(8, 6)
        for group in range(2):
            expected[group::2] = one(images[group::2])
    assert torch.allclose(keys.float(), expected, atol=0.1)
    assert torch.nn.functional.cosine_similarity(keys.float(), expected).min() > 0.999


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm(4), nn.BatchNorm1d(4, momentum=None)])
def test_another_batch_norm_gets_a_pass_for_each_group(norm):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), copy.deepcopy(norm)).eval()
    grouped.by_groups(module)
    forward = Calls(module)
    grouped.encode(forward, module, torch.randn(6, 3), 2)
    assert forward.count == 2


def test_evaluation_reads_the_running_statistics_and_leaves_them():
    one, other = networks()
    images = torch.rand(8, 3, 16, 16, dtype=torch.float64)
    assert torch.allclose(grouped.encode(other.eval(), other, images, 2), one.eval()(images))
    assert all(torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items())


def test_after_a_pass_that_failed_no_layer_keeps_its_groups():
    _, other = networks()
    with pytest.raises(ValueError, match="an encoder reads images"):
        grouped.encode(other, other, torch.rand(8, 2, 16, 16, dtype=torch.float64), 2)
    assert all(module.groups == 1 for module in other.modules() if isinstance(module, grouped.OfGroups))
