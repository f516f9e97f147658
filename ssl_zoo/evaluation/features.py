"""One pass over the images, read by every metric: the validation loop's features, gathered once."""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_zoo import distributed


class Features(NamedTuple):
    """What an encoder makes of one part of a data set."""

    x: Tensor        # [N, D] float32
    labels: Tensor   # [N], -1 where unknown
    places: Tensor   # [N] place of each image in its part


class Pass:
    """The features of one validation pass, batch by batch and then as a whole, for all callbacks together."""

    def __init__(self) -> None:
        self.batches: dict[int, dict[int, Features]] = {}
        self.whole: list[Features] = []

    def add(self, part: int, batch: int, features: Features) -> None:
        if not self.whole:   # a second callback brings the same batch; the whole exists once the pass has ended
            self.batches.setdefault(part, {})[batch] = features

    def parts(self) -> list[Features]:
        """The features of each part over all processes, in the order of the images."""
        if not self.whole:
            for part in sorted(self.batches):
                columns = zip(*self.batches[part].values(), strict=True)
                x, labels, places = (distributed.gather_uneven(torch.cat(column)) for column in columns)
                order = places.argsort()
                self.whole.append(Features(x[order], labels[order], places[order]))
            self.batches.clear()
        return self.whole


_passes: WeakKeyDictionary[pl.Trainer, Pass] = WeakKeyDictionary()


class FeatureCallback(pl.Callback):
    """A metric of features, computed at the end of each validation pass and logged under its protocol's name.

    A subclass writes `measure`. `latest` holds what it last measured.
    """

    needs_labels = True

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.said = False

    def measure(self, train: Features, test: Features) -> dict[str, float]:
        """Numbers by name; `train` and `test` are the same where there is only one part."""
        raise NotImplementedError

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _passes.setdefault(trainer, Pass())

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                                batch_idx: int, dataloader_idx: int = 0) -> None:
        _passes[trainer].add(dataloader_idx, batch_idx, Features(outputs, batch.labels, batch.index))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _passes.pop(trainer, None)   # a gigabyte and more for a large set, which training needs for itself

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parts = _passes[trainer].parts()
        train, test = parts[0], parts[-1]
        if self.needs_labels and (len(parts) < 2 or (test.labels < 0).any()):
            if not self.said:
                rank_zero_warn(f"{type(self).__name__} measures accuracy, which needs labels: put the images of each "
                               "class into a sub-folder of their own")
                self.said = True
            return
        self.latest = self.measure(train, test)
        for name, value in self.latest.items():   # every process measured the same
            pl_module.log(name, value, prog_bar=name.startswith("knn"), rank_zero_only=True)
