"""The torchmetrics: the functions' values, whatever the batches, on one process or two, copied, pickled, in float16."""

import copy
import math
import pickle

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from ssl_zoo import metrics
from ssl_zoo.evaluation import health
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.knn import VOTES, knn
from tests.conftest import trainer
from tests.processes import PROCESSES

IMAGES, WIDTH = 90, 8


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(IMAGES) % 3
X = normal(3, WIDTH, seed=9)[LABELS] + normal(IMAGES, WIDTH)
VIEW = X + 0.3 * normal(IMAGES, WIDTH, seed=1)
TRAIN = torch.arange(IMAGES) % 5 > 0                    # the others are classified


def by_knn(vote="knn_dino", top=""):
    parts = (Features(X[rows], LABELS[rows], rows.nonzero()[:, 0]) for rows in (TRAIN, ~TRAIN))
    return knn(*parts, VOTES)[vote + top].value


def feed_knn(metric, rows):
    for train in (True, False):
        some = rows[TRAIN[rows] == train]
        metric.update(X[some], LABELS[some], train=train)


def feed_features(metric, rows):
    metric.update(X[rows])


def feed_labels(metric, rows):
    metric.update(X[rows], LABELS[rows])


def feed_views(metric, rows):
    metric.update(X[rows], VIEW[rows])


CASES = {"RankMe": (metrics.RankMe, feed_features, lambda: health.rankme(X)),
         "FeatureStd": (metrics.FeatureStd, feed_features, lambda: health.feature_std(X)),
         "Uniformity": (metrics.Uniformity, feed_features, lambda: health.uniformity(X)),
         "Uniformity, t": (lambda: metrics.Uniformity(t=1.0), feed_features, lambda: health.uniformity(X, 1.0)),
         "Alignment": (metrics.Alignment, feed_views, lambda: health.alignment(X, VIEW)),
         "Tolerance": (metrics.Tolerance, feed_labels, lambda: health.tolerance(X, LABELS).conditional),
         "KNNAccuracy": (metrics.KNNAccuracy, feed_knn, by_knn),
         "KNNAccuracy, instdisc": (lambda: metrics.KNNAccuracy(200, 0.1), feed_knn, lambda: by_knn("knn_instdisc")),
         "KNNAccuracy, top 5": (lambda: metrics.KNNAccuracy(10, top=5), feed_knn,
                                lambda: by_knn("knn_dino_10", "_top5"))}
EACH = pytest.mark.parametrize(("make", "feed", "expected"), CASES.values(), ids=CASES)
BATCHES = torch.arange(IMAGES).split(13)                # the last of them is shorter


def fed(make, feed, batches=BATCHES):
    metric = make()
    for rows in batches:
        feed(metric, rows)
    return metric


@EACH
def test_a_metric_of_batches_is_the_function_of_all_images(make, feed, expected):
    value = fed(make, feed).compute()
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected(), rel=1e-6)


@EACH
def test_after_a_reset_nothing_is_left_of_before(make, feed, expected):
    metric = fed(make, feed)
    metric.compute()
    metric.reset()
    assert all(not len(state) if isinstance(state, list) else state == 0 for state in metric.metric_state.values())
    feed(metric, torch.arange(IMAGES))
    assert metric.compute().item() == pytest.approx(expected(), rel=1e-6)


@EACH
def test_a_metric_is_pickled_copied_and_cloned_with_what_it_has_seen(make, feed, expected):
    half = fed(make, feed, BATCHES[:3])
    for other in (pickle.loads(pickle.dumps(half)), copy.deepcopy(half), half.clone()):
        for rows in BATCHES[3:]:
            feed(other, rows)
        assert other.compute().item() == pytest.approx(expected(), rel=1e-6)
        assert type(other) is type(half)


@EACH
def test_more_images_change_what_was_computed(make, feed, expected):
    metric = fed(make, feed, BATCHES[:-1])
    metric.compute()
    feed(metric, BATCHES[-1])
    assert metric.compute().item() == pytest.approx(expected(), rel=1e-6)


@EACH
def test_features_in_half_precision_give_nearly_the_same(make, feed, expected, monkeypatch):
    for name in ("X", "VIEW"):
        monkeypatch.setattr(f"{__name__}.{name}", globals()[name].half())
    value = fed(make, feed).compute()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected(), abs=0.05)


@EACH
def test_no_gradient_is_kept_of_the_features(make, feed, expected, monkeypatch):
    for name in ("X", "VIEW"):
        monkeypatch.setattr(f"{__name__}.{name}", globals()[name].clone().requires_grad_())
    assert not fed(make, feed).compute().requires_grad


def test_forward_gives_the_number_of_the_batch_and_remembers_it():
    metric = metrics.FeatureStd()
    for rows in BATCHES:
        assert metric(X[rows]).item() == pytest.approx(health.feature_std(X[rows]), rel=1e-6)
    assert metric.compute().item() == pytest.approx(health.feature_std(X), rel=1e-6)
    aligned = metrics.Alignment()
    for rows in BATCHES:
        assert aligned(X[rows], VIEW[rows]).item() == pytest.approx(health.alignment(X[rows], VIEW[rows]), rel=1e-6)
    assert aligned.compute().item() == pytest.approx(health.alignment(X, VIEW), rel=1e-6)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_knn_of_one_part_alone_is_no_number_and_forward_remembers_it():
    metric = metrics.KNNAccuracy()
    assert math.isnan(metric(X[TRAIN], LABELS[TRAIN], train=True))
    assert math.isnan(metric(X[~TRAIN], LABELS[~TRAIN], train=False))
    assert metric.compute().item() == pytest.approx(by_knn(), rel=1e-6)


def test_a_collection_feeds_each_metric_what_it_takes():
    together = MetricCollection([metrics.RankMe(), metrics.FeatureStd(), metrics.Uniformity(), metrics.Tolerance()])
    for rows in BATCHES:
        together.update(features=X[rows], labels=LABELS[rows])
    for name, value in together.compute().items():
        assert value.item() == pytest.approx(CASES[name][2](), rel=1e-6)
    together.reset()
    assert together.clone(prefix="val/").keys() == {"val/RankMe", "val/FeatureStd", "val/Uniformity", "val/Tolerance"}


def test_a_training_image_without_a_label_is_refused_and_a_test_image_without_one_is_wrong():
    metric = metrics.KNNAccuracy(k=1)
    with pytest.raises(ValueError, match="1 of 2 training images have no label"):
        metric.update(X[:2], torch.tensor([0, -1]), train=True)
    metric.update(X[:2], torch.tensor([0, 1]), train=True)
    metric.update(X[:2], torch.tensor([0, -1]), train=False)
    assert metric.compute() == 0.5


@pytest.mark.parametrize("wrong", [{"k": 0}, {"temperature": 0.0}, {"top": 6}])
def test_votes_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1 neighbour votes at a temperature above 0 for 1 to 5 classes"):
        metrics.KNNAccuracy(**wrong)


# Several processes

def one_process(rank):
    """What each of two processes computes that had every other batch, and keeps of its own afterwards."""
    found = {}
    for name, (make, feed, _) in CASES.items():
        metric = fed(make, feed, BATCHES[rank::PROCESSES])                 # 46 images here, and 44 there
        value = metric.compute()
        feed(metric, BATCHES[rank])                                        # the share is its own again
        found[name] = value.item(), metric.compute().item(), metric._is_synced
    return found


def test_two_processes_compute_what_one_would(two_processes):
    for found in two_processes(one_process):
        for name, (value, later, synced) in found.items():
            make, feed, expected = CASES[name]
            assert value == pytest.approx(expected(), rel=1e-6), name
            assert later == pytest.approx(fed(make, feed, [*BATCHES, *BATCHES[:2]]).compute().item(), rel=1e-6), name
            assert not synced


# In any LightningModule

class Anyone(pl.LightningModule):
    """A module of someone else's, with no method of ssl_zoo about it."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(WIDTH, 4)
        self.rankme, self.knn = metrics.RankMe(), metrics.KNNAccuracy()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        x, labels = batch
        features = self.encoder(x)
        self.rankme.update(features)
        self.knn.update(features, labels, train=dataloader_idx == 0)

    def on_validation_epoch_end(self):
        self.log("rankme", self.rankme)
        self.log("knn", self.knn)


@pytest.mark.filterwarnings("ignore")
def test_any_lightning_module_logs_them_and_starts_each_validation_from_nothing(tmp_path):
    module, running = Anyone(), trainer(tmp_path)
    parts = [DataLoader(TensorDataset(X[rows], LABELS[rows]), 16) for rows in (TRAIN, ~TRAIN)]
    found = []
    for _ in range(2):
        running.validate(module, parts, verbose=False)
        found.append({name: value.item() for name, value in running.callback_metrics.items()})
    with torch.no_grad():
        everything = torch.cat([module.encoder(X[TRAIN]), module.encoder(X[~TRAIN])])
    assert found[0] == found[1]
    assert found[0]["rankme"] == pytest.approx(health.rankme(everything), rel=1e-5)
    assert 0.3 < found[0]["knn"] <= 1
