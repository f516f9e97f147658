"""GenView's weights of pairs: written out, the reference's numbers, and the methods that they weigh."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from ssl_zoo.checkpoints import load_encoder, load_method
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.export import save_encoder
from ssl_zoo.losses import nt_xent
from ssl_zoo.methods import BYOL, MoCo, MoCoV3, SimCLR, SimSiam
from ssl_zoo.quality import grounds, principal_axis, quality_weights
from ssl_zoo.views import ViewSpec
from tests.conftest import MULTI_CROP, TWO_VIEWS, simclr, small, state, trainer
from tests.test_bases import require_equal
from tests.test_losses import normal
from tests.test_methods import PAIRS, example

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log.*")
WIDTHS = {"projector": (16, 8)}
JUDGE = str(Path(__file__).parent / "golden" / "encoder.safetensors")


def written_weights(maps):
    """[V][V][B], an image and a cell at a time."""
    cells = torch.cat([x.flatten(2).mT.flatten(0, 1) for x in maps])
    spread = cells - cells.mean(0)
    axis = torch.linalg.svd(spread).Vh[0]
    axis = axis if (spread @ axis).pow(3).sum() > 0 else -axis
    parts = []
    for x in maps:
        of_view = []
        for image in x:
            rows = image.flatten(1).T
            along = [(row @ axis).item() for row in rows]
            share = [(a - min(along)) / (max(along) - min(along)) for a in along]
            front = sum(s * row for s, row in zip(share, rows, strict=True)) / sum(share)
            back = sum((1 - s) * row for s, row in zip(share, rows, strict=True)) / sum(1 - s for s in share)
            of_view.append((front / front.norm(), back / back.norm()))
        parts.append(of_view)
    weights = torch.zeros(len(maps), len(maps), len(maps[0])).double()
    for a, first in enumerate(parts):
        for b, second in enumerate(parts):
            q = [(x[0] @ y[0] - x[1] @ y[1]).exp() for x, y in zip(first, second, strict=True)]
            weights[a, b] = torch.stack([len(q) * one / sum(q) for one in q])
    return weights


def seen(*shapes):
    """Maps of views of the same 6 images, with a direction in which few cells are far out."""
    maps = []
    for seed, (h, w) in enumerate(shapes):
        x = normal(6, 5, h, w, seed=seed)
        x[:, 2, 0, 0] += 9
        maps.append(x + 0.5)
    return maps


def test_weights_are_the_softmax_of_the_cosine_of_foregrounds_less_that_of_backgrounds():
    maps = seen((3, 4), (2, 2), (3, 3))
    weights = quality_weights(maps)
    assert torch.allclose(weights, written_weights(maps), rtol=0, atol=1e-6)         # of twenty rounds, not of all
    assert torch.allclose(weights.mean(2), torch.ones(3, 3).double())


def test_a_difference_of_half_in_quality_has_the_references_weights(monkeypatch):
    parts = {0: [[[1.0, 0], [0, 1]]] * 2, 1: [[[1, 0], [math.sqrt(0.75), 0.5]], [[1, 0], [0, 1]]]}     # of two images
    monkeypatch.setattr("ssl_zoo.quality.grounds",
                        lambda cells, axis: torch.tensor(parts[int(cells[0, 0, 0])], dtype=torch.float64))
    maps = [torch.full((2, 1, 2, 2), float(v)).double() for v in (0, 1)]
    assert quality_weights(maps)[0, 1].tolist() == pytest.approx([1.244919, 0.755081], abs=1e-6)


def test_equal_pairs_weigh_one():
    maps = [x[:1].expand(4, -1, -1, -1) for x in seen((3, 3), (2, 2))]
    assert torch.allclose(quality_weights(maps), torch.ones(2, 2, 4).double(), atol=1e-12)


def test_alike_foregrounds_before_other_backgrounds_weigh_more():
    object_, walls = torch.tensor([0.0, 0, 8]), torch.eye(3)[:2]
    scene = [[object_ if cell == 0 else wall for cell in range(9)] for wall in walls]         # before either wall
    first = torch.stack([torch.stack(scene[0]), torch.stack(scene[0])]).mT.unflatten(2, (3, 3))
    second = torch.stack([torch.stack(scene[1]), torch.stack(scene[0])]).mT.unflatten(2, (3, 3))
    weights = quality_weights([first, second])[0, 1]
    assert weights[0] > 1 > weights[1]


def test_the_principal_axis_is_that_of_greatest_variance_and_points_to_the_fewer_cells():
    cells = torch.cat([normal(90, 4) * torch.tensor([1.0, 0.5, 0.2, 0.1]).double(), torch.zeros(10, 4).double()])
    cells[90:, 1] = -12.0
    axis = principal_axis(cells + 3)
    expected = torch.linalg.svd(cells - cells.mean(0)).Vh[0]
    assert (axis @ expected).abs().item() == pytest.approx(1, abs=1e-9)
    assert axis[1] < -0.9


def test_maps_that_are_alike_everywhere_have_one_ground():
    cells = torch.ones(2, 4, 3).double()
    found = grounds(cells, torch.tensor([1.0, 0, 0]).double())
    assert torch.allclose(found, normalize(torch.ones(2, 2, 3).double(), dim=2))
    assert quality_weights([cells.mT.unflatten(2, (2, 2))] * 2).isfinite().all()


# The methods


METHODS = [(SimCLR, {}), (MoCo, {"queue": 20}), (MoCo, {"queue": 20, "symmetric": True}),
           (MoCoV3, {"predictor": (16,)}), (BYOL, {"predictor": (16,)}), (SimSiam, {"predictor": (4,)})]


@pytest.mark.parametrize(("cls", "options"), METHODS)
def test_a_judge_weighs_the_loss_of_each_pair(cls, options, monkeypatch):
    method, batch = example(cls, **WIDTHS, **options, judge=JUDGE)
    plain, _ = example(cls, **WIDTHS, **options)
    plain.load_state_dict(state(method))
    judge = load_encoder(JUDGE).double()
    with torch.no_grad():
        weights = written_weights([judge.maps(view.images) for view in batch.views])[0, 1]
    assert (weights - 1).abs().max() > 0.01
    terms = []
    for i in range(8):      # the loss of one pair: where only it weighs
        chosen = torch.zeros(2, 2, 8).double()
        chosen[0, 1, i] = 8
        before = state(plain)
        monkeypatch.setattr(plain.pair_weights, "forward", lambda views, chosen=chosen: chosen)
        terms.append(plain.training_loss(batch))
        if i < 7:           # a queue has moved
            with torch.no_grad():
                for name, value in plain.state_dict().items():
                    value.copy_(before[name])
    expected = sum(w * one for w, one in zip(weights, terms, strict=True)) / 8
    assert method.training_loss(batch).item() == pytest.approx(expected.item(), abs=1e-6)


def test_each_pair_of_many_views_has_its_own_weight():
    method, batch = example(SimCLR, *MULTI_CROP, **WIDTHS, judge=JUDGE)
    weights = method.pair_weights(batch.views)
    assert weights.shape == (5, 5, 8)
    z = [method.projector(method.encoder(view.images)) for view in batch.views]
    terms = [(nt_xent(z[a], z[b], 0.1, "none") * weights[a, b].repeat(2)).mean() for a, b in PAIRS]
    require_equal(method, batch, sum(terms) / len(PAIRS))


@pytest.mark.parametrize(("cls", "options"), METHODS)
def test_a_judge_is_frozen_and_in_no_checkpoint(cls, options):
    method, batch = example(cls, **WIDTHS, **options, judge=JUDGE)
    plain = small(cls, **WIDTHS, **options)
    judge = method.pair_weights.judge.encoder
    before = state(judge)
    assert method.state_dict().keys() == plain.state_dict().keys()
    method.load_state_dict(method.state_dict())
    method.train()
    method.training_loss(batch).backward()
    assert all(torch.equal(value, before[name]) for name, value in judge.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in judge.parameters())
    assert not any(module.training for module in judge.backbone.modules())


def test_a_run_with_a_judge_learns_resumes_and_is_read_without_it(tmp_path, data):
    judge = save_encoder(NarrowResNet(4, 2), tmp_path / "judge")
    method = simclr(judge=str(judge))
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=2)
    run.fit(method, data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert content["hyper_parameters"]["judge"] == str(judge)
    recipe = {"encoder": {"class_path": "ssl_zoo.encoders.NarrowResNet", "init_args": {"width": 4, "stages": 2}},
              "augment": {"init_args": {"views": [{"size": 16, "count": 2}]}}, "judge": "nowhere.safetensors",
              "projector": [16, 8], "_class_path": "ssl_zoo.methods.SimCLR", "optimizer": {}, "schedule": {}}
    torch.save(content | {"hyper_parameters": recipe}, tmp_path / "elsewhere.ckpt")
    assert load_method(tmp_path / "elsewhere.ckpt").pair_weights.judge is None
    trainer(tmp_path, max_epochs=2, limit_train_batches=2).fit(simclr(judge=str(judge)), data,
                                                              ckpt_path=tmp_path / "run.ckpt")


def test_a_judge_has_the_channels_of_the_images(tmp_path, data):
    judge = save_encoder(NarrowResNet(4, 2, mean=(0.5,) * 4, std=(0.5,) * 4, channels=4), tmp_path / "judge")
    with pytest.raises(ValueError, match="the images have 3 channels and the encoder reads 4"):
        trainer(tmp_path).fit(simclr(judge=str(judge)), data)


@pytest.mark.parametrize(("judge", "row", "sentence"), [
    ("resnet18", TWO_VIEWS, "the judge resnet18 would have random weights: name a file of them, as in resnet18="),
    ("nowhere.safetensors", TWO_VIEWS, "there is no encoder nowhere.safetensors"),
    ("resnet18=nowhere.pth", TWO_VIEWS, "no weights at nowhere.pth"),
    (f"resnet18={JUDGE}", TWO_VIEWS, "encoder.safetensors is of another architecture: 114 tensors missing"),
    ("resnet999=nowhere.pth", TWO_VIEWS, "no weights at nowhere.pth|there is no encoder resnet999"),
    (JUDGE, ViewSpec(4, 2), "sees a view of 4 pixels as 1 cell, too few for a foreground and a background"),
])
def test_a_judge_that_cannot_judge_is_refused_before_anything_runs(judge, row, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        small(SimCLR, row, **WIDTHS, judge=judge)


