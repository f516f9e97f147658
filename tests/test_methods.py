"""Each method's loss against its paper's, written out, and the reference's numbers; and what each refuses."""

import copy
import math
import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from ssl_zoo import distributed, methods
from ssl_zoo.assignment import sinkhorn
from ssl_zoo.contract import seeded
from ssl_zoo.contract.gloo import own_part, without_norms
from ssl_zoo.data import ArrayImages
from ssl_zoo.encoders import Encoder, NarrowResNet
from ssl_zoo.heads import PixelPropagation
from ssl_zoo.memory import MomentumEncoder, Queue
from ssl_zoo.method import Batch
from ssl_zoo.methods import (
    AMCL,
    BYOL,
    DCL,
    DCLW,
    AMCLBarlowTwins,
    AMCLMoCo,
    BarlowTwins,
    DenseCL,
    MoCHi,
    MoCo,
    MoCoV3,
    PixContrast,
    PixPro,
    SimCLR,
    SwAV,
)
from ssl_zoo.methods.pixcontrast import pixel_contrast
from ssl_zoo.methods.pixpro import pixel_consistency
from ssl_zoo.mixing import draw_mixture
from ssl_zoo.views import Key, View, ViewSpec
from ssl_zoo.views.crops import cell_distances
from tests.conftest import MULTI_CROP, same, small, state, trainer
from tests.test_losses import FEW, QUEUE, TOY, TOY_TOO, WIDE, written_out_nt_xent

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log.*", "ignore:the loss of .* sits at")
WIDTHS = {"projector": (16, 8)}
ANY_NUMBER_OF_VIEWS = {"LeJEPA", "VISReg", "MVInfoNCE", "MVDHEL", "ViewAggregate", "CACR", "CACRMoCoV3", "GroCo",
                        "WMSE"}
PAIRS = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)]          # of the multi-crop views
PROTOTYPES = normalize(torch.cos(0.2 + 1.9 * FEW[:3] + 0.8 * WIDE), dim=-1)


# The reference's numbers, through the whole of a method: the toy rows are images of one pixel, and nothing changes them


class Plain(Encoder):
    """Images are their own features."""

    dim = 3

    def __init__(self):
        super().__init__()
        self.backbone = nn.Identity()

    def maps(self, images: Tensor) -> Tensor:
        return images


class Copies(nn.Module):
    """As many heads, all alike."""

    def __init__(self, heads):
        super().__init__()
        self.heads = [nn.Identity()] * heads

    def forward(self, features):
        return torch.stack([features] * len(self.heads), 1)


def plain(cls, *rows, heads=None, **options):
    """A method without weights."""
    options |= {"projector": (8, 3)} | ({} if heads is None else {"heads": heads})
    method = small(cls, *rows, **options)
    method.encoder = Plain()
    for name in ("projector", "projectors", "predictor"):
        if hasattr(method, name):
            setattr(method, name, nn.Identity() if heads is None else Copies(heads))
    if hasattr(method, "momentum_encoder"):
        method.momentum_encoder = MomentumEncoder(Plain(), nn.Identity() if heads is None else Copies(heads))
    if hasattr(method, "queue"):
        method.queue = Queue(6, 3 * (heads or 1)).double()
        method.queue.keys.copy_(QUEUE.repeat(1, heads or 1))
    if hasattr(method, "temperature") and isinstance(method.temperature, nn.Module):
        method.temperature.network = nn.Identity()
    return method.double()


def toy_loss(method, *rows):
    """The loss of the toy rows, or of these, as images of one pixel."""
    rows = rows or (TOY, TOY_TOO)
    views = [View(z[:, :, None, None], torch.tensor([[0.0, 0, 1, 1]] * 4), torch.zeros(4, 2, dtype=torch.bool))
             for z in rows]
    return method.training_loss(Batch(views[0].images, torch.zeros(4), torch.arange(4), views, Key(0, 0, 0, 0))).item()


@pytest.mark.parametrize(("cls", "options", "value"), [
    (SimCLR, {"temperature": 0.5}, 0.553550044), (SimCLR, {}, 0.005983696),
    (SimCLR, {"temperature": 0.07}, 0.000629828),
    (DCL, {"temperature": 0.5}, -0.317824064), (DCL, {}, -5.950156935), (DCL, {"temperature": 0.07}, -8.734972224),
    (DCLW, {"temperature": 0.5}, -0.316243701), (DCLW, {}, -5.942255119),
    (MoCo, {"queue": 6}, 0.860302825), (MoCo, {"queue": 6, "temperature": 0.07}, 0.650150261),
    (MoCoV3, {"temperature": 0.2}, 0.039506206),
    (BarlowTwins, {}, 0.009944021),
    (AMCL, {"heads": 1}, 0.657588650), (AMCL, {"heads": 2}, 2 * 0.657588650),
    (AMCL, {"heads": 1, "form": "paper"}, -1.346452635), (AMCL, {"heads": 3, "form": "paper"}, -3 * 1.346452635),
])
def test_the_loss_of_the_toy_tensors_is_the_references_number(cls, options, value):
    assert toy_loss(plain(cls, **options)) == pytest.approx(value, abs=1e-8)


def test_mocos_symmetric_loss_of_the_toy_tensors_is_the_references_mean(monkeypatch):
    method = plain(MoCo, queue=6, symmetric=True)
    monkeypatch.setattr(method.queue, "enqueue", lambda *_: None)      # 8 keys do not fit the reference's queue of 6
    assert toy_loss(method) == pytest.approx(0.845086506, abs=1e-9)


@pytest.mark.parametrize("heads", [1, 2])
def test_amcl_on_a_queue_with_a_constant_temperature_is_mocos_symmetric_loss_for_each_head(heads):
    method = plain(AMCLMoCo, heads=heads, queue=8, floor=0.2, regularizer_weight=0)
    method.temperature.ceiling = 0.2
    method.queue = Queue(12, 3 * heads).double()
    method.queue.keys.copy_(QUEUE.repeat(2, heads))
    other = plain(MoCo, queue=8, symmetric=True)
    other.queue = Queue(12, 3).double()
    other.queue.keys.copy_(QUEUE.repeat(2, 1))
    assert toy_loss(method) == pytest.approx(heads * toy_loss(other), abs=1e-12)


@pytest.mark.parametrize(("epsilon", "two", "multi"), [
    (0.05, 0.352796547, 0.235422932), (0.25, 0.824926564, 0.712726464), (0.5, 1.824414177, 1.744221754)])
def test_swavs_loss_of_the_toy_tensors_is_the_references_number(epsilon, two, multi):
    rows = ViewSpec(16, 2, role="global"), ViewSpec(16, 2, role="local")
    for views, crops, value in (((), (TOY, TOY_TOO), two), (
            rows, (TOY, TOY_TOO, 0.7 * TOY + 0.3 * TOY_TOO, 0.3 * TOY + 0.7 * TOY_TOO), multi)):
        method = plain(SwAV, *views, prototypes=3, epsilon=epsilon)
        with torch.no_grad():
            method.prototypes.weight.copy_(3 * PROTOTYPES)        # normalised before it is used
        assert toy_loss(method, *crops) == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize(("prototypes", "value"), [(512, 6.238324625), (3000, 8.006367568)])
def test_swavs_loss_where_all_scores_are_equal_is_the_log_of_its_prototypes(prototypes, value):
    method = plain(SwAV, prototypes=prototypes)
    assert toy_loss(method, 0 * TOY, 0 * TOY_TOO) == pytest.approx(value, abs=1e-8)


def test_amcl_barlow_twins_at_a_temperature_of_one_is_barlow_twins():
    method = plain(AMCLBarlowTwins, global_batch=4, heads=2, regularizer_weight=0)
    method.temperature.network = nn.Linear(4, 4).double()
    nn.init.zeros_(method.temperature.network.weight)
    nn.init.zeros_(method.temperature.network.bias)
    method.temperature.floor = 0.0                               # (0 + 2) / 2
    assert toy_loss(method) == pytest.approx(2 * 0.009944021, abs=2e-9)


def test_mochi_without_mixing_has_the_references_loss_of_moco():
    assert toy_loss(plain(MoCHi, queue=6, hardest=3, pairs=0, with_query=0, start=0)) == pytest.approx(0.860302825)


# The losses written out, on what a method's own networks make of a batch


def batches(method, count):
    """Batches of noise images with the views that this method's augmentation draws."""
    generator = torch.Generator().manual_seed(1)
    for place in range(count):
        images = torch.randint(0, 256, (8, 3, 16, 16), generator=generator, dtype=torch.uint8)
        key, index = Key(0, 0, place, 0), torch.arange(8 * place, 8 * (place + 1))
        yield Batch(images, torch.full((8,), -1), index, method.augment(images, key), key)


def example(cls, *rows, steps=1, **options):
    """A method and a batch, after `steps` - 1 other batches, in float64."""
    method = seeded(lambda: small(cls, *rows, **options)).double()
    *earlier, batch = (own_part(batch, None) for batch in batches(method, steps))
    for other in earlier:
        method.training_loss(other)
    return method, batch


def cosines(rows, columns):
    return [[cosine_similarity(a, b, dim=0).item() for b in columns] for a in rows]


def log_sum(numbers):
    return math.log(sum(map(math.exp, numbers)))


def against(positive, negatives, temperature, kind="info_nce", weight=1.0):
    """One row of a contrast: cosines of a positive and of negatives."""
    rivals = [*negatives, positive] if kind == "info_nce" else negatives
    return log_sum(s / temperature for s in rivals) - weight * positive / temperature


def weights(positives, sigma=0.5):
    """Eq. (7) of DCLW."""
    shares = [math.exp(s / sigma) for s in positives]
    return [2 - len(positives) * share / sum(shares) for share in shares]


def both_ways(z1, z2, temperature, kind, sigma=0.5):
    """The mean over all rows of two views, each against all other images' rows."""
    z, batch, terms = torch.cat([z1, z2]), len(z1), []
    s = cosines(z, z)
    factors = weights([s[i][(i + batch) % (2 * batch)] for i in range(2 * batch)], sigma)
    for i in range(2 * batch):
        partner = (i + batch) % (2 * batch)
        negatives = [s[i][k] for k in range(2 * batch) if k not in (i, partner)]
        terms.append(against(s[i][partner], negatives, temperature, kind, factors[i] if "weighted" in kind else 1.0))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("rows", "pairs"), [((), [(0, 1)]), (MULTI_CROP, PAIRS)])
@pytest.mark.parametrize(("cls", "kind"), [(SimCLR, "info_nce"), (DCL, "decoupled"), (DCLW, "weighted_decoupled")])
def test_methods_of_the_batch_compare_each_global_view_with_every_other_view(cls, kind, rows, pairs):
    method, batch = example(cls, *rows, **WIDTHS, temperature=0.3)
    z = [method.projector(method.encoder(view.images)) for view in batch.views]
    expected = [both_ways(z[a], z[b], 0.3, kind) for a, b in pairs]
    assert method.training_loss(batch).item() == pytest.approx(sum(expected) / len(pairs), abs=1e-9)
    if cls is SimCLR:
        rows = [written_out_nt_xent(z[a], z[b], 0.3) for a, b in pairs]
        assert np.mean(rows) == pytest.approx(sum(expected) / len(pairs), abs=1e-12)


def test_dclws_weights_have_the_temperature_that_it_is_given():
    method, batch = example(DCLW, **WIDTHS, temperature=0.3, sigma=0.05)
    z1, z2 = (method.projector(method.encoder(view.images)) for view in batch.views)
    expected = both_ways(z1, z2, 0.3, "weighted_decoupled", 0.05)
    assert expected != pytest.approx(both_ways(z1, z2, 0.3, "weighted_decoupled"), abs=1e-3)
    assert method.training_loss(batch).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["info_nce", "decoupled", "weighted_decoupled"])
@pytest.mark.parametrize(("symmetric", "splits"), [(False, 1), (True, 1), (False, 4), (True, 2)])
def test_moco_finds_keys_among_a_queue_that_does_not_know_them_yet(kind, symmetric, splits):
    method, batch = example(MoCo, **WIDTHS, queue=20, symmetric=symmetric, splits=splits, contrast=kind, steps=2)
    queue, before = method.queue.keys.clone(), state(method.queue)
    losses, keys = [], []
    for a, b in [(0, 1), (1, 0)][:1 + symmetric]:
        images = batch.views[b].images
        query, key = method.projector(method.encoder(batch.views[a].images)), torch.empty(8, 8).double()
        for group in range(splits):                                   # image i is of group i mod splits
            key[group::splits] = method.momentum_encoder.average(images[group::splits])
        positives = [row[i] for i, row in enumerate(cosines(query, key))]
        factors = weights(positives) if kind == "weighted_decoupled" else [1.0] * 8
        losses += [against(p, negatives, 0.2, kind, f) for p, negatives, f in
                   zip(positives, cosines(query, queue), factors, strict=True)]
        keys.append(key)
    assert same(before, state(method.queue))
    assert method.training_loss(batch).item() == pytest.approx(sum(losses) / len(losses), abs=1e-9)
    slots = [(before["head"].item() + i) % 20 for i in range(8 * len(keys))]
    assert torch.allclose(method.queue.keys[slots], normalize(torch.cat(keys), dim=-1))
    assert torch.equal(method.queue.index[slots], batch.index.repeat(len(keys)))


def test_moco_v3_finds_keys_among_the_batchs_and_multiplies_by_twice_the_temperature():
    method, batch = example(MoCoV3, **WIDTHS, predictor=(16,), temperature=0.4)
    x = [view.images for view in batch.views]
    q1, q2 = (method.predictor(method.projector(method.encoder(images))) for images in x)
    k1, k2 = (method.momentum_encoder.average(images) for images in x)
    terms = [against(row[i], row[:i] + row[i + 1:], 0.4) for q, k in ((q1, k2), (q2, k1))
             for i, row in enumerate(cosines(q, k))]
    assert method.training_loss(batch).item() == pytest.approx(2 * 0.4 * sum(terms) / 8, abs=1e-9)


@pytest.mark.parametrize("kind", ["info_nce", "decoupled"])
def test_mochi_adds_mixtures_of_each_querys_hardest_keys(kind):
    method, batch = example(MoCHi, **WIDTHS, queue=20, hardest=5, pairs=4, with_query=3, start=0, contrast=kind,
                            steps=3)
    queue = method.queue.keys.clone()
    query = normalize(method.projector(method.encoder(batch.views[0].images)), dim=-1)
    key = method.momentum_encoder.average(batch.views[1].images)
    drawn = draw_mixture(batch.key, 8, 5, 4, 3, torch.device("cpu"))
    terms = []
    for i, q in enumerate(query):
        hardest = sorted(queue, key=lambda n, q=q: -(q @ n).item())[:5]
        mixed = [a.item() * hardest[j] + (1 - a.item()) * hardest[k] for j, k, a in
                 zip(drawn.first[i], drawn.second[i], drawn.first_share[i], strict=True)]
        mixed += [b.item() * q + (1 - b.item()) * hardest[j] for j, b in
                  zip(drawn.single[i], drawn.query_share[i], strict=True)]
        negatives = cosines([q], [*queue, *mixed])[0]
        assert len(negatives) == 27
        terms.append(against(cosine_similarity(q, key[i], dim=0).item(), negatives, 0.2, kind))
    assert method.training_loss(batch).item() == pytest.approx(sum(terms) / 8, abs=1e-7)     # shares are float32
    slots = [(16 + i) % 20 for i in range(8)]
    assert torch.allclose(method.queue.keys[slots], normalize(key, dim=-1))          # no mixture is remembered


def test_mochi_logs_how_many_queries_have_their_own_images_old_key_among_the_hardest(monkeypatch):
    method, batch = example(MoCHi, **WIDTHS, queue=20, hardest=5, pairs=4, with_query=3, start=0, steps=4)
    query, logged = method.projector(method.encoder(batch.views[0].images)), {}
    monkeypatch.setattr(method, "log_dict", lambda values, **_: logged.update(values))
    index = torch.arange(20) % 3 + 40
    method.queue.index.copy_(index)
    batch = batch._replace(index=torch.tensor([40, 41, 42, 43, 40, 41, 42, 43]))
    mine = [[index[k] for k in sorted(range(20), key=lambda k, q=q: -(method.queue.keys[k] @ q).item())[:5]]
            for q in query]
    expected = [int(own in found) for own, found in zip(batch.index, mine, strict=True)]
    assert 0 < sum(expected) <= 6                                                    # 43 is in no slot
    method.training_loss(batch)
    assert logged["hardest/same_image"].item() == pytest.approx(sum(expected) / 8)


@pytest.mark.parametrize("rows", [(), MULTI_CROP])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_swavs_other_views_predict_the_codes_of_each_global_one_and_of_a_full_queue(rows, steps):
    method, batch = example(SwAV, *rows, **WIDTHS, prototypes=6, queue=16, queue_start=0, steps=steps)
    sizes = [[view.images for view in batch.views if view.images.shape[-1] == size] for size in (16, 8)]
    features = torch.cat([method.encoder(torch.cat(images)) for images in sizes if images])   # one size at a time
    z = method.projector(features).chunk(len(batch.views))
    prototypes = normalize(method.prototypes.weight, dim=-1)
    scores = [normalize(z_v, dim=-1) @ prototypes.T for z_v in z]
    terms = []
    for g in (0, 1):
        rows_of_g = scores[g]
        if steps > 2:                                  # 16 earlier projections of this view
            rows_of_g = torch.cat([method.queues[g].keys @ prototypes.T, scores[g]])
        codes = sinkhorn(rows_of_g, 0.05, 3)[-8:]
        for v, s in enumerate(scores):
            if v != g:
                predicted = (s / 0.1).softmax(1)
                terms += [-sum(q * math.log(p) for q, p in zip(code, row, strict=True))
                          for code, row in zip(codes.tolist(), predicted.tolist(), strict=True)]
    assert method.training_loss(batch).item() == pytest.approx(sum(terms) / len(terms), abs=1e-8)
    for g, queue in enumerate(method.queues):
        assert queue.filled == min(8 * steps, 16)
        slots = [(8 * (steps - 1) + i) % 16 for i in range(8)]
        assert torch.allclose(queue.keys[slots], normalize(z[g], dim=-1))


def test_swav_fills_no_queue_before_its_start():
    method, batch = example(SwAV, **WIDTHS, prototypes=6, queue=8, queue_start=1, steps=3)
    queue = state(method.queues)
    loss = method.training_loss(batch)
    assert same(queue, state(method.queues))
    assert not any(queue.filled for queue in method.queues)
    without, batch = example(SwAV, **WIDTHS, prototypes=6, steps=3)
    assert without.training_loss(batch).item() == pytest.approx(loss.item(), abs=1e-6)


def test_two_processes_balance_swavs_codes_with_each_key_of_the_queue_once(monkeypatch):
    method, batch = example(SwAV, **WIDTHS, prototypes=6, queue=15, queue_start=0, steps=3)
    z = method.projector(method.encoder(batch.views[0].images))
    scores, of_keys = method.prototypes(z), method.prototypes(method.queues[0].keys)
    expected = sinkhorn(torch.cat([of_keys, scores]), 0.05, 3)[-8:]
    codes = method.codes(z, scores, copy.deepcopy(method.queues[0]), batch)
    assert torch.allclose(codes, expected, rtol=0, atol=1e-12)
    balanced = []                                        # what each process in turn would balance with the other
    with monkeypatch.context() as patch:
        patch.setattr("ssl_zoo.methods.swav.sinkhorn", lambda scores, *_: balanced.append(scores) or scores)
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(distributed, "gather", lambda x: torch.cat([x, x]))
        for rank, rows in enumerate((slice(4), slice(4, 8))):
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            part = batch._replace(index=batch.index[rows])
            method.codes(z[rows], scores[rows], copy.deepcopy(method.queues[0]), part)
    assert [len(rows) for rows in balanced] == [8 + 4, 7 + 4]
    codes = sinkhorn(torch.cat(balanced), 0.05, 3).split([8, 4, 7, 4])
    assert torch.allclose(torch.cat([codes[1], codes[3]]), expected, rtol=0, atol=1e-12)


def test_barlow_twins_is_its_two_sums():
    method, batch = example(BarlowTwins, **WIDTHS, redundancy_weight=0.1)
    z1, z2 = (method.projector(method.encoder(view.images)) for view in batch.views)
    expected = 0.0
    for i in range(8):
        for j in range(8):
            a, b = z1[:, i] - z1[:, i].mean(), z2[:, j] - z2[:, j].mean()
            c = (a @ b / (a.norm() * b.norm())).item()
            expected += (1 - c) ** 2 if i == j else 0.1 * c ** 2
    assert method.training_loss(batch).item() == pytest.approx(expected, rel=1e-6)


def temperature(method, a, b):
    r = (method.temperature.network(a) @ method.temperature.network(b)).item()
    return method.temperature.floor + (2 - method.temperature.floor) / (1 + math.exp(r))


def adaptive_row(method, anchor, positive, negatives, form, weight, width):
    """Eq. (2.1) of AMCL for one anchor, or its bounded form; all of unit norm."""
    def o(t):
        return width / 2 * math.log(t) + 1 / t
    hot = temperature(method, anchor, positive)
    pull = (anchor @ positive).item() / hot
    cold = [temperature(method, anchor, n) for n in negatives]
    s = [(anchor @ n).item() for n in negatives]
    if form == "paper":
        k = int(np.argmax(s))
        return s[k] / cold[k] - pull + weight * (o(hot) - o(cold[k]))
    pushes = [a / b for a, b in zip(s, cold, strict=True)]
    return log_sum([pull, *pushes]) - pull + weight * (o(hot) - sum(map(o, cold)) / len(cold))


@pytest.mark.parametrize("form", ["bounded", "paper"])
def test_amcl_adds_heads_of_one_network_of_temperatures(form):
    method, batch = example(AMCL, **WIDTHS, heads=2, form=form, regularizer_weight=0.1, floor=0.05)
    z1, z2 = (normalize(method.projectors(method.encoder(view.images)), dim=-1) for view in batch.views)
    expected = 0.0
    for c in range(2):
        z = torch.cat([z1[:, c], z2[:, c]])
        for i in range(16):
            others = [z[k] for k in range(16) if k % 8 != i % 8]
            expected += adaptive_row(method, z[i], z[(i + 8) % 16], others, form, 0.1, 8) / 16
    assert method.training_loss(batch).item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("form", ["bounded", "paper"])
def test_amcl_on_a_queue_adds_heads_with_a_queue_each_and_takes_the_mean_of_both_directions(form):
    method, batch = example(AMCLMoCo, **WIDTHS, heads=2, queue=20, form=form, regularizer_weight=0.1, floor=0.05,
                            steps=2)
    x = [view.images for view in batch.views]
    queries = [normalize(method.projectors(method.encoder(images)), dim=-1) for images in x]
    keys = [normalize(method.momentum_encoder.average(images), dim=-1) for images in x]
    queue = normalize(method.queue.keys.clone().view(20, 2, 8), dim=-1)
    expected = 0.0
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        for c in range(2):
            for i in range(8):
                expected += adaptive_row(method, query[i, c], key[i, c], list(queue[:, c]), form, 0.1, 8) / 16
    assert method.training_loss(batch).item() == pytest.approx(expected, abs=1e-8)
    slots = [(16 + i) % 20 for i in range(16)]
    assert torch.allclose(method.queue.keys[slots], torch.cat([keys[1], keys[0]]).flatten(1))


@pytest.mark.parametrize("form", ["bounded", "paper"])
def test_amcl_barlow_twins_is_its_sums_with_temperatures_of_unit_outputs(form):
    method, batch = example(AMCLBarlowTwins, **WIDTHS, heads=2, global_batch=8, form=form, regularizer_weight=0.01,
                            redundancy_weight=0.3, floor=0.05)
    z1, z2 = (method.projectors(method.encoder(view.images)) for view in batch.views)
    expected = 0.0
    for c in range(2):
        for i in range(8):
            for j in range(8):
                a, b = (normalize(z[:, c, k] - z[:, c, k].mean(), dim=0) for z, k in ((z1, i), (z2, j)))
                t, element = temperature(method, a, b), (a @ b).item()
                o = 4 * math.log(t) + 1 / t
                if i == j:
                    expected += (1 - element / t) ** 2 + 0.01 * o
                else:
                    expected += 0.3 * element ** 2 / t - (0.01 * o if form == "paper" else 0)
    assert method.training_loss(batch).item() == pytest.approx(expected, rel=1e-6)


# PixPro and PixContrast

SAME = torch.eye(4, dtype=torch.bool)[None]


def cells(rows):
    """[1, D, 4, 1] of four cells."""
    return rows.T[None, :, :, None]


def test_the_consistency_of_toy_cells_is_the_references_number():
    propagation = PixelPropagation(3, layers=0)
    losses = [pixel_consistency(propagation(cells(a)), cells(b), SAME).item()
              for a, b in ((TOY, TOY_TOO), (TOY_TOO, TOY))]
    assert sum(losses) == pytest.approx(-1.939481818, abs=5e-7 * 2)           # 1e-6 in the denominator
    assert 2 * sum(losses) == pytest.approx(-3.878963636, abs=1e-6 * 2)


def test_consistency_is_minus_one_at_best_and_an_image_without_matches_adds_zero():
    matches = torch.cat([SAME, torch.zeros_like(SAME)])
    x = torch.cat([cells(TOY), cells(TOY_TOO)]).requires_grad_()
    assert pixel_consistency(x[:1], 5 * x[:1], SAME).item() == pytest.approx(-1, abs=1e-6)
    loss = pixel_consistency(x, x, matches)
    assert loss.item() == pytest.approx(-0.5, abs=1e-6)
    (gradient,) = torch.autograd.grad(pixel_consistency(x, x.flip(3, 2), matches), x)
    assert gradient.isfinite().all()
    assert gradient[0].any()
    assert not gradient[1].any()


@pytest.mark.parametrize("loss", [pixel_consistency, lambda *x: pixel_contrast(*x, 0.3)])
def test_no_gradient_reaches_the_target_cells(loss):
    x, target = cells(TOY).requires_grad_(), cells(TOY_TOO).requires_grad_()
    loss(x, target, SAME).backward()
    assert x.grad.any()
    assert target.grad is None


def test_the_pixel_contrast_of_toy_cells_is_the_references_number():
    there, back = (pixel_contrast(cells(a), cells(b), SAME, 0.3).item()
                   for a, b in ((TOY, TOY_TOO), (TOY_TOO, TOY)))
    assert there == pytest.approx(0.131444104, abs=1e-9)
    assert (there + back) / 2 == pytest.approx(0.132498943, abs=1e-9)


def test_the_pixel_contrast_of_toy_cells_with_several_matches_or_none_is_the_references_number():
    matches = torch.tensor([[[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]]).bool()
    assert pixel_contrast(cells(TOY), cells(TOY_TOO), matches, 0.3).item() == pytest.approx(0.119750194, abs=1e-9)


def test_the_pixel_contrast_of_equal_cells_is_the_log_of_their_number():
    z = torch.ones(2, 3, 2, 2).double()
    assert pixel_contrast(z, z, SAME.expand(2, 4, 4), 0.3).item() == pytest.approx(math.log(4), abs=1e-12)


def test_the_pixel_contrast_of_an_image_without_matches_is_zero_and_has_a_finite_gradient():
    x = torch.cat([cells(TOY), cells(TOY)]).requires_grad_()
    loss = pixel_contrast(x, torch.cat([cells(TOY_TOO)] * 2), torch.cat([SAME, torch.zeros_like(SAME)]), 0.3)
    assert loss.item() == pytest.approx(0.131444104 / 2, abs=1e-9)
    loss.backward()
    assert x.grad.isfinite().all()
    assert not x.grad[1].any()


def written_out_matches(first, second, size, threshold):
    """[B][N][N], a cell at a time: PixPro's rule, sec. 3.1."""
    def centres(box, flipped):
        left, top, right, bottom = box.tolist()
        xs, ys = ([a + (b - a) * (i + 0.5) / size for i in range(size)] for a, b in ((left, right), (top, bottom)))
        return [(x, y) for y in (ys[::-1] if flipped[1] else ys) for x in (xs[::-1] if flipped[0] else xs)]
    found = []
    for box, flipped, other, turned in zip(first.boxes, first.flipped, second.boxes, second.flipped, strict=True):
        diagonal = max(math.hypot(b[2] - b[0], b[3] - b[1]) / size for b in (box.tolist(), other.tolist()))
        found.append([[math.dist(a, b) / diagonal < threshold for b in centres(other, turned)]
                      for a in centres(box, flipped)])
    return found


@pytest.mark.parametrize("instance_weight", [0.0, 0.7])
def test_pixpro_agrees_at_the_same_place_in_both_directions(instance_weight):
    method, batch = example(PixPro, **WIDTHS, instance_weight=instance_weight)
    first, second = batch.views
    matches = written_out_matches(first, second, 4, 0.7)
    maps = [method.encoder.maps(view.images) for view in batch.views]                 # [B, D, 4, 4]
    momentum, *heads = method.momentum_encoder.average
    y = [method.propagation(method.projectors[0](x)).flatten(2) for x in maps]
    t = [heads[0](momentum.maps(view.images)).flatten(2) for view in batch.views]
    expected = 0.0
    for b in range(8):
        pairs = [(i, j) for i in range(16) for j in range(16) if matches[b][i][j]]
        for a, target, ways in ((y[0], t[1], pairs), (y[1], t[0], [(j, i) for i, j in pairs])):
            total = sum(cosine_similarity(a[b, :, i], target[b, :, j], dim=0).item() for i, j in ways)
            expected -= total / (len(ways) + 1e-6) / 8
    if instance_weight:
        p = [method.predictor(method.projectors[1](x)).mean((2, 3)) for x in maps]
        t = [heads[1](momentum.maps(view.images)).mean((2, 3)) for view in batch.views]
        expected -= instance_weight * sum(cosine_similarity(p[v], t[1 - v]).mean().item() for v in (0, 1))
    assert sum(sum(map(sum, image)) for image in matches) > 0
    assert method.training_loss(batch).item() == pytest.approx(expected, abs=1e-8)


def test_pixcontrast_tells_matching_cells_from_all_others_in_both_directions():
    method, batch = example(PixContrast, **WIDTHS)
    matches = torch.tensor(written_out_matches(*batch.views, 4, 0.7))
    x = [method.projector(method.encoder.maps(view.images)).flatten(2) for view in batch.views]
    momentum, head = method.momentum_encoder.average
    t = [head(momentum.maps(view.images)).flatten(2) for view in batch.views]
    expected = 0.0
    for a, target, found in ((x[0], t[1], matches), (x[1], t[0], matches.mT)):
        for b in range(8):
            terms = []
            for i in range(16):
                row = [math.exp(cosine_similarity(a[b, :, i], target[b, :, j], dim=0).item() / 0.3) for j in range(16)]
                if found[b, i].any():
                    terms.append(math.log(sum(row) / sum(s for j, s in enumerate(row) if found[b, i, j])))
            expected += sum(terms) / max(len(terms), 1) / 8 / 2
    assert method.training_loss(batch).item() == pytest.approx(expected, abs=1e-8)


def test_the_written_out_matches_are_those_of_the_geometry():
    _, batch = example(PixPro, **WIDTHS)
    first, second = batch.views
    distances = cell_distances(first.boxes, first.flipped, second.boxes, second.flipped, 4, 4)
    assert torch.equal(distances < 0.7, torch.tensor(written_out_matches(first, second, 4, 0.7)))
    assert first.flipped.any()


@pytest.mark.parametrize("cls", [PixPro, PixContrast])
def test_cells_exactly_at_the_threshold_do_not_match(cls):
    method, batch = example(cls, **WIDTHS)
    box, still = torch.tensor([[0.0, 0, 0.75, 1]] * 8).double(), torch.zeros(8, 2, dtype=torch.bool)
    distances = cell_distances(box, still, box, still, 4, 4)          # cells of 3 by 4 sixteenths: a diagonal of 5
    assert (distances == 1).sum((1, 2)).tolist() == [4 * 9] * 8       # each 2 x 2 cells have two diagonals, both ways
    batch = batch._replace(views=[view._replace(boxes=box, flipped=still) for view in batch.views])
    losses = []
    for method.threshold in (0.9, 1.0, 1.1):
        losses.append(method.training_loss(batch).item())
    assert losses[0] == losses[1]
    assert losses[1] != pytest.approx(losses[2], abs=1e-6)


# How state moves while a run trains


@pytest.fixture
def run(arrays, tmp_path):
    """Train for four steps an epoch, calling `after` at each."""
    def run(method, *callbacks, **options):
        data = ArrayImages(str(arrays), batch_size=8, train_images=32)
        running = trainer(tmp_path, *callbacks, **{"max_epochs": 1, "limit_val_batches": 0} | options)
        running.fit(method, datamodule=data)
        return method
    return run


class AtEachStep(Callback):
    """Look at a method before and after each optimiser step."""

    def __init__(self, before=lambda method: None, after=lambda method: None):
        self.before, self.after, self.found = before, after, []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append(self.after(pl_module))


def weights_of(*modules):
    return [p.detach().clone() for p in nn.Sequential(*modules).parameters()]


RISING = [0.99, 0.991464466, 0.995, 0.998535534]      # the reference's, a quarter of the run apart


@pytest.mark.parametrize(("cls", "momenta", "options"), [
    (MoCo, [0.9] * 4, {"queue": 20}), (MoCHi, [0.9] * 4, {"queue": 20, "hardest": 8}),
    (AMCLMoCo, [0.9] * 4, {"queue": 20, "heads": 2}), (DenseCL, [0.9] * 4, {"queue": 20}),
    (BYOL, RISING, {"predictor": (16,)}),
    (MoCoV3, RISING, {"predictor": (16,)}), (PixPro, RISING, {"instance_weight": 1.0}), (PixContrast, RISING, {}),
])
def test_averages_move_once_a_step_by_one_minus_the_momentum(run, cls, momenta, options):
    method = seeded(lambda: small(cls, **WIDTHS, momentum=momenta[0], **options))

    def both(method):
        heads = [getattr(method, name) for name in ("projector", "projectors", "pixel_projector")
                 if hasattr(method, name)]
        return weights_of(method.momentum_encoder.average), weights_of(method.encoder, *heads)

    watch = AtEachStep(after=both)
    averages, online = weights_of(method.momentum_encoder.average), both(method)[1]
    assert same(averages, online)
    run(method, watch)
    for (after, online), momentum in zip(watch.found, momenta, strict=True):
        for a, b, value in zip(averages, after, online, strict=True):
            assert torch.allclose(b, momentum * a + (1 - momentum) * value, rtol=0, atol=2e-7)
        averages = after
    assert max((a - b).abs().max() for a, b in zip(averages, online, strict=True)) > 1e-3


@pytest.mark.parametrize("options", [{"pairs": 0, "with_query": 0, "start": 0}, {"start": 2}],
                         ids=["nothing mixed", "before its start"])
def test_mochi_that_does_not_mix_trains_as_moco_bit_for_bit(run, options):
    alike = WIDTHS | {"queue": 20, "momentum": 0.9}
    mochi = run(seeded(lambda: small(MoCHi, **alike, hardest=8, **options)), max_epochs=2)
    moco = run(seeded(lambda: small(MoCo, **alike)), max_epochs=2)
    assert same(state(mochi), state(moco))


def test_mochi_mixes_from_its_start(run):
    alike = WIDTHS | {"queue": 20, "momentum": 0.9, "hardest": 8}
    early, late = (run(seeded(lambda start=start: small(MoCHi, **alike, start=start)), max_epochs=2)
                   for start in (1, 2))
    assert not same(state(late), state(early))


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
                                       partial(torch.optim.Adam, lr=0.01, weight_decay=1e-3)], ids=["SGD", "Adam"])
def test_prototypes_have_unit_norm_at_every_step_and_stay_where_they_are_while_frozen(run, optimizer):
    norms = []
    watch = AtEachStep(before=lambda method: norms.append(method.prototypes.weight.norm(dim=-1).detach()),
                       after=lambda method: normalize(method.prototypes.weight.detach(), dim=-1))
    method = seeded(lambda: small(SwAV, **WIDTHS, prototypes=6, freeze_steps=3, optimizer=optimizer))
    with torch.no_grad():
        method.prototypes.weight.mul_(3)
    start = normalize(method.prototypes.weight.detach(), dim=-1)
    run(method, watch, max_epochs=2)
    assert torch.allclose(torch.stack(norms), torch.ones(8, 6), atol=1e-6)
    assert all(torch.allclose(found, start, atol=1e-6) for found in watch.found[:3])
    moved = [(found - start).abs().max().item() for found in watch.found[3:]]
    assert min(moved) > 1e-4


def test_swav_warns_at_the_loss_of_the_log_of_its_prototypes(run):
    method = seeded(lambda: small(SwAV, **WIDTHS, prototypes=6, freeze_steps=0, temperature=1e4))
    with pytest.warns(UserWarning, match=r"the loss of 1\.79\d sits at log\(prototypes\) = 1\.792"):
        run(method)


def test_a_second_run_from_a_first_state_has_the_first_runs_losses(run):
    losses = []
    watch = AtEachStep(after=lambda method: losses.append(method.trainer.callback_metrics["loss"].item()))
    method = seeded(lambda: small(SwAV, **WIDTHS, prototypes=6, queue=16, queue_start=0, freeze_steps=0))
    first = state(method)
    run(method, watch, max_epochs=2)
    method.load_state_dict(first)
    run(method, watch, max_epochs=2)
    assert losses[:8] == losses[8:]


def test_the_share_of_used_prototypes_is_that_of_those_nearest_to_some_projection(monkeypatch):
    method, logged = plain(SwAV, prototypes=3), {}
    monkeypatch.setattr(method, "log", lambda name, value, **_: logged.update({name: value.item()}))
    with torch.no_grad():
        method.prototypes.weight.copy_(torch.eye(3))
    for rows, used in (([0, 0, 0, 0], 1 / 3), ([0, 2, 2, 0], 2 / 3), ([0, 1, 2, 0], 1)):
        toy_loss(method, torch.eye(3).double()[rows], torch.eye(3).double()[[0] * 4])
        assert logged["prototypes/used"] == pytest.approx(used)


@pytest.mark.parametrize(("cls", "calls_for_a_head"), [(AMCL, 4), (AMCLMoCo, 2)])
def test_amcl_logs_the_temperatures_of_all_heads(cls, calls_for_a_head, monkeypatch):
    method, logged = plain(cls, heads=2, **({} if cls is AMCL else {"queue": 8})), {}
    if cls is AMCLMoCo:
        method.queue = Queue(12, 6).double()
        method.queue.keys.copy_(QUEUE.repeat(2, 2))
    calls = []
    method.temperature.of = lambda r: calls.append(r) or torch.full_like(r, 1 + (len(calls) <= calls_for_a_head))
    monkeypatch.setattr(method, "log_dict", lambda values, **_: logged.update(values))
    toy_loss(method)
    assert logged["log_temperature/positive_95"].item() == pytest.approx(math.log(2))      # of the first pairs
    assert logged["log_temperature/positive_5"].item() == 0                                # and of the later ones


def test_swav_does_not_warn_where_it_learns(run):
    method = seeded(lambda: small(SwAV, ViewSpec(16, 2, clean=True), **WIDTHS, prototypes=6, freeze_steps=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(method)
    assert not [warning for warning in caught if "sits at" in str(warning.message)]


# What each refuses


@pytest.mark.parametrize(("name", "count"), [(name, count) for name in methods.__all__ for count in (1, 3, 8)
                                             if count == 1 or name not in ANY_NUMBER_OF_VIEWS])
def test_a_method_refuses_another_number_of_views_without_roles_than_two(name, count):
    options = {"AMCLBarlowTwins": WIDTHS | {"global_batch": 8}, "SogCLR": WIDTHS | {"images": 8}, "OBoW": {},
               "WMSE": {"projector": (16, 3)}, "ISogCLR": WIDTHS | {"images": 8},
               "InterCLR": WIDTHS | {"images": 8}}.get(name, WIDTHS)
    with pytest.raises(ValueError, match=f"{name} learns from 2 views of each image, and this recipe draws {count}: "
                                         "make the counts"):
        small(getattr(methods, name), ViewSpec(16, count), **options)


@pytest.mark.parametrize(("cls", "options", "sentence"), [
    (SwAV, {"prototypes": 1}, "images are shared among 2 or more prototypes, not 1"),
    (AMCL, {"heads": 0}, "a method projects with 1 or more heads, not 0"),
    (AMCLMoCo, {"heads": 0}, "a method projects with 1 or more heads, not 0"),
    (AMCLBarlowTwins, {"heads": 0, "global_batch": 8}, "a method projects with 1 or more heads, not 0"),
    (AMCL, {"floor": 0.0}, "a floor above 0 and a ceiling above it, not 0.0, 2.0"),
    (MoCHi, {"queue": 20, "hardest": 21}, "MoCHi mixes 2 or more keys of its queue of 20, and hardest is 21"),
    (MoCHi, {"queue": 20, "hardest": 1}, "MoCHi mixes 2 or more keys of its queue of 20, and hardest is 1"),
    (MoCo, {"queue": 0}, "a queue holds 1 or more keys of width 1 or more, not 0 of width 8"),
    (MoCoV3, {"predictor": (16,), "freeze_patches": True}, "has no patch projection to freeze: leave freeze_patches"),
    (PixPro, {"transform_layers": 2}, "transformed by 0 or 1 layers, not 2"),
    (MoCHi, {"queue": 20, "hardest": 8, "pairs": -3, "with_query": 3}, "0 or more pairs .* not -3 and 3"),
    (MoCo, {"queue": 20, "contrast": "InfoNCE"}, "there is no contrast InfoNCE: it is one of info_nce, decoupled, "),
    (MoCHi, {"queue": 20, "hardest": 8, "contrast": "dcl"}, "there is no contrast dcl: it is one of"),
    (AMCL, {"form": "papers"}, "there is no form papers: it is one of bounded, paper"),
    (AMCLMoCo, {"form": "papers"}, "there is no form papers"),
    (AMCLBarlowTwins, {"form": "papers", "global_batch": 8}, "there is no form papers"),
    (MoCo, {"queue": 20, "projector": ()}, "a head has the width of its input and 1 or more others"),
    (SwAV, {"projector": ()}, "a head has the width of its input and 1 or more others"),
])
def test_a_method_refuses_what_it_cannot_be_built_of_in_a_sentence(cls, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(cls, **WIDTHS | options)


@pytest.mark.parametrize(("cls", "options", "sentence"), [
    (MoCo, {"queue": 7}, "a batch of 8 keys does not fit a queue of 7: make the queue longer"),
    (MoCo, {"queue": 15, "symmetric": True}, "a batch of 16 keys does not fit a queue of 15"),
    (MoCHi, {"queue": 7, "hardest": 2}, "a batch of 8 keys does not fit a queue of 7"),
    (AMCLMoCo, {"queue": 15, "heads": 2}, "a batch of 16 keys does not fit a queue of 15"),
    (SwAV, {"queue": 7, "queue_start": 15, "prototypes": 6}, "a batch of 8 keys does not fit a queue of 7"),
    (MoCo, {"queue": 20, "splits": 0}, "keys are encoded in 1 or more groups, not 0"),
    (MoCo, {"queue": 20, "splits": 5}, "a batch of 8 images does not make 5 groups of 2 or more: lower splits"),
    (AMCLMoCo, {"queue": 20, "splits": 5}, "a batch of 8 images does not make 5 groups of 2 or more"),
    (AMCLBarlowTwins, {"global_batch": 16}, "built for batches of 16 images over all processes and got 8: set "
                                            "model.global_batch to that"),
    (PixPro, {"encoder": NarrowResNet(4, 4)}, "this encoder's map of the views is 1x1: draw larger views"),
    (PixContrast, {"encoder": NarrowResNet(4, 4)}, "this encoder's map of the views is 1x1"),
])
def test_a_method_refuses_a_batch_that_it_cannot_learn_from_in_a_sentence(cls, options, sentence):
    method = small(cls, **WIDTHS, **options)
    for batch in batches(method, 1):
        with pytest.raises(ValueError, match=sentence):
            method.training_loss(batch)


@pytest.mark.parametrize("cls", [SimCLR, DCL, SwAV])
def test_two_views_of_which_none_is_global_are_refused_in_a_sentence(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} learns from the views of the role global and none of these"):
        small(cls, ViewSpec(16, 2, role="local"), **WIDTHS)


def test_a_multi_crop_recipe_is_refused_by_methods_of_two_views():
    for cls in (MoCo, MoCoV3, MoCHi, BarlowTwins, PixPro, PixContrast, AMCL, AMCLMoCo, BYOL, DenseCL):
        with pytest.raises(ValueError, match=f"{cls.__name__} learns from 2 views of each image, and this recipe "
                                             "draws 5"):
            small(cls, *MULTI_CROP, **WIDTHS)


@pytest.mark.parametrize("build", [
    partial(small, MoCo, projector=(16, 8), queue=20),
    partial(small, MoCHi, projector=(16, 8), queue=20, hardest=8, pairs=4, with_query=3, start=0),
], ids=["MoCo", "MoCHi"])
def test_a_queue_holds_keys_of_unit_norm_after_training(tmp_path, arrays, build):
    method = build()
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(method, ArrayImages(str(arrays), batch_size=8))
    assert method.queue.filled == 20
    assert torch.allclose(method.queue.keys.norm(dim=1), torch.ones(20), atol=1e-5)


# A batch of one image

@pytest.mark.parametrize("name", methods.__all__)
def test_one_image_alone_is_refused_or_learnt_from_but_never_without_a_word(name):
    from tests.test_contract import CASES  # which names the classes
    method = without_norms(CASES[name]())      # BatchNorm would refuse it too
    batch = next(batches(method, 1))
    views = [View(view.images[:1], view.boxes[:1], view.flipped[:1], view.role) for view in batch.views]
    batch = batch._replace(images=batch.images[:1], labels=batch.labels[:1], index=batch.index[:1], views=views)
    said, loss = "", None
    try:
        loss = method.training_loss(batch)
    except ValueError as error:
        said = str(error)
    weights = [p for p in method.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(loss, weights, allow_unused=True) if loss is not None and loss.isfinite() else ()
    assert (re.search("raise the batch size|lower splits|set model.global_batch", said)
            or any(slope.any() for slope in slopes if slope is not None)), said
