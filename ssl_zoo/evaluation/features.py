"""One pass over the images, read by every metric: the validation loop's features, shared by all processes."""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
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
        self.own: list[Features] = []
        self.whole: list[Features] = []
        self.labels: list[Tensor] = []      # of each part, over all processes, as the following
        self.broken: list[Tensor] = []      # places of images whose features are not finite
        self.said = False                   # that there are some

    def add(self, part: int, batch: int, features: Features) -> None:
        self.batches.setdefault(part, {})[batch] = features   # every callback brings the same

    def shares(self) -> list[Features]:
        """The features of each part that this process keeps, in the order of the images; each image is on one."""
        if not self.own:
            for part in sorted(self.batches):
                found = Features(*map(torch.cat, zip(*self.batches.pop(part).values(), strict=True)))
                rows = once(found.places)
                share = Features(*(column[rows] for column in found))
                self.own.append(share)
                self.labels.append(distributed.gather_uneven(share.labels))
                largest = torch.linalg.vector_norm(share.x, torch.inf, 1)     # needs no second [N, D], as isfinite does
                self.broken.append(distributed.gather_uneven(share.places[~largest.isfinite()]))
        return self.own

    def parts(self) -> list[Features]:
        """The features of each part over all processes, in the order of the images."""
        if distributed.world_size() == 1:
            return self.shares()
        if not self.whole:
            for share in self.shares():
                columns = [distributed.gather_uneven(column) for column in share]
                order = columns[2].argsort()
                self.whole.append(Features(*(column[order] for column in columns)))
        return self.whole


def once(places: Tensor) -> Tensor:
    """The rows of this process, in the order of `places`, without images that an earlier row or process has as well.

    A sampler that pads the shares of the processes to one length shows some images twice.
    """
    everyone = distributed.gather_uneven(places)
    ranks = distributed.gather_uneven(torch.full_like(places, distributed.rank()))
    order = everyone.argsort(stable=True)
    first = F.pad(everyone[order].diff() != 0, (1, 0), value=True)[:len(order)]
    kept = order[first]
    return kept[ranks[kept] == distributed.rank()] - (ranks < distributed.rank()).sum()


def nearest_of_all(cosines: Tensor, found: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest cosines among those that the processes found for the same queries, and what belongs to them.

    Exact, where each process brings the k largest of its share of the bank, or all of them.

    Args:
        cosines: [M, at most k], in falling order.
        found: [M, as many] what each of them belongs to, such as a label or a place.
    """
    if distributed.world_size() == 1:
        return cosines, found
    lacking = k - cosines.shape[1]
    cosines, found = F.pad(cosines, (0, lacking), value=-torch.inf), F.pad(found, (0, lacking))
    cosines, found = (torch.cat(distributed.gather(x).chunk(distributed.world_size()), 1) for x in (cosines, found))
    cosines, order = cosines.topk(min(k, int((cosines[:1] > -torch.inf).sum())))
    return cosines, found.gather(1, order)


_passes: WeakKeyDictionary[pl.Trainer, Pass] = WeakKeyDictionary()


class FeatureCallback(pl.Callback):
    """A metric of features, computed at the end of each validation pass and logged under its protocol's name.

    A subclass writes `measure`. `latest` holds what it last measured: nothing where it could not.
    """

    needs_labels = True
    sharded = False   # whether `measure` takes this process's share of the images, and finds the same on every process

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.said = False

    def measure(self, train: Features, test: Features) -> dict[str, float]:
        """Numbers by name; `train` and `test` are the same where there is only one part."""
        raise NotImplementedError

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done = _passes.get(trainer)
        if done is None or done.batches or done.own:   # of a validation that broke off
            _passes[trainer] = Pass()

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                                batch_idx: int, dataloader_idx: int = 0) -> None:
        _passes[trainer].add(dataloader_idx, batch_idx, Features(outputs, batch.labels, batch.index))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _passes.pop(trainer, None)   # a gigabyte and more for a large set, which training needs for itself

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done = _passes[trainer]
        own = done.shares()
        self.latest = {}
        if any(map(len, done.broken)):
            if not done.said:
                rank_zero_warn(not_finite(trainer, done))
                done.said = True
            return
        if self.needs_labels and (obstacle := no_accuracy(done)):
            if not self.said:
                rank_zero_warn(f"{type(self).__name__} measures accuracy, which {obstacle}")
                self.said = True
            return
        parts = own if self.sharded else done.parts()
        self.latest = self.measure(parts[0], parts[-1])
        for name, value in self.latest.items():   # every process measured the same
            pl_module.log(name, value, prog_bar=name.startswith("knn"), rank_zero_only=True)


def no_accuracy(done: Pass) -> str:
    """What accuracy needs and these images lack; empty where they lack nothing."""
    if any((labels < 0).any() for labels in done.labels):
        return "needs labels: put the images of each class into a sub-folder of their own"
    if len(done.labels) < 2:
        return "needs a test part, and these images have none"
    if (done.labels[0] == done.labels[0][0]).all():
        return f"needs two classes: all {len(done.labels[0])} training images have label {done.labels[0][0]}"
    return ""


def not_finite(trainer: pl.Trainer, done: Pass) -> str:
    """Names some of the images whose features are not finite."""
    loaders: Any = trainer.val_dataloaders
    names = []
    for part, broken in enumerate(done.broken):
        source = getattr(loaders[part] if isinstance(loaders, list) else loaders, "source", None)
        known = getattr(source, "names", None)
        here = "test" if part else "training"
        names += [known[place] if known else f"image {place} of the {here} part" for place in broken[:3].tolist()]
    return (f"the features of {sum(map(len, done.broken))} of {sum(map(len, done.labels))} images are not finite, such "
            f"as those of {', '.join(names[:3])}, and nothing is measured: the encoder's weights have overflowed; go "
            "back to an earlier checkpoint and lower the learning rate")
