"""Loader processes stay from epoch to epoch and end with the run, and their batches reach a GPU beside its steps."""

import os
import time
from contextlib import contextmanager

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from ssl_zoo.data import ImageFolder
from ssl_zoo.data.sources import Files, Loader
from ssl_zoo.data.transfer import on_device
from ssl_zoo.data.workers import Crew
from ssl_zoo.views import Augmentation, Crops, Key, ViewSpec
from tests.conftest import simclr


def written(place):
    """An image [3, 8, 8] of one colour, which says in 24 bits which process has made it."""
    bits = torch.tensor([os.getpid() >> shift & 255 for shift in (16, 8, 0)], dtype=torch.uint8)
    return bits[:, None, None].expand(3, 8, 8)


def makers(batches):
    """The processes that have made each batch's images."""
    colours = (batch[0][:, :, 4, 4].long() @ torch.tensor([1 << 16, 1 << 8, 1]) for batch in batches)
    return [set(found.tolist()) for found in colours]


def loader(workers=2, **options):
    return Loader(Files(written, [str(i) for i in range(24)], torch.arange(24), 8), 4, workers, **options)


def ended(process):
    for _ in range(600):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_the_same_processes_load_all_epochs_a_batch_each():
    training = loader(training=True)
    found = []
    for epoch in range(3):
        training.set_epoch(epoch)
        batches = makers(training)
        assert all(len(of_one) == 1 for of_one in batches)              # a batch is one message of one process
        found.append(set().union(*batches))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2
    assert os.getpid() not in found[0]
    training.dismiss()
    assert all(map(ended, found[0]))
    training.set_epoch(3)
    assert not found[0] & set().union(*makers(training))


def test_an_epoch_that_was_left_early_leaves_no_batch_to_the_next():
    several, alone = loader(training=True), loader(workers=0, training=True)
    for epoch, wanted in ((0, 2), (1, 6), (2, 1), (3, 6)):
        seen = []
        for one in (several, alone):
            one.set_epoch(epoch)
            seen.append([batch[2].tolist() for batch, _ in zip(one, range(wanted), strict=False)])
        assert seen[0] == seen[1]


def test_workers_that_evaluate_end_with_their_pass():
    plain = loader()
    found = set().union(*makers(plain))
    assert plain.crew is None
    assert all(map(ended, found))


def test_the_workers_of_a_run_stay_until_it_ends(tmp_path):
    for i in range(8):
        Image.fromarray(np.full((20, 20, 3), 30 * i, np.uint8)).save(tmp_path / f"{i}.png")
    found = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            found.append({worker.pid for worker in trainer.train_dataloader.crew.loader._iterator._workers})

    data = ImageFolder(str(tmp_path), batch_size=4, evaluation_size=8, workers=1)
    pl.Trainer(accelerator="cpu", max_epochs=2, limit_val_batches=0, callbacks=[Look()], logger=False,
               enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False).fit(simclr(), data)
    assert len(found) == 2
    assert found[0] == found[1]
    assert data.loader.crew is None


class Streams:
    """Stands in for torch.cuda's streams where there is no GPU, and notes in which order they are told what."""

    def __init__(self, monkeypatch):
        self.told, self.current = [], "steps"
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: "side")
        monkeypatch.setattr(torch.cuda, "stream", self.within)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: self.told.append("kept"))
        to = torch.Tensor.to
        monkeypatch.setattr(torch.Tensor, "to", lambda x, device, non_blocking: self.told.append(
            f"copied on {self.current}, host {'goes on' if non_blocking else 'waits'}") or to(x, device))

    @contextmanager
    def within(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def wait_stream(self, stream):
        self.told.append(f"{self.current} waits for {stream}")


def test_a_batch_is_copied_beside_the_steps_and_kept_until_they_have_read_it(monkeypatch):
    streams, key = Streams(monkeypatch), Key(0, 0, 0, 0)
    crops = Crops([torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8)], [np.zeros((2, 4))], np.zeros((4, 2)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        (pixels, index, again), = on_device([(crops, torch.arange(4), key)], torch.device("cuda"))
    assert streams.told == ["copied on side, host goes on"] * 2 + ["steps waits for side"] + ["kept"] * 2
    assert isinstance(pixels, Crops)
    assert pixels.pixels[0].device.type == index.device.type == "cuda"
    assert isinstance(pixels.tables[0], np.ndarray)                      # read by the host alone
    assert again == key


def test_on_a_cpu_batches_are_handed_on():
    batch = (torch.zeros(2), Key(0, 0, 0, 0))
    assert next(on_device([batch], torch.device("cpu"))) is batch


def test_a_crews_pinned_batches_keep_the_tables_of_their_crops(monkeypatch):
    """torch makes pinned copies within tuples of any name, and leaves NumPy's arrays where they are."""
    pin = torch.utils.data._utils.pin_memory.pin_memory
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x, device=None: x.clone())
    files = Files(written, [str(i) for i in range(4)], torch.arange(4), 8)
    files.augment = Augmentation([ViewSpec(8, count=2)])
    crops = files.for_training([written(0)] * 2, Key(0, 0, 0, 0))
    pinned = pin((crops, torch.arange(2)))[0]
    assert isinstance(pinned, Crops)
    assert isinstance(pinned.tables[0], np.ndarray)
    assert pinned.pixels[0] is not crops.pixels[0]
    assert Crew(files, 0, pin_memory=True).loader is None
