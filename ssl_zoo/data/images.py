"""The base of the data modules: images to train on and, if there are any, images to test on."""

import json
import sys
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from ssl_zoo import distributed
from ssl_zoo.data.decoding import Decoder, LeftOut, Unread
from ssl_zoo.data.labels import testable
from ssl_zoo.data.levels import Choice, fitted
from ssl_zoo.data.orders import Order, in_order
from ssl_zoo.data.sources import Files, Loader, Resident, none_readable
from ssl_zoo.data.summary import Understood, summary
from ssl_zoo.distributed import world_size
from ssl_zoo.encoders import Encoder
from ssl_zoo.memory import SampleTable
from ssl_zoo.views import Augmentation

TRIED = 32               # at most so many images are tried before a set of unreadable ones is refused
HEALTH_IMAGES = 5000     # without labels, evaluation looks at this many
EVALUATION_BATCH = 256   # images; without gradients they fit wherever a training batch fits


class Images(pl.LightningDataModule):
    """Training batches without augmentation, and evaluation batches of the training and the test part.

    A subclass writes `load`; its batches are (uint8 images, canvases or crops, labels, index, key). What was understood
    is said in two lines on stderr once it is loaded; `said = True` keeps it quiet.

    Args:
        batch_size: images in a training batch of each process.
        train_images: use only this many training images, the same ones in every run; null uses all.
        workers: processes on each device that decode files; sets in memory need none.
        strict: refuse unreadable images instead of skipping them.
    """

    classes: list[str]
    train: Resident | Files
    test: Resident | Files | None
    order: Order | None               # of the training images in each epoch; None for their source's own
    understood: Understood            # `load` may set it
    summary: str                      # two lines on images, parts and classes
    decoder: Decoder                  # how files become images
    levels: Choice                    # "data" until the decoder's are measured
    left_out: LeftOut                 # images that could not be read
    loader: Loader | None = None      # of the training batches of the run at hand

    def __init__(self, batch_size: int = 256, train_images: int | None = None, workers: int = 0,
                 strict: bool = False):
        super().__init__()
        if batch_size is None or batch_size < 1:
            raise ValueError(f"a batch has at least 1 image, not {batch_size}")
        if train_images is not None and train_images < 1:
            raise ValueError(f"train_images is at least 1 image, not {train_images}; null uses all")
        self.batch_size, self.train_images, self.workers, self.strict = batch_size, train_images, workers, strict
        self.loaded, self.said = False, False
        self.order = None
        self.understood = Understood(type(self).__name__)
        self.decode_by("file", channels=3)
        self.left_out = LeftOut()

    def decode_by(self, levels: Choice, channels: int, **options: Any) -> None:
        """Set how files become images; a subclass that takes this from its user calls it in its constructor."""
        self.decoder = Decoder(channels, "file" if levels == "data" else levels, **options)
        self.levels = levels if levels == "data" else self.decoder.levels

    @abstractmethod
    def load(self) -> tuple[Resident | Files, Resident | Files | None, list[str]]:
        """The training part, the test part (None without one) and the names of the classes (none without labels)."""

    @property
    def labelled(self) -> bool:
        """Whether accuracy can be measured; training images without a label (-1) are trained on and not evaluated."""
        return bool((self.train.labels >= 0).any())

    def setup(self, stage: str) -> None:
        if not self.loaded:
            self.read()
            self.fit_levels()
            self.train, self.test = self.kept(self.train), None if self.test is None else self.kept(self.test)
            for part in (self.train, self.test):
                self.require_readable(part)
            self.loaded = True
        if stage == "fit" and self.trainer is not None:
            self.require_batches()
            for part in self.trainer.lightning_module.modules():
                if isinstance(part, SampleTable):
                    part.require_size(len(self.train))
        if self.trainer is not None:
            self.introduce(self.trainer.lightning_module)

    def introduce(self, method: torch.nn.Module) -> None:
        """Tell a method's parts how images are read; refuse channels that one of them does not take."""
        channels = self.decoder.channels
        for module in method.modules():
            if isinstance(module, Encoder):
                if module.channels != channels:
                    raise ValueError(f"the images have {channels} channel{'s' * (channels > 1)} and the encoder reads "
                                     f"{module.channels}: set --data.channels and --model.encoder.channels alike")
                module.preprocessing = self.decoder.preprocessing | self.train.preparation   # for whoever exports it
        if isinstance(augment := getattr(method, "augment", None), Augmentation):
            augment.require_channels(channels)

    def fit_levels(self) -> None:
        """Find the decoder's levels once the parts are known; for images of more than 8 bits."""

    def read_as(self, preprocessing: Mapping[str, Any]) -> bool:
        """Read images as an encoder's description says that its own were, and say whether that changes anything."""
        decoder = self.decoder.like(preprocessing)
        if decoder == self.decoder and ("levels" not in preprocessing or self.levels == decoder.levels):
            return False
        if self.levels not in ("file", "data", decoder.levels):
            warnings.warn(f"the encoder's images had levels {decoder.levels}, and these are read with the same, not "
                          f"with {self.levels}", stacklevel=2)
        self.decoder, self.levels = decoder, decoder.levels
        if self.loaded:
            self.loaded = False
            self.setup("validate")
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"preprocessing": self.decoder.preprocessing, "preparation": self.train.preparation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with images that are read in another way than those before the checkpoint."""
        for name, before in state_dict["preprocessing"].items():
            if (now := self.decoder.preprocessing[name]) != before:
                raise ValueError(f"the checkpoint's images had {name} {before}, and these have {now}: go on with "
                                 f"--data.{name} {json.dumps(before)}")

    def kept(self, part: Any) -> Any:
        """A part as batches are made of it; a subclass may keep its images decoded."""
        return part

    def require_readable(self, part: Resident | Files | None) -> None:
        """Refuse images of which none can be read, before anything runs."""
        if not isinstance(part, Files) or not len(part):
            return
        tried: dict[int, Unread] = {}
        for place in part.spaced(TRIED):
            if isinstance(found := part.attempt(place), torch.Tensor):
                return   # the loader names the others when it meets them
            tried[place] = found.require_disk()
        for place, why in tried.items():
            self.left_out.note(part.names[place], why)
        raise none_readable(part, len(tried) if len(tried) < len(part) else None)

    def read(self) -> None:
        """Load both parts without the test images that nothing can know, and say what was understood."""
        self.train, self.test, self.classes = self.load()
        labels, tested = (None if part is None else part.labels.cpu().numpy() for part in (self.train, self.test))
        assert labels is not None
        if self.test is not None and tested is not None:
            kept, left_out = testable(labels, tested)
            if left_out:
                self.test, tested = (self.test.subset(kept), tested[kept]) if len(kept) else (None, None)
                self.understood = self.understood._replace(left_out=[*self.understood.left_out, *left_out])
        if self.train_images is not None:
            self.train = self.train.subset(self.train.some(self.train_images))
        self.summary = summary(self.understood, self.train.labels.cpu().numpy(), tested, self.classes, len(labels))
        if not self.said and distributed.rank() == 0:
            print(self.summary, file=sys.stderr)
        self.said = True

    def require_batches(self) -> None:
        """Refuse a batch size that cannot work, before anything runs."""
        trainer: Any = self.trainer
        sizes = distributed.gather(torch.tensor([self.batch_size], device=trainer.strategy.root_device)).tolist()
        if len(set(sizes)) > 1:
            raise ValueError(f"every process needs batches of one size, and these have {sizes}: give each the same "
                             "--data.batch_size")
        if sum(sizes) > len(self.train):
            where = f" on each of {len(sizes)} processes" * (len(sizes) > 1)
            raise ValueError(f"a batch of {self.batch_size}{where} is larger than the data set of {len(self.train)} "
                             "images: lower --data.batch_size")

    def train_dataloader(self) -> Loader:
        trainer: Any = self.trainer
        augment = getattr(trainer.lightning_module, "augment", None)   # a stranger's module may have none
        source = self.train = self.train.to(trainer.strategy.root_device)
        if isinstance(source, Files):
            source.augment, source.scaled = augment, True
        order = in_order if trainer.overfit_batches else self.order     # the same batches in every epoch
        loader = Loader(source, self.batch_size, self.workers, training=True, strict=self.strict, order=order)
        loader.device, self.loader = trainer.strategy.root_device, loader
        return loader

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self.loader is not None:
            self.loader.dismiss()

    def plain(self) -> Loader:
        """The whole training part in order, without augmentation, labelled or not; each process has its share.

        For passes over the data set that a method makes by itself, such as clustering: encode the batches, then join
        the processes' rows with `distributed.by_index`.
        """
        return Loader(self.train, EVALUATION_BATCH, self.workers, strict=self.strict)

    def val_dataloader(self) -> list[Loader]:
        """The training part, then the test part, both in order and without augmentation.

        Without labels it is the training part alone, at most 5,000 images of it: enough to measure its health.
        """
        if self.labelled and self.test is not None:
            labelled = (self.train.labels >= 0).cpu().numpy()
            parts = [self.train if labelled.all() else self.train.subset(np.flatnonzero(labelled)), self.test]
        else:
            parts = [self.train.subset(self.train.some(HEALTH_IMAGES))]
        if min(map(len, parts)) < world_size():
            raise ValueError(f"{min(map(len, parts))} images to evaluate cannot be shared by {world_size()} processes: "
                             "train on fewer devices")
        return [Loader(part, EVALUATION_BATCH, self.workers, strict=self.strict) for part in parts]


class OfFiles(Images):
    """A data module of files, of whatever depth, whose levels are fitted to the training part."""

    train: Files
    test: Files | None

    def fit_levels(self) -> None:
        self.decoder = fitted(self.train, self.levels, self.workers)
        self.levels = self.decoder.levels
        self.train = self.train.decoded_by(self.decoder)
        self.test = None if self.test is None else self.test.decoded_by(self.decoder)
