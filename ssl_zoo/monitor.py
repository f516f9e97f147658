"""Callbacks that watch over a run: its speed and views, and whether it stays finite."""

import json
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from tqdm import tqdm

from ssl_zoo.distributed import gather_objects, run_folder
from ssl_zoo.files import put
from ssl_zoo.finite import largest, listed, not_finite
from ssl_zoo.method import Batch, Method
from ssl_zoo.pictures import Tile, publish, sheet
from ssl_zoo.saving import last_good, stepped
from ssl_zoo.views.preview import view_sheet


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
    """Saves a picture of the first batch's views: eight images with the boxes of their views, and the views."""

    def __init__(self) -> None:
        self.drawn = False   # later batches do not look at the disk

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch,
                             batch_idx: int) -> None:
        folder = run_folder(trainer)
        if self.drawn or not trainer.is_global_zero or folder is None:
            return
        self.drawn = True
        count = min(8, len(batch.index))
        images = batch.images[:count] if isinstance(batch.images, Tensor) else sources(trainer, batch.index[:count])
        if images is None:
            picture = sheet([[Tile(view.images[i]) for view in batch.views] for i in range(count)],
                            "the views of an image, row by row")
        else:
            picture = view_sheet(list(images), batch.views)
        publish(picture, "views", folder, trainer.logger, trainer.global_step)


def sources(trainer: pl.Trainer, index: Tensor) -> list[Tensor] | None:
    """The images of these places as their files have them, of which a worker has sent crops; None if one is not there.
    """
    source: Any = getattr(trainer.datamodule, "train", None)   # type: ignore[attr-defined]
    if not hasattr(source, "attempt"):
        return None
    found = [source.attempt(place) for place in index.tolist()]
    return found if all(isinstance(image, Tensor) for image in found) else None


class Extent(pl.Callback):
    """Says from where a run goes on, that it has trained nothing, and that `max_time` has ended it."""

    def __init__(self) -> None:
        self.trained = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.trained = True
        if trainer.ckpt_path:
            self.say(trainer, f"going on from {trainer.ckpt_path}, step {trainer.global_step}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        callbacks: list[Any] = trainer.callbacks   # type: ignore[attr-defined]
        spent = any(isinstance(one, pl.callbacks.Timer) and (one.time_remaining() or 1) <= 0 for one in callbacks)
        if not self.trained:
            self.say(trainer, f"this run trained nothing: {self.why(trainer, spent)}")
        elif spent and isinstance(pl_module, Method) and (left := pl_module.course.left(trainer)) > 0:
            self.say(trainer, f"--trainer.max_time has ended this run at step {trainer.global_step}, with {left} left"
                              f"{last_good(trainer)}: go on from it with --ckpt_path, and give --trainer.max_time the "
                              "time of both")

    def why(self, trainer: pl.Trainer, spent: bool) -> str:
        if trainer.ckpt_path is None:
            return "it has no batches; look at --trainer.max_epochs, max_steps and limit_train_batches"
        at = f"{trainer.ckpt_path} stands at epoch {trainer.current_epoch} and step {trainer.global_step}"
        if spent:
            return f"{at}, and --trainer.max_time was used up before it; give it more"
        return (f"{at}, and --trainer.max_epochs {trainer.max_epochs} and max_steps {trainer.max_steps} allow no more; "
                "to train on, give them more")

    def say(self, trainer: pl.Trainer, sentence: str) -> None:
        if trainer.is_global_zero:
            tqdm.write(sentence, file=sys.stderr)


class Step(NamedTuple):
    """What is kept of a batch until the host reads it."""

    number: int          # of the optimiser step that it belongs to, from 1
    places: Tensor       # [B] of its images
    loss: Tensor         # []
    weights: Tensor      # [] their largest magnitude after it


class FiniteRun(pl.Callback):
    """Stops a run whose loss or weights are not finite, names the step and its images, and lets nothing be saved then.

    Both are kept on the device after each batch, and read only when the trainer logs, because reading makes the host
    wait, and before whatever is saved or evaluated.
    """

    def __init__(self) -> None:
        self.seen: list[Step] = []
        self.weights: list[Tensor] = []
        self.never: set[str] = set()   # tensors with such values from the start, as some buffers of one's own

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.weights = list(pl_module.parameters())
        self.never = set(not_finite(dict(pl_module.named_buffers())))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch,
                           batch_idx: int) -> None:
        number = trainer.global_step + (not stepped(trainer, batch_idx))
        self.seen.append(Step(number, batch.index, loss_of(outputs, trainer), largest(self.weights)))
        if due(trainer) or trainer.world_size == 1 and batch.index.device.type == "cpu":
            self.require_finite(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.require_finite(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule,
                           checkpoint: dict[str, Any]) -> None:
        self.require_finite(trainer)
        state = {**checkpoint["state_dict"], **{
            f"the optimiser's {name} {place}": value for optimizer in checkpoint.get("optimizer_states", ())
            for place, state in optimizer["state"].items() for name, value in state.items()
            if isinstance(value, Tensor)}}
        names = [name for name in not_finite(state) if name not in self.never]
        if trainer.strategy.reduce_boolean_decision(bool(names), all=False):
            raise ValueError(f"not finite at step {trainer.global_step}: {listed(names) or 'another process has it'}, "
                             f"which is not saved: {MEND}{last_good(trainer)}")

    def require_finite(self, trainer: pl.Trainer) -> None:
        """Raise one sentence, the same on all processes, if a batch since the last look was not finite."""
        seen, self.seen = self.seen, []
        if not seen:
            return
        fine = torch.stack([torch.stack([step.loss.isfinite(), step.weights.isfinite()]) for step in seen])   # [N, 2]
        wrong = (~fine.all(1)).nonzero()[:1].flatten().tolist()   # the host waits here
        if not trainer.strategy.reduce_boolean_decision(bool(wrong), all=False):
            return
        first = [(seen[i].number, not fine[i, 0].item(), seen[i].places.tolist(), seen[i].loss.item()) for i in wrong]
        first = [one for process in gather_objects(first) for one in process]
        number, of_loss, _, loss = min(first, key=lambda one: (one[0], not one[1]))
        images = [place for one in first if one[:2] == (number, of_loss) for place in one[2]]
        what = (f"the loss is not finite at step {number}" if of_loss else
                f"the weights are not finite after step {number}, whose loss was {loss:.4g}")
        raise ValueError(f"{what} ({said(images, number, trainer)}): {MEND}{last_good(trainer)}")


def loss_of(outputs: Any, trainer: pl.Trainer) -> Tensor:
    """The loss of a batch, which Lightning has divided by the number of batches that accumulate."""
    return outputs["loss"].detach() * trainer.accumulate_grad_batches


MEND = "try a lower learning rate, more warm-up or trainer.gradient_clip_val"


class LossSpikes(pl.Callback):
    """Names the steps whose loss is far above what it was before, with their images.

    A recipe that wants it lists it among trainer.callbacks. The loss is compared with its running mean, and read only
    when the trainer logs.

    Args:
        deviations: how many of its running standard deviations above its running mean a loss must be.
        steps: how many steps the running mean looks back, about; as many pass before the first warning.
        stop: end the run, instead of a warning.
    """

    def __init__(self, deviations: float = 6.0, steps: int = 100, stop: bool = False):
        if deviations <= 0 or steps < 2:
            raise ValueError("a spike is more than 0 deviations above the mean of 2 steps or more, and these are "
                             f"{deviations} and {steps}")
        self.deviations, self.steps, self.stop = deviations, steps, stop
        self.seen: list[tuple[int, Tensor, Tensor]] = []   # step, images, loss
        self.mean, self.variance, self.count = 0.0, 0.0, 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch,
                           batch_idx: int) -> None:
        number = trainer.global_step + (not stepped(trainer, batch_idx))
        self.seen.append((number, batch.index, loss_of(outputs, trainer)))
        if not due(trainer):
            return
        seen, self.seen = self.seen, []
        found = [self.spike(loss) for loss in torch.stack([loss for *_, loss in seen]).tolist()]
        for (step, index, loss), usual in zip(seen, found, strict=True):
            if usual is not None:
                sentence = (f"the loss is {loss.item():.4g} at step {step}, where it had been {usual:.4g} "
                            f"({said(index.tolist(), step, trainer)}){last_good(trainer)}")
                if self.stop:
                    raise ValueError(sentence)
                warnings.warn(sentence, stacklevel=2)

    def spike(self, loss: float) -> float | None:
        """The usual loss, if this one is a spike; otherwise it counts as usual."""
        if self.count >= self.steps and loss > self.mean + self.deviations * self.variance ** 0.5:
            return self.mean
        self.count += 1
        share = 1 / min(self.count, self.steps)
        change = loss - self.mean
        self.mean += share * change
        self.variance = (1 - share) * (self.variance + share * change ** 2)
        return None


def said(images: Sequence[int], step: int, trainer: pl.Trainer) -> str:
    """The images of a batch: their file names, or else their places in the training part; of many, a file has all."""
    data: Any = trainer.datamodule   # type: ignore[attr-defined]
    known = getattr(getattr(data, "train", None), "names", None)
    names = [known[place] if known and place < len(known) else f"{place}" for place in images]
    sentence, folder = f"its images are {listed(names, 8)}", run_folder(trainer)
    if len(names) > 8 and folder is not None:
        path = folder / f"images_of_step_{step}.json"
        if trainer.is_global_zero:
            put(path, json.dumps(names, indent=0) + "\n")
        sentence += f", all in {path}"
    return sentence


def due(trainer: pl.Trainer) -> bool:
    """Whether the trainer logs at this batch, counted over all epochs: one epoch may be shorter than the interval."""
    return (trainer.fit_loop.total_batch_idx + 1) % max(1, trainer.log_every_n_steps) == 0   # type: ignore[attr-defined]
