"""Callbacks of features: on one process or two, with a padded sampler, and where nothing can be measured."""

import math
import os
import warnings
from itertools import pairwise

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ssl_zoo import distributed
from ssl_zoo.data import ArrayImages
from ssl_zoo.data.sources import Files, Loader, Resident
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation import Evaluation, charts, score
from ssl_zoo.evaluation.augmented import linear_simclr
from ssl_zoo.evaluation.callback import Report, ScoreRecorder, of_pixels
from ssl_zoo.evaluation.features import Features, Pass, nearest_of_all, once
from ssl_zoo.evaluation.health import hardest
from ssl_zoo.evaluation.knn import VOTES, knn_scores
from ssl_zoo.evaluation.nearest import nearest
from ssl_zoo.evaluation.protocol import Measured, Protocol, Quantity
from ssl_zoo.evaluation.protocols.knn import Knn
from ssl_zoo.evaluation.protocols.linear_cached import LinearCached
from ssl_zoo.evaluation.protocols.naive_bayes import NaiveBayes
from ssl_zoo.views import Augmentation, ViewSpec
from tests.conftest import measured, same, simclr, state, trainer
from tests.processes import PROCESSES

PARTS = 23, 9                    # images of the parts that two processes share
pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log.*", "ignore:.*DistributedSampler.*")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def features(x, labels=None):
    return Features(x, torch.full((len(x),), -1) if labels is None else torch.as_tensor(labels), torch.arange(len(x)))


def blobs(count, classes=3, width=8, spread=2.0, seed=0):
    labels = torch.arange(count) % classes
    return features(3 * normal(classes, width, seed=99)[labels] + spread * normal(count, width, seed=seed), labels)


class OneByOne(Dataset):
    """A user's own data set of noise: (image, label, place)."""

    def __init__(self, images):
        self.images = torch.randint(256, (images, 3, 8, 8), generator=torch.Generator().manual_seed(images)).byte()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        return self.images[place], place % 3, place


class Shares(Protocol):
    """knn_dino from this process's share of the bank, and the shares themselves."""

    name = "shares"
    quantities = {"shares": Quantity("as knn_dino")}
    sharded = True

    def measure(self, train, test, context):
        self.parts = train, test
        k, temperature = VOTES["knn_dino"]
        queries, wanted, known = map(distributed.gather_uneven, (test.x, test.labels, train.labels))
        cosines, rows = nearest(queries, train.x, k)
        cosines, labels = nearest_of_all(cosines, train.labels[rows], k)
        scores = knn_scores(cosines, labels, temperature, int(known.max()) + 1)
        return Measured({"shares": score.number((scores.argmax(1) == wanted).double().mean().item())})


class Whole(Protocol):
    name = "whole"
    quantities = {"images": Quantity("how many there are", percent=False)}

    def measure(self, train, test, context):
        self.parts = train, test
        return Measured({"images": score.number(float(len(train.x) + len(test.x)))})


class Looked(pl.Callback):
    """The features of the first two views after every batch, with the step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((trainer.global_step, [pl_module.encode(view.images).tolist() for view in batch.views[:2]]))


class Kept(Logger):
    """A logger whose numbers can be read again."""

    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.scores = {}

    def log_hyperparams(self, *_):
        pass

    def log_metrics(self, metrics, step):
        found = {name: value for name, value in metrics.items() if name.startswith("scores/")}
        if found:
            assert step not in self.scores
            self.scores[step] = found


def fit(folder, data, *callbacks, **options):
    """A run of a tiny method, and the logger that saw it."""
    logger = Kept()
    options = {"logger": logger, "limit_val_batches": 0, "log_every_n_steps": 3} | options
    running = trainer(folder, *callbacks, **options)
    running.fit(simclr(), datamodule=data)
    return running, logger


# Two processes

def validate(folder, **options):
    """A Lightning validation of a user's own loaders: every callback's number, and the features that they saw."""
    shares, whole = Shares(), Whole()
    running = trainer(folder, Evaluation([shares, whole, "knn", LinearCached(3), "naive_bayes", "health"]), **options)
    running.validate(simclr(), [DataLoader(OneByOne(images), 4) for images in PARTS], verbose=False)
    numbers = {name: value.item() for name, value in running.callback_metrics.items()}
    return {"numbers": numbers, "shares": [tuple(part) for part in shares.parts],
            "whole": [tuple(part) for part in whole.parts]}


def broken(method, value=math.nan):
    """The method, with `value` as the last feature of images brighter than half."""
    forward = method.encoder.forward

    def with_value(images):
        features = forward(images)
        features[images.flatten(1).float().mean(1) > 128, -1] = value
        return features

    method.encoder.forward = with_value
    return method


def spotted(bright, count=6):
    images = torch.full((count, 3, 16, 16), 60, dtype=torch.uint8) + torch.arange(count)[:, None, None, None].byte()
    images[bright] = 200
    return Resident(images, torch.arange(count) // 2 % 2)              # both classes on both of two processes


def what_one_process_sees(folder, **options):
    """What is measured where one image is broken, and where one has no label: the other process does not have it."""
    unlabelled = Resident(spotted([]).images, torch.tensor([0, 0, 1, -1, 0, 0]))
    found = []
    for method, test in ((broken(simclr()), spotted([3])), (simclr(), unlabelled)):
        running = trainer(folder, Evaluation(["knn", "health"]), **options)
        running.validate(method, [Loader(spotted([]), 4), Loader(test, 4)], verbose=False)
        found.append(sorted(running.callback_metrics))
    return found


def refusal(data):
    """What is said to several processes that would each train a classifier on its share."""
    data.setup("validate")
    try:
        linear_simclr(NarrowResNet(4, 2), Loader(data.train, 8, training=True), [], 3, 16)
    except ValueError as error:
        return str(error)


def of_one_process(rank):
    """What each of the processes finds by itself, in a group that already stands."""
    bank, queries = normal(31, 4), normal(7, 4, seed=1)
    cuts = [0, 3, 31]                                                 # 3 rows of the bank here, and 28 there
    mine = torch.arange(31)[cuts[rank]:cuts[rank + 1]]
    merged = {}
    for k in (1, 5, 20, 50):
        cosines, rows = nearest(queries, bank[mine], k)
        merged[k] = nearest_of_all(cosines, mine[rows], k)
    done, padded = Pass(), {}
    for images in (1, 7, 8):                                          # torch's own way of padding, from its own class
        sampler = DistributedSampler(range(images), PROCESSES, rank, shuffle=True, seed=images)
        places = torch.tensor(list(sampler))
        padded[images] = places[once(places)]
    sampler = DistributedSampler(range(7), PROCESSES, rank, shuffle=False)
    for number, (images, labels, places) in enumerate(DataLoader(OneByOne(7), 3, sampler=sampler)):
        done.add(0, number, Features(images.flatten(1).float(), labels, places))
    return {"merged": merged, "padded": padded, "parts": tuple(done.parts()[0]), "share": tuple(done.shares()[0])}


def one_process(rank, folder, arrays):
    # what a cluster tells each of its processes, so that Lightning joins the group and starts none of its own
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(PROCESSES), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT="0")
    found = of_one_process(rank)
    found["validation"] = validate(folder, strategy="ddp", devices=PROCESSES)
    found["one"] = what_one_process_sees(folder, strategy="ddp", devices=PROCESSES)
    looked, data = Looked(), ArrayImages(str(arrays), batch_size=4)
    found["refusal"] = refusal(data)
    try:                                                              # more than there are on one, 4 on the other
        fit(folder, ArrayImages(str(arrays), batch_size=4 + 100 * rank), strategy="ddp", devices=PROCESSES)
    except ValueError as error:
        found["uneven"] = str(error)
    _, logger = fit(folder, data, ScoreRecorder(), looked, strategy="ddp", devices=PROCESSES, max_epochs=1)
    found["run"] = looked.seen, logger.scores
    return found


@pytest.fixture(scope="module")
def halves(two_processes, tmp_path_factory, arrays):
    """What each of the two processes found."""
    return two_processes(one_process, tmp_path_factory.mktemp("processes"), arrays)


def test_batches_of_two_sizes_are_refused_on_both_processes(halves):
    sentence = "every process needs batches of one size, and these have [4, 104]: give each the same --data.batch_size"
    assert [found["uneven"] for found in halves] == [sentence] * 2


@pytest.mark.parametrize("k", [1, 5, 20, 50])
def test_the_nearest_of_all_shares_are_the_nearest_of_the_whole_bank(halves, k):
    cosines, places = nearest(normal(7, 4, seed=1), normal(31, 4), k)
    for found in halves:
        assert torch.allclose(found["merged"][k][0], cosines, atol=1e-6)
        assert torch.equal(found["merged"][k][1], places)


@pytest.mark.parametrize("images", [1, 7, 8])
def test_an_image_that_a_sampler_shows_twice_stays_on_one_process(halves, images):
    kept = [found["padded"][images] for found in halves]
    assert torch.cat(kept).sort().values.tolist() == list(range(images))
    assert all(torch.equal(places, places.sort().values) for places in kept)


def test_a_padded_sampler_changes_no_feature(halves):
    data, places = OneByOne(7), torch.arange(7)
    for found in halves:
        assert same(found["parts"], (data.images.flatten(1).float(), places % 3, places))
    shares = [found["share"][2] for found in halves]
    assert [places.tolist() for places in shares] == [[0, 2, 4, 6], [1, 3, 5]]
    for found, places in zip(halves, shares, strict=True):
        assert torch.equal(found["share"][0], data.images.flatten(1).float()[places])


def test_every_number_of_a_validation_on_two_processes_is_that_of_one(halves, tmp_path):
    expected = validate(tmp_path)
    assert expected["numbers"].keys() == {"shares", "images", "knn_instdisc", "knn_dino", "linear_cached_3_epochs",
                                          "naive_bayes", "health/feature_std", "health/rankme", "health/uniformity"}
    assert expected["numbers"]["shares"] == expected["numbers"]["knn_dino"]
    assert expected["numbers"]["images"] == sum(PARTS)
    for found in halves:
        assert found["validation"]["numbers"] == pytest.approx(expected["numbers"], abs=1e-6)
        for part, whole in zip(found["validation"]["whole"], expected["whole"], strict=True):
            assert same(part[1:], whole[1:])
            assert torch.allclose(part[0], whole[0], atol=1e-6)


def test_a_sharded_metric_sees_its_own_share_alone(halves):
    for part, images in enumerate(PARTS):
        places = [found["validation"]["shares"][part][2] for found in halves]
        assert torch.cat(places).sort().values.tolist() == list(range(images))
        assert max(map(len, places)) - min(map(len, places)) <= 1


def test_what_one_process_alone_sees_stops_both(halves, tmp_path):
    expected = [[], ["health/feature_std", "health/rankme", "health/uniformity"]]
    assert [found["one"] for found in halves] == [expected] * 2
    with pytest.warns(UserWarning, match="of the test part|needs labels"):
        assert what_one_process_sees(tmp_path) == expected


def test_a_classifier_is_trained_in_one_process_or_refused_in_a_sentence(halves):
    for found in halves:
        assert found["refusal"] == "linear_simclr trains in one process, not in 2: evaluate on one device"


def test_the_recorder_compares_the_images_of_all_processes(halves):
    (seen, logged), (seen_there, logged_there) = (found["run"] for found in halves)
    assert logged == logged_there
    assert list(logged) == [2, 5]
    for step, numbers in logged.items():
        views = [first + second for first, second in zip(dict(seen)[step + 1], dict(seen_there)[step + 1], strict=True)]
        assert len(views[0]) == 8
        assert numbers == pytest.approx(by_a_loop(*views), abs=1e-5)


def test_a_place_stays_once_on_one_process_too():
    assert once(torch.tensor([4, 1, 4, 0, 1])).tolist() == [3, 1, 0]
    assert once(torch.empty(0, dtype=torch.long)).tolist() == []
    assert once(torch.tensor([3])).tolist() == [0]


def test_on_one_process_the_nearest_are_what_they_are():
    found = normal(3, 2), torch.ones(3, 2)
    assert all(a is b for a, b in zip(nearest_of_all(*found, 7), found, strict=True))


# Features that nothing can be learnt from

@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("bright", "said"), [
    (([], [1]), "of 1 of 12 images are not finite, such as those of image 1 of the test part, and nothing is measured"),
    (([0, 2, 3, 5], [1]), "of 5 of 12 images are not finite, such as those of image 0 of the training part, "
                          "image 2 of the training part, image 3 of the training part, and"),
])
def test_images_whose_features_are_not_finite_are_named_and_nothing_is_measured(bright, said, value, tmp_path):
    evaluation = Evaluation(["knn", LinearCached(2), "naive_bayes", "health"])
    evaluation.latest = {"knn_dino": 0.9}                            # of an earlier epoch
    running = trainer(tmp_path, evaluation)
    with pytest.warns(UserWarning, match="lower the learning rate") as warned:
        running.validate(broken(simclr(), value), [Loader(spotted(part), 4) for part in bright], verbose=False)
    found = [str(warning.message) for warning in warned if "finite" in str(warning.message)]
    assert len(found) == 1
    assert said in found[0]
    assert running.callback_metrics == {}
    assert evaluation.latest == {}


@pytest.mark.filterwarnings("ignore")
def test_a_file_whose_features_are_not_finite_is_named(tmp_path):
    parts = [spotted([]), spotted([4])]
    files = [Files(part.read, [f"{name}{i}.png" for i in range(6)], part.labels, 16)
             for name, part in zip(("train", "test"), parts, strict=True)]
    running = trainer(tmp_path, Evaluation(["knn"]))
    with pytest.warns(UserWarning, match="such as those of test4.png, and nothing"):
        running.validate(broken(simclr()), [Loader(part, 4) for part in files], verbose=False)


def test_a_validation_after_one_with_nan_features_measures_again(tmp_path):
    method, knn = simclr(), Evaluation(["knn"])
    running = trainer(tmp_path, knn)
    running.validate(method, [Loader(spotted([]), 4)] * 2, verbose=False)
    expected = knn.latest
    method.encoder.backbone.bn1.weight.data *= math.nan
    with pytest.warns(UserWarning, match="12 of 12 images are not finite"):
        running.validate(method, [Loader(spotted([]), 4)] * 2, verbose=False)
    method.encoder.backbone.bn1.weight.data = torch.ones(4)
    running.validate(method, [Loader(spotted([]), 4)] * 2, verbose=False)
    assert knn.latest == expected != {}


@pytest.mark.parametrize(("labels", "said"), [
    (([2] * 6, [0, 1] * 3), "knn: accuracy needs two classes: all 6 training images have label 2"),
    (([0, 1] * 3, [0, 1, -1] * 2), "knn: accuracy needs labels: put the images of each class into"),
    (([0, 1, -1] * 2, [0, 1] * 3), "knn: accuracy needs labels: put the images of each class into"),
])
def test_what_accuracy_lacks_is_said_once_and_all_else_is_measured(labels, said, tmp_path):
    parts = [Resident(spotted([]).images, torch.tensor(own)) for own in labels]
    running = trainer(tmp_path, Evaluation(["knn", "health"]))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            running.validate(simclr(), [Loader(part, 4) for part in parts], verbose=False)
    assert [str(warning.message)[:len(said)] for warning in warned if "accuracy" in str(warning.message)] == [said]
    assert running.callback_metrics.keys() == {"health/feature_std", "health/rankme", "health/uniformity"}


def test_one_labelled_part_has_no_accuracy_either(tmp_path):
    running = trainer(tmp_path, Evaluation(["knn"]))
    with pytest.warns(UserWarning, match="knn: accuracy needs a test part, and these images have none"):
        running.validate(simclr(), [Loader(spotted([]), 4)], verbose=False)
    assert running.callback_metrics == {}


@pytest.mark.filterwarnings("ignore")
def test_one_class_in_the_test_part_alone_is_measured(tmp_path):
    test = Resident(spotted([]).images, torch.ones(6, dtype=torch.long))
    running = trainer(tmp_path, Evaluation([Knn(("knn_dino",))]))
    running.validate(simclr(), [Loader(spotted([]), 4), Loader(test, 4)], verbose=False)
    assert running.callback_metrics.keys() == {"knn_dino"}


# Naive Bayes

def log_density(x, rows, everyone):
    """Of a Gaussian at the class's mean with the pooled variance of each axis, and of the class."""
    variance = [sum(len(own) / len(sum(everyone, [])) * np.var([row[axis] for row in own]) for own in everyone)
                for axis in range(len(x))]
    return math.log(len(rows)) - sum((x[axis] - np.mean([row[axis] for row in rows])) ** 2 / (2 * v)
                                     for axis, v in enumerate(variance))


@pytest.mark.parametrize("spread", [0.5, 6.0])
def test_naive_bayes_finds_the_most_probable_of_the_classes_as_densities(spread):
    train, test = blobs(40, spread=spread), blobs(30, spread=spread, seed=1)
    everyone = [train.x[train.labels == c].tolist() for c in range(3)]
    found = [max(range(3), key=lambda c, x=x: log_density(x, everyone[c], everyone)) for x in test.x.tolist()]
    accuracy = np.mean(np.array(found) == test.labels.numpy())
    assert measured(NaiveBayes(), train, test) == {"naive_bayes": pytest.approx(accuracy)}
    assert (accuracy == 1) == (spread < 1)


def test_a_class_that_only_the_test_part_has_is_never_predicted_by_naive_bayes():
    train, test = blobs(30, spread=0.5), blobs(10, spread=0.5, seed=1)
    strange = test._replace(labels=torch.where(test.labels == 2, 7, test.labels))
    assert measured(NaiveBayes(), train, strange) == {"naive_bayes": pytest.approx(0.7)}


# Scores of positives and negatives

def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def by_a_loop(first, second):
    """Mean and variance of the cosines of positives and negatives, and the mean of the hardest negatives."""
    positives = [cosine(*pair) for pair in zip(first, second, strict=True)]
    negatives = [[cosine(a, b) for j, b in enumerate(second) if j != i] for i, a in enumerate(first)]
    every = sum(negatives, [])
    return {"scores/positive_mean": np.mean(positives), "scores/positive_variance": np.var(positives),
            "scores/negative_mean": np.mean(every), "scores/negative_variance": np.var(every),
            "scores/hardest_negative": np.mean([max(row) for row in negatives])}


@pytest.mark.parametrize(("every", "batches", "steps"), [(1, 1, [3, 6, 9, 12]), (2, 1, [6, 12]), (1, 2, [3, 6]),
                                                         (2, 3, [6])])
def test_scores_are_those_of_the_equations_at_every_so_many_logged_steps(every, batches, steps, data, tmp_path):
    looked = Looked()
    _, logger = fit(tmp_path, data, ScoreRecorder(every), looked, accumulate_grad_batches=batches)
    assert [step + 1 for step in logger.scores] == steps            # a logger counts from 0
    for step, numbers in logger.scores.items():
        views = next(views for done, views in looked.seen if done == step + 1)
        assert numbers == pytest.approx(by_a_loop(*views), abs=1e-5)
        assert numbers["scores/positive_variance"] > 1e-6


def test_the_scores_of_all_steps_are_drawn_and_survive_a_resume(data, arrays, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "score_curves", lambda *columns: drawn.append(columns) or charts.blank(1, 1, "x"))
    before, after = ScoreRecorder(), ScoreRecorder()
    running, logger = fit(tmp_path, data, before, max_epochs=1)
    assert [row[0] for row in before.steps] == [3, 6]
    for row, (step, numbers) in zip(before.steps, logger.scores.items(), strict=True):
        assert row == pytest.approx([step + 1, *numbers.values()])
    running.save_checkpoint(tmp_path / "run.ckpt")
    torch.load(tmp_path / "run.ckpt", weights_only=True)                 # plain numbers
    again = trainer(tmp_path, after, logger=Kept(), limit_val_batches=0, log_every_n_steps=3)
    again.fit(simclr(), datamodule=ArrayImages(str(arrays), batch_size=8), ckpt_path=tmp_path / "run.ckpt")
    assert after.steps[:2] == before.steps
    steps, positive, negative, hardest_, title = drawn[-1]
    assert steps.tolist() == [3, 6, 9, 12]
    assert np.column_stack([steps, positive, negative, hardest_]).tolist() == after.steps
    assert title.startswith("SimCLR")
    assert (tmp_path / "scores.png").is_file()


def test_batches_that_accumulate_are_looked_at_once_for_a_step(data, tmp_path):
    class Beside(pl.Callback):
        seen = []

        def on_train_batch_end(self, trainer, *_):
            self.seen.append(recorder.distributions.get("positives"))

    recorder, beside = ScoreRecorder(), Beside()
    fit(tmp_path, data, recorder, beside, accumulate_grad_batches=2, max_epochs=1, log_every_n_steps=2)
    changed = [now is not before for before, now in pairwise([None, *beside.seen])]
    assert changed == [False, False, False, True, False, False, True]      # the last batch of an epoch is a step


def test_the_recorder_changes_nothing_in_the_run(data, arrays, tmp_path):
    runs = []
    for callbacks in ((), (ScoreRecorder(),)):
        running, _ = fit(tmp_path, ArrayImages(str(arrays), batch_size=8), *callbacks, log_every_n_steps=1)
        modes = [module.training for module in running.lightning_module.modules()]
        runs.append((state(running.lightning_module), running.optimizers[0].state_dict(), modes, torch.get_rng_state()))
    assert same(*runs)


def test_features_that_are_all_the_same_have_cosines_of_one_without_variance(data, tmp_path):
    class Same(NarrowResNet):
        def forward(self, images):
            return 0 * super().forward(images) + torch.tensor([3.0, -4.0, 0, 0, 0, 0, 0, 12.0])

    method, logger = simclr(encoder=Same(4, 2)), Kept()
    trainer(tmp_path, ScoreRecorder(), logger=logger, limit_val_batches=0, max_steps=1, log_every_n_steps=1).fit(
        method, datamodule=data)
    assert logger.scores == {0: pytest.approx({
        "scores/positive_mean": 1, "scores/positive_variance": 0, "scores/negative_mean": 1,
        "scores/negative_variance": 0, "scores/hardest_negative": 1}, abs=1e-6)}


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
@pytest.mark.parametrize("images", [2, 7])
def test_the_hardest_negative_is_the_most_similar_other_image(images, chunk):
    x, y = normal(images, 3, seed=1), normal(images, 3, seed=2) * torch.arange(1, images + 1)[:, None]
    expected = [max(cosine(a, b) for j, b in enumerate(y.tolist()) if j != i) for i, a in enumerate(x.tolist())]
    assert hardest(x, y, chunk).tolist() == pytest.approx(expected, abs=1e-6)
    assert hardest(x, x, chunk).max() < 1 - 1e-3                     # never itself


def test_tensorboard_gets_the_histograms_of_the_last_batch_that_was_looked_at_in_each_epoch(data, tmp_path):
    looked, logger = Looked(), TensorBoardLogger(tmp_path, name="")
    fit(tmp_path, data, ScoreRecorder(), looked, logger=logger, max_epochs=3, log_every_n_steps=5)
    events = EventAccumulator(logger.log_dir, {"histograms": 0}).Reload()
    assert sorted(events.Tags()["histograms"]) == ["scores/negatives", "scores/positives"]
    for name, pairs in (("positives", lambda i, j: i == j), ("negatives", lambda i, j: i != j)):
        found = events.Histograms(f"scores/{name}")
        assert [event.step for event in found] == [7, 14, 21]
        for event, step in zip(found, (5, 10, 20), strict=True):
            first, second = dict(looked.seen)[step]
            cosines = [cosine(a, b) for i, a in enumerate(first) for j, b in enumerate(second) if pairs(i, j)]
            histogram = event.histogram_value
            assert histogram.num == sum(histogram.bucket) == len(cosines)
            assert histogram.sum == pytest.approx(sum(cosines), abs=1e-4)
            assert histogram.sum_squares == pytest.approx(sum(c * c for c in cosines), abs=1e-4)
            assert histogram.min - 1e-6 <= min(cosines) < histogram.min + 0.021
            assert histogram.max - 0.021 < max(cosines) <= histogram.max
            for low, high, count in zip(histogram.bucket_limit, histogram.bucket_limit[1:], histogram.bucket[1:],
                                        strict=False):
                inside = [sum(low + e <= c < high - e for c in cosines) for e in (1e-5, -1e-5)]
                assert inside[0] <= count <= inside[1]


def test_an_epoch_without_a_look_publishes_no_histogram(data, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="")
    fit(tmp_path, data, ScoreRecorder(), logger=logger, max_epochs=4, log_every_n_steps=16)
    found = EventAccumulator(logger.log_dir, {"histograms": 0}).Reload().Histograms("scores/negatives")
    assert [event.step for event in found] == [21]                   # of its third epoch, by 7 steps


def test_features_that_are_not_finite_stop_no_recorder(data, tmp_path):
    class Broken(NarrowResNet):
        def forward(self, images):
            return super().forward(images) if self.training else torch.full((len(images), self.dim), math.nan)

    logger = TensorBoardLogger(tmp_path, name="")
    trainer(tmp_path, ScoreRecorder(), logger=logger, limit_val_batches=0, max_epochs=1, log_every_n_steps=1).fit(
        simclr(encoder=Broken(4, 2)), datamodule=data)
    assert EventAccumulator(logger.log_dir, {"histograms": 0}).Reload().Tags()["histograms"] == []


def test_a_recorder_without_a_second_view_or_a_step_is_refused_in_a_sentence(data, tmp_path):
    with pytest.raises(ValueError, match="at every 0"):
        ScoreRecorder(0)
    one = simclr()
    one.augment = Augmentation([ViewSpec(16)])
    with pytest.raises(ValueError, match="ScoreRecorder compares 2 views of each image, and this recipe draws 1: make"):
        trainer(tmp_path, ScoreRecorder(), limit_val_batches=0).fit(one, datamodule=data)


def test_nothing_is_recorded_where_nothing_is_logged(data, tmp_path):
    _, logger = fit(tmp_path, data, ScoreRecorder(), log_every_n_steps=0)
    assert logger.scores == {}


def test_nothing_is_recorded_of_one_image_which_has_no_negative(arrays, tmp_path):
    method, logger = simclr(), Kept()
    method.projector = torch.nn.Linear(8, 8)                         # without BatchNorm, which wants more than one
    method.training_loss = lambda batch: method.projector(method.encoder(batch.views[0].images)).square().mean()
    trainer(tmp_path, ScoreRecorder(), logger=logger, limit_val_batches=0, max_steps=3, log_every_n_steps=1).fit(
        method, datamodule=ArrayImages(str(arrays), batch_size=1))
    assert logger.scores == {}


# After a validation that measured nothing

def test_features_that_are_not_finite_leave_the_last_sheet_of_neighbours(tmp_path):
    running = trainer(tmp_path, Evaluation(["neighbours"]), logger=TensorBoardLogger(tmp_path))
    parts = [Loader(spotted([]), 4), Loader(spotted([3]), 4)]
    running.validate(simclr(), parts, verbose=False)
    (left,) = tmp_path.rglob("neighbours.png")
    before = left.stat().st_mtime_ns
    with pytest.warns(UserWarning, match="not finite"):
        running.validate(broken(simclr()), parts, verbose=False)
    assert left.stat().st_mtime_ns == before


class Stops(Protocol):
    """Stops the run, the first time."""

    name, quantities, needs_labels = "stops", {}, False
    said = False

    def measure(self, train, test, context):
        self.seen = train.x
        if not self.said:
            self.said = True
            raise KeyError("no")
        return Measured({})


def test_a_validation_after_one_that_broke_off_sees_its_own_features(tmp_path):
    stops = Stops()
    running, parts = trainer(tmp_path, Evaluation([stops])), [Loader(spotted([]), 4), Loader(spotted([3]), 4)]
    with pytest.raises(KeyError, match="no"):
        running.validate(simclr(), parts, verbose=False)
    other = simclr()
    with torch.no_grad():
        other.encoder.backbone.conv1.weight *= -1
    running.validate(other, parts, verbose=False)
    assert torch.allclose(stops.seen, other.encode(parts[0].source.images), atol=1e-5)


class Refuses(Protocol):
    name, quantities, needs_labels = "refuses", {}, False

    def measure(self, train, test, context):
        raise ValueError("too few of something")


def test_what_a_protocol_refuses_is_said_once_and_the_others_are_measured(tmp_path):
    running = trainer(tmp_path, Evaluation([Refuses(), "health"]))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            running.validate(simclr(), [Loader(spotted([]), 4)] * 2, verbose=False)
    assert [str(one.message) for one in warned].count("refuses: too few of something") == 1
    assert "health/rankme" in running.callback_metrics


def test_a_protocol_that_takes_long_is_refused_by_a_run_before_it_starts():
    with pytest.raises(ValueError, match="linear_simclr takes too long for a run: leave it out"):
        Evaluation(["knn", "linear_simclr"])


def test_a_misspelt_protocol_is_named_with_what_is_near():
    with pytest.raises(ValueError, match="there is no protocol logistics; did you mean logistic?"):
        Evaluation(["logistics"])


def test_of_several_evaluations_the_first_measures_for_all(tmp_path):
    both = Evaluation(["naive_bayes"]), Evaluation(["health"])
    running = trainer(tmp_path, both[0])
    running.callbacks.append(both[1])                                # as the callbacks of older recipes are
    for _ in range(2):
        running.validate(simclr(), [Loader(spotted([]), 4)] * 2, verbose=False)
    assert [[one.name for one in found.protocols] for found in both] == [["naive_bayes", "health"], []]
    assert running.callback_metrics.keys() >= {"naive_bayes", "health/rankme"}


class Foreign(pl.LightningModule):
    """Trains without being a Method."""

    def training_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return None

    def train_dataloader(self):
        return [torch.zeros(1)]


def test_a_recorder_of_another_kind_of_module_says_so(tmp_path):
    with pytest.raises(ValueError, match="ScoreRecorder compares the views of a Method, and this is a Foreign"):
        trainer(tmp_path, ScoreRecorder()).fit(Foreign())


# Raw pixels in the report

class Fussy(Protocol):
    """Finds fault with raw pixels."""

    name = "fussy"
    quantities = {"fussy": Quantity("1 for features")}

    def measure(self, train, test, context):
        if context.name == "raw pixels":
            raise ValueError("pixels are no features")
        return Measured({"fussy": score.number(1.0)})


@pytest.mark.parametrize(("steps", "there"), [(-1, True), (2, False), (0, False)])
def test_raw_pixels_are_measured_over_all_images_or_not_at_all(tmp_path, data, steps, there):
    report = Report(raw_pixels=True)
    trainer(tmp_path, Evaluation(["nearest_class_mean"]), report, max_epochs=1, num_sanity_val_steps=steps).fit(
        simclr(), datamodule=data)
    assert list(report.columns) == (["raw pixels", "untrained encoder"] if there else []) + ["epoch 1"]


def test_light_that_all_images_share_changes_no_vote_of_raw_pixels():
    columns = []
    for light in (0.0, 5.0):
        pixels = Pass()
        for part, images in enumerate((60, 24)):
            x = normal(images, 12, seed=part)
            pixels.add(part, 0, Features(x + light, (x[:, 0] > 0).long(), torch.arange(images)))
        evaluation = Evaluation(["knn", "nearest_class_mean"])
        evaluation.latest = {"knn_dino": 0.0}
        columns.append(of_pixels([evaluation], pixels))
    assert columns[0] == columns[1]
    assert columns[0].keys() >= {"knn_dino", "nearest_class_mean"}


def test_a_protocol_that_cannot_measure_raw_pixels_ends_no_run(tmp_path, data):
    report = Report(raw_pixels=True)
    with pytest.warns(UserWarning, match="fussy: pixels are no features"):
        trainer(tmp_path, Evaluation([Fussy(), "nearest_class_mean"]), report, max_epochs=1,
                num_sanity_val_steps=-1).fit(simclr(), datamodule=data)
    assert list(report.columns["raw pixels"]) == ["nearest_class_mean"]
    assert list(report.columns["epoch 1"]) == ["fussy", "nearest_class_mean"]


def test_a_validation_by_itself_is_no_epoch_of_the_report(tmp_path, data):
    evaluation, report = Evaluation(["nearest_class_mean"]), Report()
    trainer(tmp_path, evaluation, report).validate(simclr(), datamodule=data, verbose=False)
    assert report.columns == {}
    assert list(evaluation.latest) == ["nearest_class_mean"]


def test_a_protocol_listed_twice_is_refused():
    with pytest.raises(ValueError, match="the protocol knn is listed 2 times, and its scores would overwrite"):
        Evaluation(["knn", "health", Knn(["knn_dino"])])


# Where a run is when it is evaluated

def moments(tmp_path, data, **options):
    """The columns of a run of seven steps an epoch, and its trainer."""
    report = Report()
    running = trainer(tmp_path, Evaluation(["nearest_class_mean"]), report, **options)
    running.fit(simclr(), datamodule=data)
    return list(report.columns), running


@pytest.mark.parametrize(("options", "expected"), [
    ({"max_epochs": 2, "val_check_interval": 3}, ["step 3", "step 6", "step 10", "step 13"]),
    ({"max_epochs": 1, "val_check_interval": 0.5}, ["step 3", "step 6"]),
    ({"max_epochs": 2, "val_check_interval": 7}, ["epoch 1", "epoch 2"]),
    ({"max_epochs": 2, "val_check_interval": 5, "check_val_every_n_epoch": None}, ["step 5", "step 10"]),
    ({"max_epochs": 2, "limit_train_batches": 4}, ["epoch 1", "epoch 2"]),
    ({"max_epochs": 3, "check_val_every_n_epoch": 2}, ["epoch 2", "epoch 3"])])
def test_a_column_names_the_step_within_an_epoch_and_the_epoch_at_its_end(options, expected, tmp_path, data):
    found, running = moments(tmp_path, data, **options)
    assert found == expected
    assert running.check_val_every_n_epoch == options.get("check_val_every_n_epoch", 1)


def test_a_run_that_breaks_off_has_its_own_rhythm_back(tmp_path, data):
    class Broken(pl.Callback):
        def on_validation_end(self, *_):
            raise KeyError("no")

    running = trainer(tmp_path, Report(), Broken(), max_epochs=1, check_val_every_n_epoch=5)
    with pytest.raises(KeyError):
        running.fit(simclr(), datamodule=data)
    assert running.check_val_every_n_epoch == 5


def test_a_run_ends_with_its_lines_a_verdict_and_the_whole_table_in_a_file(tmp_path, data, capsys):
    report = Report(raw_pixels=True)
    trainer(tmp_path, Evaluation(), report, max_epochs=1, num_sanity_val_steps=-1,
            logger=TensorBoardLogger(tmp_path)).fit(simclr(), datamodule=data)
    printed = capsys.readouterr().out
    lines = [line.split()[0] for line in printed.strip().split("\n\n")[0].splitlines()[1:]]
    assert lines == ["knn_dino", "linear_cached", "health/rankme", "health/feature_std"]
    verdict = next(line for line in printed.splitlines() if "points from the untrained encoder" in line)
    assert verdict.startswith(("learns: ", "level: ", "below: "))
    whole = next(tmp_path.rglob("report.txt")).read_text()
    assert "knn_instdisc" in whole
    assert verdict in whole
    other = Report()
    other.load_state_dict(report.state_dict())
    assert torch.equal(other.before["knn_dino"].units, report.before["knn_dino"].units)
