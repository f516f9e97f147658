"""What a run says while it goes on: step, epoch, loss, speed, time left and kNN; at its end, what it took."""

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from tqdm import tqdm

from ssl_zoo.distributed import run_folder
from ssl_zoo.method import Batch, Method

REDRAWN = 0.2            # seconds between two states of a terminal's line
LINES = (10.0, 60.0)     # seconds between two lines of a log: at first, and at most
EVALUATING = "evaluating"
BATCHES = 100            # over which a speed is the mean


class Pace:
    """How long batches and evaluations take, and from that how long the rest of a run will.

    The first batch does not count: workers start in it, and what is compiled is compiled. Nor do evaluations.
    """

    def __init__(self) -> None:
        self.took: deque[float] = deque(maxlen=BATCHES)   # seconds of the last batches
        self.since: float | None = None                   # when the last batch ended, or the next began
        self.begun = False
        self.evaluation, self.of_evaluations = 0.0, 0.0   # seconds: the last one, and all

    def batch(self, now: float) -> None:
        """A batch has ended."""
        if self.begun and self.since is not None:
            self.took.append(now - self.since)
        self.begun, self.since = True, now

    def evaluated(self, seconds: float) -> None:
        self.evaluation, self.since = seconds, None
        self.of_evaluations += seconds

    @property
    def seconds(self) -> float | None:
        """A batch takes them, on average; None where none is measured yet."""
        return sum(self.took) / len(self.took) if self.took else None

    def left(self, batches: int, between: float) -> float | None:
        """Seconds that this many batches take, with an evaluation after every `between` of them and at the end."""
        evaluations = math.ceil(batches / between) if 0 < between < math.inf else 0
        return None if self.seconds is None else batches * self.seconds + evaluations * self.evaluation


class Progress(pl.callbacks.ProgressBar):
    """How far a run is: on a terminal one line that moves, elsewhere a line now and then, without carriage returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None
        self.enabled, self.stage, self.text = True, "", ""
        self.pace, self.images, self.loss = Pace(), 0, torch.zeros(())
        self.start = self.drawn = self.evaluating = 0.0

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(map(str, args)), file=sys.stderr)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.enabled &= trainer.is_global_zero
        if self.enabled and not self.start:
            self.start = self.drawn = time.perf_counter()
            self.print(header(trainer, pl_module))
            if sys.stderr.isatty():
                self.bar = tqdm(total=1, bar_format="|{bar:10}| {desc}", dynamic_ncols=True, file=sys.stderr)

    def say(self, stage: str) -> None:
        """Say what is done now, if that is new."""
        if stage != self.stage:
            self.stage = stage
            if self.bar is not None or stage != EVALUATING:     # a log does without
                self.draw()

    def draw(self) -> None:
        """Show the line as it is."""
        text = " · ".join(filter(None, (self.stage, self.text)))
        self.drawn = time.perf_counter()
        if self.bar is not None:
            self.bar.set_description_str(text)
        elif self.enabled and text:
            print(text, file=sys.stderr, flush=True)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch,
                             batch_idx: int) -> None:
        self.stage = ""
        self.pace.since = self.pace.since or time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch,
                           batch_idx: int) -> None:
        now = time.perf_counter()
        self.pace.batch(now)
        self.images, self.loss = len(batch.index) * trainer.world_size, outputs["loss"].detach()
        elapsed = now - self.start
        if self.enabled and now - self.drawn >= (REDRAWN if self.bar else min(max(LINES[0], elapsed / 10), LINES[1])):
            self.read(trainer, pl_module)
            self.draw()

    def read(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the line up to date. The loss is read only here, because the host waits for the device then."""
        assert isinstance(pl_module, Method)
        total, left = pl_module.course.total(trainer), pl_module.course.left(trainer)
        metrics = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
        rest = self.pace.left(left * trainer.accumulate_grad_batches, between(trainer))
        most = trainer.max_epochs or -1
        epoch = trainer.current_epoch + 1 if most < 0 else f"{min(trainer.current_epoch + 1, most)}/{most}"
        speed = self.pace.seconds and self.images / self.pace.seconds
        loss = self.loss.item() * trainer.accumulate_grad_batches
        self.text = line(step=f"{total - left}/{total}", epoch=str(epoch), loss=loss, speed=speed, left=rest,
                         metrics=metrics)
        if self.bar is not None:
            self.bar.total, self.bar.n = total, total - left

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.evaluating = time.perf_counter()
        self.say(EVALUATING if trainer.global_step else "evaluating the untrained encoder")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.pace.evaluated(time.perf_counter() - self.evaluating)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.enabled and self.pace.begun:
            self.read(trainer, pl_module)
            self.stage = "done"
            self.draw()
        self.close()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.enabled and self.pace.begun:
            self.print(f"took {lasting(time.perf_counter() - self.start)}, {lasting(self.pace.of_evaluations)} of them "
                       f"to evaluate{peak_memory(trainer.strategy.root_device)}")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.close()         # so that its sentence has a line of its own

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
            self.enabled = self.enabled and bool(self.text)


def line(*, step: str, epoch: str, loss: float, speed: float | None, left: float | None,
         metrics: Mapping[str, Any]) -> str:
    """Where a run is, the most important first: a narrow terminal cuts the end off."""
    parts = [f"step {step}", f"epoch {epoch}", f"loss {loss:.4g}"]
    parts += [f"{speed:,.0f} images/s"] if speed else []
    parts += [f"{lasting(left)} left"] if left else []
    return " · ".join([*parts, *(f"{name} {float(value):.3g}" for name, value in metrics.items())])


def lasting(seconds: float) -> str:
    """A time in its two largest units, as 3 h 5 min."""
    whole = round(seconds)
    for name, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {name}" + f" {rest} {smaller}" * bool(rest)
    return f"{whole} s"


def between(trainer: Any) -> float:
    """The batches from one evaluation to the next."""
    return float(trainer.val_check_batch or 0) * (trainer.check_val_every_n_epoch or 1)


def peak_memory(device: torch.device) -> str:
    """The most memory that the process has had at a time, and on a GPU torch's there."""
    parts = []
    if device.type == "cuda":
        parts.append(f"{torch.cuda.max_memory_reserved(device) / 2 ** 30:.1f} GiB of the GPU")
    unit = 1 if sys.platform == "darwin" else 1024
    parts.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2 ** 30:.1f} GiB of main memory")
    return f"; at most {' and '.join(parts)}"


def header(trainer: pl.Trainer, method: pl.LightningModule) -> str:
    """One line that describes a run: method, encoder, device and folder."""
    assert isinstance(method, Method)
    millions = sum(p.numel() for p in method.encoder.parameters()) / 1e6
    encoder = f"{type(method.encoder).__name__} of {millions:.1f} M parameters, {method.encoder.dim} features"
    return f"{type(method).__name__} · {encoder} · {trainer.strategy.root_device} · {run_folder(trainer)}"
