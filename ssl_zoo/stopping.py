"""How a run is stopped from outside, by Ctrl-C or a scheduler's signal, and what is left of one that never began."""

import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from tqdm import tqdm

from ssl_zoo.distributed import run_folder
from ssl_zoo.saving import Checkpoints, LastCheckpoint, last_good, stepped

ENDING = [one for name in ("SIGINT", "SIGTERM", "SIGHUP") if (one := getattr(signal, name, None))]
WARNING = [one for name in ("SIGUSR1", "SIGUSR2") if (one := getattr(signal, name, None))]   # of schedulers

FULL = 1024   # where a signal's number would be: no checkpoint can be written, and the run is to stop


class Stopped(KeyboardInterrupt):
    """A run is stopped by a signal, after what there was to save has been saved."""


class SafeStop(pl.Callback):
    """Ctrl-C, SIGTERM and schedulers' signals finish the batch, save a checkpoint, and print the command to go on.

    Where a signal reaches one of several processes, all stop at the same batch. Before the first batch, and in an
    evaluation, before which `LastCheckpoint` has saved, the run stops at once; a second Ctrl-C always does. Where
    Lightning requeues a job of SLURM at a signal, it does so when the batch is done, of training or of an evaluation;
    before the first one the job is not stopped at once, since nothing would start it again.
    """

    def __init__(self) -> None:
        self.signum = 0                          # the first signal
        self.begun = False                       # there is something to save
        self.saved = False                       # all of it is
        self.requeue: dict[int, Any] = {}        # Lightning's handlers of a scheduler's signals
        self.shared: list[float] = []            # batches of each part of an evaluation that every process has
        self.group: Any = None
        self.process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Stop at once while the run is set up; Lightning has handlers of its own afterwards, see `on_train_start`."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {one: signal.signal(one, self.ask) for one in ENDING if signal.getsignal(one) != signal.SIG_IGN}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def ask(self, signum: int, frame: Any) -> None:
        """The handler of a signal."""
        if os.getpid() != self.process or self.signum and signum != signal.SIGINT:
            return   # a worker loads the batch at hand; a scheduler asks more than once
        again, self.signum = bool(self.signum), self.signum or signum
        if again or signum not in self.requeue and (self.saved or not self.begun):
            raise Stopped
        with suppress(OSError):   # not print, which a signal must not enter twice
            os.write(2, f"\n{signal.Signals(signum).name}: stopping after the batch at hand, to save it"
                        f"{'; Ctrl-C again stops at once' * (signum == signal.SIGINT)}\n".encode())

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.take_over()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.take_over()
        if trainer.world_size > 1 and dist.get_backend() != "gloo":
            self.group = dist.new_group(backend="gloo")   # to agree without waiting for the device

    def take_over(self) -> None:
        """Replace Lightning's handlers, which it has set by now and takes away with ours when the run ends.

        Its own for SIGTERM ends a run without a checkpoint, and talks to the other processes in mid-batch.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for one in [*ENDING, *WARNING]:
            handler = signal.getsignal(one)
            if one in WARNING and callable(handler) and handler != self.ask:
                self.requeue[one] = handler
            if handler != signal.SIG_IGN:
                signal.signal(one, self.ask)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                             batch_idx: int) -> None:
        self.saved = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        self.begun = True
        if not stepped(trainer, batch_idx) or not (asked := self.agree(trainer)):
            return
        log_step(trainer)
        if asked == FULL:
            raise OSError(full(trainer) or "stopped, because the first process cannot write its checkpoints")
        self.save(trainer)
        raise Stopped

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int,
                                  dataloader_idx: int = 0) -> None:
        if not self.begun or self.saved:
            return
        callbacks: list[Any] = trainer.callbacks   # type: ignore[attr-defined]
        self.saved = any(isinstance(one, LastCheckpoint) for one in callbacks)
        # what came since the last batch of training; what comes from here on stops at once
        if self.saved and (asked := self.agree(trainer)) and asked not in (FULL, *self.requeue):
            raise Stopped
        self.shared = self.everywhere(trainer, list(trainer.num_val_batches), dist.ReduceOp.MIN)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                                batch_idx: int, dataloader_idx: int = 0) -> None:
        # where shares differ by an image, one process may have a batch more
        if self.saved and self.requeue and batch_idx < self.shared[dataloader_idx] \
                and self.agree(trainer) in self.requeue:
            self.save(trainer)
            raise Stopped

    def agree(self, trainer: pl.Trainer) -> int:
        """The signal that any of the processes got, or FULL, or 0 if there is nothing to stop for."""
        asked = self.signum or FULL * bool(full(trainer))
        asked = int(self.everywhere(trainer, [asked], dist.ReduceOp.MAX)[0])
        if asked != FULL:
            self.signum = self.signum or asked   # one may have come meanwhile
        return asked

    def everywhere(self, trainer: pl.Trainer, numbers: list[Any], least_or_most: Any) -> list[float]:
        """The least or the most of each number among all processes."""
        found = torch.tensor(numbers, dtype=torch.float64)
        if trainer.world_size > 1:
            dist.all_reduce(found, least_or_most, group=self.group)
        return found.tolist()

    def save(self, trainer: pl.Trainer) -> None:
        if self.signum in self.requeue:
            self.requeue[self.signum](self.signum, None)   # Lightning saves, and asks SLURM to start the job again
        elif self.requeue:
            trainer.save_checkpoint(requeue_path(trainer), weights_only=False)   # where the job looks when it restarts
        else:
            folder = run_folder(trainer) or Path(trainer.default_root_dir)
            trainer.save_checkpoint(folder / "checkpoints" / "interrupted.ckpt", weights_only=False)
        self.saved = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped) and trainer.is_global_zero:
            with suppress(OSError):   # a terminal that has gone
                tqdm.write("\n" + self.said(trainer), file=sys.stderr)

    def said(self, trainer: pl.Trainer) -> str:
        """How far the run came, and the command that goes on."""
        name = signal.Signals(self.signum).name
        if not self.begun:
            return f"stopped by {name} before the first step: nothing was trained"
        step, found = trainer.global_step, getattr(trainer.strategy.checkpoint_io, "last", None)
        if not self.saved or found is None:
            return f"stopped by {name} at step {step}, without a checkpoint of it{last_good(trainer)}"
        if failed := getattr(trainer.strategy.checkpoint_io, "failed", ""):
            return f"stopped by {name} at step {step}, and {failed}"
        config = (run_folder(trainer) or Path()) / "config.yaml"
        source = f"--config {config} " if config.exists() else ""
        return f"stopped by {name} at step {step}; go on with:\n  ssl-zoo fit {source}--ckpt_path {found}"


def log_step(trainer: pl.Trainer) -> None:
    """Log the step at hand, as Lightning does after the callbacks: otherwise it is missing from the run's curves."""
    trainer._logger_connector.on_batch_end()
    trainer._logger_connector.update_train_step_metrics()


def full(trainer: pl.Trainer) -> str:
    """Why the last checkpoint could not be written, in a run that is to stop then; empty otherwise."""
    callbacks: list[Any] = trainer.callbacks   # type: ignore[attr-defined]
    if not any(isinstance(one, Checkpoints) and one.full_disk == "stop" for one in callbacks):
        return ""
    return getattr(trainer.strategy.checkpoint_io, "failed", "")


def requeue_path(trainer: pl.Trainer) -> Path:
    """The name of the next checkpoint that Lightning finds by itself when SLURM starts the job again."""
    folder = Path(trainer.default_root_dir)
    numbers = [int(found[1]) for path in folder.glob("*.ckpt") if (found := re.match(r"hpc_ckpt_(\d+)$", path.stem))]
    return folder / f"hpc_ckpt_{max(numbers, default=0) + 1}.ckpt"


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
