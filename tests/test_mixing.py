"""Mixed negatives against the closed forms and the numbers of the reference."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from ssl_zoo import distributed
from ssl_zoo.distributed import Key
from ssl_zoo.losses import contrast, queue_similarities
from ssl_zoo.mixing import Mixture, draw_mixture, hardest_keys, mixed_negatives, mixed_similarities
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
    return mixed_negatives(query, queue, hardest_keys(query, queue, hardest), drawn)


def mixed_with_query(query, key, share):
    drawn = none()._replace(single=torch.zeros(1, 1, dtype=torch.long), query_share=floats(share))
    return mix(query, key, 1, drawn)[0, 0]


def mixed_pair(query, keys, share):
    drawn = none()._replace(first=torch.zeros(1, 1, dtype=torch.long), second=torch.ones(1, 1, dtype=torch.long),
                            first_share=floats(share))
    return mix(query, keys, 2, drawn)[0, 0]


def test_the_hardest_keys_of_each_toy_query_are_its_own():
    for places, query in zip([[3, 0, 1], [4, 1, 2], [2, 5, 4], [0, 3, 5]], TOY, strict=True):
        for rank, place in enumerate(places):
            drawn = none()._replace(single=torch.full((1, 1), rank), query_share=torch.zeros(1, 1))
            assert torch.allclose(mix(query[None], QUEUE, 3, drawn)[0, 0], QUEUE[place])


def test_mixed_negatives_of_the_toy_queue_have_the_references_cosines_and_loss():
    mixed = mix(TOY, QUEUE, 3, FIXED)
    cosines = mixed_similarities(TOY, mixed)
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
    assert mixed.shape == (4, 0, 3)
    loss = contrast(positive, negative._replace(besides=mixed_similarities(TOY, mixed)), 0.2).item()
    assert loss == pytest.approx(0.860302825, abs=1e-9)


@pytest.mark.parametrize(("share", "cosines"), [
    (0.5, [0.707106781, 0.866025404, 0.974679434, 0.5]), (0.25, [0.316227766, 0.693375245, 0.942847304, -0.188982237]),
    (0.0, [0, 0.5, 0.9, -0.5]),
])
def test_a_key_mixed_with_its_query_is_as_near_as_the_closed_form_says(share, cosines):
    for c, expected in zip([0, 0.5, 0.9, -0.5], cosines, strict=True):
        query, key = floats(1, 0), floats(c, math.sqrt(1 - c * c))
        assert mixed_with_query(3 * query, key, share)[0].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("between", "cosine"), [(0.5, 0.692820323), (0.2, 0.774596669), (-0.28, 1.0)])
def test_a_pair_mixed_in_equal_shares_is_as_near_as_the_closed_form_says(between, cosine):
    height = math.sqrt(1 - 0.36)
    turn = math.acos((between - 0.36) / (height * height))          # both at a cosine of 0.6 with the query
    keys = torch.cat([floats(0.6, height, 0), floats(0.6, height * math.cos(turn), height * math.sin(turn))])
    assert (keys[0] @ keys[1]).item() == pytest.approx(between)
    mixed = mixed_pair(floats(1, 0, 0), keys, 0.5)
    assert mixed[0].item() == pytest.approx(cosine, abs=1e-9)


def test_the_share_of_a_pair_is_the_first_ones():
    keys = torch.eye(3, dtype=torch.float64)[1:]
    query = floats(0, 0.9, 0.1)                                     # the first key is the hardest
    assert torch.allclose(mixed_pair(query, keys, 0.75), normalize(floats(0, 0.75, 0.25))[0])
    assert torch.allclose(mixed_pair(query, keys, 0.0), keys[1])


def test_mixed_negatives_have_unit_norm_and_no_gradient_and_leave_the_queue_alone():
    query, queue = normal(7, 5).requires_grad_(), normalize(normal(20, 5, seed=1), dim=-1).requires_grad_()
    before = queue.detach().clone()
    mixed = mix(query, queue, 8, draw_mixture(Key(0, 0, 0, 0), 7, 8, 6, 4, CPU))
    assert mixed.shape == (7, 10, 5)
    assert torch.allclose(mixed.norm(dim=-1), torch.ones(7, 10).double(), atol=1e-6)
    assert not mixed.requires_grad
    assert torch.equal(queue, before)


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
        mixed = normalize(share * query + (1 - share) * key) if follows else mixed_with_query(query, key, share)[None]
        mixed_similarities(query, mixed[:, None]).sum().backward()
        pushes.append(query.grad[0, 1].item())
    assert pushes[1] / pushes[0] == pytest.approx(0.807692308, abs=1e-9)
