"""How alike an encoder finds two views of one image, and views of two images, while it learns."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.evaluation.health import Distribution, similarities
from ssl_zoo.evaluation.nearest import unit
from ssl_zoo.method import Batch, Method


class ScoreRecorder(pl.Callback):
    """Logs the cosines of positives and negatives among the features of a training batch, as scores/....

    A positive is the first view of an image with its second, a negative with the second of another image, over the
    batches of all processes: mean and variance of both, and the mean over images of the hardest negative. Features are
    those that evaluation sees. TensorBoard gets histograms at the end of each epoch, of the last batch looked at.

    Args:
        every: look at one of so many steps that the trainer logs; each costs two passes through the encoder.
    """

    def __init__(self, every: int = 1):
        if every < 1:
            raise ValueError(f"scores are recorded at every step that the trainer logs, or at one of several: not at "
                             f"every {every}")
        self.every, self.step = every, 0
        self.distributions: dict[str, Distribution] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Method)
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

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        board: Any = getattr(trainer.logger, "experiment", None)
        if trainer.is_global_zero and hasattr(board, "add_histogram_raw"):
            for name, found in self.distributions.items():
                if math.isfinite(found.mean):                   # else its counts mean nothing
                    publish(board, f"scores/{name}", found, trainer.global_step)
        self.distributions = {}


def hardest(x: Tensor, y: Tensor, chunk: int = 1024) -> Tensor:
    """The largest cosine of each row of `x` [N, D] with the rows of `y` [N, D] but its own: [N], for N above 1."""
    x, y = unit(x), unit(y)
    largest = []
    for start, rows in zip(range(0, len(x), chunk), x.split(chunk), strict=True):
        cosines = rows @ y.T                                             # [chunk, N]
        cosines.diagonal(start).fill_(-torch.inf)
        largest.append(cosines.amax(1))
    return torch.cat(largest)


def publish(board: Any, name: str, found: Distribution, step: int) -> None:
    """The histogram as it was counted; TensorBoard's own would want all cosines."""
    counts = found.counts.tolist()
    edges = torch.linspace(-1, 1, len(counts) + 1).tolist()              # TensorBoard takes the upper ones
    filled = [place for place, count in enumerate(counts) if count]
    total = sum(counts)
    board.add_histogram_raw(name, edges[filled[0]], edges[filled[-1] + 1], total, total * found.mean,
                            total * (found.variance + found.mean ** 2), edges, [0, *counts], step)
