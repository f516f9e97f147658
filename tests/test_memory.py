"""The queue against a deque, the momentum encoder against its recursion, and both on two processes against one."""

import copy
import io
from collections import deque
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from ssl_zoo.memory import MomentumEncoder, Queue
from ssl_zoo.views.tables import Key
from tests.conftest import finish, same, state

PROCESSES, SECONDS = 2, 1800   # a limit for hangs: a busy machine takes minutes
BATCHES = {"divide the size": (2, 2, 2, 2), "do not divide it": (4, 4, 4, 4), "fill it": (6, 6),
           "vary": (2, 6, 4, 2, 4)}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def queue_of(size, dim=3):
    torch.manual_seed(0)
    return Queue(size, dim)


def by_age(queue):
    """Keys and index of a queue, the oldest first."""
    order = (queue.head + torch.arange(len(queue.keys))) % len(queue.keys)
    return queue.keys[order].tolist(), queue.index[order].tolist()


def arrivals(batches, dim=3):
    """Batches of keys with the index of their images, all different."""
    for start, batch in zip(torch.tensor(batches).cumsum(0).tolist(), batches, strict=True):
        yield normal(batch, dim, seed=start), torch.arange(start - batch, start)


@pytest.mark.parametrize("size", [1, 5, 7])
@pytest.mark.parametrize("batches", [(1,) * 9, (2,) * 9, (3,) * 6, (5,) * 4, (7, 7), (4, 3, 0, 4, 3),
                                     (1, 7, 2, 6, 3, 5)], ids=str)
def test_a_queue_holds_the_last_keys_whatever_the_sizes_of_batches(size, batches):
    queue, batches = queue_of(size), [min(batch, size) for batch in batches]
    keys, index = deque(queue.keys.tolist(), size), deque([-1] * size, size)
    for done, (new, places) in enumerate(arrivals(batches), start=1):
        queue.enqueue(new, places)
        keys.extend(new.tolist())
        index.extend(places.tolist())
        assert by_age(queue) == (list(keys), list(index))
        assert queue.filled.item() == min(sum(batches[:done]), size)
        assert queue.head.item() == sum(batches[:done]) % size


def test_a_queue_of_whole_batches_holds_the_last_of_them_where_they_were_written():
    queue = queue_of(6)
    batches = list(arrivals([2] * 7))
    for keys, index in batches:
        queue.enqueue(keys, index)
    assert queue.head.item() == 14 % 6
    assert torch.equal(queue.keys, torch.cat([batches[i][0] for i in (6, 4, 5)]))
    assert queue.index.tolist() == [12, 13, 8, 9, 10, 11]


def test_a_new_queue_points_in_random_directions_and_knows_that_no_key_is_real():
    queue = queue_of(1000, 16)
    assert queue.keys.shape == (1000, 16)
    assert queue.keys.norm(dim=1).tolist() == pytest.approx([1] * 1000, abs=1e-6)
    assert queue.keys.mean(0).abs().max() < 4 / (1000 * 16) ** 0.5      # standard deviations of a mean coordinate
    assert (queue.keys @ queue.keys.T).fill_diagonal_(0).max() < 0.99
    assert queue.index.tolist() == [-1] * 1000
    assert (queue.head.item(), queue.filled.item()) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_queue_keeps_keys_of_any_precision_in_its_own_and_without_their_gradient(dtype):
    queue, keys = queue_of(5), normal(2, 3).to(dtype).requires_grad_()
    queue.enqueue(keys * 2, torch.arange(2))
    assert queue.keys.dtype == torch.float32
    assert not queue.keys.requires_grad
    assert torch.equal(queue.keys[:2], (keys * 2).float())


def test_a_snapshot_is_the_queue_before_later_keys_and_lets_a_loss_go_back_through_it():
    queue, query = queue_of(5), normal(2, 3).requires_grad_()
    before = queue.keys.clone()
    snapshot = queue.snapshot()
    loss = (query @ snapshot.T).logsumexp(1).sum()
    queue.enqueue(normal(4, 3, seed=1), torch.arange(4))
    loss.backward()
    assert torch.equal(snapshot, before)
    assert not snapshot.requires_grad
    expected, = torch.autograd.grad((query @ before.T).logsumexp(1).sum(), query)
    assert torch.equal(query.grad, expected)


def test_what_became_of_the_enqueued_tensors_does_not_reach_the_queue():
    queue, keys, index = queue_of(2), normal(2, 3), torch.arange(2)
    queue.enqueue(keys, index)
    before = state(queue)
    keys.zero_()
    index.zero_()
    assert same(state(queue), before)


def test_a_queue_is_whole_in_its_state_and_goes_on_from_it_as_if_never_stopped():
    first, second = queue_of(5), Queue(5, 3)
    batches = list(arrivals([3, 4, 2, 5, 1]))
    for keys, index in batches[:2]:
        first.enqueue(keys, index)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file))
    for keys, index in batches[2:]:
        first.enqueue(keys, index)
        second.enqueue(keys, index)
    assert list(first.state_dict()) == ["keys", "index", "head", "filled"]
    assert same(state(first), state(second))


def test_a_queue_is_full_once_no_key_is_random_and_no_more_after_a_reload():
    queue, found = Queue(6, 3), []
    start = state(queue)
    for _ in range(4):
        found.append(queue.full())
        queue.enqueue(torch.zeros(2, 3), torch.arange(2))
    assert found == [False, False, False, True]
    queue.load_state_dict(start)
    assert not queue.full()
    assert torch.equal(queue.share(), queue.keys)


def test_a_queue_never_waits_for_the_device():
    queue = Queue(5, 3).to("meta")                    # tensors without values: to read one is an error
    for _ in range(2):
        queue.enqueue(torch.zeros(4, 3, device="meta"), torch.zeros(4, dtype=torch.long, device="meta"))
    assert queue.snapshot().shape == (5, 3)
    with pytest.raises(RuntimeError, match="meta"):
        queue.filled.item()


@pytest.mark.parametrize(("size", "dim"), [(0, 3), (-2, 3), (5, 0)])
def test_a_queue_of_nothing_is_refused_in_a_sentence(size, dim):
    with pytest.raises(ValueError, match=f"a queue holds 1 or more keys of width 1 or more, not {size} of width {dim}"):
        Queue(size, dim)


def test_a_batch_that_does_not_fit_is_refused_in_a_sentence_and_changes_nothing():
    queue = queue_of(5)
    before = state(queue)
    with pytest.raises(ValueError, match="a batch of 6 keys does not fit a queue of 5: .* longer.* smaller"):
        queue.enqueue(torch.zeros(6, 3), torch.arange(6))
    assert same(state(queue), before)


@pytest.mark.parametrize(("keys", "index"), [((2, 4), (2,)), ((2, 1), (2,)), ((3,), (3,)), ((2, 3), (1,)),
                                             ((1, 3), (2,)), ((2, 3), (2, 1)), ((2, 3), ())], ids=str)
def test_keys_of_another_shape_are_refused_in_a_sentence_rather_than_spread(keys, index):
    queue = queue_of(5)
    before = state(queue)
    with pytest.raises(ValueError, match=r"a queue of width 3 takes keys \[B, 3\] with an index \[B\], not "):
        queue.enqueue(torch.zeros(keys), torch.zeros(index, dtype=torch.long))
    assert same(state(queue), before)


def network():
    """An encoder and a projector; the batch norm counts its batches in an integer buffer."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), nn.Linear(5, 2, bias=False)


def values(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def train(*modules, seed=0):
    """Move every parameter, as a step of an optimiser would."""
    with torch.no_grad():
        for i, parameter in enumerate(nn.Sequential(*modules).parameters()):
            parameter += normal(*parameter.shape, seed=100 * seed + i)


@pytest.mark.parametrize(("momentum", "steps", "value"), [(0.99, 100, 0.633967659), (0.999, 1000, 0.632304575)])
def test_an_average_that_starts_at_zero_nears_a_constant_one_as_the_geometric_series_says(momentum, steps, value):
    online = nn.Linear(3, 2).double()
    for parameter in online.parameters():
        nn.init.zeros_(parameter)
    average = MomentumEncoder(online)
    for parameter in online.parameters():
        nn.init.ones_(parameter)
    for _ in range(steps):
        average.update(online, momentum=momentum)
    for parameter in average.parameters():
        assert parameter.flatten().tolist() == pytest.approx([1 - momentum ** steps] * parameter.numel(), abs=1e-12)
        assert parameter.flatten().tolist() == pytest.approx([value] * parameter.numel(), abs=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99, 1.0])
def test_every_parameter_keeps_its_share_of_itself_and_takes_the_rest_from_its_online_one(momentum):
    online = network()
    nn.Sequential(*online).requires_grad_(False)[0][1].bias.requires_grad_()       # frozen ones are followed too
    average = MomentumEncoder(*online)
    expected = values(average)
    for step in range(3):
        train(*online, seed=step)
        average.update(*online, momentum=momentum)
        expected = [momentum * old + (1 - momentum) * new
                    for old, new in zip(expected, values(nn.Sequential(*online)), strict=True)]
        for parameter, value in zip(average.parameters(), expected, strict=True):
            assert torch.allclose(parameter, value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_a_momentum_of_zero_copies_and_one_keeps_bit_for_bit(momentum):
    online = network()
    average = MomentumEncoder(*online)
    before = values(average)
    train(*online)
    average.update(*online, momentum=momentum)
    assert same(values(average), before if momentum else values(nn.Sequential(*online)))


def test_a_weight_that_two_modules_share_is_one_and_moves_once():
    online = nn.Linear(3, 3), nn.Linear(3, 3)
    online[1].weight = online[0].weight
    average = MomentumEncoder(*online)
    before = online[0].weight.detach().clone()
    train(*online)
    average.update(*online, momentum=0.75)
    assert average.average[0].weight is average.average[1].weight
    assert torch.allclose(average.average[0].weight, before.lerp(online[0].weight, 0.25))


def test_a_momentum_encoder_starts_as_what_the_modules_do_in_turn():
    online = network()
    images = normal(6, 4)
    expected = copy.deepcopy(nn.Sequential(*online))(images)
    assert torch.equal(MomentumEncoder(*online)(images), expected)


def test_a_momentum_encoder_shares_nothing_with_the_modules_it_follows():
    method = nn.Module()
    method.encoder, method.projector = network()
    method.momentum_encoder = MomentumEncoder(method.encoder, method.projector)
    places = [tensor.data_ptr() for tensor in method.state_dict().values()]
    assert len(places) == len(set(places)) == 2 * len(nn.Sequential(method.encoder, method.projector).state_dict())
    online, averaged = values(method.encoder), values(method.momentum_encoder)
    train(method.encoder)
    assert same(values(method.momentum_encoder), averaged)
    train(method.momentum_encoder)
    method.momentum_encoder.update(method.encoder, method.projector, momentum=0.5)
    assert len(dict(method.momentum_encoder.named_modules())) == 6           # an update registers nothing
    assert not same(values(method.encoder), online)


def test_an_update_leaves_the_online_modules_alone():
    online = network()
    average = MomentumEncoder(*online)
    train(*online)
    before = [state(module) for module in online]
    average.update(*online, momentum=0.5)
    assert same([state(module) for module in online], before)
    assert all(p.requires_grad for module in online for p in module.parameters())


def test_an_update_leaves_the_statistics_of_batch_norm_alone():
    online = network()
    average = MomentumEncoder(*online)
    online[0](normal(8, 4) + 3)
    online[0](normal(8, 4) + 3)
    before = [buffer.clone() for buffer in average.buffers()]
    average.update(*online, momentum=0.5)
    assert len(before) == 3
    assert same(list(average.buffers()), before)
    assert not same(list(online[0].buffers()), before)


def test_a_momentum_encoder_that_trains_makes_statistics_of_its_own_passes():
    online = network()
    average = MomentumEncoder(*online)
    theirs = state(online[0])
    assert average.training
    assert all(module.training for module in average.modules())
    images = normal(8, 4) + 3
    average(images)
    hidden = images @ online[0][0].weight.T + online[0][0].bias
    norm = average.average[0][1]
    assert torch.allclose(norm.running_mean, 0.1 * hidden.mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * hidden.var(0), atol=1e-6)
    assert norm.num_batches_tracked.item() == 1
    assert same(state(online[0]), theirs)


def test_no_gradient_reaches_a_momentum_encoder():
    online = network()
    average = MomentumEncoder(*online)
    images = normal(6, 4).requires_grad_()
    assert not average(images).requires_grad
    (online[1](online[0](images)) * average(images)).sum().backward()
    average.update(*online, momentum=0.5)
    assert all(not p.requires_grad and p.grad is None for p in average.parameters())
    assert all(p.grad is not None for module in online for p in module.parameters())


def test_a_momentum_encoder_is_whole_in_its_state():
    online = network()
    first = MomentumEncoder(*online)
    train(*online)
    first.update(*online, momentum=0.5)
    first(normal(8, 4))
    second = MomentumEncoder(*network())
    second.load_state_dict(first.state_dict())
    assert same(state(first), state(second))
    for average in first, second:
        average.update(*online, momentum=0.9)
    assert torch.equal(first(normal(8, 4)), second(normal(8, 4)))
    assert list(first.state_dict()) == [f"average.{name}" for name in nn.Sequential(*online).state_dict()]


def test_a_momentum_encoder_never_waits_for_the_device():
    online = [module.to("meta") for module in network()]
    average = MomentumEncoder(*online)
    average.update(*online, momentum=0.5)
    assert average(torch.zeros(8, 4, device="meta")).shape == (8, 2)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, 99.9, float("nan")])
def test_a_momentum_that_is_no_share_is_refused_in_a_sentence(momentum):
    online = network()
    with pytest.raises(ValueError, match=f"momentum is the share kept, 0 to 1, not {momentum}: .*0.999"):
        MomentumEncoder(*online).update(*online, momentum=momentum)


@pytest.mark.parametrize("order", [[0], [1, 0], [0, 1, 0]])
def test_modules_other_than_its_own_are_refused_in_a_sentence(order):
    online = network()
    average = MomentumEncoder(*online)
    others = [copy.deepcopy(online[i]) for i in order]
    before = values(average)
    with pytest.raises(ValueError, match="a momentum encoder follows the modules it was made of, in their order"):
        average.update(*others, momentum=0.5)
    assert same(values(average), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_too_coarse_to_follow_are_refused_in_a_sentence(dtype):
    online = [module.to(dtype) for module in network()]
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"{name} is too coarse .*mixed precision"):
        MomentumEncoder(*online).update(*online, momentum=0.999)


def filled_queues(rank, processes):
    """The queue after each of several batches of which this process holds its share."""
    found = {}
    for name, batches in BATCHES.items():
        queue = queue_of(6)
        for step, (keys, index) in enumerate(arrivals(batches)):
            queue.enqueue(keys.chunk(processes)[rank].requires_grad_(), index.chunk(processes)[rank])
            found[name, step] = state(queue)
    return found


def refusal(rows):
    with pytest.raises(ValueError, match="does not fit") as error:
        queue_of(5).enqueue(torch.zeros(rows, 3), torch.arange(rows))
    return str(error.value)


def one_process(rank, port, folder):
    limit = timedelta(seconds=SECONDS)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES, timeout=limit)
    torch.save({"queues": filled_queues(rank, PROCESSES), "refusal": refusal(3)}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)     # the system finds a free port
    processes = mp.spawn(one_process, (store.port, folder), nprocs=PROCESSES, join=False)
    finish(processes, SECONDS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", BATCHES)
def test_two_processes_hold_the_same_queue_as_one_with_the_whole_batch(halves, name):
    whole = filled_queues(0, 1)
    for step in range(len(BATCHES[name])):
        for results in halves:
            assert same(results["queues"][name, step], whole[name, step])


def test_a_batch_is_measured_over_all_processes(halves):
    assert [results["refusal"] for results in halves] == [refusal(6)] * PROCESSES


# Keys in other company

def normed():
    """A batch norm in training mode tells who stood in the batch."""
    return MomentumEncoder(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4)))


@pytest.mark.parametrize(("batch", "splits"), [(8, 2), (8, 4), (7, 3), (5, 2)])
def test_every_splits_th_image_shares_its_statistics_and_keys_come_in_the_images_order(batch, splits):
    images = torch.randn(batch, 4, generator=torch.Generator().manual_seed(0))
    keys = normed().keys(images, Key(0, 0, 0, 0), splits)
    for group in range(splits):
        rows = images[group::splits]
        expected = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
        assert torch.allclose(keys[group::splits], expected, atol=1e-5)


def test_without_splits_keys_are_what_the_encoder_makes_of_the_batch():
    images = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normed().keys(images, Key(0, 0, 0, 0)), normed()(images))


def test_groups_of_one_image_are_refused():
    with pytest.raises(ValueError, match="a batch of 6 images does not make 4 groups of 2 or more: lower splits"):
        normed().keys(torch.zeros(6, 4), Key(0, 0, 0, 0), 4)
