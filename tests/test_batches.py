"""Batches of loaders that are not ssl_zoo's: what is made of them, and what is refused."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from ssl_zoo.evaluation import Evaluation
from ssl_zoo.memory import SampleTable
from ssl_zoo.views import Key
from tests.conftest import simclr, trainer

IMAGES = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 16, 16)


class Items(Dataset):
    """Ten images, each of one colour, its own number; `form` makes an item of an image and a number."""

    def __init__(self, form):
        self.form = form

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return self.form(IMAGES[i], i)


class Watch(pl.Callback):
    """Keeps what the method saw."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


def seen(tmp_path, form, **options):
    """The batches of two epochs of two batches of four images."""
    watch = Watch()
    trainer(tmp_path, watch).fit(simclr(), DataLoader(Items(form), 4, drop_last=True, **options))
    return watch.batches


@pytest.mark.parametrize("form", [
    lambda image, i: (image, i), lambda image, i: [image, i, i], lambda image, i: {"image": image, "label": i},
    lambda image, i: {"img": image, "target": i, "path": f"{i}.png"}, lambda image, i: (image / 255, i),
    lambda image, i: {"pixel_values": image[:1], "labels": i, "index": i}, lambda image, i: (image, i, i, f"{i}.png"),
])
def test_pairs_and_dicts_train(tmp_path, form):
    batches = seen(tmp_path, form)
    assert len(batches) == 4
    for number, batch in enumerate(batches):
        places = torch.arange(4) + 4 * (number % 2)
        assert torch.equal(batch.images, IMAGES[places])
        assert torch.equal(batch.labels, places)
        assert batch.key == Key(0, number // 2, number % 2, 0)


@pytest.mark.parametrize("form", [
    lambda image, i: image, lambda image, i: [image], lambda image, i: (image, f"class {i}"),
    lambda image, i: (image, torch.zeros(5)), lambda image, i: (image, 0.5 * i),
])
def test_images_without_a_class_are_unlabelled(tmp_path, form):
    for batch in seen(tmp_path, form):
        assert torch.equal(batch.labels, torch.full((4,), -1))


def test_images_without_a_place_are_all_different_and_those_with_one_keep_it(tmp_path):
    unknown = torch.cat([batch.index for batch in seen(tmp_path, lambda image, i: (image, i))])
    assert len(unknown.unique()) == 16
    known = torch.cat([batch.index for batch in seen(tmp_path, lambda image, i: (image, 0, i))])
    assert known.tolist() == [*range(8)] * 2


@pytest.mark.parametrize(("form", "said"), [
    (lambda image, i: ([image, image], i), r"yields a list for images: a batch is .*; views of an image are drawn"),
    (lambda image, i: (image / 127.5 - 1, i), "yields images from -1 to -0.976: leave out Normalize, for the en"),
    (lambda image, i: (image.long(), i), "yields images of torch.int64: a batch is"),
    (lambda image, i: (image.permute(1, 2, 0), i), r"yields images \[4, 16, 16, 3\]: put the channels first"),
    (lambda image, i: (image.flatten(), i), r"yields a Tensor \[4, 768\] for images: a batch is"),
    (lambda image, i: {"picture": image, "label": i}, "yields a NoneType for images: a batch is .* dict with image"),
])
def test_what_is_no_batch_of_images_gets_a_sentence(tmp_path, form, said):
    with pytest.raises(ValueError, match=said):
        seen(tmp_path, form)


def test_a_method_with_a_row_for_each_image_needs_their_places(tmp_path):
    method = simclr()
    method.table = SampleTable(10, seen=0.0)
    with pytest.raises(ValueError, match="SimCLR keeps a row for each image, and this loader does not say which"):
        trainer(tmp_path).fit(method, DataLoader(Items(lambda image, i: (image, i)), 4))


def test_loaders_of_pairs_are_evaluated(tmp_path):
    """Two of ten images, in batches of 4, 4 and 2."""
    places = []

    class Look(Evaluation):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
            places.append((dataloader_idx, batch.index.tolist(), batch.labels.tolist()))

    loaders = [DataLoader(Items(lambda image, i: (image, i % 2)), 4) for _ in range(3)]
    running = trainer(tmp_path, Look(["knn"]), max_epochs=1, num_sanity_val_steps=-1)
    running.fit(simclr(), loaders[0], loaders[1:])
    once = [(part, [*range(first, last)], [i % 2 for i in range(first, last)])
            for part in (0, 1) for first, last in ((0, 4), (4, 8), (8, 10))]
    assert places == 2 * once
    assert running.callback_metrics["knn_dino"] >= 0.5
