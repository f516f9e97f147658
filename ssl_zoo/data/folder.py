from collections import Counter
from pathlib import Path

import numpy as np
import torch

from ssl_zoo.data.canvases import decode_once
from ssl_zoo.data.decoding import MAX_PIXELS, SUFFIXES
from ssl_zoo.data.images import OfFiles
from ssl_zoo.data.labels import class_order, read_rows
from ssl_zoo.data.layout import Labelled, Part, understand
from ssl_zoo.data.levels import Choice
from ssl_zoo.data.sources import Files
from ssl_zoo.data.summary import Understood
from ssl_zoo.data.tree import counted, some_of


class ImageFolder(OfFiles):
    """The images of a folder, of any sizes: flat and unlabelled, or with one sub-folder for each class.

    Sub-folders train and val (or test, in any case, as in Train or val2017) are the two parts. Without them, if there
    are classes, a share of each class is held out as the test part and never trained on. Two lines at the start say
    what was understood and what was left out.

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
        labelled: whether sub-folders are classes. auto looks, and takes those of the second level where they repeat in
            those of the first (patient/class); true takes the first level's; false trains without labels.
        labels: file with a path and a label in each line, and a split (train, val) if there is a third column called
            so, in place of the folders' names. Images without a label are trained on and not evaluated.
        channels: of the images: 3 for colours (gray is repeated), 1 for gray, any other number for files with just
            these channels, such as TIFFs from satellites or microscopes.
        levels: the two values that become black and white in files of more than 8 bits; what lies beyond is clipped.
            "file" is the whole range of the file's type (0 to 1 for floats), "data" is from the smallest to the largest
            value of the training images (of 2,000 of them), measured before the first epoch.
        background: the colour behind transparent pixels.
        max_pixels: larger pictures are decoded at a reduced scale if they are JPEG, JPEG 2000 or a pyramid, and left
            out otherwise. A worker needs about 12 bytes for a pixel.
    """

    train: Files
    test: Files | None

    def __init__(self, root: str, batch_size: int = 256, held_out: float = 0.1, evaluation_size: int = 224,
                 train_images: int | None = None, workers: int = 2, strict: bool = False, cache: str | None = None,
                 cache_size: int = 256, labelled: Labelled = "auto", labels: str | None = None, channels: int = 3,
                 levels: Choice = "file", background: str = "white", max_pixels: int = MAX_PIXELS):
        super().__init__(batch_size, train_images, workers, strict)
        self.decode_by(levels, channels, background=background, max_pixels=max_pixels)
        check_held_out(held_out)
        if labelled not in ("auto", True, False):
            raise ValueError(f"labelled is auto, true or false, not {labelled}")
        if labels is not None and labelled is False:
            raise ValueError(f"labelled is false, and labels names {labels}: leave one of the two out")
        if cache_size < 1:
            raise ValueError(f"cache_size is at least 1 pixel, not {cache_size}")
        self.root, self.folders, self.labels = root, labelled, labels
        self.held_out, self.evaluation_size = held_out, evaluation_size
        self.cache, self.cache_size = cache, cache_size

    def prepare_data(self) -> None:
        if self.cache is not None:
            self.setup("fit")   # Lightning lets one process of a node write the cache while the others wait for it

    def kept(self, part: Files) -> Files:
        return part if self.cache is None else decode_once(part, self.cache, self.cache_size, self.workers)

    def load(self) -> tuple[Files, Files | None, list[str]]:
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"no folder of images at {root.absolute()}; give another --data.root")
        label_file = None if self.labels is None else beside(root, self.labels)
        rows = None if label_file is None else read_rows(label_file)
        layout = understand(root, SUFFIXES, self.folders, rows, label_file)
        names = {name for name in layout.train.classes if name is not None}
        classes = sorted(names) if rows is None else class_order(names)
        train = self.files(layout.train, classes)
        self.understood = Understood(str(layout.root), layout.test_name, layout.notes, layout.left_out)
        if layout.test is not None:
            return train, self.files(layout.test, classes), classes
        kept, tested = hold_out(train.labels.numpy(), self.held_out)
        alone = sorted(name for name, count in Counter(layout.train.classes).items() if count == 1 and name is not None)
        self.understood = self.understood._replace(test=f"held out, {100 * self.held_out:g} % of each class", notes=[
            *layout.notes, *([f"{counted(len(alone), 'class')} of one image, which trains and is not tested on "
                              f"({some_of(alone)})"] if alone else [])])
        return (train.subset(kept), train.subset(tested), classes) if len(tested) else (train, None, classes)

    def files(self, part: Part, classes: list[str]) -> Files:
        places: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
        labels = torch.tensor([places.get(name, -1) for name in part.classes])
        return Files(None, [str(path) for path in part.paths], labels, self.evaluation_size, self.decoder,
                     self.left_out)


def beside(root: Path, name: str) -> Path:
    """A file in the current folder, or else in `root`."""
    given = Path(name).expanduser()
    return given if given.is_file() or not (root / given).is_file() else root / given


def check_held_out(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"held_out is a share of each class between 0 and 1, not {share}")


def hold_out(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Places to train and to test on: `share` of each class tests, always the same images, and each part gets one.

    The only image of a class trains, and so do images without a label, which is below 0.
    """
    generator = np.random.default_rng(0)
    tested = [generator.permutation(places)[:min(max(1, round(share * len(places))), len(places) - 1)]
              for places in (np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0]))]
    test = np.sort(np.concatenate([*tested, np.array([], int)]))
    return np.setdiff1d(np.arange(len(labels)), test), test
