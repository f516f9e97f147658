from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.data.canvases import Decoded, decode_once
from ssl_zoo.data.images import Images
from ssl_zoo.data.sources import Files, read_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
TRAIN_NAME, TEST_NAMES = "train", ("val", "valid", "validation", "test")


class ImageFolder(Images):
    """The images of a folder, of any sizes: flat and unlabelled, or with one sub-folder for each class.

    Sub-folders train and val (or test) are the two parts. Without them, if there are classes, a share of each class is
    held out as the test part and never trained on.

    Args:
        root: the folder.
        batch_size: images in a training batch of each process.
        held_out: share of each class to test on, if the folder has no test part.
        evaluation_size: side in pixels of the images that evaluation sees.
        train_images: use only this many training images, the same ones in every run; null uses all.
        workers: processes on each device that decode files.
        strict: refuse unreadable images instead of skipping them.
        cache: folder for the decoded images, one large file (0.3 MB an image at 256 pixels) that is written before the
            first epoch, and again after an image has changed; views are then cut on the device. Without it the workers
            decode every image in every epoch and cut its views.
        cache_size: shorter side in pixels to which cached images are reduced; the longer side is at most twice that.
    """

    train: Files
    test: Files | None

    def __init__(self, root: str, batch_size: int = 256, held_out: float = 0.1, evaluation_size: int = 224,
                 train_images: int | None = None, workers: int = 2, strict: bool = False, cache: str | None = None,
                 cache_size: int = 256):
        super().__init__(batch_size, train_images, workers, strict)
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is a share of each class between 0 and 1, not {held_out}")
        if cache_size < 1:
            raise ValueError(f"cache_size is at least 1 pixel, not {cache_size}")
        self.root, self.held_out, self.evaluation_size = root, held_out, evaluation_size
        self.cache, self.cache_size = cache, cache_size

    def prepare_data(self) -> None:
        if self.cache is not None:
            self.setup("fit")   # Lightning lets one process of a node write the cache while the others wait for it

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.cache is None or isinstance(self.train, Decoded):
            return
        keep = partial(decode_once, folder=self.cache, size=self.cache_size, workers=self.workers)
        self.train, self.test = keep(self.train), None if self.test is None else keep(self.test)

    def load(self) -> tuple[Files, Files | None, list[str]]:
        root = Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"no folder of images at {root.absolute()}; give another --data.root")
        folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
        parted = TRAIN_NAME in folders and folders <= {TRAIN_NAME, *TEST_NAMES}   # beside bus and car, train is a class
        train_root = root / TRAIN_NAME if parted else root
        test_root = next((root / name for name in TEST_NAMES if name in folders), None) if parted else None
        paths = find_images(train_root)
        if not paths:
            raise ValueError(f"no images in {train_root.absolute()}: looked for "
                             f"{', '.join(sorted(SUFFIXES))} in it and below")
        classes = class_names(train_root, paths)
        train = self.files(train_root, paths, classes)
        if not classes:
            return train, None, []
        test_paths = find_images(test_root) if test_root is not None else []
        if test_root is not None and class_names(test_root, test_paths, least=1):   # otherwise a pile without labels
            return train, self.files(test_root, test_paths, classes), classes
        kept, tested = hold_out(train.labels.numpy(), self.held_out)
        return train.subset(kept), train.subset(tested), classes

    def files(self, root: Path, paths: list[Path], classes: list[str]) -> Files:
        names = [path.relative_to(root).parts[0] for path in paths]
        if unknown := sorted(set(names) - set(classes)) if classes else []:
            raise ValueError(f"{root / unknown[0]} is a class that the training part does not have")
        places = {name: label for label, name in enumerate(classes)}
        labels = torch.tensor([places.get(name, -1) for name in names])
        return Files(partial(read_nth, paths), [str(path) for path in paths], labels, self.evaluation_size)


def find_images(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def class_names(root: Path, paths: list[Path], least: int = 2) -> list[str]:
    """The sub-folders' names if every image is in one and there are at least `least` of them; otherwise none."""
    parts = [path.relative_to(root).parts for path in paths]
    names = sorted({part[0] for part in parts})
    return names if all(len(part) > 1 for part in parts) and len(names) >= least else []


def hold_out(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Places to train and to test on: `share` of each class tests, always the same images, and each part gets one."""
    generator = np.random.default_rng(0)
    tested = [generator.permutation(places)[:min(max(1, round(share * len(places))), len(places) - 1)]
              for places in (np.flatnonzero(labels == label) for label in np.unique(labels))]
    test = np.sort(np.concatenate(tested))
    return np.setdiff1d(np.arange(len(labels)), test), test


def read_nth(paths: list[Path], i: int) -> Tensor:
    return read_image(paths[i])
