"""The protocols during a run, and what the run leaves: the one file of evaluation that knows Lightning."""

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.distributed import run_folder
from ssl_zoo.evaluation import charts, records, report
from ssl_zoo.evaluation.features import Features, Pass, no_accuracy, not_finite
from ssl_zoo.evaluation.health import Distribution, hardest, similarities
from ssl_zoo.evaluation.protocol import Context, Measured, Picture, Protocol
from ssl_zoo.evaluation.protocols import find
from ssl_zoo.evaluation.score import Score
from ssl_zoo.evaluation.verdict import judge
from ssl_zoo.export import save_encoder
from ssl_zoo.files import free, put
from ssl_zoo.loggers import where
from ssl_zoo.method import Batch, Method
from ssl_zoo.pictures import publish
from ssl_zoo.provenance import left_by, provenance

DEFAULT = ("knn", "linear_cached", "health", "neighbours")


class Evaluation(pl.Callback):
    """Measures the encoder by named protocols at the end of each validation, and logs each score under its name.

    The features of a validation are collected once, and every protocol reads them, on one process or several. `latest`
    holds the scores of the last validation, and nothing if its features were not finite.

    Args:
        protocols: names, as ssl-zoo evaluate takes them, or protocols by their class path with arguments, also your
            own. Protocols that train on images are for ssl-zoo evaluate alone.
    """

    def __init__(self, protocols: Sequence[str | Protocol] = DEFAULT):
        self.named = tuple(protocols) != DEFAULT
        self.protocols = [find(one) if isinstance(one, str) else one for one in protocols]
        names = [protocol.name for protocol in self.protocols]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the protocol {twice[0]} is listed {names.count(twice[0])} times, and its scores would "
                             "overwrite each other: list each protocol once")
        for protocol in self.protocols:
            if not protocol.quick:
                raise ValueError(f"{protocol.name} takes too long for a run: leave it out, and measure the exported "
                                 f"encoder with ssl-zoo evaluate --protocols {protocol.name}")
        self.latest: dict[str, float] = {}
        self.scores: dict[str, Score] = {}       # those of `latest`, with what they are means of
        self.features = Pass()
        self.pictures: dict[str, Picture] = {}   # of this validation, not yet drawn
        self.said: set[str] = set()              # sentences on what was left out; each is said once

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Each callback in `former` is an Evaluation: the first takes over the protocols of the others."""
        first, *others = evaluations(trainer)
        for other in others:
            first.protocols, other.protocols = first.protocols + other.protocols, []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.features, self.pictures = Pass(), {}   # nothing stays of a validation that broke off

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                                batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.protocols:
            self.features.add(dataloader_idx, batch_idx, Features(outputs, batch.labels, batch.index))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.latest, self.scores = {}, {}
        if not self.protocols:
            return
        self.features.shares()
        if any(map(len, self.features.broken)):
            rank_zero_warn(broken(trainer, self.features))
            return
        for protocol, found in self.measure(self.features, context(trainer, pl_module)):
            for name, score in found.scores.items():          # every process measured the same
                self.latest[name], self.scores[name] = score.value, score
                pl_module.log(name, score.value, prog_bar=protocol.in_bar and "/" not in name, rank_zero_only=True)
            self.pictures.update(found.pictures)
            for sentence in found.left_out:
                self.say(sentence)

    def measure(self, features: Pass, given: Context) -> list[tuple[Protocol, Measured]]:
        """What each protocol finds; one that raises a ValueError, or runs out of memory, is skipped with a warning."""
        lacking = no_accuracy(features.labels, given.classes)
        if lacking and (missing := [protocol.name for protocol in self.protocols if protocol.needs_labels]):
            self.say(f"{', '.join(missing)}: accuracy {lacking}")
        found = []
        for protocol in self.protocols:
            if lacking and protocol.needs_labels:
                continue
            parts = features.shares() if protocol.sharded else features.parts()
            try:
                found.append((protocol, protocol.measure(parts[0], parts[-1], given)))
            except (ValueError, torch.OutOfMemoryError) as error:
                self.say(f"{protocol.name}: {error}")
        return found

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder, pictures = run_folder(trainer), self.pictures
        self.features, self.pictures = Pass(), {}   # a gigabyte and more for a large set, which training needs
        if trainer.is_global_zero and folder is not None:
            for name, draw in pictures.items():
                publish(draw(), name, folder, trainer.logger, trainer.global_step)

    def say(self, sentence: str) -> None:
        if sentence not in self.said:
            rank_zero_warn(sentence)
            self.said.add(sentence)

    def state_dict(self) -> dict[str, Any]:
        return {"latest": self.latest, "protocols": {one.name: one.state_dict() for one in self.protocols}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.latest = state_dict["latest"]
        for protocol in self.protocols:
            if kept := state_dict.get("protocols", {}).get(protocol.name):   # a run may go on with other protocols
                protocol.load_state_dict(kept)


def evaluations(trainer: pl.Trainer) -> list[Evaluation]:
    found: list[Any] = trainer.callbacks   # type: ignore[attr-defined]
    return [callback for callback in found if isinstance(callback, Evaluation)]


def context(trainer: pl.Trainer, method: pl.LightningModule) -> Context:
    """What protocols may look at during a run."""
    datamodule: Any = trainer.datamodule                 # type: ignore[attr-defined]
    name = moment(trainer) if trainer.state.fn == "fit" else "encoder"   # a validation alone restores no epoch
    return Context(name, getattr(datamodule, "classes", []), partial(image, trainer.val_dataloaders), running=True)


def moment(trainer: pl.Trainer) -> str:
    """How far the encoder is that is evaluated now: untrained, after an epoch, or after a step within one."""
    if trainer.sanity_checking:     # of a run that goes on from an epoch's end, too
        return report.epoch(trainer.current_epoch) if trainer.global_step else report.BEFORE
    return report.epoch(trainer.current_epoch + 1) if trainer.is_last_batch else report.step(trainer.global_step)


def image(loaders: Any, part: int, place: int) -> Tensor:
    """A plain image by its part, 0 the first and -1 the last, and its place there."""
    loader = loaders[part] if isinstance(loaders, list) else loaders
    return loader.image(place) if hasattr(loader, "image") else loader.dataset[place][0]


def broken(trainer: pl.Trainer, done: Pass) -> str:
    """Names some of the images whose features are not finite."""
    loaders: Any = trainer.val_dataloaders
    names = []
    for part, places in enumerate(done.broken):
        source = getattr(loaders[part] if isinstance(loaders, list) else loaders, "source", None)
        known = getattr(source, "names", None)
        here = "test" if part else "training"
        names += [known[place] if known else f"image {place} of the {here} part" for place in places[:3].tolist()]
    return not_finite(names[:3], sum(map(len, done.broken)), sum(map(len, done.labels)))


class Report(pl.Callback):
    """Ends a run with a table of every score before and after training, and with the exported encoder.

    Below the table, apart from it, stands which epoch was best, for what it is worth: the test part chose it.

    The untrained column needs a whole evaluation before training: `trainer.num_sanity_val_steps: -1` in the recipe. It
    is measured once, and a resumed run still has it.

    Args:
        raw_pixels: evaluate the images' pixels as if they were features, less the mean training image, for small
            images in memory.
    """

    def __init__(self, raw_pixels: bool = False):
        self.raw_pixels = raw_pixels
        self.columns: dict[str, dict[str, float]] = {}
        self.pixels = Pass()
        self.size: int | None = None
        self.before: dict[str, Score] = {}   # of the untrained encoder, the score that decides whether it learns
        self.last: dict[str, Score] = {}     # of the last evaluation
        self.rhythm: int | None = None       # the recipe's, of evaluations
        self.begun = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begun = True
        self.on_train_epoch_start(trainer, pl_module)     # which a run that goes on within an epoch does not call

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.rhythm is None and trainer.current_epoch + 1 == trainer.max_epochs and trainer.check_val_every_n_epoch:
            # the last epoch is evaluated, whatever the recipe's rhythm
            self.rhythm, trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch, 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.rhythm is not None:
            trainer.check_val_every_n_epoch, self.rhythm = self.rhythm, None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch,
                                batch_idx: int, dataloader_idx: int = 0) -> None:
        assert isinstance(batch.images, Tensor)
        self.size = batch.images.shape[-1]
        if self.raw_pixels and self.of_untrained(trainer):
            pixels = batch.images.flatten(1).float() / 255
            self.pixels.add(dataloader_idx, batch_idx, Features(pixels, batch.labels, batch.index))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = evaluations(trainer)
        if trainer.state.fn == "validate":
            scores = {name: score for one in found for name, score in one.scores.items()}
            self.record(trainer, "validation", {"encoder": values(scores)}, scores)
        if trainer.state.fn != "fit" or trainer.sanity_checking and not self.of_untrained(trainer):
            return                            # of a few batches, or of an encoder that has learnt already
        if self.pixels.shares():
            self.columns[report.PIXELS] = of_pixels(found, self.pixels)
            self.pixels = Pass()
        scores = {name: score for one in found for name, score in one.scores.items()}
        self.columns[moment(trainer)] = values(scores)
        self.last = scores
        if trainer.sanity_checking:
            self.before = {name: score for name, score in scores.items() if name == judge(scores)}

    def of_untrained(self, trainer: pl.Trainer) -> bool:
        """Whether this evaluation comes before all training and is of all images, `num_sanity_val_steps` -1 or inf.

        A run that goes on from an epoch's end begins with an evaluation too, of an encoder that has learnt.
        """
        everything = trainer.num_sanity_val_steps == float("inf")
        return bool(trainer.sanity_checking and everything and not trainer.global_step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, Method):
            raise ValueError(f"Report exports the encoder of a Method, and this is a {type(pl_module).__name__}: leave "
                             "it out")
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None or not trainer.global_step or not self.begun:
            return
        metrics = dict(report.metrics(self.columns, trainer.current_epoch, trainer.global_step))
        protocols = [one for found in evaluations(trainer) for one in found.protocols]
        path = save_encoder(pl_module.evaluated, free(folder / "encoder.safetensors"), size=self.size, metrics=metrics,
                            protocols=report.sentences(metrics, protocols), origin=left_by(folder),
                            recipe=report.whole_recipe(folder, pl_module))
        self.record(trainer, "run", self.columns, self.last, self.before)
        said = f"\n{report.run_verdict(self.columns, self.last, self.before)}\n" * bool(metrics and self.last)
        datamodule: Any = trainer.datamodule   # type: ignore[attr-defined]
        if left_out := getattr(datamodule, "left_out", None):
            said += "".join(f"\nleft out: {sentence}\n" for sentence in left_out.sentences)
        put(whole_table := free(folder / "report.txt"), report.run_table(self.columns, protocols) + said)
        only = () if any(found.named for found in evaluations(trainer)) else report.SHOWN
        left = {"whole table": whole_table, "checkpoints": folder / "checkpoints", "exported encoder": path,
                "training curve": folder / "training_curve.png", "augmented views": folder / "views.png",
                "nearest neighbours": folder / "neighbours.png"}
        print("\n" + report.run_table(self.columns, protocols, only) + said)
        if not metrics:
            print(f"{report.epoch(trainer.current_epoch)} was not evaluated: ssl-zoo evaluate {path}\n")
        there = [(name, place) for name, place in left.items() if place.exists()]
        print("\n".join(f"{name:20}{place}" for name, place in [*there, *map(where, trainer.loggers)]))

    def record(self, trainer: pl.Trainer, kind: Literal["run", "validation"],
               columns: Mapping[str, Mapping[str, float]], last: Mapping[str, Score],
               before: Mapping[str, Score] | None = None) -> None:
        """Leave report.json in the run's folder."""
        folder, datamodule = run_folder(trainer), getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and folder is not None and folder.is_dir() and any(columns.values()):
            made = left_by(folder) or provenance(seed=distributed.run_seed(), data=datamodule)
            protocols = [one for found in evaluations(trainer) for one in found.protocols]
            verdict = report.of_last(last, before or {}) if kind == "run" and last else None
            put(free(folder / "report.json"),
                records.of_run(kind, datamodule, columns, last, protocols, verdict, made))

    def state_dict(self) -> dict[str, Any]:
        return {"columns": self.columns, "size": self.size,
                "before": {name: list(score) for name, score in self.before.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.columns, self.size = state_dict["columns"], state_dict["size"]
        self.before = {name: Score(*parts) for name, parts in state_dict.get("before", {}).items()}


def values(scores: Mapping[str, Score]) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}


def of_pixels(found: Sequence[Evaluation], pixels: Pass) -> dict[str, float]:
    """What the protocols that need labels find of raw pixels; the encoder's own results stay as they are.

    Pixels are all positive, so that before centring every cosine is near 1 and kNN is far below what pixels can do.
    """
    pixels.centre()
    of_raw = Evaluation([copy.copy(protocol) for evaluation in found if evaluation.latest
                         for protocol in evaluation.protocols if protocol.needs_labels])
    measured = of_raw.measure(pixels, Context("raw pixels", running=True))
    return {name: value for _, one in measured for name, value in values(one.scores).items()}


class ScoreRecorder(pl.Callback):
    """Logs the cosines of positives and negatives among the features of a training batch, as scores/....

    A positive is the first view of an image with its second, a negative with the second of another image, over the
    batches of all processes: mean and variance of both, and the mean over images of the hardest negative. Features are
    those that evaluation sees. At the end of each epoch scores.png shows these numbers over all steps, before a resume
    too, and TensorBoard gets histograms of the last batch looked at.

    Args:
        every: record every N-th step that the trainer logs; each costs two passes through the encoder.
    """

    def __init__(self, every: int = 1):
        if every < 1:
            raise ValueError(f"scores are recorded at every step that the trainer logs, or at one of several: not at "
                             f"every {every}")
        self.every, self.step = every, 0
        self.steps: list[list[float]] = []       # step, then the five numbers in their order
        self.distributions: dict[str, Distribution] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, Method):
            raise ValueError(f"ScoreRecorder compares the views of a Method, and this is a {type(pl_module).__name__}: "
                             "leave it out")
        pl_module.augment.require_views("ScoreRecorder", or_more=True, verb="compares")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch,
                           batch_idx: int) -> None:
        assert isinstance(pl_module, Method)
        step, period = trainer.global_step, self.every * trainer.log_every_n_steps   # type: ignore[attr-defined]
        if not period or step % period or step == self.step:   # several batches accumulate for one step
            return
        self.step = step
        first, second = (distributed.gather(pl_module.encode(view.images)) for view in batch.views[:2])
        if len(first) > 1:                                      # one image has no negative
            positives, negatives = similarities(first, second)
            self.distributions = {"positives": positives, "negatives": negatives}
            numbers = {"positive_mean": positives.mean, "positive_variance": positives.variance,
                       "negative_mean": negatives.mean, "negative_variance": negatives.variance,
                       "hardest_negative": hardest(first, second).mean().item()}
            pl_module.log_dict({f"scores/{name}": value for name, value in numbers.items()}, rank_zero_only=True)
            self.steps.append([step, *numbers.values()])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        board: Any = getattr(trainer.logger, "experiment", None)
        if trainer.is_global_zero and hasattr(board, "add_histogram_raw"):
            for name, found in self.distributions.items():
                if math.isfinite(found.mean):                   # else its counts mean nothing
                    with suppress(OSError):                     # a logger whose disk is full has said so
                        add_histogram(board, f"scores/{name}", found, trainer.global_step)
        if trainer.is_global_zero and self.distributions and (folder := run_folder(trainer)) is not None:
            steps = np.array(self.steps)
            publish(charts.picture(charts.score_curves(
                steps[:, 0], steps[:, 1:3], steps[:, 3:5], steps[:, 5], f"{type(pl_module).__name__}: features of a "
                "training batch")), "scores", folder, trainer.logger, trainer.global_step)
        self.distributions = {}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict.get("steps", [])


def add_histogram(board: Any, name: str, found: Distribution, step: int) -> None:
    """The histogram as it was counted; TensorBoard's own would want all cosines."""
    counts = found.counts.tolist()
    edges = torch.linspace(-1, 1, len(counts) + 1).tolist()              # TensorBoard takes the upper ones
    filled = [place for place, count in enumerate(counts) if count]
    total = sum(counts)
    board.add_histogram_raw(name, edges[filled[0]], edges[filled[-1] + 1], total, total * found.mean,
                            total * (found.variance + found.mean ** 2), edges, [0, *counts], step)
