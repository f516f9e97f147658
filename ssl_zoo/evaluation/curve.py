"""A run's curve: what each evaluation found, after how many images and seconds of training."""

import json
import math
import resource
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
from torch import Tensor

from ssl_zoo.distributed import run_folder
from ssl_zoo.evaluation.callback import Report, evaluations
from ssl_zoo.evaluation.charts import picture
from ssl_zoo.evaluation.report import PIXELS
from ssl_zoo.evaluation.score import finite
from ssl_zoo.evaluation.training_curve import course, training_curve
from ssl_zoo.files import put
from ssl_zoo.method import Batch
from ssl_zoo.monitor import due
from ssl_zoo.paths import plain_json
from ssl_zoo.pictures import publish

NAME = "curve.json"   # in a run's folder


class Spent(NamedTuple):
    """Seconds of training, evaluations left out."""

    wall: float
    processor: float   # of all cores, of this process and of those of its workers that have ended

    @classmethod
    def until_now(cls) -> "Spent":
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in used))


class Curve(pl.Callback):
    """Leaves curve.json in the run's folder: at each evaluation the scores, the mean loss since the last one, and after
    how many steps, images and seconds of training they were found. A run that goes on continues it.

    At the end training_curve.png shows the scores, and the loss wherever the trainer has logged.
    """

    def __init__(self) -> None:
        self.points: list[dict[str, Any]] = []
        self.before = Spent(0.0, 0.0)         # until the clock was last stopped
        self.since: Spent | None = None       # when it was started
        self.images, self.batches = 0, 0
        self.losses: Tensor | float = 0.0     # their sum since the last evaluation, on the device
        self.trace: list[tuple[int, Any]] = []   # step and loss, which the host reads late

    @property
    def spent(self) -> Spent:
        if self.since is None:
            return self.before
        now = Spent.until_now()
        return Spent(*(done + end - start for done, end, start in zip(self.before, now, self.since, strict=True)))

    def stop(self) -> None:
        self.before, self.since = self.spent, None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.since = Spent.until_now()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch,
                           batch_idx: int) -> None:
        self.images += len(batch.index) * trainer.world_size
        loss: Tensor = outputs["loss"].detach() * trainer.accumulate_grad_batches
        self.losses, self.batches = self.losses + loss, self.batches + 1
        if due(trainer):
            self.trace.append((trainer.global_step, loss))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.stop()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking and trainer.global_step:
            return                            # a run that goes on begins with an evaluation that it has had
        loss = finite(float(self.losses) / self.batches) if self.batches else None
        scores = {name: finite(score.value) for one in evaluations(trainer) for name, score in one.scores.items()}
        self.points.append({
            "step": trainer.global_step, "images": self.images, "seconds": round(self.spent.wall, 3),
            "processor_seconds": round(self.spent.processor, 3), "loss": loss,
            "scores": scores})
        self.losses, self.batches = 0.0, 0
        self.write(trainer)
        if not trainer.sanity_checking:
            self.since = Spent.until_now()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop()
        self.write(trainer)
        self.draw(trainer, type(pl_module).__name__)

    def draw(self, trainer: pl.Trainer, method: str) -> None:
        """Save training_curve.png in the run's folder, if anything was trained."""
        folder, callbacks = run_folder(trainer), cast(list[Any], trainer.callbacks)   # type: ignore[attr-defined]
        if not trainer.is_global_zero or folder is None or not self.trace and not self.images:
            return
        pixels = [one.columns.get(PIXELS, {}) for one in callbacks if isinstance(one, Report)]
        protocols = [one for found in evaluations(trainer) for one in found.protocols]
        found = course(self.read_losses(), [(point["step"], point["scores"]) for point in self.points], protocols,
                       pixels[0] if pixels else {})
        publish(picture(training_curve(found, f"{method}: {folder}")), "training_curve", folder, trainer.logger,
                trainer.global_step)

    def read_losses(self) -> list[tuple[int, float]]:
        """The losses as numbers, for each of which the host waits once."""
        self.trace = [(step, float(loss)) for step, loss in self.trace]
        return [(step, loss) for step, loss in self.trace if math.isfinite(loss)]

    def write(self, trainer: pl.Trainer) -> None:
        folder = run_folder(trainer)
        data: Any = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and folder is not None and folder.is_dir():
            known = {"images_of_an_epoch": len(data.train) if hasattr(data, "train") else None, "step":
                     trainer.global_step, "images": self.images, "seconds": round(self.spent.wall, 3),
                     "processor_seconds": round(self.spent.processor, 3)}
            put(folder / NAME, json.dumps({"format": 1, **known, "points": self.points}, indent=1) + "\n")

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points, "spent": list(self.spent), "images": self.images,
                "losses": self.read_losses()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points, self.before, self.images = state_dict["points"], Spent(*state_dict["spent"]), state_dict["images"]
        self.trace = state_dict.get("losses", [])


def read(folder: Path) -> dict[str, Any]:
    """The curve that a run has left in its folder; empty where it has left none."""
    return plain_json(folder / NAME) if (folder / NAME).is_file() else {}
