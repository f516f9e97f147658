"""Checkpoints: when they are saved, so that a file is whole, finite and of this run, and what a full disk means."""

import errno
import os
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.utilities.cloud_io import _is_local_file_protocol

from ssl_zoo.distributed import run_folder
from ssl_zoo.files import free, whole
from ssl_zoo.finite import listed, not_finite

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNREACHABLE = (None, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH)   # libraries' own errors have no number


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its place and then renames it; Lightning's goes through TMPDIR.

    Another run's file is never replaced or removed: a name that is taken gets a number. A checkpoint that cannot be
    written, for one because the disk is full, is said in a warning and kept in `failed`, and the one before stays.
    """

    def __init__(self) -> None:
        self.own: dict[str, Path] = {}   # where the files of this run are, by the name that was asked for
        self.last: Path | None = None   # the newest of them
        self.failed = ""                # why the newest one could not be written; empty where it was
        self.seconds = 0.0              # that all of them took

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        # the callback that looks at a checkpoint is not asked where weights alone are saved
        if "callbacks" not in checkpoint and (names := not_finite(checkpoint.get("state_dict", {}))):
            raise ValueError(f"not finite: {listed(names)}, which is not saved")
        began, asked = time.perf_counter(), os.path.abspath(path)
        place = self.own.get(asked) or free(Path(path))
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole(place) as half, half.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            if (why := of_the_system(error)) is None:
                raise
            rest = f"the last good checkpoint is {self.last}" if self.last else "no checkpoint had been saved yet"
            room = ": make room" if why.errno in FULL_DISK else ""
            self.failed = f"the checkpoint {place} could not be written ({why.strerror or why}){room}; {rest}"
            warnings.warn(self.failed, stacklevel=2)
            return
        if place != Path(path) and asked not in self.own:
            warnings.warn(f"{path} is of another run and stays: this run's is {place}", stacklevel=2)
        self.own[asked], self.last, self.failed = place, place, ""
        self.seconds += time.perf_counter() - began

    def remove_checkpoint(self, path: Any) -> None:
        if not _is_local_file_protocol(path):
            super().remove_checkpoint(path)
        elif not self.failed and (place := self.own.pop(os.path.abspath(path), None)):
            place.unlink(missing_ok=True)


def of_the_system(error: BaseException) -> OSError | None:
    """The error of a disk or a network; torch.save and TensorBoard hide it behind others."""
    found = error if isinstance(error, OSError) else error.__cause__ or error.__context__
    return found if isinstance(found, OSError) else None


def of_the_network(error: OSError) -> bool:
    """Whether a call may succeed later."""
    kinds = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)
    return isinstance(error, kinds) or error.errno in UNREACHABLE


@contextmanager
def forgiving(loggers: list[Any]) -> Iterator[None]:
    """Let a run go on without the curves of a logger that cannot write any more, and say so once.

    One that cannot be reached through the network is tried again at each call.

    TensorBoard writes in a thread of its own, whose traceback is left out: its next call raises the same error here.
    """
    hook = threading.excepthook

    def quietly(failure: Any) -> None:
        if not isinstance(failure.exc_value, OSError) or "tensorboard" not in type(failure.thread).__module__:
            hook(failure)

    for logger in loggers:
        said: set[bool] = set()
        for name in ("log_metrics", "log_hyperparams", "save", "finalize"):
            setattr(logger, name, forgiven(getattr(logger, name), type(logger).__name__, said))
    threading.excepthook = quietly
    try:
        yield
    finally:
        threading.excepthook = hook


def forgiven(call: Callable[..., Any], whose: str, said: set[bool]) -> Callable[..., Any]:
    """The same call until the disk has failed it, or one of its logger's, for the first time.

    `said` is of all calls of a logger: whether it was said that the network has failed one, or the disk.
    """
    @wraps(call)
    def called(*args: Any, **kwargs: Any) -> Any:
        if False in said:    # TensorBoard's writer would raise the same error again, with an ever longer traceback
            return None
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if (why := of_the_system(error)) is None:
                raise
            network = of_the_network(why)
            failed, rest = (("be reached", "tries again at each step that is logged") if network else
                            ("write its curves", "they end here"))
            if network not in said:
                said.add(network)
                warnings.warn(f"{whose} cannot {failed} ({why.strerror or why}): the run goes on, and {rest}",
                              stacklevel=2)
            return None
    return called


def last_good(trainer: pl.Trainer) -> str:
    """The end of a sentence: which checkpoint a run may go on from; empty on processes that save none."""
    if not trainer.is_global_zero:
        return ""
    found = getattr(trainer.strategy.checkpoint_io, "last", None) or trainer.ckpt_path
    return f"; the last good checkpoint is {found}" if found else "; no checkpoint had been saved yet"


class InRunFolder(pl.callbacks.ModelCheckpoint):
    """Saves in checkpoints/ of the run's folder, where no other place is named."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.dirpath is None and (folder := run_folder(trainer)) is not None:
            self.dirpath = str(folder / "checkpoints")
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(InRunFolder):
    """Keeps the newest state in checkpoints/last.ckpt, whatever a recipe keeps beside it.

    It is saved at the end of each epoch, before an evaluation, which may take long, every `every_n_steps` of
    `Checkpoints`, and where a run ends within an epoch.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.steps: int | None = None
        self.within = False   # the run ends within this epoch

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        callbacks: list[Any] = trainer.callbacks   # type: ignore[attr-defined]
        self.steps = next((one.every_n_steps for one in callbacks if isinstance(one, Checkpoints)), None)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.within = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        # At the epoch's end Lightning would count the rest of its batches as done.
        self.within = not trainer.is_last_batch and (trainer.should_stop or trainer.global_step == trainer.max_steps)
        due = self.steps and trainer.global_step % self.steps == 0 and stepped(trainer, batch_idx)
        if self.within or due and not trainer.is_last_batch:   # after which the evaluation or the epoch's end saves
            self.save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not self.within:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.within:
            super().on_train_epoch_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule,
                           checkpoint: dict[str, Any]) -> None:
        if trainer.validating:   # a run that goes on from here evaluates from the first image
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["current"] = dict.fromkeys(progress["current"], 0)
            progress["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}   # begun and not done

    def save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:   # type: ignore[attr-defined]
            trainer.save_checkpoint(self.format_checkpoint_name({}), weights_only=False)


class Checkpoints(InRunFolder):
    """Which checkpoints are saved beside the one at the end of each epoch, checkpoints/last.ckpt.

    Args:
        every_n_epochs: keep one each time this many epochs have passed; null keeps none.
        every_n_steps: save last.ckpt after this many steps, too, so that a run that is killed loses no more of them;
            null saves it at the end of each epoch and before an evaluation only.
        full_disk: whether a run goes on where a checkpoint cannot be written, and tries again at the next, or stops.
            The checkpoint before stays in either case.
    """

    def __init__(self, every_n_epochs: int | None = None, every_n_steps: int | None = None,
                 full_disk: Literal["go on", "stop"] = "go on"):
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"--checkpoints.every_n_steps counts from 1, and is {every_n_steps}; null saves at the "
                             "end of each epoch only")
        super().__init__(save_top_k=-1, every_n_epochs=every_n_epochs or 0, save_on_train_epoch_end=True)
        self.every_n_steps, self.full_disk = every_n_steps, full_disk


def stepped(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a batch completes an optimiser step: a checkpoint holds no half-accumulated gradients."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
