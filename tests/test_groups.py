"""SlotCon, InterCLR and OBoW, and their k-means, bank and words: written out, and the reference's numbers."""

import pytest
import torch
from torch.nn.functional import kl_div, normalize
from torchvision.ops import roi_align

from ssl_zoo import blocks, distributed
from ssl_zoo.clusters import ClusterBank, kmeans, member_means, nearest, repaired
from ssl_zoo.data import ArrayImages
from ssl_zoo.draws import Draws
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation.health import feature_std
from ssl_zoo.losses import contrast, key_similarities, unit
from ssl_zoo.methods import InterCLR, MoCo, OBoW, SlotCon
from ssl_zoo.slots import SemanticGrouping, aligned, nearest_to_some, slot_contrast
from ssl_zoo.views import View, ViewSpec
from ssl_zoo.views.crops import cell_centres, intersection
from ssl_zoo.vocabulary import Vocabulary, bag, squared_distances
from tests.conftest import same, small, state, trainer
from tests.test_bases import cosine, det, projections, require_equal
from tests.test_losses import normal
from tests.test_methods import batches, example

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log.*")
WIDTHS = {"projector": (16, 8)}
SLOTS = {"projector": (16, 8), "prototypes": 5}
BANK = WIDTHS | {"images": 32, "queue": 20, "clusters": 3, "smallest": 2, "negatives": 6, "pool": 12}
OVERLAP = (ViewSpec(16), ViewSpec(16, overlap=0.3, vertical_flip=0.5))
TEACHER_AND_CROPS = (ViewSpec(16, role="teacher", scale=(1.0, 1.0), ratio=(1.0, 1.0)),
                     ViewSpec(16, 2, scale=(0.08, 0.6)), ViewSpec(8, 3, scale=(0.05, 0.3)))


# SlotCon


def grouping(weight, temperature):
    found = SemanticGrouping(weight.shape[1], len(weight), temperature).double()
    with torch.no_grad():
        found.weight.copy_(weight)
    return found


def test_slots_and_the_agreement_with_oneself_are_the_references_numbers():
    slots, cosines = grouping(det(2, 3, k=1), 0.07)(det(1, 3, 2, 2, k=0))
    expected = torch.tensor([[0.530503, 0.866352, -0.373396], [0.944593, 0.350750, -0.880987]], dtype=torch.float64)
    assert torch.allclose(slots[0], expected, rtol=0, atol=1e-6)
    method = small(SlotCon, **SLOTS | {"prototypes": 2}).double()
    loss = method.place_loss(cosines.movedim(1, -1), cosines.movedim(1, -1), torch.ones(1, 1, 1))
    assert loss.item() == pytest.approx(0.108292, abs=1e-6)


def test_with_one_prototype_a_slot_is_the_mean_of_the_cells_and_slots_are_moco_v3s_keys():
    x, y = normal(2, 4, 3, 2, 2)
    alone = grouping(det(1, 3, k=1), 0.07)
    (slots, cosines), (keys, _) = alone(x), alone(y)
    assert torch.allclose(slots[:, 0], x.mean((2, 3)), rtol=0, atol=1e-12)
    ones = nearest_to_some(cosines).flatten()
    assert ones.tolist() == [1.0] * 4
    loss = slot_contrast(slots[:, 0], keys[:, 0], ones, keys[:, 0], ones, 0.2)
    written = 2 * 0.2 * contrast(*key_similarities(x.mean((2, 3)), y.mean((2, 3))), 0.2)
    assert loss.item() == pytest.approx(written.item(), abs=1e-12)


def test_a_prototype_without_cells_still_has_a_slot_and_a_finite_gradient():
    weight = torch.tensor([[1.0, 0, 0], [-1, 0, 0]])
    maps = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 2, 2).double().requires_grad_()
    slots, _ = grouping(weight, 0.01)(maps)
    assert torch.allclose(slots[0, 1], maps[0, :, 0, 0])
    slots.sum().backward()
    assert maps.grad.isfinite().all()


def views_of(batch=6):
    """Two overlapping boxes of each image, mirrored in all four ways."""
    generator = torch.Generator().manual_seed(3)
    start, size = 0.4 * torch.rand(2, batch, 2, generator=generator), 0.45 + 0.15 * torch.rand(
        2, batch, 2, generator=generator)
    flips = torch.tensor([[i % 2, i // 2 % 2] for i in range(batch)], dtype=torch.bool)
    return [View(torch.zeros(batch, 3, 8, 8), torch.cat([s, s + d], 1), f)
            for s, d, f in zip(start, size, (flips, flips.flip(0)), strict=True)]


def test_aligning_is_roi_align_on_the_shared_box_and_then_turning_back():
    first, second = views_of()
    shared = intersection(first.boxes, second.boxes)
    maps = normal(6, 3, 7, 7).float()
    for view in (first, second):
        ours = aligned(maps, view, cell_centres(shared, torch.zeros_like(view.flipped), 7, 7)).movedim(-1, 1)
        size = (view.boxes[:, 2:] - view.boxes[:, :2]).repeat(1, 2)
        box = (shared - view.boxes[:, :2].repeat(1, 2)) / size                   # in shares of the view
        mirrored = torch.stack([1 - box[:, 2], 1 - box[:, 3], 1 - box[:, 0], 1 - box[:, 1]], 1)
        box = torch.where(view.flipped.repeat(1, 2), mirrored, box)
        rois = torch.cat([torch.arange(6.0)[:, None], 7 * box], 1)
        found = roi_align(maps, rois, (7, 7), sampling_ratio=1, aligned=True)
        theirs = torch.stack([x.flip([axis for axis, flip in ((-1, f[0]), (-2, f[1])) if flip])
                              for x, f in zip(found, view.flipped, strict=True)])
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("rows", [(), OVERLAP])
@pytest.mark.parametrize("grouping_weight", [0.5, 0.2])
def test_slotcon_is_its_two_sums(rows, grouping_weight):
    options = SLOTS | {"grouping_weight": grouping_weight, "student_temperature": 0.3, "temperature": 0.4}
    method, batch = example(SlotCon, *rows, **options, steps=2)
    with torch.no_grad():
        for weight in method.momentum_encoder.parameters():
            weight.add_(0.01 * weight.square())                       # no longer the online encoder's
    encoder, projector, groups = method.momentum_encoder
    centre = method.centre.value.clone()
    assert centre.abs().max() > 0
    online = [method.grouping(method.projector(method.encoder.maps(view.images))) for view in batch.views]
    with torch.no_grad():
        target = [groups(projector(encoder.maps(view.images))) for view in batch.views]
    first, second = batch.views
    shared = intersection(first.boxes, second.boxes)
    places = cell_centres(shared, torch.zeros_like(first.flipped), 4, 4)
    grouped, terms, inside = torch.tensor(0.0).double(), [], 0
    for a, b in ((0, 1), (1, 0)):
        x = aligned(online[a][1], batch.views[a], places)
        y = aligned(target[b][1], batch.views[b], places)
        for i in range(8):
            if (shared[i, 2:] > shared[i, :2]).all():
                inside += 1
                for cell, other in zip(x[i].reshape(16, 5), y[i].reshape(16, 5), strict=True):
                    wanted = ((other - centre) / 0.07).softmax(0)
                    grouped = grouped - (wanted * (cell / 0.3).log_softmax(0)).sum() / 128
        (slots, scores), (keys, there) = online[a], target[b]
        used = [[{int(s[:, r, c].argmax()) for r in range(4) for c in range(4)} for s in maps]
                for maps in (scores, there)]
        every = [keys[i, k] for i in range(8) for k in used[1][i]]
        found = []
        for i in range(8):
            for k in used[0][i] & used[1][i]:
                query = predicted(method, slots, used, i, k)
                logits = torch.stack([cosine(query, key) / 0.4 for key in every])
                found.append(logits.logsumexp(0) - cosine(query, keys[i, k]) / 0.4)
        terms.append(sum(found) / len(found))
    assert 0 < inside <= 16
    written = grouping_weight * grouped + (1 - grouping_weight) * 2 * 0.4 * sum(terms)
    require_equal(method, batch, written)


def predicted(method, slots, used, image, prototype):
    """The prediction of one slot, with the others of its batch as BatchNorm sees them."""
    return method.predictor(slots.flatten(0, 1))[image * slots.shape[1] + prototype]


def test_the_centre_moves_to_the_mean_of_both_views_cosines_after_they_are_compared():
    method, batch = example(SlotCon, **SLOTS)
    encoder, projector, groups = method.momentum_encoder
    with torch.no_grad():
        cosines = [groups(projector(encoder.maps(view.images)))[1] for view in batch.views]
    method.training_loss(batch)
    assert torch.allclose(method.centre.value, 0.1 * torch.stack(cosines).mean((0, 1, 3, 4)), atol=1e-9)


def test_slots_that_no_cell_is_nearest_to_are_no_queries_and_no_keys():
    query, keys = normal(2, 6, 3)
    counts, valid = torch.tensor([1.0, 0, 1, 0, 0, 0]), torch.tensor([1.0, 1, 1, 0, 0, 1])
    loss = slot_contrast(query, keys, counts, keys, valid, 0.2)
    written = []
    for i in (0, 2):
        logits = torch.stack([cosine(query[i], keys[j]) / 0.2 for j in (0, 1, 2, 5)])
        written.append(logits.logsumexp(0) - cosine(query[i], keys[i]) / 0.2)
    assert loss.item() == pytest.approx(0.4 * sum(written).item() / 2, abs=1e-12)
    query.requires_grad_()
    nothing = slot_contrast(query, keys, torch.zeros(6), keys, valid, 0.2)
    nothing.backward()
    assert nothing.item() == 0
    assert torch.equal(query.grad, torch.zeros_like(query))


def test_slots_are_compared_in_blocks_where_they_are_many(monkeypatch):
    found = []
    for plain in (blocks.PLAIN, 0):
        monkeypatch.setattr(blocks, "PLAIN", plain)
        monkeypatch.setitem(blocks.BLOCK, "cpu", 3 * 9)
        query, keys = normal(9, 3).requires_grad_(), normal(9, 3, seed=1)
        counts = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 0, 1])
        loss = slot_contrast(query, keys, counts, keys, (counts + counts.flip(0)).clamp(max=1), 0.2)
        loss.backward()
        found.append((loss.detach(), query.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_slotcon_is_evaluated_by_its_averaged_encoder():
    method = small(SlotCon, **SLOTS)
    assert method.evaluated is method.momentum_encoder.average[0]


# k-means


def blobs(centres, each, noise=0.05):
    labels = torch.arange(centres * each) % centres
    middle = normalize(normal(centres, 6, seed=4), dim=1)
    return normalize(middle[labels] + noise * normal(len(labels), 6, seed=5), dim=1), labels, middle


def test_kmeans_finds_clusters_that_are_apart():
    x, labels, _ = blobs(4, 10)
    found = kmeans(x, x[[0, 1, 2, 3]])
    assert torch.equal(found, labels)
    means, counts = member_means(x, found, 4)
    for k in range(4):
        mean = sum(x[i] for i in range(40) if labels[i] == k)
        assert torch.allclose(means[k], mean / mean.norm(), atol=1e-12)
    assert counts.tolist() == [10] * 4


def test_a_round_of_kmeans_never_makes_the_rows_less_like_their_centroids():
    x, start = normalize(normal(60, 5), dim=1), normalize(normal(7, 5, seed=1), dim=1)
    likeness = []
    for rounds in (1, 2, 3, 5, 20):
        labels = kmeans(x, start, rounds)
        means, _ = member_means(x, labels, 7)
        likeness.append((x * means[labels]).sum().item())
    assert likeness == sorted(likeness)


def test_more_clusters_than_rows_are_refused():
    with pytest.raises(ValueError, match="k-means makes 1 to 3 clusters of 3 rows, not 4"):
        kmeans(torch.eye(3), torch.eye(4)[:, :3])


@pytest.mark.parametrize("seed", range(5))
def test_no_cluster_is_small_after_the_repair_where_there_are_twice_as_many_rows_as_it_takes(seed):
    x = normalize(normal(64, 4, seed=seed), dim=1)
    labels = (normal(64, seed=seed + 9).abs() * 3).long().clamp(max=7)                 # many in 0, few or none in 7
    found = repaired(x, labels, 8, 4)
    assert found.bincount(minlength=8).min() >= 4
    assert torch.equal(repaired(x, found, 8, 4), found)                                # nothing is left to repair


def test_a_small_clusters_rows_go_to_the_nearest_and_the_largest_is_cut_between_its_halves():
    x = torch.tensor([[1, 0.02, 0], [1, 0.01, 0], [1, 0, 0.02], [0.02, 1, 0], [0, 1, 0.02], [0.01, 1, 0],
                      [0, 0.1, 1], [0, 0, 1.0], [0.1, 0, 1.0], [0.9, 0, 1.0]]).double()
    x = normalize(x, dim=1)
    found = repaired(x, torch.tensor([0, 0, 0, 0, 0, 0, 2, 2, 2, 1]), 3, 2)
    assert found[9] == 2                                      # alone in cluster 1, and most like cluster 2
    assert sorted(map(tuple, [found[:3].tolist(), found[3:6].tolist()])) == [(0, 0, 0), (1, 1, 1)]


def cluster_on(rank, count):
    x = normalize(normal(count, 5), dim=1)
    labels = kmeans(x, x[:4])
    return [labels, nearest(x, x[:3]), *member_means(x, labels, 4), repaired(x, labels, 4, 3)]


@pytest.mark.parametrize("count", [5, 40])
def test_two_processes_share_the_work_of_kmeans_and_find_what_one_does(two_processes, count):
    one, (first, second) = cluster_on(0, count), two_processes(cluster_on, count)
    assert same(first, second)
    for alone, shared in zip(one, first, strict=True):
        assert torch.allclose(alone, shared, rtol=0, atol=1e-12)


# Draws


def draw_on(rank, number):
    torch.manual_seed(number)
    draws = Draws()
    return torch.cat([distributed.gather(draws(4 // distributed.world_size(), 3)), draws.order(12).view(4, 3)])


def test_draws_of_a_row_do_not_depend_on_the_processes_and_change_with_each_call(two_processes):
    whole, halves = draw_on(0, 7), two_processes(draw_on, 7)
    assert all(torch.equal(whole, half) for half in halves)
    assert not torch.equal(whole, draw_on(0, 8))
    assert sorted(whole[4:].flatten().tolist()) == list(range(12))
    draws = Draws()
    first, second = draws(2000, 2), draws(2000, 2)
    assert not (first == second).any()
    for numbers in (first, second):
        assert numbers.min() >= 0
        assert (numbers % 5).flatten().bincount().tolist() == pytest.approx([800] * 5, abs=120)


# InterCLR's bank


def bank(labels=(0, 0, 1, 1, 2, -1, 2, 0), dim=3):
    """A bank of eight images, one of which nobody has seen."""
    found = ClusterBank(8, dim, 2, 1)
    found.centroids = torch.zeros(3, dim)
    found.double()
    features = normalize(normal(8, dim, seed=2), dim=1) * (torch.tensor(labels) >= 0)[:, None]
    found.table.feature.copy_(features)
    found.table.cluster.copy_(torch.tensor(labels))
    found.made.fill_(1.0)
    return found


def test_the_loss_with_a_margin_is_the_references_number():
    positive, negative = torch.tensor([0.6]).double(), torch.tensor([[0.5, 0.0]]).double()
    assert contrast(positive + 0.5, negative, 0.2).item() == pytest.approx(0.052473, abs=1e-6)
    assert contrast(positive, negative, 0.2).item() == pytest.approx(0.504597, abs=1e-6)


@pytest.mark.parametrize("kind", ["semi_hard", "hard", "semi_easy", "random"])
def test_negatives_are_drawn_from_their_pool_of_other_clusters(kind):
    found, query, index = bank(), normal(6, 3), torch.tensor([0, 2, 3, 4, 6, 7])
    cosines = normalize(query, dim=1) @ found.table.feature.T
    labels = found.table.cluster
    seen = [set() for _ in range(6)]
    for _ in range(60):
        drawn = found.draw(query, index, 2, 3, kind)
        for row, (i, others) in enumerate(zip(index, drawn.negative, strict=True)):
            places = [int((cosines[row] - value).abs().argmin()) for value in others]
            assert len(set(places)) == 2
            assert all(labels[p] >= 0 and labels[p] != labels[i] for p in places)
            seen[row] |= set(places)
    for row, i in enumerate(index):
        allowed = sorted((p for p in range(8) if labels[p] >= 0 and labels[p] != labels[i]),
                         key=lambda p, row=row: -cosines[row, p].item())
        pool = {"semi_hard": allowed[:3], "hard": allowed[:2], "semi_easy": allowed[-3:], "random": allowed}[kind]
        assert seen[row] == set(pool)


def test_positives_are_all_members_of_the_querys_cluster_equally_often():
    found, query = bank(), normal(1, 3)
    cosines = normalize(query, dim=1) @ found.table.feature.T
    places = [int((cosines[0] - found.draw(query, torch.tensor([0]), 2, 3, "random").positive).abs().argmin())
              for _ in range(900)]
    assert {place: places.count(place) for place in set(places)} == pytest.approx({0: 300, 1: 300, 7: 300}, abs=60)


def test_an_image_in_no_cluster_is_not_known_and_too_few_negatives_are_minus_infinity():
    drawn = bank((0, 0, 0, 0, 1, -1, 0, 0)).draw(normal(3, 3), torch.tensor([0, 4, 5]), 4, 4, "semi_hard")
    assert drawn.known.tolist() == [True, True, False]
    assert drawn.negative.isneginf().sum(1).tolist() == [3, 0, 0]


def test_a_bank_takes_a_share_of_new_features_and_finds_their_clusters_once_there_are_any():
    found = ClusterBank(8, 3, 2, 1).double()
    features = normalize(normal(2, 3), dim=1)
    found.write(torch.tensor([3, 5]), features, 0.5)
    assert torch.allclose(found.table.feature[[3, 5]], features)
    assert found.table.cluster.unique().tolist() == [-1]
    found.centroids.copy_(features)
    found.made.fill_(1.0)
    found.write(torch.tensor([5, 3]), features, 0.25)
    mixed = normalize(0.75 * features.flip(0) + 0.25 * features, dim=1)
    assert torch.allclose(found.table.feature[[5, 3]], mixed)
    assert found.table.cluster[[5, 3]].tolist() == (mixed @ features.T).argmax(1).tolist()
    before = state(found)
    found.write(torch.tensor([5, 3]), mixed, 1.0)                       # features that stay keep their clusters
    assert torch.allclose(before["table.cluster"], found.table.cluster)


def test_tidying_makes_clusters_of_the_images_seen_and_mends_them_later(monkeypatch):
    x, labels, _ = blobs(3, 6)
    found = ClusterBank(24, 6, 3, 2).double()
    found.tidy()
    assert found.made == 0                                               # there is nothing to cluster yet
    found.write(torch.arange(18), x, 1.0)
    monkeypatch.setattr(found.draws, "order", torch.arange)              # k-means starts from one image of each blob
    found.tidy()
    clusters = found.table.cluster
    assert clusters[18:].tolist() == [-1] * 6
    assert len({(int(a), int(b)) for a, b in zip(labels, clusters[:18], strict=True)}) == 3
    assert torch.allclose(found.centroids[clusters[:18].long()], member_means(x, labels, 3)[0][labels])
    clusters[:18] = torch.where(labels == 2, 1, labels).double()         # a cluster loses all members
    found.tidy()
    assert clusters[:18].long().bincount().min() >= 2


# InterCLR


def test_interclr_weighs_moco_and_a_contrast_with_the_bank():
    method, batch = example(InterCLR, **BANK, start=0, splits=2, inter_weight=0.4, margin=-0.3)
    for _ in range(2):
        method.training_loss(batch)
        method.after_step()
    assert method.bank.made == 1
    saved, queue = state(method.bank), method.queue.keys.clone()
    query = method.projector(method.encoder(batch.views[0].images))
    average, images = method.momentum_encoder.average, batch.views[1].images
    key = torch.empty(8, 8).double()
    key[::2], key[1::2] = average(images[::2]).detach(), average(images[1::2]).detach()
    drawn = method.bank.draw(query, batch.index, 6, 12, "semi_hard")
    method.bank.load_state_dict(saved)                                    # draws the same again
    terms = []
    for i in range(8):
        intra = torch.stack([cosine(query[i], key[i]), *(other @ query[i] / query[i].norm() for other in queue)]) / 0.2
        inter = torch.stack([drawn.positive[i] + 0.3, *drawn.negative[i]]) / 0.2
        terms.append(0.6 * (intra.logsumexp(0) - intra[0]) + 0.4 * (inter.logsumexp(0) - inter[0]))
    assert drawn.negative.isfinite().any()
    require_equal(method, batch, sum(terms) / 8)
    assert torch.allclose(method.bank.table.feature[batch.index], unit(key))


def test_interclr_without_other_images_is_moco_bit_for_bit(tmp_path, arrays):
    found = []
    clustered = {"inter_weight": 0.0, "start": 0, "every": 1}
    for cls, options in ((MoCo, {}), (InterCLR, clustered), (InterCLR, {"start": 9})):
        torch.manual_seed(0)
        bank_options = {name: BANK[name] for name in BANK if name not in ("projector", "queue")} | {"images": 60}
        method = small(cls, **WIDTHS, queue=20, splits=2, **(options | bank_options if cls is InterCLR else {}))
        run = trainer(tmp_path, max_epochs=2, limit_train_batches=3, limit_val_batches=0)
        run.fit(method, ArrayImages(str(arrays), batch_size=8))
        found.append({name: value for name, value in state(method).items() if not name.startswith("bank")})
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_interclr_clusters_from_its_first_epoch_on(tmp_path, arrays):
    made = []
    method = small(InterCLR, **BANK | {"images": 60}, start=1, every=1)
    step = method.after_step

    def after_step():
        step()
        made.append(method.bank.made.item())
    method.after_step = after_step
    trainer(tmp_path, max_epochs=2, limit_train_batches=3, limit_val_batches=0).fit(
        method, ArrayImages(str(arrays), batch_size=8))
    assert made == [0, 0, 0, 1, 1, 1]


# OBoW


def test_a_bag_and_its_divergence_are_the_references_numbers():
    distances = squared_distances(det(1, 2, 2, 2, k=0), det(3, 2, k=1))
    found = bag(distances, 15.0)
    assert torch.allclose(found, torch.tensor([[0.492200, 0.507800, 0.0]]).double(), rtol=0, atol=1e-6)
    assert distances.amin(1).mean().item() == pytest.approx(0.200780, abs=1e-6)
    logits = 5 * normalize(det(1, 2, k=2), dim=1) @ normalize(det(3, 2, k=3), dim=1).T
    assert kl_div(logits.log_softmax(1), found, reduction="batchmean").item() == pytest.approx(3.526622, abs=1e-6)


def test_a_bag_is_the_best_place_of_each_word():
    maps, words = normal(2, 3, 2, 4), normal(5, 3, seed=1)
    found = bag(squared_distances(maps, words), 0.7)
    for image, row in zip(maps, found, strict=True):
        codes = []
        for cell in image.flatten(1).T:
            near = torch.stack([-0.7 * (cell - word).square().sum() for word in words])
            codes.append(near.exp() / near.exp().sum())
        best = [max(code[k] for code in codes) for k in range(5)]
        assert torch.allclose(row, torch.stack(best) / sum(best), atol=1e-12)
    assert torch.allclose(found.sum(1), torch.ones(2).double())


@pytest.mark.parametrize(("side", "cut"), [(4, 0), (6, 1)])
def test_a_vocabulary_learns_a_place_of_each_map_after_the_bags(side, cut):
    vocabulary, maps, index = Vocabulary(7, 3, 15.0).double(), normal(5, 3, side, side), torch.arange(10, 15)
    words = vocabulary.queue.keys.clone()
    assert words.min() == 0
    inner = maps[:, :, cut:side - cut, cut:side - cut]
    distances = squared_distances(inner, words)
    found = vocabulary.bags(maps, index)
    mean = 0.99 * 0.5 + 0.01 * distances.amin(1).mean()
    assert vocabulary.distance.item() == pytest.approx(mean.item(), abs=1e-12)
    assert torch.allclose(found, bag(distances, 15 / mean))
    assert vocabulary.queue.index.tolist() == [10, 11, 12, 13, 14, -1, -1]
    for image, word in zip(inner, vocabulary.queue.keys[:5], strict=True):
        means = [image[:, r:r + 3, c:c + 3].mean((1, 2)) for r in range(inner.shape[2] - 2)
                 for c in range(inner.shape[2] - 2)]
        assert min((mean - word).abs().max() for mean in means) < 1e-12
    assert torch.equal(vocabulary.queue.keys[5:], words[5:])


def written_obow(method, batch, students, teachers, levels):
    (teacher,) = method.momentum_encoder
    saved = [state(vocabulary) for vocabulary in method.vocabularies]
    features = {v: method.encoder(batch.views[v].images) for v in students}
    by_level = list(zip(*(teacher.stage_maps(batch.views[t].images) for t in teachers), strict=True))[-levels:]
    weights = [normalize(generator(normalize(vocabulary.queue.keys.clone(), dim=1)), dim=1)
               for vocabulary, generator in zip(method.vocabularies, method.generators, strict=True)]
    bags = [vocabulary.bags(torch.stack(maps, 1).flatten(0, 1), batch.index.repeat_interleave(len(teachers))).detach()
            for vocabulary, maps in zip(method.vocabularies, by_level, strict=True)]
    for vocabulary, before in zip(method.vocabularies, saved, strict=True):
        vocabulary.load_state_dict(before)
    losses = {}
    for v in students:
        for place, t in enumerate(teachers):
            for level in range(levels) if v != t else ():
                for i in range(8):
                    target = bags[level][len(teachers) * i + place]
                    logits = 8.0 * (weights[level] @ features[v][i])
                    logs = logits - logits.logsumexp(0)
                    term = sum(p * (p.log() - q) for p, q in zip(target, logs, strict=True) if p > 0)
                    losses.setdefault(batch.views[v].images.shape[-1], []).append(term)
    return sum(sum(terms) / len(terms) for terms in losses.values())


@pytest.mark.parametrize(("rows", "students", "teachers", "levels"), [
    ((), (0, 1), (0, 1), 1), (TEACHER_AND_CROPS, (1, 2, 3, 4, 5), (0,), 2)])
def test_obow_predicts_bags_of_each_level_and_adds_sizes(rows, students, teachers, levels):
    method, batch = example(OBoW, *rows, words=20, levels=levels, steps=2)
    for module in method.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):      # views of one size pass the encoder together
            module.eval()
    with torch.no_grad():
        for weight in method.momentum_encoder.parameters():
            weight.add_(0.01 * weight.square())
    require_equal(method, batch, written_obow(method, batch, students, teachers, levels))


def test_the_stages_of_an_encoder_end_in_its_maps():
    encoder, images = NarrowResNet(4, 3), torch.rand(2, 3, 16, 16)
    stages = encoder.stage_maps(images)
    assert [tuple(maps.shape[1:]) for maps in stages] == [(4, 8, 8), (8, 4, 4), (16, 2, 2)]
    assert torch.equal(stages[-1], encoder.maps(images))


# What they refuse, and how a collapse looks


@pytest.mark.parametrize(("cls", "options", "sentence"), [
    (SlotCon, SLOTS | {"prototypes": 0}, "cells are shared among 1 or more prototypes, not 0"),
    (SlotCon, SLOTS | {"grouping_weight": 2.0}, "grouping_weight is a share of the loss, 0 to 1, not 2.0"),
    (SlotCon, SLOTS | {"teacher_temperature": 0.0}, "a temperature must be above 0, not 0.0"),
    (InterCLR, BANK | {"clusters": 9}, "32 images do not make 9 clusters of 2 or more that can be kept apart"),
    (InterCLR, BANK | {"clusters": 1}, "32 images do not make 1 clusters"),
    (InterCLR, BANK | {"pool": 33}, "draws negatives from a pool of the images, and these are 6 of 33 of 32: let each"),
    (InterCLR, BANK | {"negatives": 13}, "these are 13 of 12 of 32: let each be at most the next"),
    (InterCLR, BANK | {"kind": "soft"}, "there is no kind soft: it is one of semi_hard, hard, semi_easy, random"),
    (InterCLR, BANK | {"share": 0.0}, "share is a share, above 0 and up to 1, not 0.0"),
    (InterCLR, BANK | {"every": 0}, "every counts steps from 1, and is 0"),
    (OBoW, {"words": 0}, "a queue holds 1 or more keys"),
    (OBoW, {"levels": 3}, "OBoW finds words at 1 to 2 levels of this encoder, not at 3: set levels"),
    (OBoW, {"scale": 0.0}, "OBoW's sharpness and scale are above 0, not 15.0 and 0.0"),
    (OBoW, {"sharpness": -1.0}, "not -1.0 and 8.0"),
])
def test_what_a_method_cannot_be_built_of_is_said_in_a_sentence(cls, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(cls, **options)


def test_words_of_maps_that_are_too_small_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="OBoW makes words of 3 x 3 cells, and a map of the teacher's view has 2 x 2: "
                                         "draw it larger than 8 pixels, or lower levels"):
        small(OBoW, ViewSpec(8, role="teacher"), ViewSpec(16), words=20, levels=1)


def test_a_bank_of_the_wrong_size_is_refused_before_training(tmp_path, arrays):
    method = small(InterCLR, **BANK)
    with pytest.raises(ValueError, match="the method keeps a table of 32 images, and the training part has 60"):
        trainer(tmp_path).fit(method, ArrayImages(str(arrays), batch_size=8))


def trained(cls, find, steps=120, **options):
    """What `find` makes of a method and a batch, after it has learnt from four batches in turn."""
    torch.manual_seed(0)
    method = small(cls, **options)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=0.02)
    seen = list(batches(method, 4))
    for step in range(steps):
        batch = seen[step % 4]
        optimizer.zero_grad()
        method.training_loss(batch).backward()
        optimizer.step()
        method.after_step()
    return find(method, batch)


def test_interclrs_positives_alone_collapse_and_the_health_measure_says_so(monkeypatch):
    def spread(method, batch):
        return feature_std(projections(method, batch)[0].detach())
    options = BANK | {"start": 0, "every": 5, "momentum": 0.9, "queue": 8}
    assert trained(InterCLR, spread, **options) > 0.3            # 0.38 to 0.75 by seed
    monkeypatch.setattr("ssl_zoo.methods.interclr.contrast", lambda positive, *_, reduction="mean":
                        -positive if reduction == "none" else -positive.mean())
    assert trained(InterCLR, spread, **options) < 0.1


def test_obows_pull_towards_the_bags_words_alone_collapses_and_the_health_measure_says_so(monkeypatch):
    """Without the normaliser over all words; of unit features, which could otherwise just grow."""
    def spread(method, batch):
        return feature_std(method.encoder(batch.views[0].images).detach())

    def pull(features, weight, bag, scale):
        return -(bag.to(features.dtype) * (scale * unit(features) @ unit(weight).T)).sum(1).mean()

    options = {"words": 20, "levels": 1, "momentum": 0.9}
    assert trained(OBoW, spread, **options) > 0.3
    monkeypatch.setattr("ssl_zoo.methods.obow.divergence", pull)
    assert trained(OBoW, spread, **options) < 0.1


def test_slotcons_places_alone_without_a_centre_collapse_into_one_group():
    def groups(method, batch):
        _, cosines = method.grouping(method.projector(method.encoder.maps(batch.views[0].images)))
        return cosines.argmax(1).unique().numel()
    options = SLOTS | {"momentum": 0.9, "prototypes": 8}
    assert trained(SlotCon, groups, **options) >= 4
    assert trained(SlotCon, groups, **options, grouping_weight=1.0, centre_momentum=1.0) == 1


def test_the_perplexity_of_bags_shows_whether_words_are_used(monkeypatch):
    method, batch = example(OBoW, words=20, levels=1)
    logged = {}
    monkeypatch.setattr(method, "log", lambda name, value, **_: logged.update({name: value.item()}))
    method.training_loss(batch)
    assert 1 < logged["words/perplexity"] <= 20
    one_word = torch.eye(20).double()[:1].expand(16, -1)
    monkeypatch.setattr(Vocabulary, "bags", lambda *_: one_word)
    method.training_loss(batch)
    assert logged["words/perplexity"] == pytest.approx(1)
