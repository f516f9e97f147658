"""Two lines that say what a data module has understood, at the start of every run and evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssl_zoo.data.tree import counted, some_of


class Understood(NamedTuple):
    """What only the one knows who has read the images."""

    where: str                     # what the user named
    test: str = ""                 # where the test part is from
    notes: Sequence[str] = ()      # how it was understood, where that needs a word
    left_out: Sequence[str] = ()   # what is not used, and why


def summary(understood: Understood, train: np.ndarray, test: np.ndarray | None, classes: Sequence[str],
            of: int = 0) -> str:
    """Images, parts and classes in one line; what was left out in another.

    Args:
        train: labels of the training images [N], -1 where unknown.
        test: likewise of the images to test on.
        classes: names by label.
        of: how many training images there are, of which these may be some.
    """
    parts = [f"{len(train):,} to train on" + f" of {of:,}" * (of > len(train))]
    if test is not None:
        parts.append(f"{len(test):,} to test on" + f" ({understood.test})" * bool(understood.test))
    images = len(train) + (0 if test is None else len(test))
    said = [f"{counted(images, 'image')}, {' and '.join(parts)}", *of_classes(train, classes)]
    lines = (f"{understood.where}: {'; '.join([*said, *understood.notes])}\n"
             f"left out: {'; '.join(understood.left_out) or 'nothing'}")
    return lines.encode("utf-8", "backslashreplace").decode()   # names of files need not be text


def of_classes(train: np.ndarray, classes: Sequence[str]) -> list[str]:
    """How many training images the classes have, and how many images have none."""
    labelled = train[train >= 0]
    if not len(labelled):
        return ["no labels"]
    places, counts = np.unique(labelled, return_counts=True)
    names = [classes[place] if place < len(classes) else str(place) for place in places]
    few, many = int(counts.argmin()), int(counts.argmax())
    size = (f"{counts[few]:,} ({names[few]}) to {counts[many]:,} ({names[many]}) training images"
            if counts[few] < counts[many] else f"{counted(int(counts[0]), 'training image')} each")
    said = [f"{counted(len(names), 'class')} of {size}"]
    if lacking := np.setdiff1d(np.arange(len(classes)), places).tolist():
        said.append(f"no training images of {some_of([classes[place] for place in lacking])}")
    if unlabelled := len(train) - len(labelled):
        said.append(f"{counted(unlabelled, 'image')} without a class, only to train on")
    return said
