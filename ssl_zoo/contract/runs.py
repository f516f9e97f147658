"""What the checks train on: noise images, a few batches of them, and runs of six steps."""

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_zoo.data import ArrayImages
from ssl_zoo.method import Batch, Method
from ssl_zoo.start import require_loss
from ssl_zoo.views import Key

Build = Callable[[], Method]

IMAGES, BATCH, SIDE = 27, 8, 16   # three batches an epoch; three images are left over in each
EPOCHS = 2


class Broken(AssertionError):
    """A method breaks the contract; the sentence says where and by how much."""


def seeded(build: Build, seed: int = 0) -> Method:
    """The method that `build` makes in a run of seed 0; its first weights, and all later chance, are of `seed`.

    So two methods of different seeds draw the same views, and differ in whatever a checkpoint has to restore.
    """
    pl.seed_everything(0, verbose=False)
    torch.manual_seed(seed)
    random.seed(seed)
    return build()


def noise() -> tuple[Tensor, Tensor]:
    """The images [IMAGES, 3, SIDE, SIDE] uint8 of every check, and their labels: three classes in turn."""
    pixels = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1),
                           dtype=torch.uint8)
    return pixels, torch.arange(IMAGES) % 3


def batches(method: Method) -> Iterator[Batch]:
    """Three batches with the views that this method draws; the third shows images again, on another process."""
    pixels, labels = noise()
    first, second = torch.arange(2 * BATCH).chunk(2)
    for number, index in enumerate((first, second, first.flip(0))):
        key = Key(0, number // 2, number, 0)
        yield Batch(pixels[index], labels[index], index, method.augment(pixels[index], key), key,
                    torch.tensor(number / 3))


def loss_of(method: Method, batch: Batch) -> Tensor:
    """The training loss, which must be one finite number with a gradient."""
    name, loss = f"{type(method).__name__}.training_loss", method.training_loss(batch)
    try:
        require_loss(loss, type(method))
    except ValueError as error:
        raise Broken(str(error)) from error
    if not loss.isfinite():
        raise Broken(f"{name} returns {loss.item()} on the first weights: divide by nothing that may be 0")
    return loss


@contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


class Record(pl.Callback):
    """The losses of a run and, after each batch, what `look` finds in the method."""

    def __init__(self, look: Callable[[Method], Any] = lambda method: None):
        self.look = look
        self.losses: list[Tensor] = []
        self.found: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach().clone())
        self.found.append(self.look(pl_module))


def train(method: Method, *callbacks: pl.Callback, ckpt_path: Path | None = None, **options: Any) -> pl.Trainer:
    """Train for two epochs of three batches on a CPU, without evaluation; `options` are the trainer's."""
    pixels, labels = noise()
    with temporary_folder() as folder:
        np.savez(folder / "images.npz", train_images=pixels.numpy(), train_labels=labels.numpy())
        defaults: dict[str, Any] = {
            "accelerator": "cpu", "devices": 1, "default_root_dir": folder, "callbacks": list(callbacks),
            "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": EPOCHS,
            "num_sanity_val_steps": 0, "limit_val_batches": 0, "enable_checkpointing": False}
        trainer = pl.Trainer(**defaults | options)
        data = ArrayImages(str(folder / "images.npz"), BATCH)
        data.said = True   # the user has not brought these images
        trainer.fit(method, datamodule=data, ckpt_path=ckpt_path)
    return trainer
