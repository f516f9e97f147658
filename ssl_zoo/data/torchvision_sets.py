import inspect
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from ssl_zoo.data.arrays import resident
from ssl_zoo.data.decoding import Decoder, picture
from ssl_zoo.data.images import Images
from ssl_zoo.data.labels import as_places
from ssl_zoo.data.sources import Files, Resident
from ssl_zoo.data.summary import Understood


class TorchvisionImages(Images):
    """Any classification set of torchvision by name; sets that torchvision keeps as arrays stay in memory.

    Args:
        name: a class of torchvision.datasets, such as CIFAR10, STL10 or Flowers102.
        root: folder for the files.
        download: fetch missing files.
        train_split: the part to train on, for sets that name their parts.
        test_split: the part to test on, for sets that name their parts.
        batch_size: images in a training batch of each process.
        evaluation_size: side in pixels of the images that evaluation sees, for sets of files.
        train_images: use only this many training images, the same ones in every run; null uses all.
        workers: processes on each device that decode files.
        strict: refuse unreadable images instead of skipping them.
    """

    def __init__(self, name: str, root: str = "data", download: bool = True, train_split: str = "train",
                 test_split: str = "test", batch_size: int = 256, evaluation_size: int = 224,
                 train_images: int | None = None, workers: int = 2, strict: bool = False):
        super().__init__(batch_size, train_images, workers, strict)
        kind = getattr(torchvision.datasets, name, None)
        if not (isinstance(kind, type) and {"train", "split"} & inspect.signature(kind).parameters.keys()):
            raise ValueError(f"torchvision.datasets has no classification set named {name} with parts to train and "
                             "test on; CIFAR10, CIFAR100, SVHN, FashionMNIST and Flowers102 are some that it has")
        self.kind, self.root, self.download = kind, root, download
        self.train_split, self.test_split, self.evaluation_size = train_split, test_split, evaluation_size

    def part(self, train: bool, download: bool) -> Any:
        parameters = inspect.signature(self.kind).parameters
        options: dict[str, Any] = {"train": train} if "train" in parameters else {
            "split": self.train_split if train else self.test_split}
        if "download" in parameters:
            options["download"] = download
        try:
            return self.kind(self.root, **options)
        except OSError as error:   # no network, or a server that is gone
            raise OSError(f"{self.kind.__name__} could not be fetched into {self.root} ({error}); put its files there "
                          "yourself, or try again with a network") from error
        except RuntimeError as error:
            raise ValueError(f"{self.kind.__name__} is not in {self.root} ({error}); set --data.download true, or give "
                             "the right --data.root") from error

    def prepare_data(self) -> None:
        for train in (True, False):
            self.part(train, self.download)

    def load(self) -> tuple[Resident | Files, Resident | Files, list[str]]:
        train, test = (self.part(train, download=False) for train in (True, False))
        names = [" ".join(name) if isinstance(name, tuple) else str(name) for name in getattr(train, "classes", [])]
        labels, classes, notes = as_places({"labels to train on": self.labels(train),
                                            "labels to test on": self.labels(test)}, names)
        self.understood = Understood(f"{self.kind.__name__} in {self.root}", notes=notes)
        return self.source(train, labels[0]), self.source(test, labels[1]), classes

    def labels(self, part: Any) -> np.ndarray:
        for name in ("targets", "labels", "_labels", "y", "attr"):   # attr: CelebA's forty of each image
            if hasattr(part, name):
                return np.asarray(getattr(part, name))
        if hasattr(part, "_samples"):
            return np.asarray([label for _, label in part._samples])
        raise ValueError(f"{self.kind.__name__} keeps its labels where ssl_zoo does not find them; save it as a folder "
                         "with one sub-folder for each class and use ImageFolder")

    def source(self, part: Any, labels: np.ndarray | None) -> Resident | Files:
        if isinstance(getattr(part, "data", None), np.ndarray | Tensor):
            return resident(part.data, labels, self.decoder)
        names = [f"{self.kind.__name__} image {i}" for i in range(len(part))]
        places = torch.full((len(part),), -1) if labels is None else torch.from_numpy(labels)
        return Files(partial(read_item, part, self.decoder), names, places, self.evaluation_size, self.decoder,
                     self.left_out)


def read_item(part: Any, decoder: Decoder, i: int) -> Tensor:
    return picture(part[i][0], decoder)
