"""The queue against a deque, the momentum encoder against its recursion, and both on two processes against one."""

import copy
import io
from collections import deque

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from ssl_zoo import distributed
from ssl_zoo.distributed import Key
from ssl_zoo.memory import Centre, MomentumEncoder, Queue, SampleTable
from tests.conftest import same, state
from tests.processes import PROCESSES

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
        found.append(queue.full().item())
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
        average.update(momentum=momentum)
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
        average.update(momentum=momentum)
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
    average.update(momentum=momentum)
    assert same(values(average), before if momentum else values(nn.Sequential(*online)))


def test_a_weight_that_two_modules_share_is_one_and_moves_once():
    online = nn.Linear(3, 3), nn.Linear(3, 3)
    online[1].weight = online[0].weight
    average = MomentumEncoder(*online)
    before = online[0].weight.detach().clone()
    train(*online)
    average.update(momentum=0.75)
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
    method.momentum_encoder.update(momentum=0.5)
    assert len(dict(method.momentum_encoder.named_modules())) == 6           # an update registers nothing
    assert not same(values(method.encoder), online)


def test_an_update_leaves_the_online_modules_alone():
    online = network()
    average = MomentumEncoder(*online)
    train(*online)
    before = [state(module) for module in online]
    average.update(momentum=0.5)
    assert same([state(module) for module in online], before)
    assert all(p.requires_grad for module in online for p in module.parameters())


def test_an_update_leaves_the_statistics_of_batch_norm_alone():
    online = network()
    average = MomentumEncoder(*online)
    online[0](normal(8, 4) + 3)
    online[0](normal(8, 4) + 3)
    before = [buffer.clone() for buffer in average.buffers()]
    average.update(momentum=0.5)
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
    average.update(momentum=0.5)
    assert all(not p.requires_grad and p.grad is None for p in average.parameters())
    assert all(p.grad is not None for module in online for p in module.parameters())


def test_a_momentum_encoder_is_whole_in_its_state():
    online = network()
    first = MomentumEncoder(*online)
    train(*online)
    first.update(momentum=0.5)
    first(normal(8, 4))
    others = network()
    second = MomentumEncoder(*others)
    second.load_state_dict(first.state_dict())
    nn.Sequential(*others).load_state_dict(nn.Sequential(*online).state_dict())
    assert same(state(first), state(second))
    for average in first, second:
        average.update(momentum=0.9)
    assert torch.equal(first(normal(8, 4)), second(normal(8, 4)))
    assert list(first.state_dict()) == [f"average.{name}" for name in nn.Sequential(*online).state_dict()]


def test_a_momentum_encoder_never_waits_for_the_device():
    online = [module.to("meta") for module in network()]
    average = MomentumEncoder(*online)
    average.update(momentum=0.5)
    assert average(torch.zeros(8, 4, device="meta")).shape == (8, 2)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, 99.9, float("nan")])
def test_a_momentum_that_is_no_share_is_refused_in_a_sentence(momentum):
    online = network()
    with pytest.raises(ValueError, match=f"momentum is the share kept, 0 to 1, not {momentum}: .*0.999"):
        MomentumEncoder(*online).update(momentum=momentum)


def test_modules_that_changed_their_shapes_since_are_refused_in_a_sentence():
    online = network()
    average = MomentumEncoder(*online)
    before = values(average)
    online[0][0] = nn.Linear(4, 5, bias=False)
    with pytest.raises(ValueError, match="a momentum encoder of 5 parameters follows modules that have 4 or other"):
        average.update(momentum=0.5)
    assert same(values(average), before)


def test_a_momentum_encoder_unpacks_into_its_averaged_modules():
    encoder, projector = average = MomentumEncoder(*network())
    images = normal(6, 4)
    assert torch.equal(projector(encoder(images)), average(images))
    assert encoder is average.average[0]


def test_a_copy_of_a_method_follows_the_copied_modules():
    method = nn.Module()
    method.encoder, method.projector = network()
    method.momentum_encoder = MomentumEncoder(method.encoder, method.projector)
    other = copy.deepcopy(method)
    train(method.encoder)
    before = values(other.momentum_encoder)
    other.momentum_encoder.update(momentum=0.5)
    assert torch.allclose(torch.cat([v.flatten() for v in values(other.momentum_encoder)]),
                          torch.cat([v.flatten() for v in before]), atol=1e-7)


@pytest.mark.parametrize("drop", [StochasticDepth(0.9, "row"), DropPath(0.9), nn.Dropout(0.9)])
def test_a_momentum_encoder_drops_nothing_and_leaves_the_online_module_its_own(drop):
    average = MomentumEncoder(drop)
    images = normal(50, 4)
    assert torch.equal(average(images), images)
    assert not torch.equal(drop(images), images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_too_coarse_to_follow_are_refused_in_a_sentence(dtype):
    online = [module.to(dtype) for module in network()]
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"{name} is too coarse .*mixed precision"):
        MomentumEncoder(*online).update(momentum=0.999)


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


def centred(rank, processes):
    """A centre after three steps, of which the second brings rows to the first process alone and the third none."""
    centre = Centre(3, momentum=0.75)
    for outputs, own in ((normal(8, 3), slice(4 * rank, 4 * rank + 4)), (normal(5, 3, seed=1), slice(5 - 5 * rank)),
                         (normal(8, 3), slice(0))):
        centre.update(outputs[own] if processes > 1 else outputs[:own.stop and len(outputs)])
    return centre.value


INDEX = torch.tensor([[0, 4, 2, 4], [5, 0, 0, 3], [1, 1, 1, 1]])     # of three batches: images repeat within and across


def written(rank, processes):
    """A table that each process has written with its share of three batches, and what was read before each."""
    table, found = SampleTable(6, average=1.0, vector=[0.0, 2.0]), []
    for step, index in enumerate(INDEX):
        index = index.chunk(processes)[rank]
        found.append((table.read("average", index), table.read("vector", index)))
        values = normal(4, 3, seed=step).chunk(processes)[rank]
        table.write(index, average=table.read("average", index) / 2 + values[:, 0], vector=values[:, 1:])
    return state(table), found


def shuffled(rank, processes):
    """Keys by batch statistics and keys of a pair of outputs, of this process's share of 8 images."""
    images, key = normal(8, 4).chunk(processes)[rank], Key(3, 1, 4, rank)
    encoder = normed()
    one, (first, second) = encoder.keys(images, key), encoder.keys(images, key, 1, lambda x: (encoder(x), 2 * x))
    return images, one, first, second


def seen(rank):
    """Rows of images of a padded set of five, which the second process has seen in part as well."""
    index = torch.tensor([[0, 2, 4], [1, 3, 0]])[rank]
    return torch.stack([index, index + 10 * rank], 1), index


def one_process(rank):
    return {"queues": filled_queues(rank, PROCESSES), "refusal": refusal(3), "centre": centred(rank, PROCESSES),
                "table": written(rank, PROCESSES), "keys": shuffled(rank, PROCESSES),
                "by_index": distributed.by_index(*seen(rank))}


@pytest.fixture(scope="module")
def halves(two_processes):
    """What each of the two processes found."""
    return two_processes(one_process)


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


def test_keys_of_several_processes_are_encoded_among_the_images_that_the_shuffle_brings_together(halves):
    images = normal(8, 4)
    order = np.random.default_rng(np.random.SeedSequence([3, 1, 4], spawn_key=(1,))).permutation(8)
    expected = torch.empty(8, 4)
    for group in order.reshape(2, 4):
        rows = images[group]
        expected[group] = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
    assert sorted(order[:4]) != [0, 1, 2, 3]                         # else nobody could tell
    for place in range(1, 3):
        keys = torch.cat([results["keys"][place] for results in halves])
        assert torch.allclose(keys, expected, atol=1e-5)


def test_a_pair_of_outputs_is_shuffled_as_one_output_is(halves):
    for images, _, _, second in (results["keys"] for results in halves):
        assert torch.equal(second, 2 * images)                       # each key is its own image's
    images, encoder = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), normed()
    one, two = encoder.keys(images, Key(0, 0, 0, 0), 3, lambda x: (encoder(x), x))
    assert torch.equal(one, normed().keys(images, Key(0, 0, 0, 0), 3))
    assert torch.equal(two, images)


# A centre

def test_a_centre_nears_a_constant_mean_as_the_geometric_series_says():
    centre = Centre(2, momentum=0.9)
    outputs = torch.tensor([[1.0, -2.0], [3.0, 4.0]]).view(2, 1, 2)
    for _ in range(20):
        centre.update(outputs)
    assert centre.value.tolist() == pytest.approx([2 * (1 - 0.9 ** 20), 1 - 0.9 ** 20], abs=1e-6)
    assert torch.equal(centre(outputs), outputs - centre.value)
    assert list(centre.state_dict()) == ["value"]


def test_a_centre_is_that_of_the_rows_of_all_processes_and_no_rows_do_not_move_it(halves):
    value = torch.zeros(3)
    for outputs in normal(8, 3), normal(5, 3, seed=1):
        value = 0.75 * value + 0.25 * outputs.mean(0)
    for results in halves:
        assert torch.allclose(results["centre"], value, atol=1e-6)
    assert torch.equal(halves[0]["centre"], halves[1]["centre"])
    assert torch.allclose(centred(0, 1), value, atol=1e-6)


def test_a_centre_refuses_a_momentum_that_is_no_share():
    with pytest.raises(ValueError, match="momentum is the share of the centre kept, 0 to 1, not 1.5"):
        Centre(2, momentum=1.5)


# A row for each image

def test_a_table_of_two_processes_is_that_of_one_with_images_that_repeat(halves):
    whole, found = written(0, 1)
    for rank, (table, read) in enumerate(results["table"] for results in halves):
        assert same(table, whole)
        assert same(read, [(a.chunk(2)[rank], v.chunk(2)[rank]) for a, v in found])


def test_a_table_keeps_the_last_row_of_an_image_and_starts_with_its_columns_values():
    average, vector = [1.0] * 6, [[0.0, 2.0]] * 6
    for step, index in enumerate(INDEX.tolist()):
        values = normal(4, 3, seed=step).tolist()
        new = {place: average[place] / 2 + row[0] for place, row in zip(index, values, strict=True)}
        for place, row in zip(index, values, strict=True):
            vector[place] = row[1:]
        average = [new.get(place, old) for place, old in enumerate(average)]
    table, _ = written(0, 1)
    assert table["average"].tolist() == pytest.approx(average, abs=1e-6)
    assert torch.allclose(table["vector"], torch.tensor(vector))
    assert list(table) == ["average", "vector"]


def test_a_table_takes_values_of_any_precision_without_their_gradient():
    table = SampleTable(3, u=0.0)
    table.write(torch.tensor([2, 0]), u=torch.tensor([0.5, 0.25], dtype=torch.bfloat16).requires_grad_())
    assert table.u.tolist() == [0.25, 0, 0.5]
    assert table.u.dtype == torch.float32
    assert not table.u.requires_grad


def test_a_table_never_waits_for_the_device():
    table = SampleTable(5, u=0.0).to("meta")
    index = torch.zeros(4, dtype=torch.long, device="meta")
    table.write(index, u=table.read("u", index) + 1)


@pytest.mark.parametrize(("wrong", "said"), [
    (lambda table: table.read("u", torch.tensor([1, 3])), "run from 1 to 3, and the table has rows for 3 images"),
    (lambda table: table.write(torch.tensor([0]), u=torch.zeros(1, 2)), r"the column u takes \[B\] for an index \[B\], "
                                                                        r"not \[1, 2\]"),
    (lambda table: table.require_size(4), "keeps a table of 3 images, and the training part has 4"),
    (lambda table: SampleTable(3), "1 or more rows and columns, not 3 rows and 0 columns"),
    (lambda table: SampleTable(0, u=1.0), "1 or more rows and columns, not 0 rows"),
])
def test_what_a_table_cannot_hold_is_refused_in_a_sentence(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong(SampleTable(3, u=0.0))


def test_rows_of_a_whole_set_come_in_its_order_once_on_every_process(halves):
    for results in halves:
        assert results["by_index"].tolist() == [[0, 0], [1, 11], [2, 2], [3, 13], [4, 4]]
    rows, index = torch.arange(4), torch.tensor([3, 0, 0, 1])
    assert distributed.by_index(rows, index).tolist() == [1, 3, 0]


# Streams of random numbers

def test_a_stream_is_a_function_of_name_seed_epoch_and_batch_and_of_no_rank():
    def drawn(name="masks", **changes):
        return Key(1, 2, 3, 0)._replace(**changes).generator(name).random(4).tolist()

    assert drawn() == drawn() == drawn(rank=5)
    others = [drawn(name) for name in ("mask", "masks ", "shuffled keys", "mixtures", "")]
    others += [drawn(**{field: 9}) for field in ("seed", "epoch", "batch")]
    assert len({tuple(numbers) for numbers in [drawn(), *others]}) == 9


def test_the_oldest_streams_are_the_numbered_ones_they_were():
    for name, number in (("shuffled keys", 1), ("mixtures", 2)):
        expected = np.random.default_rng(np.random.SeedSequence([1, 2, 3], spawn_key=(number,))).random(4)
        assert Key(1, 2, 3, 0).generator(name).random(4).tolist() == expected.tolist()
