"""Evaluation: metrics against the equations as loops, and which features they see."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from sklearn.linear_model import LogisticRegression

from ssl_zoo.data import ArrayImages
from ssl_zoo.data.sources import Loader
from ssl_zoo.evaluation import Evaluation, score
from ssl_zoo.evaluation.features import Features, Pass
from ssl_zoo.evaluation.linear import train_head
from ssl_zoo.evaluation.neighbours import Found, find_neighbours, neighbour_sheet
from ssl_zoo.evaluation.protocol import Measured, Protocol, Quantity
from ssl_zoo.evaluation.protocols.health import Health
from ssl_zoo.evaluation.protocols.knn import Knn
from ssl_zoo.evaluation.protocols.linear_cached import LinearCached
from ssl_zoo.evaluation.protocols.neighbours import Neighbours
from ssl_zoo.evaluation.report import highest, metrics
from ssl_zoo.pictures import INK, PAPER, TILE, WRONG, Tile, publish, resized, sheet, shorten, to_tensor
from tests.conftest import measured, simclr, trainer
from tests.processes import PROCESSES


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(x, labels=None):
    return Features(x, torch.full((len(x),), -1) if labels is None else torch.as_tensor(labels), torch.arange(len(x)))


def blobs(count, classes=3, width=8, spread=0.5, seed=0):
    """Features around one centre for each class: far apart for a small spread."""
    labels = torch.arange(count) % classes
    return features(4 * normal(classes, width, seed=99)[labels] + spread * normal(count, width, seed=seed), labels)


def as_floats(part):
    return Features(part.x.float(), *part[1:])


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


# The linear classifier

@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_a_head_is_as_accurate_as_logistic_regression(spread):
    train, test = as_floats(blobs(240, spread=spread)), as_floats(blobs(200, spread=spread, seed=1))
    reference = LogisticRegression(C=1e6, max_iter=1000).fit(train.x.numpy(), train.labels.numpy())
    expected = reference.score(test.x.numpy(), test.labels.numpy())
    head = train_head(train, 3, epochs=60)
    accuracy = (head(test.x).argmax(1) == test.labels).float().mean().item()
    assert (expected == 1) == (spread < 1)                            # separable, and not
    assert accuracy >= expected - 0.01 * (spread > 1)


@pytest.mark.parametrize(("batch", "lr"), [(256, 0.1), (64, 0.3)])
def test_a_head_takes_the_steps_of_nesterovs_descent_with_a_cosine(batch, lr):
    train, epochs = blobs(40, spread=3.0), 5                          # one step an epoch, and no shuffle matters
    x, targets = train.x.numpy(), np.eye(3)[train.labels.numpy()]
    x = (x - x.mean(0)) / x.std(0)
    rows = np.concatenate([x, np.ones((40, 1))], 1)                   # [N, D + 1]
    weight, velocity = np.zeros((9, 3)), np.zeros((9, 3))
    for epoch in range(epochs):
        votes = np.exp(rows @ weight)
        gradient = rows.T @ (votes / votes.sum(1, keepdims=True) - targets) / 40
        velocity = 0.9 * velocity + gradient
        weight = weight - lr * batch / 256 * (1 + math.cos(math.pi * epoch / epochs)) / 2 * (gradient + 0.9 * velocity)
    head = train_head(as_floats(train), 3, epochs=epochs, batch=batch, lr=lr)
    assert np.allclose(head.linear.weight.detach(), weight[:8].T, atol=1e-5)
    assert np.allclose(head.linear.bias.detach(), weight[8], atol=1e-5)


def test_a_head_standardises_what_it_sees_by_its_training_features():
    train = as_floats(blobs(60))
    moved = Features(train.x * 1000 + 5e4, *train[1:])
    heads = train_head(train, 3, epochs=3), train_head(moved, 3, epochs=3)
    assert torch.allclose(heads[0](train.x), heads[1](moved.x), atol=1e-3)


def test_a_feature_that_never_changes_does_no_harm():
    train = as_floats(blobs(60))
    constant = Features(torch.cat([train.x, torch.full((60, 1), 3.0)], 1), *train[1:])
    head = train_head(constant, 3, epochs=3)
    assert head(constant.x).isfinite().all()
    assert torch.allclose(head(constant.x), train_head(train, 3, epochs=3)(train.x), atol=1e-5)


def test_training_a_head_is_deterministic_and_leaves_the_global_random_states_alone():
    train, weights = as_floats(blobs(100, spread=4.0)), []
    for run_seed in (1, 2):
        torch.manual_seed(run_seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()   # noqa: NPY002
        weights.append(train_head(train, 3, epochs=4, batch=16).linear.weight.detach())
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])                           # noqa: NPY002
        assert before[2] == random.getstate()
    assert torch.equal(*weights)


def test_a_head_sees_all_images_in_another_order_in_each_epoch():
    train = as_floats(blobs(100, spread=4.0))
    turned = Features(*(part.flip(0) for part in train))
    weights = [train_head(part, 3, epochs=2, batch=16).linear.weight for part in (train, turned)]
    assert not torch.equal(*weights)                                  # order matters, ...
    assert torch.allclose(*weights, atol=0.1)                         # ... and not much


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_probe_measures_within_evaluation_and_keeps_its_head_in_the_checkpoint(mode):
    with mode():
        train, test = as_floats(blobs(90)), as_floats(blobs(50, seed=1))
        probe = LinearCached(3)
        assert measured(probe, train, test) == {"linear_cached_3_epochs": 1.0}
    other = LinearCached(3)
    other.load_state_dict(probe.state_dict())
    assert other.head.keys() == {"mean", "std", "linear.weight", "linear.bias"}
    assert all(torch.equal(value, probe.head[name]) for name, value in other.head.items())


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1e3])
def test_the_probe_does_not_see_the_scale_of_the_features(scale):
    train, test = as_floats(blobs(60, spread=4.0)), as_floats(blobs(40, spread=4.0, seed=1))
    scaled = (part._replace(x=scale * part.x) for part in (train, test))
    assert measured(LinearCached(5), *scaled) == measured(LinearCached(5), train, test)


def test_only_ninety_epochs_have_the_protocols_plain_name():
    train = as_floats(blobs(6))
    names = [name for epochs in (90, 10) for name in measured(LinearCached(epochs), train, train)]
    assert names == ["linear_cached", "linear_cached_10_epochs"]
    with pytest.raises(ValueError, match="at least 1 epoch, not 0"):
        LinearCached(0)


def test_a_class_that_only_the_test_part_has_is_no_trouble_for_the_probe():
    train, test = as_floats(blobs(30)), as_floats(blobs(10, seed=1))
    strange = Features(test.x, torch.where(test.labels == 2, 4, test.labels), test.places)
    assert measured(LinearCached(3), train, strange)["linear_cached_3_epochs"] == pytest.approx(0.7)


# Which features the metrics see

def test_features_come_in_the_order_of_the_images_whatever_the_order_of_the_batches():
    shuffled, done = torch.randperm(11, generator=torch.Generator().manual_seed(0)), Pass()
    for part in (1, 0):
        for number, places in enumerate(shuffled.split(4)):
            done.add(part, number, Features(10.0 * places[:, None] + part, places % 3, places))
    train, test = done.parts()
    for part, found in enumerate((train, test)):
        assert found.x[:, 0].tolist() == [10 * place + part for place in range(11)]
        assert found.labels.tolist() == [place % 3 for place in range(11)]
        assert found.places.tolist() == list(range(11))
    assert done.parts()[0] is train


IMAGES = 7


def one_process(rank):
    """This process's share of the images of two parts: 4 of them in two batches, or 3 in one."""
    done = Pass()
    for part in range(2):
        for number, places in enumerate(torch.arange(rank, IMAGES, PROCESSES).split(3)):
            done.add(part, number, Features(normal(IMAGES, 5)[places] + part, places % 3, places))
    before = [tuple(part) for part in done.parts()]
    done.centre()
    return (before, [part.x for part in done.parts()])


def test_two_processes_both_see_the_features_that_one_would_see(two_processes):
    places = torch.arange(IMAGES)
    for parts, centred in two_processes(one_process):
        for part, found in enumerate(parts):
            for one, expected in zip(found, (normal(IMAGES, 5) + part, places % 3, places), strict=True):
                assert torch.equal(one, expected)
            assert torch.allclose(centred[part], normal(IMAGES, 5) + part - normal(IMAGES, 5).mean(0), atol=1e-6)


class Keep(Protocol):
    """Keeps what it was given, and measures one number."""

    quantities = {"answer": Quantity("the answer", percent=False)}
    needs_labels = False

    def __init__(self, name):
        self.name = name

    def measure(self, train, test, context):
        self.parts = train, test
        return Measured({"answer": score.number(42.0)})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [7, 60])
def test_every_protocol_of_a_validation_sees_the_encoders_features_of_both_parts(batch, data, tmp_path):
    method, kept = simclr(), (Keep("first"), Keep("second"))
    data.setup("validate")
    evaluation = Evaluation([*kept, "knn", LinearCached(2), "health"])
    running = trainer(tmp_path, evaluation)
    running.validate(method, [Loader(data.train, batch), Loader(data.test, batch)], verbose=False)
    for protocol in kept:
        for found, part in zip(protocol.parts, (data.train, data.test), strict=True):
            assert torch.allclose(found.x, method.encode(part.images), atol=1e-5)
            assert found.x.dtype == torch.float32
            assert torch.equal(found.labels, part.labels)
            assert torch.equal(found.places, torch.arange(len(part)))
    train, test = kept[0].parts
    expected = {"answer": 42.0}
    for protocol in (Knn(), LinearCached(2), Health()):
        expected |= measured(protocol, train, test)
    assert {name: value.item() for name, value in running.callback_metrics.items()} == pytest.approx(expected)
    assert evaluation.latest == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore")
def test_a_second_validation_sees_the_features_of_then(data, tmp_path):
    method, keep = simclr(), Keep("keep")
    running = trainer(tmp_path, Evaluation([keep]))
    running.validate(method, data, verbose=False)
    before = keep.parts[0].x
    with torch.no_grad():
        method.encoder.backbone.conv1.weight *= -1
    running.validate(method, data, verbose=False)
    assert torch.allclose(keep.parts[0].x, method.encode(data.train.images), atol=1e-5)
    assert not torch.allclose(keep.parts[0].x, before, atol=1e-2)


@pytest.mark.filterwarnings("ignore")
def test_without_labels_health_is_measured_and_accuracy_is_not(tmp_path):
    np.savez(tmp_path / "images.npz", train_images=noise(9, 8, 8))
    running = trainer(tmp_path, Evaluation(["knn", LinearCached(2), "health", keep := Keep("keep")]))
    running.validate(simclr(), ArrayImages(str(tmp_path / "images.npz"), batch_size=4), verbose=False)
    assert running.callback_metrics.keys() == {"answer", "health/feature_std", "health/rankme", "health/uniformity"}
    assert keep.parts[0] is keep.parts[1]
    assert len(keep.parts[0].x) == 9


@pytest.mark.parametrize("own", [False, True])
def test_neighbours_are_the_nearest_training_images_and_never_the_query_itself(own):
    train = as_floats(blobs(30, spread=3.0))
    test = train if own else as_floats(blobs(20, spread=3.0, seed=1))
    assert measured(Neighbours(queries=4), train, test) == {}
    found = find_neighbours(train, test, 4)
    assert len(found) == 4
    for (part, query, label), *near in found:
        assert (part, label) == (-1, test.labels[query])
        by_cosine = sorted(range(30), key=lambda i, query=query: -cosine(train.x[i].tolist(), test.x[query].tolist()))
        expected = [i for i in by_cosine if not (own and i == query)][:8]
        assert near == [(0, i, train.labels[i]) for i in expected]


def test_a_twin_of_an_image_is_its_neighbour_and_the_image_itself_is_not():
    train = as_floats(features(normal(3, 8).repeat_interleave(2, 0)))       # each image twice
    for query, *near in find_neighbours(train, train, queries=6):
        assert len(near) == 5
        assert near[0].place == query.place ^ 1
        assert query.place not in [other.place for other in near]


def test_found_images_are_named_by_their_places_and_not_by_their_rows():
    train, test = (as_floats(blobs(12, seed=seed)) for seed in (0, 1))
    rows = find_neighbours(train, test, 3)
    moved = find_neighbours(train._replace(places=train.places + 100), test._replace(places=test.places + 50), 3)
    assert moved == [[(part, place + (50 if part else 100), label) for part, place, label in row] for row in rows]


def test_a_sheet_of_neighbours_shows_each_image_at_its_place_and_crosses_those_of_another_class():
    colours = {(-1, 7): (10, 0, 0), (0, 3): (0, 10, 0), (0, 4): (0, 0, 10), (0, 5): (10, 10, 10)}

    def image(part, place):
        return torch.tensor(colours[part, place]).byte()[:, None, None].expand(3, 4, 4)

    row = [Found(-1, 7, 1), Found(0, 3, 1), Found(0, 4, 0), Found(0, 5, -1)]
    shown = neighbour_sheet([row], image, ["cat", "dog"])
    middles = [int(np.flatnonzero((np.asarray(shown) == colour).all(-1).any(0)).mean()) for colour in colours.values()]
    assert middles == sorted(middles)
    crossed = [has(shown.crop((x - TILE // 2 - 2, 0, x + TILE // 2, shown.height)), WRONG) for x in middles]
    assert crossed == [False, False, True, False]                            # an unknown class is not another one
    nameless = neighbour_sheet([row], image, [])
    assert nameless.tobytes() != shown.tobytes()
    unknown = neighbour_sheet([[Found(-1, 7, -1), *row[1:]]], image, ["cat", "dog"])
    assert not has(unknown, WRONG)


# Pictures

def noise(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).byte()


def pixels(picture):
    return np.asarray(picture).reshape(-1, 3)


def has(picture, colour):
    return (pixels(picture) == colour).all(1).any()


def test_each_tile_adds_its_width_and_each_row_its_height_and_a_heading_comes_on_top():
    def size(rows, columns, **options):
        return sheet([[Tile(noise(3, 4, 4))] * columns] * rows, **options).size

    width, height = size(1, 1)
    assert TILE < width < 1.2 * TILE
    assert TILE < height < 1.4 * TILE
    step, line = size(1, 2)[0] - width, size(2, 1)[1] - height
    assert min(step, line) > TILE
    assert size(3, 5) == (width + 4 * step, height + 2 * line)
    assert size(3, 5, heading="x")[0] == size(3, 5)[0]
    assert 12 <= size(3, 5, heading="x")[1] - size(3, 5)[1] <= 40
    assert 0 < size(3, 5, split=1)[0] - size(3, 5)[0] < 20
    assert size(1, 1, heading="a heading that is wider than one tile")[0] > size(1, 1)[0]


def test_rows_of_different_lengths_are_as_wide_as_the_longest():
    tile = Tile(noise(3, 4, 4))
    assert sheet([[tile], [tile] * 3]).size == sheet([[tile] * 3] * 2).size


@pytest.mark.parametrize("caption", ["", "cat"])
def test_a_wrong_tile_differs_from_a_right_one_and_from_a_wrong_one_elsewhere(caption):
    image = noise(3, 8, 8)
    right, wrong = Tile(image, caption), Tile(image, caption, wrong=True)
    sheets = [sheet([row]) for row in ([right, right], [right, wrong], [wrong, right])]
    assert not has(sheets[0], WRONG)
    assert has(sheets[0], INK) == (caption != "")
    for marked in sheets[1:]:
        assert marked.size == sheets[0].size
        assert has(marked, WRONG)
    assert len({picture.tobytes() for picture in sheets}) == 3
    half = sheets[1].width // 2
    assert not has(sheets[1].crop((0, 0, half - 4, sheets[1].height)), WRONG)      # the mark is on the second alone


def test_a_small_image_is_enlarged_pixel_by_pixel():
    image = noise(3, 4, 4)
    expected = np.kron(image.permute(1, 2, 0).numpy(), np.ones((TILE // 4, TILE // 4, 1)))
    assert np.array_equal(resized(image, TILE, TILE), expected)
    shown = np.asarray(sheet([[Tile(image)]]))
    places = [(y, x) for y in range(20) for x in range(20) if np.array_equal(shown[y:y + TILE, x:x + TILE], expected)]
    assert len(places) == 1
    assert tuple(shown[0, 0]) == PAPER


def test_a_large_image_is_reduced_smoothly():
    stripes = (torch.arange(8 * TILE) % 2 * 255).byte().expand(3, 8 * TILE, -1)
    assert np.abs(np.asarray(resized(stripes, TILE, TILE)).astype(int)[:, 2:-2] - 127).max() <= 2


@pytest.mark.parametrize("side", [4, 200])
def test_bytes_and_shares_of_full_brightness_look_alike(side):
    image = noise(3, side, side)
    assert np.array_equal(resized(image, TILE, TILE), resized(image / 255, TILE, TILE))


def test_what_is_darker_than_black_is_black_and_brighter_than_white_white():
    assert resized(torch.tensor([-0.5, 0.5, 1.5])[:, None, None], TILE, TILE).getpixel((7, 7)) == (0, 128, 255)


@pytest.mark.parametrize("caption", ["", "cat", "a name of a class, much longer than its tile is wide"])
def test_a_caption_fits_its_tile_and_starts_as_it_is(caption):
    font = ImageFont.load_default(12)
    short = shorten(caption, font)
    assert font.getlength(short) <= TILE
    assert short == caption or (short.endswith("…") and caption.startswith(short[:-1]) and len(short) > 5)


def test_a_picture_is_published_as_a_file_and_where_the_logger_takes_images(tmp_path):
    shown = []

    class Board:
        def add_image(self, *given):
            shown.append(given)

    class Logger:
        experiment = Board()

    drawn = sheet([[Tile(noise(3, 4, 4), "cat")]])
    for logger in (Logger(), None):
        publish(drawn, "views", tmp_path / "new" / "folder", logger, 7)
    assert np.array_equal(Image.open(tmp_path / "new" / "folder" / "views.png"), drawn)
    (name, image, step), = shown
    assert (name, step) == ("views", 7)
    assert torch.equal(image, to_tensor(drawn))
    assert np.array_equal(image.permute(1, 2, 0), np.asarray(drawn))


# A run's report

def test_the_best_epoch_is_named_apart_from_the_last_and_is_never_the_untrained_one():
    columns = {"raw pixels": {"knn_dino": 1.0}, "untrained encoder": {"knn_dino": 0.9, "logistic": 0.9},
               "epoch 1": {"knn_dino": 0.5, "health/rankme": 9.0}, "epoch 2": {"knn_dino": 0.625, "logistic": 0.25},
               "epoch 3": {"knn_dino": 0.625, "logistic": 0.125, "health/rankme": 8.0}}
    for protocols in ([], [Knn()]):                                       # those that the run no longer has are known
        assert highest(columns, protocols).endswith("no result: knn_dino 62.5 % (epoch 2), logistic 25.0 % (epoch 2)\n")
        assert highest(columns, protocols).startswith("\nhighest of 3 evaluations, chosen by the test part")


def test_the_metrics_of_a_moment_are_of_its_step_or_of_the_epoch_that_ends_there():
    columns = {"step 3": {"knn_dino": 0.3}, "epoch 1": {"knn_dino": 0.5}}
    assert metrics(columns, 1, 3) == {"knn_dino": 0.3}
    assert metrics(columns, 1, 7) == {"knn_dino": 0.5}
    assert metrics(columns, 2, 9) == {}


@pytest.mark.parametrize("columns", [{}, {"untrained encoder": {"logistic": 0.1}, "epoch 9": {"logistic": 0.2}},
                                     {"epoch 1": {"health/rankme": 1.0}, "epoch 2": {"health/rankme": 2.0}}])
def test_without_a_choice_no_best_epoch_is_named(columns):
    assert highest(columns, []) == ""
