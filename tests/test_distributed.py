"""Two processes with half of a batch each against one process with the whole of it."""


import pytest
import torch
from torch import nn

from ssl_zoo import distributed
from ssl_zoo.distributed import Key
from ssl_zoo.losses import contrast, cross_correlation, key_similarities, nt_xent, pair_weights
from ssl_zoo.memory import MomentumEncoder
from tests.processes import PROCESSES

KEY = Key(3, 1, 4, 0)
BATCHES, TEMPERATURE = (1, 2, 7), 0.2      # images on each process
UNEVEN = [(3, 1), (0, 2), (2, 2)]          # rows on the first process and on the second


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_and_gradients(views):
    """nt_xent of projections by a matrix, its rows, and the gradients of the matrix and of the views [2, B, 6]."""
    projector, views = normal(6, 5, seed=1).requires_grad_(), views.clone().requires_grad_()
    loss = nt_xent(*views @ projector, TEMPERATURE)
    gradients = torch.autograd.grad(loss, (projector, views))
    return loss.detach(), nt_xent(*views @ projector, TEMPERATURE, reduction="none").detach(), *gradients


def rows_and_matrix(views):
    """The terms [B] of MoCo v3, the weights [B] of DCLW, and Barlow Twins' matrix [6, 6], of views [2, B, 6]."""
    z1, z2 = views
    terms = contrast(*key_similarities(z1, z2), TEMPERATURE, reduction="none")
    return terms, pair_weights((z1 * z2).sum(1).tanh(), 0.1), cross_correlation(z1, z2)


def half(x, rank):
    return x.chunk(PROCESSES)[rank]


def gathered(rank):
    """Gathered rows [4, 3], and the gradient of a loss that weighs them differently on each process."""
    x = half(normal(4, 3), rank).clone().requires_grad_()
    rows, weights = distributed.gather(x), normal(4, 3, seed=2 + rank)
    loss = (rows.T * weights.T.contiguous()).sum() if rank else (rows * weights).sum()
    loss.backward()                                              # the second process's gradient lies in columns
    return rows.detach(), x.grad


def gathered_and_added(rank):
    """The gradient of what is added to gathered rows, and reads only this process's loss."""
    x, y = half(normal(4, 3), rank).clone().requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    shifted = 2 * y
    ((distributed.gather(x) + shifted) * normal(4, 3, seed=2 + rank)).sum().backward()
    return y.grad


def shuffled_keys(rank):
    """Keys [4, 12] of this process's images, whose batch norm tells with which others each was encoded."""
    encoder = MomentumEncoder(nn.BatchNorm2d(3, affine=False), nn.Flatten())
    return encoder.keys(half(normal(8, 3, 2, 2), rank).float(), KEY._replace(rank=rank))


def one_process(rank):
    uneven = [torch.arange(2 * rows[rank]).view(-1, 2) + 100 * rank for rows in UNEVEN]
    return {
        "place": (distributed.rank(), distributed.world_size()),
        "nt_xent": {batch: loss_and_gradients(normal(2, PROCESSES * batch, 6).chunk(PROCESSES, dim=1)[rank])
                    for batch in BATCHES},
        "rows and matrix": rows_and_matrix(normal(2, 8, 6).chunk(PROCESSES, dim=1)[rank]),
        "gather": gathered(rank),
        "shuffled keys": shuffled_keys(rank),
        "gather and add": gathered_and_added(rank),
        "gather_uneven": [distributed.gather_uneven(rows) for rows in uneven],
        "gather_uneven has a gradient": distributed.gather_uneven(torch.ones(1, requires_grad=True)).requires_grad,
    }


@pytest.fixture(scope="module")
def halves(two_processes):
    """What each of the two processes found."""
    return two_processes(one_process)


def test_one_process_is_the_first_of_one_and_gathers_what_it_has():
    x = normal(3, 2)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather(x) is x
    assert distributed.gather_uneven(x) is x


def test_each_process_knows_its_place(halves):
    assert [results["place"] for results in halves] == [(0, 2), (1, 2)]


@pytest.mark.parametrize("batch", BATCHES)
def test_nt_xent_and_the_averaged_gradient_do_not_depend_on_the_number_of_processes(halves, batch):
    whole, rows, projector, views = loss_and_gradients(normal(2, PROCESSES * batch, 6))
    losses, rows_there, projectors, views_there = zip(*(results["nt_xent"][batch] for results in halves), strict=True)
    assert torch.stack(losses).mean().item() == pytest.approx(whole.item(), abs=1e-12)
    assert torch.allclose(torch.stack(projectors).mean(0), projector, rtol=0, atol=1e-12)
    assert torch.allclose(torch.cat(views_there, 1) / PROCESSES, views, rtol=0, atol=1e-12)
    rows_there = torch.cat([r.view(2, batch) for r in rows_there], 1)                 # first views, second views
    assert torch.allclose(rows_there, rows.view(2, PROCESSES * batch), rtol=0, atol=1e-12)


def test_losses_of_keys_weights_and_correlations_do_not_depend_on_the_number_of_processes(halves):
    terms, weights, matrix = rows_and_matrix(normal(2, 8, 6))
    terms_there, weights_there, matrices = zip(*(results["rows and matrix"] for results in halves), strict=True)
    assert torch.allclose(torch.cat(terms_there), terms, rtol=0, atol=1e-12)
    assert torch.allclose(torch.cat(weights_there), weights, rtol=0, atol=1e-12)
    for there in matrices:
        assert torch.allclose(there, matrix, rtol=0, atol=1e-12)


def test_gather_gives_every_process_all_rows_in_the_order_of_ranks(halves):
    for results in halves:
        assert torch.equal(results["gather"][0], normal(4, 3))


def test_the_gradient_of_gathered_rows_is_summed_over_the_losses_of_all_processes(halves):
    gradient = sum(normal(4, 3, seed=2 + rank) for rank in range(PROCESSES))
    for rank, results in enumerate(halves):
        assert torch.allclose(results["gather"][1], half(gradient, rank), rtol=0, atol=1e-12)


def test_keys_are_encoded_with_shuffled_images_of_all_processes_and_come_back_to_their_own(halves):
    images, expected = normal(8, 3, 2, 2), torch.empty(8, 3, 2, 2, dtype=torch.float64)
    order = torch.from_numpy(KEY.generator("shuffled keys").permutation(8))
    for group in order.chunk(PROCESSES):
        mean, variance = images[group].mean((0, 2, 3)), images[group].var((0, 2, 3), correction=0)
        expected[group] = (images[group] - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    assert 0 < (order[:4] < 4).sum() < 4                       # the groups are of images of both processes
    keys = torch.cat([results["shuffled keys"] for results in halves]).double()
    assert torch.allclose(keys, expected.flatten(1), rtol=0, atol=1e-5)


def test_gather_leaves_the_gradient_of_what_is_added_to_its_rows_alone(halves):
    for rank, results in enumerate(halves):
        assert torch.allclose(results["gather and add"], 2 * normal(4, 3, seed=2 + rank), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", range(len(UNEVEN)))
def test_gather_uneven_joins_any_numbers_of_rows_in_the_order_of_ranks(halves, case):
    expected = [[100 * rank + 2 * row, 100 * rank + 2 * row + 1] for rank in range(PROCESSES)
                for row in range(UNEVEN[case][rank])]
    for results in halves:
        assert results["gather_uneven"][case].tolist() == expected


def test_gather_uneven_has_no_gradient(halves):
    assert not any(results["gather_uneven has a gradient"] for results in halves)


def test_the_runs_seed_is_lightnings_and_zero_without_it(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert distributed.run_seed() == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    assert distributed.run_seed() == 12
