"""The patches of scikit-image's photographs: their parts share no pixel, and a missing file is named."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_zoo.cli import run
from ssl_zoo.data import Photographs, photographs
from ssl_zoo.data.photographs import CELL, PATCH, PHOTOGRAPHS, TESTED, TRAINED, is_tested, patches

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def read():
    pytest.importorskip("skimage", reason="scikit-image is not installed: pip install ssl_zoo[quickstart]")
    data = Photographs()
    data.read()
    return data


def test_patches_of_every_photograph_are_grey_and_of_equal_contrast(read):
    assert read.train.images.shape == (TRAINED * len(PHOTOGRAPHS), 3, PATCH, PATCH)
    assert (read.train.labels.bincount() == TRAINED).all()
    tested = read.test.labels.bincount()
    assert TESTED / 2 < tested.min() <= tested.max() == TESTED           # balanced, so that plain accuracy says enough
    assert read.classes == [photograph.name for photograph in PHOTOGRAPHS]
    assert len(read.train.labels[:100].unique()) == len(PHOTOGRAPHS)     # shuffled
    for part in (read.train, read.test):
        assert torch.equal(part.images[:, 0], part.images[:, 1])
        assert torch.equal(part.images[:, 0], part.images[:, 2])
        means = part.images[:, 0].flatten(1).float().mean(1)
        assert (means - 128).abs().max() < 25                            # but for what is cut off at 0 and 255


def test_the_patches_are_the_same_every_time(read):
    again = Photographs()
    again.read()
    assert again.train.fingerprint() == read.train.fingerprint()
    assert again.test.fingerprint() == read.test.fingerprint()


def test_no_pixel_is_in_both_parts_and_test_patches_share_none():
    class Seen(np.ndarray):
        """Notes which rows and columns are looked at."""

        def __getitem__(self, index):
            if isinstance(index, tuple):
                self.windows.append(tuple(axis.start for axis in index))
            return np.asarray(self)[index]

    image = np.random.default_rng(0).uniform(0, 255, (170, 190)).astype(np.float32).view(Seen)
    image.windows = []
    train, test = patches(image, np.random.default_rng(1))
    tested = sum(is_tested(row, column) for row in range(4) for column in range(4))
    assert (len(train), len(test)) == (TRAINED, tested)
    assert tested == 16 / 4
    seen = {True: np.zeros(image.shape, int), False: np.zeros(image.shape, int)}
    for place, (top, left) in enumerate(image.windows):
        seen[place < tested][top:top + PATCH, left:left + PATCH] += 1    # test cells are looked at first
        assert is_tested(top // CELL, left // CELL) == (place < tested)
    assert not (seen[True] & (seen[False] > 0)).any()
    assert seen[True].max() == 1


def test_flat_cells_are_left_out_and_a_flat_photograph_is_refused():
    image = np.zeros((200, 160), np.float32)
    image[:CELL] = np.random.default_rng(0).uniform(0, 255, (CELL, 160))
    train, test = patches(image, np.random.default_rng(0))
    assert (len(train), len(test)) == (TRAINED, 2)                       # cells of the first row alone
    assert train.std((1, 2)).min() > 40
    with pytest.raises(ValueError, match="a photograph of 200 x 160 pixels shows nothing"):
        patches(np.zeros((200, 160), np.float32), np.random.default_rng(0))


def test_what_is_missing_is_said_with_the_way_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="scikit-image, which is not installed: pip install ssl_zoo.quickstart."):
        run(["fit", "--config", "quickstart", "--trainer.default_root_dir", str(tmp_path)])

    class Found:
        origin = str(tmp_path / "__init__.py")
    monkeypatch.setattr(photographs, "find_spec", lambda name: Found)
    with pytest.raises(FileNotFoundError, match="this scikit-image has no astronaut.png, brick.png"):
        Photographs().read()


def test_the_page_lists_every_photograph_with_its_rights():
    text = " ".join((ROOT / "docs" / "quickstart.md").read_text().split())
    for photograph in PHOTOGRAPHS:
        assert f"| `{photograph.file}` | {photograph.name} | {photograph.rights} |" in text


def test_the_words_say_how_many_there_are():
    assert f"Patches of {len(PHOTOGRAPHS)} photographs" in inspect.getdoc(Photographs)
    assert f"{CELL} x {CELL} pixels" in inspect.getdoc(Photographs)
