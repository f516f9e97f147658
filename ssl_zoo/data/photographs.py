"""Patches of the photographs that scikit-image ships in its wheel: images to learn from without a download."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ssl_zoo.data.arrays import resident
from ssl_zoo.data.images import Images
from ssl_zoo.data.sources import Resident
from ssl_zoo.data.summary import Understood

PATCH, CELL = 32, 40       # sides in pixels
LARGEST = 640              # longer side of a photograph, pixels; larger ones are reduced
TRAINED, TESTED = 256, 32  # patches of each photograph to learn from, and at most to test on
FLAT = 4.0                 # standard deviation in levels of 255 below which a patch shows nothing
TRIES = 8                  # places in a cell, before it is left out as flat


class Photograph(NamedTuple):
    """A file of scikit-image, what it shows, and what scikit-image's notes on it say of its rights."""

    file: str
    name: str
    rights: str


PHOTOGRAPHS = (
    Photograph("astronaut.png", "astronaut", "public domain: NASA"),
    Photograph("brick.png", "brick", "CC0: CC0Textures"),
    Photograph("camera.png", "camera", "CC0: Lav Varshney"),
    Photograph("cell.png", "cell", "CC0: Müller, Schürmann, Girardo, Cojoc and Guck"),
    Photograph("chelsea.png", "cat", "CC0: Stefan van der Walt"),
    Photograph("coffee.png", "coffee", "CC0: Rachel Michetti"),
    Photograph("coins.png", "coins", "no known copyright restrictions: Brooklyn Museum"),
    Photograph("grass.png", "grass", "CC0: linolafett"),
    Photograph("gravel.png", "gravel", "CC0: CC0Textures"),
    Photograph("hubble_deep_field.jpg", "galaxies", "public domain: NASA"),
    Photograph("ihc.png", "tissue", "no known copyright restrictions: CMMI"),
    Photograph("retina.jpg", "retina", "CC0: Mikael Häggström"),
    Photograph("rocket.jpg", "rocket", "public domain: SpaceX"),
)


class Photographs(Images):
    """Patches of 13 photographs, 32 pixels wide, grey, of equal contrast; their class is the photograph they are from.

    The photographs come inside the package scikit-image: pip install ssl_zoo[quickstart]. Each is cut into cells of
    40 x 40 pixels, of which every fourth is for testing, so that no pixel is in both parts: 256 patches of each
    photograph, at random places in its other cells, are to learn from, and one of each test cell, at most 32, is to
    test on.

    Args:
        batch_size: images in a training batch of each process.
        train_images: use only this many training images, the same ones in every run; null uses all.
    """

    def __init__(self, batch_size: int = 256, train_images: int | None = None):
        super().__init__(batch_size, train_images)

    def load(self) -> tuple[Resident, Resident, list[str]]:
        folder = folder_of_photographs()
        train, test = [], []
        for number, photograph in enumerate(PHOTOGRAPHS):
            learnt, tested = patches(read_grey(folder / photograph.file), np.random.default_rng(number))
            train.append(learnt)
            test.append(tested)
        self.understood = Understood(f"patches of {len(PHOTOGRAPHS)} photographs of scikit-image",
                                     "every fourth cell of each photograph")
        shuffled = np.random.default_rng(0).permutation(sum(map(len, train)))      # by photograph until here
        learnt, labels = np.concatenate(train)[shuffled], labels_of(train)[shuffled]
        names = [photograph.name for photograph in PHOTOGRAPHS]
        return resident(learnt, labels), resident(np.concatenate(test), labels_of(test)), names


def labels_of(parts: list[np.ndarray]) -> np.ndarray:
    """The number of each part, once for each of its patches: [N]."""
    return np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def folder_of_photographs() -> Path:
    """Where scikit-image has its files; nothing of it is imported."""
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise ImportError("the photographs come from scikit-image, which is not installed: "
                          "pip install ssl_zoo[quickstart]")
    folder = Path(package.origin).parent / "data"
    missing = [photograph.file for photograph in PHOTOGRAPHS if not (folder / photograph.file).is_file()]
    if missing:
        raise FileNotFoundError(f"this scikit-image has no {', '.join(missing)} in {folder}: install the version of "
                                "constraints.txt, pip install -c constraints.txt ssl_zoo[quickstart]")
    return folder


def read_grey(path: Path) -> np.ndarray:
    """A photograph [H, W], levels 0 to 255, at most 640 pixels wide or high."""
    with Image.open(path) as image:
        grey = image.convert("L")
    grey.thumbnail((LARGEST, LARGEST))
    return np.asarray(grey, np.float32)


def patches(image: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Patches [N, 32, 32] uint8 of an image [H, W], to learn from and to test on; of each test cell there is one."""
    cells = [(row, column) for row in range(image.shape[0] // CELL) for column in range(image.shape[1] // CELL)]
    learnt, tested = ([cell for cell in cells if is_tested(*cell) == test] for test in (False, True))
    test = drawn(image, tested, generator)
    train = drawn(image, learnt, generator)
    while train and len(train) < TRAINED:
        train += drawn(image, learnt, generator)
    if not train or not test:
        raise ValueError(f"a photograph of {image.shape[0]} x {image.shape[1]} pixels shows nothing: install "
                         "scikit-image again")
    return np.stack(train[:TRAINED]), np.stack(test[:TESTED])


def drawn(image: np.ndarray, cells: Sequence[tuple[int, int]], generator: np.random.Generator) -> list[np.ndarray]:
    """A patch [32, 32] of each cell that is not flat, the cells in an order that is drawn."""
    found = [patch_of(image, cells[place], generator) for place in generator.permutation(len(cells))]
    return [patch for patch in found if patch is not None]


def is_tested(row: int, column: int) -> bool:
    """Every fourth cell, so that they lie evenly over a photograph."""
    return (row + 2 * column) % 4 == 0


def patch_of(image: np.ndarray, cell: tuple[int, int], generator: np.random.Generator) -> np.ndarray | None:
    """A patch [32, 32] uint8 at a random place in a cell, with mean 128 and deviation 50; None if the cell is flat."""
    for _ in range(TRIES):
        top, left = np.array(cell) * CELL + generator.integers(0, CELL - PATCH + 1, 2)
        patch = image[top:top + PATCH, left:left + PATCH]
        if patch.std() >= FLAT:
            return (128 + 50 * (patch - patch.mean()) / patch.std()).clip(0, 255).round().astype(np.uint8)
    return None
