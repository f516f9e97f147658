from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.data.decoding import COLOURS, Decoder, Samples, levels_of, require_order, to_bytes
from ssl_zoo.data.images import Images
from ssl_zoo.data.labels import as_places
from ssl_zoo.data.levels import Choice, measured, require_contrast, spread
from ssl_zoo.data.sources import Resident
from ssl_zoo.data.summary import Understood


class ArrayImages(Images):
    """Images of one size from a NumPy file, kept in memory.

    Args:
        path: .npz file with train_images, and if there are labels train_labels, test_images and test_labels. Images
            are [N, H, W], [N, H, W, C] or [N, C, H, W], of bytes or any other integer or float type. Labels are numbers
            (-1 where unknown) or words; classes names the numbers.
        batch_size: images in a training batch of each process.
        train_images: use only this many training images, the same ones in every run; null uses all.
        channels: of the images, C; 3 repeats gray.
        levels: the two values that become black and white in images of more than 8 bits, "file" for the whole range of
            their type (0 to 1 for floats), or "data" for the smallest and largest value of the training images.
    """

    def __init__(self, path: str, batch_size: int = 256, train_images: int | None = None, channels: int = 3,
                 levels: Choice = "file"):
        super().__init__(batch_size, train_images)
        self.decode_by(levels, channels)
        self.path = path

    def load(self) -> tuple[Resident, Resident | None, list[str]]:
        if not Path(self.path).is_file():
            raise FileNotFoundError(f"no file of images at {self.path}")
        with np.load(self.path) as arrays:
            if "train_images" not in arrays:
                raise ValueError(f"{self.path} holds {', '.join(arrays) or 'nothing'}, and train_images is needed")
            labels = {f"{part}_labels": read_labels(arrays, f"{part}_labels", self.path) for part in ("train", "test")}
            self.fit_to(arrays["train_images"])
            names = [str(name) for name in arrays.get("classes", [])]
            (train_labels, test_labels), classes, notes = as_places(labels, names)
            train = resident(arrays["train_images"], train_labels, self.decoder)
            test = resident(arrays["test_images"], test_labels, self.decoder) if "test_images" in arrays else None
        self.understood = Understood(self.path, notes=notes)
        return train, test, classes

    def fit_to(self, images: np.ndarray) -> None:
        """Measure the levels if they are the data's, or doubt them if they leave the images flat."""
        if images.dtype == np.uint8 or images.dtype.kind not in "uif" or not images.size:
            return
        known = spread(Samples(images, 8 * images.itemsize))
        if self.levels == "data":
            self.levels = measured([known])
            self.decoder = replace(self.decoder, levels=self.levels)
        else:
            require_contrast([known], self.levels)


def read_labels(arrays: Mapping[str, np.ndarray], name: str, path: str) -> np.ndarray | None:
    try:
        return arrays.get(name)
    except ValueError as error:   # pickled objects, which NumPy does not load and ssl_zoo does not run
        raise ValueError(f"{name} of {path} are Python objects: save them as numbers or words, "
                         f"np.asarray({name}.tolist())") from error


def resident(images: np.ndarray | Tensor, labels: object = None, decoder: Decoder = COLOURS) -> Resident:
    """Turn arrays as data sets publish them into a source: bytes, channels first, label -1 where unknown."""
    given = np.asarray(images)
    if given.dtype.kind not in "uif" or given.ndim not in (3, 4) or not len(given):
        raise ValueError(f"images are numbers [N, H, W], [N, H, W, C] or [N, C, H, W], not {given.dtype} "
                         f"{list(given.shape)}")
    samples = Samples(given, 8 * given.itemsize)
    require_order("the array", samples, decoder)
    pixels = torch.from_numpy(to_bytes(given, levels_of(samples, decoder)))
    taken = (1, 3) if decoder.channels == 3 else (decoder.channels,)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[3] in taken:
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.shape[1] not in taken:
        raise ValueError(f"images of {list(given.shape)} do not have {' or '.join(map(str, taken))} channels: say with "
                         "channels how many they have")
    places = torch.full((len(pixels),), -1) if labels is None else torch.as_tensor(np.asarray(labels)).long().flatten()
    if len(places) != len(pixels):
        raise ValueError(f"{len(places)} labels do not fit {len(pixels)} images")
    return Resident(pixels.expand(-1, decoder.channels, -1, -1).contiguous(), places)
