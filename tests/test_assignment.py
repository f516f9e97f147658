"""Sinkhorn's codes against the paper's equation written out, their closed forms, symmetries and limits."""

import math

import lightly.loss.swav_loss
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from ssl_zoo.assignment import sinkhorn

FEW = torch.arange(4, dtype=torch.float64)[:, None]      # image
WIDE = torch.arange(3, dtype=torch.float64)              # width
TOY = torch.sin(1 + 1.7 * FEW + 0.9 * WIDE)              # the toy tensors of the reference
TOY_TOO = TOY + 0.3 * torch.cos(2 + 0.7 * FEW + 1.3 * WIDE)
PROTOTYPES = F.normalize(torch.cos(0.2 + 1.9 * FEW[:3] + 0.8 * WIDE), dim=-1)
SCORES = F.normalize(TOY, dim=-1) @ PROTOTYPES.T
SCORES_TOO = F.normalize(TOY_TOO, dim=-1) @ PROTOTYPES.T

SPLITS = {"halves": (3, 3), "uneven": (5, 1), "all on one": (6, 0)}      # rows on the first process and on the second


def cosines(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def written_out(scores, epsilon, iterations):
    """Sec. 3.1 of SwAV, a number at a time: Q = exp(scores / epsilon) of total mass 1, its rows, then its columns."""
    batch, prototypes = scores.shape
    q = [[math.exp(scores[n, k].item() / epsilon) for n in range(batch)] for k in range(prototypes)]
    total = sum(map(sum, q))
    q = [[entry / total for entry in row] for row in q]
    for _ in range(iterations):
        q = [[entry / (sum(row) * prototypes) for entry in row] for row in q]
        columns = [sum(row[n] for row in q) for n in range(batch)]
        q = [[entry / (columns[n] * batch) for n, entry in enumerate(row)] for row in q]
    return torch.tensor([[batch * q[k][n] for k in range(prototypes)] for n in range(batch)], dtype=torch.float64)


def close(first, second, atol=1e-12):
    return first.dtype == second.dtype and torch.allclose(first, second, rtol=0, atol=atol)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("prototypes", [2, 5])
@pytest.mark.parametrize("epsilon", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_codes_are_the_papers_exponential_form(batch, prototypes, epsilon, iterations):
    scores = cosines(batch, prototypes)
    assert close(sinkhorn(scores, epsilon, iterations), written_out(scores, epsilon, iterations))


@pytest.mark.parametrize("epsilon", [0.05, 0.25])
@pytest.mark.parametrize("iterations", [1, 3])
def test_codes_are_lightlys(epsilon, iterations):
    scores = cosines(16, 10)
    theirs = lightly.loss.swav_loss.sinkhorn(scores, iterations=iterations, epsilon=epsilon)
    assert close(sinkhorn(scores, epsilon, iterations), theirs)


@pytest.mark.parametrize(("epsilon", "codes", "atol"), [
    (0.05, [[1, 0, 0], [0.001076, 0.998924, 0], [0, 0.998453, 0.001547], [0, 0, 1]], 5e-6),
    (0.25, [[0.976702, 0.000570, 0.022728], [0.287729, 0.709517, 0.002753], [0.001195, 0.705464, 0.293341],
            [0.030228, 0.000771, 0.969001]], 5e-7),
])
def test_the_codes_of_the_toy_scores_are_the_references_numbers(epsilon, codes, atol):
    assert close(sinkhorn(SCORES, epsilon, 3), torch.tensor(codes, dtype=torch.float64), atol=atol)


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_the_codes_of_two_mirrored_samples_are_a_sigmoid(epsilon, iterations):
    codes = sinkhorn(torch.tensor([[0.5, 0.4], [0.4, 0.5]], dtype=torch.float64), epsilon, iterations)
    share = 1 / (1 + math.exp(-0.1 / epsilon))
    assert close(codes, torch.tensor([[share, 1 - share], [1 - share, share]], dtype=torch.float64))
    if epsilon == 0.05:
        assert codes[0, 0].item() == pytest.approx(0.880797078, abs=1e-9)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("iterations", [1, 3])
def test_identical_samples_use_all_prototypes_equally(batch, iterations):
    codes = sinkhorn(cosines(1, 7).expand(batch, 7), 0.05, iterations)
    assert close(codes, torch.full((batch, 7), 1 / 7, dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize(("prototypes", "loss"), [(3000, 8.006367568), (512, 6.238324625)])
def test_where_all_scores_are_equal_the_loss_is_the_log_of_the_prototypes(prototypes, loss):
    scores = torch.full((4, prototypes), 0.3, dtype=torch.float64)
    value = F.cross_entropy(scores / 0.1, sinkhorn(scores, 0.05, 3)).item()
    assert value == pytest.approx(math.log(prototypes), abs=1e-12)
    assert value == pytest.approx(loss, abs=1e-9)


@pytest.mark.parametrize(("epsilon", "loss"), [(0.05, 0.352796547), (0.25, 0.824926564), (0.5, 1.824414177)])
def test_two_toy_views_that_predict_each_others_codes_have_the_references_loss(epsilon, loss):
    first, second = sinkhorn(SCORES, epsilon, 3), sinkhorn(SCORES_TOO, epsilon, 3)
    value = (F.cross_entropy(SCORES_TOO / 0.1, first) + F.cross_entropy(SCORES / 0.1, second)) / 2
    assert value.item() == pytest.approx(loss, abs=1e-9)


@pytest.mark.parametrize(("epsilon", "iterations", "error"), [
    (0.05, 1, 0.666), (0.05, 3, 0.664), (0.05, 10, 0.444), (0.05, 100, 3e-9),
    (0.25, 1, 0.2436), (0.25, 3, 0.0830), (0.25, 10, 0.00079),
    (0.5, 1, 0.0261), (0.5, 3, 0.0048), (0.5, 10, 1.5e-5),
])
def test_the_use_of_prototypes_evens_out_as_the_reference_measured(epsilon, iterations, error):
    codes = sinkhorn(SCORES, epsilon, iterations)
    assert (codes.sum(0) - 4 / 3).abs().max().item() == pytest.approx(error, rel=0.1 if error < 1e-8 else 0.035)


@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (64, 300)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_samples_code_sums_to_one_however_few_the_iterations(shape, dtype):
    codes = sinkhorn(cosines(*shape).to(dtype), 0.05, 1)
    assert codes.dtype == dtype
    assert codes.min() >= 0
    assert codes.sum(1).tolist() == pytest.approx([1] * shape[0], abs=1e-6)


def test_in_the_limit_codes_use_prototypes_equally_and_differ_from_the_scores_by_a_term_for_each_row_and_column():
    scores = cosines(12, 4)
    codes = sinkhorn(scores, 0.25, 200)
    assert close(codes.sum(0), torch.full((4,), 3.0, dtype=torch.float64))
    rest = codes.log() - scores / 0.25
    assert close(rest - rest[:1] - rest[:, :1] + rest[0, 0], torch.zeros_like(rest))


def test_codes_follow_the_order_of_samples_and_of_prototypes():
    samples, prototypes = [2, 0, 3, 1], [1, 2, 0]
    codes = sinkhorn(SCORES, 0.25, 3)
    assert close(sinkhorn(SCORES[samples][:, prototypes], 0.25, 3), codes[samples][:, prototypes])


@pytest.mark.parametrize("epsilon", [0.05, 0.25, 0.5])
def test_codes_ignore_what_is_added_to_all_scores_of_a_prototype_for_its_step_comes_first(epsilon):
    shift = torch.tensor([0.3, -0.1, 0.05], dtype=torch.float64)
    assert close(sinkhorn(SCORES + shift, epsilon, 3), sinkhorn(SCORES, epsilon, 3))


def test_codes_notice_what_is_added_to_all_scores_of_a_sample_until_they_have_converged():
    shift = torch.tensor([0.3, -0.1, 0.05, 0.2], dtype=torch.float64)[:, None]
    assert not close(sinkhorn(SCORES + shift, 0.25, 3), sinkhorn(SCORES, 0.25, 3), atol=1e-3)
    assert close(sinkhorn(SCORES + shift, 0.25, 200), sinkhorn(SCORES, 0.25, 200))


@pytest.mark.parametrize("epsilon", [0.05, 0.25])
def test_a_queue_that_repeats_the_batch_leaves_its_codes_unchanged(epsilon):
    assert close(sinkhorn(torch.cat([SCORES, SCORES]), epsilon, 3)[-4:], sinkhorn(SCORES, epsilon, 3))


def test_samples_that_do_not_count_change_no_code_and_get_those_of_their_scores():
    mixed = torch.cat([SCORES_TOO, SCORES])
    codes = sinkhorn(mixed, 0.25, 3, counted=torch.arange(8) >= 4)
    assert close(codes[4:], sinkhorn(SCORES, 0.25, 3), atol=1e-15)
    assert close(codes[:4].sum(1), torch.ones(4, dtype=torch.float64))
    assert close(sinkhorn(mixed, 0.25, 3, counted=torch.ones(8, dtype=torch.bool)), sinkhorn(mixed, 0.25, 3))


@pytest.mark.parametrize(("epsilon", "code"), [
    (0.25, [0.988874668, 0.000714169, 0.010411164]), (0.5, [0.887377789, 0.028522895, 0.084099315]),
])
def test_queue_rows_change_the_batchs_codes_as_the_reference_says(epsilon, code):
    codes = sinkhorn(torch.cat([SCORES[[2, 0, 3]], SCORES_TOO]), epsilon, 3)
    assert codes[3].tolist() == pytest.approx(code, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("epsilon", [0.01, 0.05])
def test_half_precision_scores_get_the_codes_that_float32_gives_them(dtype, epsilon):
    scores = cosines(32, 50).to(dtype)
    codes = sinkhorn(scores, epsilon, 3)
    assert codes.dtype == torch.float32
    assert close(codes.double(), sinkhorn(scores.double(), epsilon, 3), atol=2e-5)


class Autocast(TorchFunctionMode):
    """Whether autocast was on while numbers were computed."""

    def __init__(self):
        super().__init__()
        self.on = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.on.append(torch.is_autocast_enabled("cpu"))
        return result


def test_codes_are_computed_with_autocast_off():
    scores = cosines(32, 50).float()
    with torch.autocast("cpu", dtype=torch.bfloat16), Autocast() as during:
        codes = sinkhorn(scores, 0.05, 3)
    assert during.on
    assert not any(during.on)
    assert torch.equal(codes, sinkhorn(scores, 0.05, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [1e-2, 1e-4, 1e-6])
def test_codes_stay_finite_and_sum_to_one_however_sharp_they_are(dtype, epsilon):
    codes = sinkhorn(cosines(32, 50).to(dtype), epsilon, 3)
    assert codes.isfinite().all()
    assert codes.sum(1).tolist() == pytest.approx([1] * 32, abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.05, 1e-4, 1e-6])
def test_prototypes_with_equal_scores_share_every_sample_equally_however_sharp_the_codes(epsilon):
    codes = sinkhorn(cosines(32, 1).float().expand(32, 4), epsilon, 1)
    assert close(codes, torch.full((32, 4), 0.25), atol=1e-6)


def test_codes_have_no_gradient_and_leave_the_scores_alone():
    scores = SCORES.clone().requires_grad_()
    assert not sinkhorn(scores, 0.05, 3).requires_grad
    assert torch.equal(scores, SCORES)


def test_sinkhorn_never_waits_for_the_device():
    with FakeTensorMode():                            # values that only a device knows: to read one is an error here
        codes = sinkhorn(torch.zeros(8, 5, device="cuda"), 0.05, 3)
        assert (codes.shape, codes.device.type) == ((8, 5), "cuda")
        with pytest.raises(Exception, match="_local_scalar"):
            codes[0, 0].item()


@pytest.mark.parametrize(("shape", "epsilon", "iterations", "sentence"), [
    ((4, 1), 0.05, 3, r"sinkhorn shares samples among 2 or more prototypes, not 1: .*more"),
    ((4, 0), 0.05, 3, r"sinkhorn shares samples among 2 or more prototypes, not 0"),
    ((4, 3), 0.0, 3, r"epsilon must be above 0, not 0.0: .*0.05"),
    ((4, 3), -0.1, 3, r"epsilon must be above 0, not -0.1"),
    ((4, 3), math.nan, 3, r"epsilon must be above 0, not nan"),
    ((4, 3), 0.05, 0, r"sinkhorn needs 1 or more iterations, not 0: .*3"),
])
def test_sinkhorn_refuses_what_it_cannot_balance_in_a_sentence(shape, epsilon, iterations, sentence):
    with pytest.raises(ValueError, match=sentence):
        sinkhorn(torch.zeros(shape), epsilon, iterations)


def one_process(rank):
    return {(name, epsilon): sinkhorn(cosines(6, 4).split(split)[rank], epsilon, 3)
               for name, split in SPLITS.items() for epsilon in (1e-6, 0.05, 0.25)}


@pytest.fixture(scope="module")
def parts(two_processes):
    """What each of the two processes found."""
    return two_processes(one_process)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("epsilon", [1e-6, 0.05, 0.25])
def test_codes_do_not_depend_on_which_process_holds_a_sample(parts, split, epsilon):
    codes = torch.cat([results[split, epsilon] for results in parts])
    assert close(codes, sinkhorn(cosines(6, 4), epsilon, 3), atol=1e-8 if epsilon == 1e-6 else 1e-12)
