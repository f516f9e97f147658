"""Labels as people bring them: a file that names images and their classes, or arrays of numbers or words."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_zoo.data.tree import counted, some_of

# Headings that a file of labels may have, the first found counts.
NAMES = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_name",
         "image_id", "img", "name", "id")
LABELS = ("label", "labels", "class", "class_name", "classname", "category", "target", "species", "breed", "diagnosis",
          "y", "class_id", "label_id")
PARTS = ("split", "set", "subset", "partition", "part")


class Row(NamedTuple):
    """One line of a file of labels."""

    image: str
    label: str
    part: str = ""   # to which the image belongs, where a column says so


def read_rows(path: Path) -> list[Row]:
    """Read a file of labels: a line for each image with its path and its label, with or without a heading.

    The two are separated by commas, semicolons, tabs or blanks. A column split may name the part of each image; others
    are passed over, and so are lines without a label or a part.

    Raises:
        ValueError: it is not text, or has no column with labels.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of labels at {path.absolute()}; give another --data.labels")
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: save it as a .csv with the columns path and label") from error
    if not lines:
        raise ValueError(f"{path} is empty: write a line for each image, its path, a comma and its label")
    separator = max(",;\t", key=lines[0].count)
    cells = list(csv.reader(lines, delimiter=separator)) if separator in lines[0] else [line.rsplit(None, 1)
                                                                                       for line in lines]
    heading = [cell.strip().lower() for cell in cells[0]]
    image, label, first = columns(path, heading)
    split = next((heading.index(name) for name in PARTS if first and name in heading), None)
    for number, row in enumerate(cells[first:], first + 1):
        if len(row) <= max(image, label):
            raise ValueError(f"line {number} of {path} is {lines[number - 1]!r}: it needs a path and a label")
    rows = [Row(row[image].strip(), row[label].strip(), "" if split is None else "".join(row[split:split + 1]).strip())
            for row in cells[first:]]
    return [row for row in rows if row.label or row.part]


def columns(path: Path, heading: Sequence[str]) -> tuple[int, int, int]:
    """The columns of the image and of the label, and how many lines are a heading: 0 or 1."""
    image, label = (next((heading.index(name) for name in names if name in heading), None) for names in (NAMES, LABELS))
    if image is None and label is None:
        return 0, 1, 0
    if len(heading) == 2:   # one is known, so the other is the other
        image = 1 - label if image is None and label is not None else image
        label = 1 - image if label is None and image is not None else label
    if image is None or label is None:
        raise ValueError(f"{path} has the columns {', '.join(heading)}, of which none is called "
                         f"{'path' if image is None else 'label'}: rename the one that is meant")
    return image, label, 1


def match(rows: Iterable[Row], paths: Sequence[Path]) -> tuple[dict[Path, Row], list[str]]:
    """The row of each path that a row names, and the names that are no path's.

    A row may name an image by its whole path or by the end of it, with or without its suffix, and its path may begin
    in a folder further out.

    Args:
        paths: of all images, from one folder.

    Raises:
        ValueError: a row may mean two images, an image has two labels, or no row names an image.
    """
    whole = {form: path for path in paths for form in (path.as_posix(), path.with_suffix("").as_posix())}
    ends: dict[str, set[Path]] = {}
    for form, path in whole.items():
        for end in tails(form):
            ends.setdefault(end, set()).add(path)
    known: dict[Path, Row] = {}
    nowhere = []
    for row in rows:
        name = row.image.replace("\\", "/").removeprefix("./")
        found = ends.get(name) or {whole[end] for end in tails(name) if end in whole}
        if name in whole:
            found = {whole[name]}
        if len(found) > 1:
            raise ValueError(f"the file of labels names {row.image}, which may be "
                             f"{' or '.join(sorted(map(str, found)))}: write its whole path")
        if not found:
            nowhere.append(row.image)
        for path in found:
            if known.setdefault(path, row).label != row.label:
                raise ValueError(f"the file of labels gives {path} two classes, {known[path].label} and {row.label}, "
                                 "and an image has one: keep one line, or leave labels out to train without")
    if nowhere and not known:
        raise ValueError("no line of the file of labels names an image that is there: the first names "
                         f"{nowhere[0]}, and there is {paths[0]}")
    return known, nowhere


def tails(path: str) -> Iterable[str]:
    """`a/b/c`, `b/c`, `c`."""
    parts = path.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))


def class_order(names: Iterable[str]) -> list[str]:
    """Names of classes in alphabetical order, whole numbers by their value."""
    found = set(names)
    return sorted(found, key=int) if all(name.isdecimal() for name in found) else sorted(found)


# Arrays

class Places(NamedTuple):
    """The labels of all parts as places in a list of classes."""

    parts: list[np.ndarray | None]   # each [N] int64, -1 where unknown; None where no image has a label
    classes: list[str]
    notes: list[str]


def as_places(parts: Mapping[str, np.ndarray | None], names: Sequence[str] = ()) -> Places:
    """Turn the labels of a data set's parts, numbers or words, into places in one list of classes.

    Without `names` the classes are the labels that occur, in order; with them a number is a place among them. Rows with
    a single 1 are the class at its place. What names no one class of an image is left out with a note: several classes
    of an image, or numbers that are not whole.

    Args:
        parts: the labels by what they are called, [N], [N, 1] or [N, K]; None where a part has none.
        names: of the classes.

    Raises:
        ValueError: a label is not among the names.
    """
    notes: list[str] = []
    flat = {what: None if labels is None else one_each(labels, what, notes) for what, labels in parts.items()}
    if notes:
        return Places([None] * len(flat), [], notes)
    known = [labels for labels in flat.values() if labels is not None]
    words = {str(label) for labels in known for label in np.unique(labels)} - {""}
    classes = list(names) or class_order(words)
    numbers = {name: place for place, name in enumerate(classes)}
    numeric = all(labels.dtype.kind in "iufb" for labels in parts.values() if labels is not None)
    if names and (numeric or not words <= numbers.keys()):   # places among the names
        numbers = {str(place): place for place in range(len(names))}
    if unknown := words - numbers.keys():
        raise ValueError(f"there is a label {class_order(unknown)[-1]}, and the {len(classes)} classes are "
                         f"{some_of(classes)}: name every class")
    return Places([None if labels is None else placed(labels, numbers) for labels in flat.values()], classes, [])


def one_each(labels: np.ndarray, what: str, notes: list[str]) -> np.ndarray:
    """One word for each image [N], empty where its class is unknown; a note where there cannot be one."""
    if labels.ndim > 2 or labels.ndim == 2 and labels.shape[1] != 1:
        rows = labels.reshape(len(labels), -1)
        if rows.dtype.kind in "iufb" and ((rows != 0).sum(1) == 1).all() and (rows.sum(1) == 1).all():
            return rows.argmax(1).astype(str)
        notes.append(f"{what} {list(labels.shape)} give an image several classes or numbers, and accuracy needs one: "
                     "training goes on without labels")
        return np.full(len(labels), "")
    values: Any = labels.reshape(-1)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if values.dtype.kind == "O":   # None among them
        return np.array(["" if value is None else str(value) for value in values])
    if values.dtype.kind == "f":
        unknown = np.isnan(values)
        if broken := values[~unknown & (values % 1 != 0)].tolist():
            notes.append(f"{what} are not whole numbers, such as {broken[0]:g}, and accuracy needs classes: training "
                         "goes on without labels")
        values = np.where(unknown, -1, values).astype(np.int64)
    if values.dtype.kind in "iub":
        values = values.astype(np.int64)
        return np.where(values < 0, "", values.astype(str))
    return values.astype(str)


def placed(labels: np.ndarray, numbers: Mapping[str, int]) -> np.ndarray:
    words, which = np.unique(labels, return_inverse=True)
    return np.array([numbers.get(str(word), -1) for word in words], np.int64)[which]


def testable(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Places of the test images whose class training images have, and why the others are left out.

    Args:
        train: labels [N], below 0 where unknown.
        test: likewise.
    """
    known, strange = test >= 0, (test >= 0) & ~np.isin(test, train)
    left_out = [f"{counted(int(wrong.sum()), 'test image')} {why}" for wrong, why in (
        (~known, "without a label"), (strange, "of classes that the training part does not have")) if wrong.any()]
    return np.flatnonzero(known & ~strange), left_out
