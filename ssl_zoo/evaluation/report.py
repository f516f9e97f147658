"""What a run leaves behind: a table before and after, the encoder as files, and where everything is."""

import copy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor

from ssl_zoo.distributed import run_folder
from ssl_zoo.evaluation import summary
from ssl_zoo.evaluation.features import FeatureCallback, Features
from ssl_zoo.evaluation.score import number
from ssl_zoo.export import save_encoder
from ssl_zoo.method import Batch, Method

PIXELS, BEFORE = "raw pixels", "untrained encoder"


class Report(pl.Callback):
    """Ends a run with a table of every protocol's number before and after, and with the exported encoder.

    Below the table, apart from it, stands which epoch was best, for what it is worth: the test part chose it.

    The untrained column needs a whole evaluation before training: `trainer.num_sanity_val_steps: -1` in the recipe.

    Args:
        raw_pixels: evaluate the images' pixels as if they were features, for small images in memory.
    """

    def __init__(self, raw_pixels: bool = False):
        self.raw_pixels = raw_pixels
        self.columns: dict[str, dict[str, float]] = {}
        self.pixels: dict[int, list[Features]] = {}
        self.size: int | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs and trainer.check_val_every_n_epoch:
            trainer.check_val_every_n_epoch = 1   # the last epoch is evaluated, whatever the recipe's rhythm

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch,
                                batch_idx: int, dataloader_idx: int = 0) -> None:
        assert isinstance(batch.images, Tensor)
        self.size = batch.images.shape[-1]
        if self.raw_pixels and trainer.sanity_checking and trainer.world_size == 1:
            pixels = batch.images.flatten(1).float() / 255
            self.pixels.setdefault(dataloader_idx, []).append(Features(pixels, batch.labels, batch.index))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        whole_pass = trainer.num_sanity_val_steps == float("inf")   # Lightning's form of -1
        if trainer.sanity_checking and not whole_pass:
            return
        callbacks = [callback for callback in self.callbacks(trainer) if callback.latest]
        if self.pixels:
            parts = [Features(*map(torch.cat, zip(*batches, strict=True))) for batches in self.pixels.values()]
            self.columns[PIXELS] = merge(copy.copy(callback).measure(parts[0], parts[-1]) for callback in callbacks
                                         if callback.needs_labels)
            self.pixels = {}
        name = BEFORE if trainer.sanity_checking else epoch(trainer.current_epoch + 1)
        self.columns[name] = merge(callback.latest for callback in callbacks)

    def callbacks(self, trainer: pl.Trainer) -> list[FeatureCallback]:
        found: list[Any] = trainer.callbacks   # type: ignore[attr-defined]
        return [callback for callback in found if isinstance(callback, FeatureCallback)]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None or not trainer.global_step:
            return
        now = epoch(trainer.current_epoch)
        metrics = self.columns.get(now, {})   # an earlier epoch's are not this one's
        path = save_encoder(pl_module.evaluated, folder / "encoder", size=self.size, metrics=metrics,
                            recipe=whole_recipe(folder, pl_module))
        text = table({name: self.columns[name] for name in self.shown()}) + highest(self.columns)
        (folder / "report.txt").write_text(text)
        left = {"checkpoints": folder / "checkpoints", "exported encoder": path, "TensorBoard": folder,
                "augmented views": folder / "views.png", "nearest neighbours": folder / "neighbours.png"}
        print("\n" + text)
        if not metrics:
            print(f"{now} was not evaluated: ssl-zoo evaluate {path}\n")
        print("\n".join(f"{name:20}{place}" for name, place in left.items() if place.exists()))

    def shown(self) -> list[str]:
        """The pixels', the untrained and the last column."""
        names = list(self.columns)
        return [name for name in names if name in (PIXELS, BEFORE)] + names[-1:] if names else []

    def state_dict(self) -> dict[str, Any]:
        return {"columns": self.columns, "size": self.size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.columns, self.size = state_dict["columns"], state_dict["size"]


def whole_recipe(folder: Path, method: Method) -> Any:
    """The recipe that the command line left in a run's folder, or else what the method knows of it."""
    config = folder / "config.yaml"
    return yaml.safe_load(config.read_text()) if config.is_file() else dict(method.hparams)


def epoch(done: int) -> str:
    """The column of the encoder after so many epochs."""
    return f"epoch {done}"


def merge(numbers: Any) -> dict[str, float]:
    return {name: value for some in numbers for name, value in some.items()}


def table(columns: dict[str, dict[str, float]]) -> str:
    """A line for each protocol, a column for each encoder."""
    if not any(columns.values()):
        return "no evaluation ran\n"
    return summary.as_text(summary.rows({name: {protocol: number(value) for protocol, value in numbers.items()}
                                         for name, numbers in columns.items()}, compare=False))


def highest(columns: dict[str, dict[str, float]]) -> str:
    """A line with each accuracy's best epoch; empty where there was only one to choose from."""
    epochs = {name: numbers for name, numbers in columns.items() if name not in (PIXELS, BEFORE)}
    accuracies = dict.fromkeys(name for numbers in epochs.values() for name in numbers
                               if not name.startswith("health/"))
    if len(epochs) < 2 or not accuracies:
        return ""
    found = []
    for name in accuracies:
        values = {column: numbers[name] for column, numbers in epochs.items() if name in numbers}
        best = max(values, key=values.__getitem__)
        found.append(f"{name} {100 * values[best]:.1f} % ({best})")
    return f"\nhighest of {len(epochs)} evaluations, chosen by the test part and so no result: {', '.join(found)}\n"
