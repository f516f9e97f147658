from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.data.images import Images
from ssl_zoo.data.labels import as_places
from ssl_zoo.data.sources import Resident
from ssl_zoo.data.summary import Understood


class ArrayImages(Images):
    """Images of one size from a NumPy file, kept in memory.

    Args:
        path: .npz file with train_images, and if there are labels train_labels, test_images and test_labels. Images
            are uint8 [N, H, W], [N, H, W, 3] or [N, 3, H, W]. Labels are numbers (-1 where unknown) or words; classes
            names the numbers.
        batch_size: images in a training batch of each process.
        train_images: use only this many training images, the same ones in every run; null uses all.
    """

    def __init__(self, path: str, batch_size: int = 256, train_images: int | None = None):
        super().__init__(batch_size, train_images)
        self.path = path

    def load(self) -> tuple[Resident, Resident | None, list[str]]:
        if not Path(self.path).is_file():
            raise FileNotFoundError(f"no file of images at {self.path}")
        with np.load(self.path) as arrays:
            if "train_images" not in arrays:
                raise ValueError(f"{self.path} holds {', '.join(arrays) or 'nothing'}, and train_images is needed")
            labels = {f"{part}_labels": read_labels(arrays, f"{part}_labels", self.path) for part in ("train", "test")}
            names = [str(name) for name in arrays.get("classes", [])]
            (train_labels, test_labels), classes, notes = as_places(labels, names)
            train = resident(arrays["train_images"], train_labels)
            test = resident(arrays["test_images"], test_labels) if "test_images" in arrays else None
        self.understood = Understood(self.path, notes=notes)
        return train, test, classes


def read_labels(arrays: Mapping[str, np.ndarray], name: str, path: str) -> np.ndarray | None:
    try:
        return arrays.get(name)
    except ValueError as error:   # pickled objects, which NumPy does not load and ssl_zoo does not run
        raise ValueError(f"{name} of {path} are Python objects: save them as numbers or words, "
                         f"np.asarray({name}.tolist())") from error


def resident(images: np.ndarray | Tensor, labels: object = None) -> Resident:
    """Turn arrays as data sets publish them into a source: three channels, channels first, label -1 where unknown."""
    pixels = torch.as_tensor(images)
    if pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4) or not len(pixels):
        raise ValueError(f"images are uint8 [N, H, W], [N, H, W, 3] or [N, 3, H, W], not {pixels.dtype} "
                         f"{list(pixels.shape)}")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[3] in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.shape[1] not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, not {list(pixels.shape)}")
    places = torch.full((len(pixels),), -1) if labels is None else torch.as_tensor(np.asarray(labels)).long().flatten()
    if len(places) != len(pixels):
        raise ValueError(f"{len(places)} labels do not fit {len(pixels)} images")
    return Resident(pixels.expand(-1, 3, -1, -1).contiguous(), places)
