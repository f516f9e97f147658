"""Mixed negatives against the closed forms and the numbers of the reference."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from ssl_zoo import blocks, distributed
from ssl_zoo.distributed import Key
from ssl_zoo.losses import contrast, queue_similarities
from ssl_zoo.mixing import Mixture, draw_mixture, hard_similarities, hardest_keys, mixed_similarities, places_of_largest
from tests.test_losses import QUEUE, TOY, TOY_TOO, normal

CPU = torch.device("cpu")
FIXED = Mixture(*(torch.tensor([row] * 4) for row in (
    [0, 0, 1], [1, 2, 2], [0.25, 0.5, 0.75], [0, 1], [0.1, 0.4])))      # the reference's coefficients


def floats(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def none(batch=1):
    """What is drawn where nothing is mixed."""
    return Mixture(*(torch.zeros(batch, 0, dtype=kind) for kind in (torch.long, torch.long, torch.float, torch.long,
                                                                   torch.float)))


def mix(query, queue, hardest, drawn):
    return hard_similarities(query, queue, hardest_keys(query, queue, hardest), drawn)


def mixed_with_query(query, key, share):
    drawn = none()._replace(single=torch.zeros(1, 1, dtype=torch.long), query_share=floats(share))
    return mix(query, key, 1, drawn)[0, 0]


def mixed_pair(query, keys, share):
    drawn = none()._replace(first=torch.zeros(1, 1, dtype=torch.long), second=torch.ones(1, 1, dtype=torch.long),
                            first_share=floats(share))
    return mix(query, keys, 2, drawn)[0, 0]


def written(query, queue, hardest, drawn):
    """The cosines [B, s + s'] with mixtures that are made one by one."""
    rows = []
    for i, q in enumerate(normalize(query, dim=-1)):
        keys = sorted(queue.detach(), key=lambda k, q=q: -(k @ q).item())[:hardest]
        mixed = [a * keys[j] + (1 - a) * keys[k]
                 for j, k, a in zip(drawn.first[i], drawn.second[i], drawn.first_share[i].double(), strict=True)]
        mixed += [b * q.detach() + (1 - b) * keys[j]
                  for j, b in zip(drawn.single[i], drawn.query_share[i].double(), strict=True)]
        rows.append(torch.stack([q @ (m / m.norm()) for m in mixed]))
    return torch.stack(rows)


def test_the_hardest_keys_of_each_toy_query_are_its_own():
    assert hardest_keys(TOY, QUEUE, 3).tolist() == [[3, 0, 1], [4, 1, 2], [2, 5, 4], [0, 3, 5]]


@pytest.mark.parametrize("columns", [3, 64, 65, 320, 328])
@pytest.mark.parametrize("count", [1, 2, 4, 20])
def test_the_largest_numbers_are_those_that_sorting_finds(columns, count):
    numbers, count = normal(6, columns), min(count, columns)
    assert torch.equal(places_of_largest(numbers, count), numbers.argsort(1, descending=True)[:, :count])
    equal = numbers.round()                                                   # of equal numbers any may be found
    places = places_of_largest(equal, count)
    assert torch.equal(equal.gather(1, places), equal.sort(1, descending=True).values[:, :count])
    assert all(len(set(row)) == count for row in places.tolist())


def test_mixed_negatives_of_the_toy_queue_have_the_references_cosines_and_loss():
    cosines = mix(TOY, QUEUE, 3, FIXED)
    expected = [[0.929317, 0.760306, 0.989296, 0.946056, 0.973698], [0.992944, 0.548675, 0.969910, 0.995114, 0.997322],
                [0.862352, 0.838173, 0.973290, 0.892105, 0.948550], [0.756308, 0.942049, 0.925128, 0.805613, 0.907446]]
    assert torch.allclose(cosines, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
    positive, negative = queue_similarities(TOY, TOY_TOO, QUEUE)
    negative = negative._replace(besides=cosines)
    assert negative.matrix().shape == (4, 11)                             # 12 with the positive
    loss = contrast(positive, negative, 0.2).item()
    assert loss == pytest.approx(1.805903397, abs=1e-7)                   # the shares are float32, as drawn
    assert loss > contrast(*queue_similarities(TOY, TOY_TOO, QUEUE), 0.2).item()


def test_without_mixed_negatives_the_loss_is_mocos():
    positive, negative = queue_similarities(TOY, TOY_TOO, QUEUE)
    mixed = mix(TOY, QUEUE, 3, none(4))
    assert mixed.shape == (4, 0)
    assert contrast(positive, negative._replace(besides=mixed), 0.2).item() == pytest.approx(0.860302825, abs=1e-9)


@pytest.mark.parametrize(("share", "cosines"), [
    (0.5, [0.707106781, 0.866025404, 0.974679434, 0.5]), (0.25, [0.316227766, 0.693375245, 0.942847304, -0.188982237]),
    (0.0, [0, 0.5, 0.9, -0.5]),
])
def test_a_key_mixed_with_its_query_is_as_near_as_the_closed_form_says(share, cosines):
    for c, expected in zip([0, 0.5, 0.9, -0.5], cosines, strict=True):
        query, key = floats(1, 0), floats(c, math.sqrt(1 - c * c))
        assert mixed_with_query(3 * query, key, share).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("between", "cosine"), [(0.5, 0.692820323), (0.2, 0.774596669), (-0.28, 1.0)])
def test_a_pair_mixed_in_equal_shares_is_as_near_as_the_closed_form_says(between, cosine):
    height = math.sqrt(1 - 0.36)
    turn = math.acos((between - 0.36) / (height * height))          # both at a cosine of 0.6 with the query
    keys = torch.cat([floats(0.6, height, 0), floats(0.6, height * math.cos(turn), height * math.sin(turn))])
    assert (keys[0] @ keys[1]).item() == pytest.approx(between)
    assert mixed_pair(floats(1, 0, 0), keys, 0.5).item() == pytest.approx(cosine, abs=1e-9)


def test_the_share_of_a_pair_is_the_first_ones():
    keys = torch.eye(3, dtype=torch.float64)[1:]
    query = normalize(floats(0, 0.9, 0.1))                          # the first key is the hardest
    assert mixed_pair(query, keys, 0.75).item() == pytest.approx((query[0] @ normalize(floats(0, 3, 1))[0]).item())
    assert mixed_pair(query, keys, 0.0).item() == pytest.approx(query[0, 2].item())


@pytest.mark.parametrize("piece", [None, 1, 300])
def test_cosines_and_gradients_are_those_of_mixtures_that_are_constants(monkeypatch, piece):
    if piece is not None:
        monkeypatch.setitem(blocks.BLOCK, "cpu", piece)             # 300: three images' products, one's lengths
        monkeypatch.setattr(blocks, "PLAIN", 0)
    query, queue = normal(7, 5).requires_grad_(), normalize(normal(20, 5, seed=1), dim=-1).requires_grad_()
    before, weight = queue.detach().clone(), normal(7, 10, seed=2)
    drawn = draw_mixture(Key(0, 0, 0, 0), 7, 8, 6, 4, CPU)
    found, expected = mix(query, queue, 8, drawn), written(query, queue, 8, drawn)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    (slope, nothing), (other, _) = (torch.autograd.grad((cosines * weight).sum(), (query, queue), allow_unused=True)
                                    for cosines in (found, expected))
    assert torch.allclose(slope, other, rtol=0, atol=1e-12)
    assert nothing is None
    assert torch.equal(queue, before)


@pytest.mark.parametrize("share", [0.49, 0.499, 0.4999, 0.49999997])
def test_of_two_opposite_keys_in_equal_shares_nothing_is_left_but_a_number(share):
    keys = normalize(floats(0.3, 0.2, 0.9).float())
    drawn = none()._replace(first=torch.tensor([[0]]), second=torch.tensor([[1]]), first_share=torch.tensor([[0.5]]),
                            single=torch.tensor([[1]]), query_share=torch.tensor([[share]]))
    query = keys.clone().requires_grad_()
    cosines = mix(query, torch.cat([keys, -keys]), 2, drawn)
    cosines.sum().backward()
    assert cosines.abs().max() <= 1.01
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("query_scale", [1, 5])
def test_mixed_negatives_do_not_depend_on_the_scale_of_the_query(query_scale):
    drawn = draw_mixture(Key(0, 0, 0, 0), 4, 3, 5, 5, CPU)
    assert torch.allclose(mix(query_scale * TOY, QUEUE, 3, drawn), mix(TOY, QUEUE, 3, drawn))
    assert torch.allclose(mixed_similarities(query_scale * TOY, QUEUE.expand(4, 6, 3)), normalize(TOY, dim=1) @ QUEUE.T)


def test_drawn_mixtures_pair_two_different_keys_and_keep_the_key_the_greater_part():
    drawn = draw_mixture(Key(0, 1, 2, 0), 50, 3, 40, 30, CPU)
    assert drawn.first.shape == drawn.second.shape == drawn.first_share.shape == (50, 40)
    assert drawn.single.shape == drawn.query_share.shape == (50, 30)
    assert not (drawn.first == drawn.second).any()
    for places in (drawn.first, drawn.second, drawn.single):
        assert places.unique().tolist() == [0, 1, 2]
    counts = torch.bincount((3 * drawn.first + drawn.second).flatten(), minlength=9).view(3, 3)
    assert counts.diagonal().tolist() == [0, 0, 0]
    assert (counts[~torch.eye(3, dtype=torch.bool)] - 2000 / 6).abs().max() < 75       # four deviations
    for shares, end in ((drawn.first_share, 1), (drawn.query_share, 0.5)):
        assert 0 <= shares.min() < 0.01 * end
        assert 0.99 * end < shares.max() < end
        assert shares.mean().item() == pytest.approx(end / 2, abs=0.02)


def test_a_draw_is_that_of_seed_epoch_and_batch():
    def drawn(*key):
        return draw_mixture(Key(*key), 4, 8, 3, 2, CPU)
    assert all(map(torch.equal, drawn(0, 1, 2, 0), drawn(0, 1, 2, 0)))
    for other in ((1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0)):
        assert not torch.equal(drawn(*other).first_share, drawn(0, 1, 2, 0).first_share)


def test_two_processes_share_the_draw_of_one(monkeypatch):
    whole, parts = draw_mixture(Key(0, 1, 2, 0), 8, 5, 3, 2, CPU), []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(draw_mixture(Key(0, 1, 2, rank), 4, 5, 3, 2, CPU))
    for drawn, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(drawn, torch.cat(halves))


def test_the_hardest_of_two_keys_can_be_paired():
    drawn = draw_mixture(Key(0, 0, 0, 0), 4, 2, 6, 0, CPU)
    assert torch.equal(drawn.second, 1 - drawn.first)


def test_half_precision_is_mixed_in_float32():
    drawn = draw_mixture(Key(0, 0, 0, 0), 4, 3, 5, 5, CPU)
    half = mix(TOY.bfloat16(), QUEUE.bfloat16(), 3, drawn)
    assert half.dtype == torch.float32
    assert torch.allclose(half, mix(TOY.bfloat16().float(), QUEUE.bfloat16().float(), 3, drawn))


def test_a_gradient_repels_a_query_from_a_mixture_more_strongly_where_that_stands_still():
    """Oracle H8: were the query inside the mixture learnt from, the push would be 0.8077 of this."""
    c, share = 0.5, 0.25
    key = floats(c, math.sqrt(1 - c * c))
    pushes = []
    for follows in (False, True):
        query = floats(1, 0).requires_grad_()
        if follows:
            mixed_similarities(query, normalize(share * query + (1 - share) * key)[:, None]).sum().backward()
        else:
            mixed_with_query(query, key, share).backward()
        pushes.append(query.grad[0, 1].item())
    assert pushes[1] / pushes[0] == pytest.approx(0.807692308, abs=1e-9)
