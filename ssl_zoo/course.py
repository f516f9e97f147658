"""How far a run is, also where it goes on from a checkpoint with other batches, images or epochs.

A run's place is kept in epochs: which one, and the share of its images that were shown. The schedule of a resumed run
stands where it would stand at this place if the run had had today's settings from its start. Where `max_steps` ends
the run, its steps are counted instead.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from tqdm import tqdm

from ssl_zoo import distributed, start
from ssl_zoo.memory import Queue, SampleTable
from ssl_zoo.optim import Schedules
from ssl_zoo.schedules import through

WORDS = {"batch": "batch_size", "accumulated": "accumulate_grad_batches", "epochs": "max_epochs",
         "batches": "batches of an epoch"}     # and all others as they are


@runtime_checkable
class Resumable(Protocol):
    """A loader that knows its place in an epoch by its images, as those of `ssl_zoo.data` do."""

    def settle(self, batches: int, per_step: int) -> int: ...


class Settings(NamedTuple):
    """What decides how many steps a run has and what each learns from. A checkpoint keeps them."""

    images: int | None        # of the training part; None where a loader of one's own does not say
    batch: int | None         # images in a batch of one process
    processes: int
    accumulated: int          # batches for a step
    epochs: int | None
    max_steps: int
    lr: float                 # the recipe's
    batches: float            # of an epoch, infinite where it is unknown

    @classmethod
    def of(cls, trainer: Any) -> Self:
        loader, group = trainer.train_dataloader, trainer.optimizers[0].param_groups[0]
        images: Any = getattr(loader, "source", getattr(loader, "dataset", None))
        return cls(len(images) if hasattr(images, "__len__") else None, getattr(loader, "batch_size", None),
                   distributed.world_size(), trainer.accumulate_grad_batches, trainer.max_epochs, trainer.max_steps,
                   float(group.get("initial_lr", group["lr"])), trainer.num_training_batches)

    def changes(self, before: "Settings") -> list[str]:
        """What differs from the settings before, in words."""
        changed = {name: (now, then) for name, now, then in zip(self._fields, self, before, strict=True) if now != then}
        if changed.keys() & {"images", "batch", "processes"}:
            changed.pop("batches", None)     # follows from these
        return [f"{WORDS.get(name, name)} {whole(now)} instead of {whole(then)}"
                for name, (now, then) in changed.items() if now is not None and then is not None]


def whole(number: float) -> str:
    """All digits of a count; six of other numbers."""
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


class Course:
    """The steps of a method's run: how many there are in all, and how many are done.

    They are as the trainer counts them, until a resume changes how many images or batches a step stands for.
    """

    def __init__(self) -> None:
        self.ahead = 0                                # steps that the schedule is ahead of the trainer's count
        self.steps: int | None = None                 # of the whole run, after a resume
        self.saved: Mapping[str, Any] | None = None   # by the checkpoint that the run goes on from

    def total(self, trainer: Any) -> int:
        return self.steps or start.steps(trainer)

    def left(self, trainer: Any) -> int:
        """The number of steps from here to the end."""
        return self.total(trainer) - trainer.global_step - self.ahead

    def progress(self, method: Any) -> float:
        """The share of the optimiser steps that are done, 0 to 1; 0 without a trainer."""
        try:
            trainer = method.trainer
        except RuntimeError:   # Lightning's, where none is attached
            return 0.0
        return (trainer.global_step + self.ahead) / self.total(trainer)

    def on_schedule(self, method: Any, step: int) -> float:
        """How far a step is on the way from the first to the last: 0 to 1."""
        # Counting the steps loads the data, which at step 0 would come before Lightning restores a checkpoint's place
        # in them: a run resumed in mid-epoch would start the epoch's images again.
        return through(step + self.ahead, self.total(method.trainer)) if step else 0.0

    def save(self, method: Any) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resume can say what changes."""
        trainer = method.trainer
        return {**Settings.of(trainer)._asdict(), "left": self.left(trainer), "next_lr": next_lr(trainer)}

    def load(self, method: Any, checkpoint: dict[str, Any]) -> None:
        """Read what a checkpoint says of its run, before anything of it is restored."""
        require_tables(method, checkpoint["state_dict"])
        self.saved = checkpoint.get("course")         # checkpoints before 0.2 do not say
        if "loops" in checkpoint:
            mend(checkpoint["loops"]["fit_loop"])

    def resume(self, method: Any) -> None:
        """Take up a checkpoint's place once everything of it is restored, and say what changes."""
        trainer = method.trainer
        if not trainer.global_step:
            return
        self.count(trainer, place(trainer, self.saved))
        for one in trainer.lr_scheduler_configs:
            if isinstance(one.scheduler, Schedules):
                one.scheduler.resume()
        if self.saved is not None:
            self.compare(method, Settings(*(self.saved[name] for name in Settings._fields)), self.saved)

    def count(self, trainer: Any, done: float) -> None:
        """Count a run's steps by its epochs: those before the one at hand, of which `done` batches are done."""
        self.ahead, self.steps = 0, None
        if trainer.max_epochs == -1 or not math.isfinite(trainer.num_training_batches):
            return                                                     # `max_steps` ends the run
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        over = trainer.current_epoch * per_epoch + math.ceil(done / trainer.accumulate_grad_batches)
        total = per_epoch * max(trainer.max_epochs, 1)
        if trainer.max_steps != -1 and trainer.max_steps - trainer.global_step <= total - over:
            self.steps = trainer.max_steps
        else:
            self.ahead, self.steps = over - trainer.global_step, total

    def compare(self, method: Any, before: Settings, saved: Mapping[str, Any]) -> None:
        """Say in one line what differs from the settings before, and forget what no longer holds."""
        trainer = method.trainer
        now, lr = Settings.of(trainer), next_lr(trainer)
        if now.images != before.images:
            for part in method.modules():
                if isinstance(part, Queue):
                    part.index.fill_(-1)          # images have other places now
        changes = now.changes(before) or ["another schedule"] * (not math.isclose(lr, saved["next_lr"]))
        if changes and trainer.is_global_zero:
            views = "; another number of processes draws other views" * (now.processes != before.processes)
            tqdm.write(f"from step {trainer.global_step} on: {', '.join(changes)}; {self.left(trainer)} "
                       f"steps are left and were {saved['left']}, the first with lr {lr:.4g} and was "
                       f"{saved['next_lr']:.4g}{views}", file=sys.stderr)


def next_lr(trainer: Any) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def mend(loop: dict[str, Any]) -> None:
    """Change how Lightning's loop was saved at an end, where Lightning 2.6 would go on wrongly from it.

    Saved after an epoch, it would count this epoch twice if there is `max_steps`, and pass over another one's images.
    Saved after an epoch that `max_steps` cut short, it would pass over the rest of this one. Saved after the last step
    of an epoch, it would leave out the evaluation and the hooks that end it.
    """
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    over = epochs["current"]["processed"] == epochs["current"]["ready"]
    if over and batches["current"]["ready"] and not batches["is_last_batch"]:
        for counts in epochs.values():
            counts["processed"] = counts["completed"] = counts["ready"] - 1
    elif over:
        for counts in epochs.values():
            counts["completed"] = counts["processed"]
        batches |= {"current": dict.fromkeys(batches["current"], 0), "is_last_batch": False}
    elif batches["is_last_batch"] and batches["current"]["completed"] < batches["current"]["processed"]:
        for counts in (batches["total"], batches["current"]):
            counts["completed"] += 1
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}        # an evaluation, but no more
        loop["epoch_loop.val_loop.batch_progress"] |= {"total": begun, "current": {**begun}, "is_last_batch": False}


def place(trainer: Any, saved: Mapping[str, Any] | None) -> float:
    """The batches that are done of the epoch at hand, in today's size. Lightning's count is set to them."""
    loop, batches = trainer.fit_loop.epoch_loop, trainer.num_training_batches
    counts, loader = loop.batch_progress.current, trainer.train_dataloader
    if not loop.restarting or not counts.ready:
        return 0
    if not math.isfinite(batches):
        return counts.ready
    done = batches
    if not loop.batch_progress.is_last_batch:
        if isinstance(loader, Resumable):
            done = loader.settle(batches, trainer.accumulate_grad_batches)
        elif saved is not None and math.isfinite(saved["batches"]):
            done = min(batches - 1, counts.ready * batches // int(saved["batches"]))
        else:
            done = counts.ready
    counts.ready = counts.started = counts.processed = done
    counts.completed = done - loop.restarted_on_train_batch_end     # Lightning has yet to count this one
    return done


def require_tables(method: Any, state: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose table has rows for another number of images than the method's."""
    for name, part in method.named_modules():
        if isinstance(part, SampleTable):
            column = state.get(f"{name}.{part.columns[0]}")
            if column is not None and len(column) != part.images:
                raise ValueError(f"the checkpoint keeps a row for each of {len(column)} images, and {name} one for "
                                 f"each of {part.images}, so that it is unknown which row is whose: go on with the "
                                 "same images, or start a new run from the encoder, ssl-zoo export CHECKPOINT and then "
                                 "--model.encoder.weights")
