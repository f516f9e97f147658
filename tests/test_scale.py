"""The numbers of docs/scale.md are those that its program counts, and a step's bytes are what a hand would count."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch

from ssl_zoo.methods import SimCLR
from tests.test_methods import example

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks/scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_has_the_tables_of_the_program(scale):
    text = (ROOT / "docs/scale.md").read_text()
    for rows in (scale.reading(), scale.memory()):
        assert scale.table(rows) in text


def test_a_step_of_simclr_sends_what_a_hand_counts(scale):
    step = scale.step("imagenet/simclr")
    rows = 2 * step.batch * 64                                 # two views on each of 64 processes
    assert step.gathered == rows * 128 * 4 * 63 // 64          # projections of 128 floats, from the other 63
    assert step.returned == 2 * rows * 128 * 4 * 63 // 64      # their gradients, summed in a ring
    weights = 23_508_032 + 2048 * 2048 + 2 * 2048 + 2048 * 128 + 2 * 128                  # ResNet-50 and the projector
    assert abs(step.gradients / (2 * 4 * weights * 63 / 64) - 1) < 0.01
    assert step.optimizer == pytest.approx(4 * weights, rel=0.01)                          # momentum
    row = next(line for line in (ROOT / "docs/scale.md").read_text().splitlines() if "imagenet/simclr" in line)
    assert row == scale.table([scale.traffic([step])[1]]).splitlines()[0]


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimisers_state_is_counted_whether_its_kernels_are_fused_or_not(scale, fused):
    method, _ = example(SimCLR, projector=(16, 8))
    method.optimizer = partial(torch.optim.AdamW, lr=0.1, fused=fused)
    weights = [p for p in method.parameters() if p.requires_grad]
    assert scale.optimizer_bytes(method) == sum(2 * p.nbytes + 4 for p in weights)          # two moments and a step


def test_pairs_of_one_shard_are_counted(scale):
    np = scale.np
    assert scale.pairs(np.array([[1, 1, 2, 2], [1, 2, 3, 4]])) == pytest.approx((4 / 12 + 0) / 2)
    assert scale.shards_of(10 ** 5, 29_000).tolist() == [6896] * 14 + [10 ** 5 - 14 * 6896]
