"""finetune: which images train, for how long, from which weights, and what is left as it was."""

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ssl_zoo.cli import run
from ssl_zoo.data import ArrayImages
from ssl_zoo.data.sources import Loader
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation import finetune as room
from ssl_zoo.evaluation import suite
from ssl_zoo.evaluation.augmented import Trained, assemble, learn
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.finetune import (
    PRETRAINED,
    SCRATCH,
    Some,
    cells,
    duration,
    epochs_for,
    state_cost,
    subsets,
    untrained,
)
from ssl_zoo.evaluation.protocol import Context
from ssl_zoo.evaluation.protocols import find
from ssl_zoo.evaluation.score import Score, number
from ssl_zoo.export import save_encoder
from tests.conftest import same


def encoder(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NarrowResNet(4, 2).eval()


def labelled(counts):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Features(torch.zeros(len(labels), 2), labels, 3 * torch.arange(len(labels)))


@pytest.fixture(scope="module")
def measured(arrays, tmp_path_factory):
    """One encoder on 60 images of three classes: at 10 and 100 %, for two epochs on all."""
    subject, folder = encoder(), tmp_path_factory.mktemp("finetune")
    before = copy.deepcopy(subject.state_dict()), [module.training for module in subject.modules()]
    images = ArrayImages(str(arrays))
    images.setup("fit")
    column = suite.evaluate({"it": subject}, images, folder, protocols=["finetune"], epochs=2).columns["it"]
    return subject, before, column, folder


# Which images, and how long

@pytest.mark.parametrize("counts", [[200, 200, 200], [1000, 150, 100]])
def test_subsets_have_the_share_of_each_class_and_lie_in_each_other(counts):
    train = labelled(counts)
    found, left_out = subsets(train, "finetune")
    assert not left_out
    for percent, places in found.items():
        of_class = train.labels[places // 3].bincount().tolist()
        assert of_class == [max(1, round(count * percent / 100)) for count in counts]
        assert (places.diff() > 0).all()                                # as shards want them
    assert set(found[1].tolist()) < set(found[10].tolist()) < set(found[100].tolist())
    assert same(subsets(train, "finetune"), (found, left_out))


def test_images_without_a_label_are_in_no_subset():
    train = labelled([300, 300])
    labels = train.labels.clone()
    labels[:100] = -1
    found, _ = subsets(train._replace(labels=labels), "finetune")
    assert found[100].min() == 300
    assert len(found[1]) == 2 + 3


def test_less_than_an_image_of_each_class_is_said_in_a_sentence():
    found, left_out = subsets(labelled([33] * 3), "finetune")
    assert found.keys() == {10, 100}
    assert left_out == ["finetune at 1% of the labels: of 99 images that is less than one for each of 3 classes"]


def test_a_hundredth_of_the_labels_gets_a_tenth_of_the_steps():
    assert [epochs_for(percent) for percent in (1, 10, 100)] == [300, 95, 30]
    assert epochs_for(1, 2) == 20
    for percent in (1, 10, 100):
        assert epochs_for(percent) * percent == pytest.approx(3000 * math.sqrt(percent / 100), rel=0.01)


# What trains

def test_the_encoder_has_a_tenth_of_the_heads_rate_and_from_scratch_the_whole(data):
    data.setup("validate")
    for recipe, share, decay in ((PRETRAINED, 0.1, 0.0), (SCRATCH, 1.0, 1e-4)):
        settings = []
        hook = register_optimizer_step_pre_hook(
            lambda optimizer, *_, settings=settings: settings.append([dict(group) for group in optimizer.param_groups]))
        try:
            learn(recipe, encoder(), Loader(data.train, 30, training=True), 3, 16, 2)
        finally:
            hook.remove()
        rates = [recipe.lr * 30 / 256 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
        assert [step[0]["lr"] for step in settings] == pytest.approx([share * rate for rate in rates])
        assert [step[1]["lr"] for step in settings] == pytest.approx(rates)
        assert {group["weight_decay"] for step in settings for group in step} == {decay}
        assert sum(len(group["params"]) for group in settings[0]) == len([*encoder().parameters()]) + 2


def test_features_of_any_scale_give_the_same_first_scores():
    model = assemble(encoder(), 3, frozen=False, standardise=True).train()
    torch.nn.init.normal_(model[2].weight)
    x = torch.rand(8, 3, 16, 16)
    features = model[0](x)
    assert torch.allclose(model[1:](1000 * features), model[1:](features), atol=1e-2)


def test_from_scratch_is_the_same_class_with_other_weights_the_same_ones_every_time():
    subject, state = encoder(), torch.get_rng_state()
    first, second = untrained(subject), untrained(subject)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.arguments == subject.arguments
    assert same(first.state_dict(), second.state_dict())
    assert not torch.equal(first.backbone.conv1.weight, subject.backbone.conv1.weight)


# What is found

def test_every_percentage_has_its_score_that_of_scratch_and_the_gain(measured):
    _, _, column, _ = measured
    names = [f"finetune/2_epochs/{percent}%{end}" for percent in (10, 100) for end in ("", "/scratch", "/gain")]
    assert list(column.scores) == names
    for own, scratch, gain in (names[:3], names[3:]):
        scores = [column.scores[name] for name in (own, scratch, gain)]
        assert torch.equal(scores[2].units, scores[0].units - scores[1].units)
        assert all(len(score.units) == 24 and score.of == "image" for score in scores)
    assert any("finetune at 1% of the labels: of 60 images that is less than one" in said for said in column.left_out)


def test_the_notes_say_how_long_each_training_was(measured):
    notes = {name: note | {"seconds": 0} for name, note in measured[2].notes.items()}
    assert notes["finetune/2_epochs/100%"] == {"images": 60, "batch": 60, "epochs": 2, "steps": 2, "seconds": 0}
    assert notes["finetune/2_epochs/10%/scratch"] == {"images": 6, "batch": 6, "epochs": 6, "steps": 6, "seconds": 0}


def test_the_encoder_is_left_as_it_was(measured):
    subject, (state, modes), *_ = measured
    assert same(subject.state_dict(), state)
    assert [module.training for module in subject.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in subject.parameters())


def test_the_report_has_the_picture_and_the_protocols_words(measured):
    folder = measured[3]
    assert (folder / "finetuning.png").is_file()
    assert "- `finetune/`: all weights and a linear layer" in (folder / "report.md").read_text()


def test_the_encoder_and_the_one_from_scratch_learn_from_the_same_images_for_the_same_steps():
    found, _ = subsets(labelled([200, 200]), "finetune")
    planned = room.jobs(encoder(), encoder(4), found, "finetune", 30)
    assert [job.name for job in planned[:2]] == ["finetune/1%", "finetune/1%/scratch"]
    for own, scratch in zip(planned[::2], planned[1::2], strict=True):
        assert torch.equal(own.places, scratch.places)
        assert (own.epochs, own.recipe, scratch.recipe) == (scratch.epochs, PRETRAINED, SCRATCH)


def test_a_second_encoder_of_the_class_does_not_train_from_scratch_again(data, monkeypatch):
    def evaluated(recipe, encoder, train, test, classes, size, epochs):
        names.append(recipe.name)
        return Trained(recipe.name, number(0), torch.full((24,), len(names) % 3), data.test.labels)

    names = []
    monkeypatch.setattr(room, "evaluate", evaluated)
    monkeypatch.setattr(room, "state_cost", lambda *_: None)
    data.setup("fit")
    source = suite.Source(data, data.val_dataloader(), None, False)
    train = Features(torch.zeros(60, 8), data.train.labels, torch.arange(60))
    protocol, found = find("finetune"), []
    for subject in (encoder(), encoder(4), NarrowResNet(8, 2)):
        context = Context("it", data.classes, encoder=subject, batches=source.batches, size=16)
        found.append(protocol.measure(train, train, context).scores)
    assert len(names) == 4 + 2 + 4
    assert names[4:6] == ["finetune/10%", "finetune/100%"]
    assert same(*(scores["finetune/10%/scratch"].units for scores in found[:2]))


# Before it starts

def test_the_cost_is_said_before_the_first_training(arrays, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(room, "evaluate", lambda *_: pytest.fail(capsys.readouterr().err))
    images = ArrayImages(str(arrays))
    images.setup("fit")
    with pytest.raises(BaseException, match=r"it: finetune trains 4 times \(6 images for 95 epochs, 60 images for 30 "
                                            r"epochs\), on 4,740 images in all: about \d+ seconds by its first steps"):
        suite.evaluate({"it": encoder()}, images, tmp_path, protocols=["finetune"])


def test_the_time_is_that_of_an_image_in_the_second_epoch_for_all_images(data, capsys):
    data.setup("validate")
    loader = Loader(data.train, 10, training=True)
    job = room.Job("x", encoder(), SCRATCH, torch.arange(1000), 60)
    def clock():
        return began[1] + 0.3                       # 3 batches of 10 images
    began, real = [], Some.set_epoch
    class Noted(Some):
        def set_epoch(self, epoch):
            real(self, epoch)
            began.append(self.began[-1])
    room.Some, kept = Noted, room.Some
    try:
        state_cost("finetune", [job], loader, Context("it", ["a", "b", "c"], encoder=encoder(), size=16), clock)
    finally:
        room.Some = kept
    assert "on 60,000 images in all: about 10 minutes" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "said"), [(12.4, "12 seconds"), (90, "2 minutes"), (7200, "2.0 hours")])
def test_a_duration_is_said_in_the_unit_that_one_would_take(seconds, said):
    assert duration(seconds) == said


def test_a_run_cannot_fine_tune_and_says_how_it_is_done():
    with pytest.raises(ValueError, match="finetune trains on images, for long: measure the exported encoder"):
        find("finetune").measure(labelled([200, 200]), labelled([2, 2]), Context(running=True))


def test_cells_are_those_of_the_protocol_without_the_gains():
    score = Score(torch.ones(3), "image")
    found = cells({"a": {"finetune/1%": score, "finetune/1%/scratch": score, "finetune/1%/gain": score,
                         "finetune_simclr": number(1), "balanced_accuracy/finetune/1%": score,
                         "finetune/5_epochs/10%": score}}, "finetune")
    assert [tuple(cell[:4]) for cell in found] == [("a", "fine-tuned", 1, True), ("a", "from scratch", 1, True),
                                                   ("a", "fine-tuned", 10, True)]


# Files and shards, by the command

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of each of two classes, dark and bright."""
    generator, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures") / "images"
    for shade, name in ((0, "dark"), (130, "bright")):
        (root / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(shade, shade + 120, (24, 20 + i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    return root


@pytest.mark.parametrize(("kind", "images", "plan"), [
    ("files", 18, "2 times (18 images for 1 epochs), on 36 images in all"),
    ("shards", 22, "4 times (2 images for 3 epochs, 22 images for 1 epochs), on 56 images in all")])
def test_files_and_shards_train_as_arrays_do(kind, images, plan, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = folder
    if kind == "shards":
        run(["shard", str(folder), "shards", "--megabytes", "0.01", "--workers", "0"])
        root = tmp_path / "shards"
    save_encoder(encoder(), tmp_path / "encoder")
    capsys.readouterr()
    run(["evaluate", "encoder.safetensors", "--protocols", "finetune", "--epochs", "1", "--data",
         "ImageFolder" if kind == "files" else "ImageShards", "--data.root", str(root), "--data.held_out", "0.25",
         "--data.evaluation_size", "16", "--data.workers", "0"])
    out, err = capsys.readouterr()
    assert "finetune/1_epochs/100%/scratch" in out
    assert f"finetune at 1% of the labels: of {images} images that is less than one for each of 2 classes" in out
    assert f"encoder.safetensors: finetune trains {plan}: about " in err
