"""Callbacks that watch over a run: its progress, speed and views, a loss that is not finite, Ctrl-C, failed starts."""

import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from tqdm import tqdm

from ssl_zoo.distributed import run_folder
from ssl_zoo.method import Batch, Method
from ssl_zoo.pictures import Tile, publish, sheet


class Progress(pl.callbacks.ProgressBar):
    """A progress bar over the whole run: what is happening, the loss and the latest kNN accuracy."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None
        self.enabled, self.stage = True, ""

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def say(self, stage: str) -> None:
        if self.bar is not None and stage != self.stage:
            self.stage = stage
            self.bar.set_description(stage)

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(map(str, args)), file=sys.stderr)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.bar is None and self.enabled and trainer.is_global_zero:
            calm = 0.2 if sys.stderr.isatty() else 10.0   # seconds between updates; a log file needs few
            self.print(header(trainer, pl_module))
            self.bar = tqdm(desc="starting", unit="step", mininterval=calm, dynamic_ncols=True, file=sys.stderr)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.say("evaluating" if trainer.global_step else "evaluating the untrained encoder")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                             batch_idx: int) -> None:
        if self.bar is not None and self.bar.total is None:
            assert isinstance(pl_module, Method)
            done = trainer.fit_loop.total_batch_idx   # not 0 after a resume
            self.bar.reset(total=done + pl_module.course.left(trainer) * trainer.accumulate_grad_batches)
            self.bar.n = self.bar.initial = done
        of = f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        self.say(f"pretraining, epoch {trainer.current_epoch + 1}{of}")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        if self.bar is not None and self.bar.update():   # true when it was drawn: only then are the numbers read
            numbers = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
            self.bar.set_postfix({"loss": outputs["loss"].item()} | numbers, refresh=False)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.say("evaluating")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.say("done")
        self.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class Speed(pl.Callback):
    """Logs images_per_second of training, evaluation left out, whenever the trainer logs."""

    def __init__(self) -> None:
        self.images, self.since = 0, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch,
                             batch_idx: int) -> None:
        if not self.images:
            self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch,
                           batch_idx: int) -> None:
        self.images += len(batch.index) * trainer.world_size
        if due(trainer):
            pl_module.log("images_per_second", self.images / (time.perf_counter() - self.since), rank_zero_only=True)
            self.images = 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.images = 0


class ViewsPicture(pl.Callback):
    """Saves a picture of the first batch's views: eight images, each with all its views."""

    def __init__(self) -> None:
        self.drawn = False   # later batches do not look at the disk

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch,
                             batch_idx: int) -> None:
        folder = run_folder(trainer)
        if self.drawn or not trainer.is_global_zero or folder is None:
            return
        self.drawn = True
        whole = isinstance(batch.images, torch.Tensor)   # crops from a worker come without their sources
        rows = [[Tile(batch.images[i])] if isinstance(batch.images, torch.Tensor) else []
                for i in range(min(8, len(batch.index)))]
        for i, row in enumerate(rows):
            row.extend(Tile(view.images[i]) for view in batch.views)
        picture = sheet(rows, "left: source; right: its views" if whole else "the views of an image, row by row",
                        split=int(whole))
        publish(picture, "views", folder, trainer.logger, trainer.global_step)


class FiniteLoss(pl.Callback):
    """Stops a run whose loss is not finite, names the step, and prevents any later checkpoint.

    The first such step is kept on the device and read only when the trainer logs, because reading makes the host wait.
    """

    def __init__(self) -> None:
        self.first: torch.Tensor | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        loss = outputs["loss"].detach()
        if self.first is None:
            self.first = torch.full((), -1, device=loss.device)
        self.first = torch.where((self.first < 0) & ~loss.isfinite(), trainer.global_step, self.first)
        if loss.device.type == "cpu" or due(trainer):
            self.stop_if_not_finite(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule,
                           checkpoint: dict[str, Any]) -> None:
        self.stop_if_not_finite(trainer)

    def stop_if_not_finite(self, trainer: pl.Trainer) -> None:
        if self.first is None or (step := int(self.first)) < 0:
            return
        folder = run_folder(trainer) or Path()
        saved = sorted(folder.glob("checkpoints/*.ckpt"), key=lambda file: file.stat().st_mtime)
        rest = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint had been saved yet"
        raise ValueError(f"the loss is not finite at step {step}: try a lower learning rate, more warm-up or "
                         f"trainer.gradient_clip_val; {rest}")


class SafeInterrupt(pl.Callback):
    """Ctrl-C finishes the current batch, saves a checkpoint and prints the command to go on; a second stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self.previous: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGINT, self.ask)

    def ask(self, signum: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # not print, which a signal must not enter twice
        os.write(2, b"\nstopping after the batch at hand, to save it; Ctrl-C again stops at once\n")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:   # a checkpoint holds no half-accumulated gradients
            return
        if trainer.world_size > 1 and not due(trainer):         # to agree on the batch makes every process wait
            return
        if not trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            return
        folder = run_folder(trainer) or Path(trainer.default_root_dir)
        path = folder / "checkpoints" / "interrupted.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        config = folder / "config.yaml"
        source = f"--config {config} " if config.exists() else ""
        if trainer.is_global_zero:
            tqdm.write(f"\ninterrupted at step {trainer.global_step}; go on with:\n"
                       f"  ssl-zoo fit {source}--ckpt_path {path}", file=sys.stderr)
        raise KeyboardInterrupt

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
            self.previous = None


class FailedStart(pl.Callback):
    """Knows whether a run's first batch is done, and removes what it has left if it ends before."""

    def __init__(self) -> None:
        self.fresh, self.begun = False, False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.fresh, self.begun = fresh(run_folder(trainer)), stage != "fit"

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        self.begun = True

    def remove(self, trainer: pl.Trainer, there: Path) -> None:
        """Remove the folder of a failed start, and what it made above it.

        Call it when the loggers have closed their files: TensorBoard would miss its own.

        Args:
            trainer: the run's.
            there: the folder that was there before the run.
        """
        folder = run_folder(trainer)
        if self.begun or not trainer.is_global_zero or folder is None or not re.match(r"version_\d+$", folder.name):
            return
        if folder.exists() and (self.fresh or fresh(folder)):   # the data may have failed before `setup` was called
            shutil.rmtree(folder)
            for above in folder.absolute().parents:
                if above == there.absolute() or any(above.iterdir()):
                    break
                above.rmdir()


def fresh(folder: Path | None) -> bool:
    """Whether no earlier run has left anything in a folder, which TensorBoard has perhaps opened."""
    return folder is not None and all(file.name.startswith("events.out") for file in folder.glob("*"))


class LastCheckpoint(pl.callbacks.ModelCheckpoint):
    """Keeps the newest epoch in checkpoints/last.ckpt, whatever a recipe keeps beside it."""

    def __init__(self) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)


class Checkpoints(pl.callbacks.ModelCheckpoint):
    """Keeps the checkpoints of some epochs beside checkpoints/last.ckpt.

    Args:
        every_n_epochs: keep one each time this many epochs have passed; null keeps none.
    """

    def __init__(self, every_n_epochs: int | None = None):
        super().__init__(save_top_k=-1, every_n_epochs=every_n_epochs or 0, save_on_train_epoch_end=True)


def due(trainer: pl.Trainer) -> bool:
    """Whether the trainer logs at this batch, counted over all epochs: one epoch may be shorter than the interval."""
    return (trainer.fit_loop.total_batch_idx + 1) % max(1, trainer.log_every_n_steps) == 0   # type: ignore[attr-defined]


def header(trainer: pl.Trainer, method: pl.LightningModule) -> str:
    """One line that describes a run: method, encoder, device and folder."""
    assert isinstance(method, Method)
    millions = sum(p.numel() for p in method.encoder.parameters()) / 1e6
    encoder = f"{type(method.encoder).__name__} of {millions:.1f} M parameters, {method.encoder.dim} features"
    return f"{type(method).__name__} · {encoder} · {trainer.strategy.root_device} · {run_folder(trainer)}"
