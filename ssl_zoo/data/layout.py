"""The parts and the classes of a folder of images, understood from the names of its folders alone.

No image is opened, and what is not used is named: a wrong guess that is said costs a minute, an unsaid one a training.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ssl_zoo.data.labels import Row, match
from ssl_zoo.data.tree import Picture, counted, scan, some_of

Labelled = bool | str   # True, False or "auto"

TRAIN = ("train", "training", "trn", "trainset", "trainval")
TEST = ("val", "valid", "validation", "valset", "dev", "eval", "evaluation", "holdout", "test", "testing", "testset",
        "tst")   # in the order in which one is chosen
# What else the name of a part may have in it: train2017, Train-Set, ILSVRC2012_img_val.
NEUTRAL = {"set", "images", "image", "imgs", "img", "data", "dataset", "split", "folder", "part", "jpegs", "photos",
           "pictures", "ilsvrc"}
CONTAINERS = {"images", "image", "imgs", "img", "jpegimages", "jpegs", "photos", "pictures", "data", "all"}
# What stands beside parts, or beside a container, and is no class.
COMPANIONS = {"docs", "doc", "masks", "mask", "annotations", "annotation", "labels", "label", "segmentation",
              "segmentations", "segmentationclass", "segmentationobject", "segmentationclassaug", "groundtruth", "gt",
              "depth", "edges", "thumbnails", "thumbs", "previews", "assets", "metadata", "extra", "unlabeled",
              "unlabelled", "nolabel"}


class Part(NamedTuple):
    """Images to train or to test on."""

    paths: list[Path]
    classes: list[str | None]   # of each image; None where unknown


class Layout(NamedTuple):
    """A folder of images as it was understood."""

    root: Path              # the folder given, or one in it where that is the only one with images
    train: Part
    test: Part | None       # None where nothing there can be tested on
    test_name: str          # the folder of the test part
    notes: list[str]        # how it was understood, where that needs a word
    left_out: list[str]     # what is not used


def understand(root: Path, suffixes: Collection[str], labelled: Labelled = "auto",
               labels: Sequence[Row] | None = None, label_file: Path | None = None) -> Layout:
    """Find the images below a folder, and tell its training and test part and their classes.

    Args:
        suffixes: of images, in lower case with their dot.
        labelled: whether folders are classes. "auto" takes those of the first level, or of the second where they repeat
            in those of the first; True takes the first level and wants two; False takes none.
        labels: names of images with their classes, in place of the folders.
        label_file: where they are from.

    Raises:
        ValueError: there are no images, or no part to train on, or no classes although `labelled` is True.
    """
    pictures, passed = scan(root, suffixes, label_file)
    if not pictures:
        raise ValueError(f"no images in {root.absolute()}: looked for {', '.join(sorted(suffixes))} in it and below" +
                         "".join(f"; {said}" for said in passed.sentences()))
    reading = Reading(root, set() if labelled is True else COMPANIONS, [], [])
    pictures, inside = reading.within(pictures)
    train, tests = reading.parts(pictures, inside)
    if labels is not None or labelled is False:
        reading.notes.clear()   # on folders that would be classes
        named = reading.of_rows(labels or [], [*train, *chain(*tests.values())])
        known = {path: row.label for path, row in named.items() if row.label}
        train, tests = reading.parts_of_rows(named, train, tests)
    else:
        known = reading.classes(train, tests, second_level=labelled == "auto")
        if labelled is True and not known:
            raise ValueError(f"labelled is true, and {root / inside} has no two folders of images to be its classes: "
                             "give a file of labels, or set labelled to false or auto")
    classes = {known[picture.path] for picture in train if picture.path in known}
    test_name, test = reading.test(tests, known, classes)
    if passed.linked and (both := files_of(train) & files_of(test)):
        reading.notes.append(f"{counted(len(both), 'image')} in both parts, by links")
    return Layout(root / inside, part(train, known), part(test, known) if test else None, test_name, reading.notes,
                  reading.left_out + passed.sentences())


class Reading(NamedTuple):
    """One folder that is being understood, and what is to be said of it."""

    root: Path
    companions: Collection[str]   # names of folders that hold no images of the set
    notes: list[str]
    left_out: list[str]

    def within(self, pictures: list[Picture], inside: str = "") -> tuple[list[Picture], str]:
        """Step into a folder that holds everything, again and again; images beside it stay where they are.

        A folder whose name only says that it holds images is stepped into as well if nothing beside it but masks,
        documents and the like has images.
        """
        while folders := by_folder(pictures):
            names = {name for name in folders if letters(name) not in self.companions} or set(folders)
            name = min(names)
            if len(names) > 1 or len(folders) > 1 and letters(name) not in CONTAINERS:
                break
            self.leave_out(folders, folders.keys() - names, inside)
            pictures = [picture for picture in pictures if not picture.below] + stepped(folders[name])
            inside = f"{inside}{name}/"
        return pictures, inside

    def parts(self, pictures: list[Picture], inside: str) -> tuple[list[Picture], dict[str, list[Picture]]]:
        """The images to train on, and those of each part to test on in the order in which one is chosen."""
        folders = by_folder(pictures := outward(pictures))
        kinds = {name: split_name(name)[0] for name in folders}
        trains, tests = ([name for name in folders if kinds[name] in words] for words in (TRAIN, TEST))
        others = folders.keys() - {*trains, *tests}
        where = self.root / inside
        if len(trains) > 1:
            raise ValueError(f"{where} has {len(trains)} parts to train on, {' and '.join(trains)}: give one of them "
                             "as --data.root, or move the others away")
        if len(tests) > 1 and not trains and not others:
            raise ValueError(f"{where} has parts to test on, {' and '.join(tests)}, and none to train on: give one of "
                             "them as --data.root, or call it train")
        if trains and (tests or stands_apart(folders, trains[0])):
            train, inside = self.within(stepped(folders[trains[0]]), f"{inside}{trains[0]}/")
        elif not trains and (trains := training_folders(folders, tests)):
            train = [picture for picture in pictures if picture.below and picture.below[0] in trains]
            train = train if len(trains) > 1 else stepped(train)
        else:
            self.notes.extend(f"{name} counts as a class, like the folders beside it" for name in trains + tests)
            return pictures, {}
        self.leave_out(folders, folders.keys() - {*trains, *tests}, "")
        if strays := sum(not picture.below for picture in pictures):
            self.left_out.append(f"{counted(strays, 'image')} beside {' and '.join(sorted(trains + tests))}")
        tests.sort(key=lambda name: (TEST.index(kinds[name]), name))
        return train, {name: stepped(folders[name]) for name in tests}

    def classes(self, train: Sequence[Picture], tests: Mapping[str, Sequence[Picture]], *,
                second_level: bool) -> dict[Path, str]:
        """The class of each image of every part that is in a class; empty where no two folders can be classes."""
        level = int(second_level and repeat_below(train))
        known = at(level, train)
        names = set(known.values())
        if len(names) < 2:
            return {}
        first, second = (sorted(set(at(i, train).values())) for i in (0, 1))
        if level:
            self.notes.append("the classes are the folders of the second level, which repeat in those of the first "
                              f"({some_of(first)}); labelled: true takes the first")
        elif second:
            self.notes.append(f"folders inside a class folder ({some_of(second)}) belong to that class")
        for pictures in tests.values():
            inner = at(level, stepped(pictures))   # val/images/cat, where the classes are train/cat
            known |= inner if names & set(inner.values()) else at(level, pictures)
        return known

    def of_rows(self, rows: Sequence[Row], pictures: Sequence[Picture]) -> dict[Path, Row]:
        """The row of each image that one names; rows that name none are left out."""
        known, nowhere = match(rows, [picture.path.relative_to(self.root) for picture in pictures])
        if nowhere:
            self.left_out.append(f"{counted(len(nowhere), 'row')} of labels for images that are not there "
                                 f"({some_of(nowhere)})")
        return {self.root / path: row for path, row in known.items()}

    def parts_of_rows(self, named: Mapping[Path, Row], train: list[Picture],
                      tests: dict[str, list[Picture]]) -> tuple[list[Picture], dict[str, list[Picture]]]:
        """The parts that the rows name, in place of the folders'; the folders' where they name none."""
        words = {path: split_name(row.part)[0] for path, row in named.items()}
        if not any(words.values()):
            if named and (others := sorted({row.part for row in named.values()} - {""})):
                self.notes.append(f"the labels' column of parts is not used, as {some_of(others)} name none")
            return train, tests
        of_part: dict[str, list[Picture]] = defaultdict(list)
        for picture in sorted([*train, *chain(*tests.values())], key=lambda picture: picture.path):
            word = words.get(picture.path, "")
            of_part["train" if word in TRAIN else word].append(picture)
        if without := of_part.pop("", []):
            self.left_out.append(f"{counted(len(without), 'image')} to which the labels give no part")
        if "train" not in of_part:
            raise ValueError(f"the file of labels has images of {some_of(sorted(of_part))} and none of train: call the "
                             "part to train on train")
        return of_part.pop("train"), {word: of_part[word] for word in TEST if word in of_part}

    def test(self, tests: Mapping[str, Sequence[Picture]], known: Mapping[Path, str],
             classes: set[str]) -> tuple[str, list[Picture]]:
        """The first part that has images of the training part's classes, and those images; the rest is left out."""
        chosen, kept = "", []
        for name, pictures in tests.items():
            of_class = Counter(known.get(picture.path) for picture in pictures)
            others = sorted(other for other in of_class if other is not None and other not in classes)
            if chosen or classes.isdisjoint(of_class):
                why = (f"as {chosen} is the test part" if chosen else
                       f"of classes that the training part does not have: {some_of(others)}" if others else
                       "without labels")
                self.left_out.append(f"{name} ({counted(len(pictures), 'image')}, {why})")
                continue
            chosen, kept = name, [picture for picture in pictures if known.get(picture.path) in classes]
            if of_class[None]:
                self.left_out.append(f"{counted(of_class[None], 'image')} of {name} without a class")
            if others:
                count = sum(of_class[other] for other in others)
                self.left_out.append(f"{counted(count, 'image')} of {name}, of classes that the training part does not "
                                     f"have ({some_of(others)})")
        return chosen, kept

    def leave_out(self, folders: Mapping[str, Sequence[Picture]], names: Iterable[str], inside: str) -> None:
        self.left_out.extend(f"{inside}{name} ({counted(len(folders[name]), 'image')})" for name in sorted(names))


# What the names of folders say

def split_name(name: str) -> tuple[str, str]:
    """The word that makes a folder a part, and what else its name says: ("train", "cifar"), or ("", ...) without."""
    words = re.findall(r"[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())
    parts = [word for word in words if word in TRAIN + TEST]
    rest = " ".join(word for word in words if word not in {*parts, *NEUTRAL})
    return (parts[0], rest) if len(parts) == 1 else ("", rest)


def outward(pictures: list[Picture]) -> list[Picture]:
    """The images with their part as the first folder, where it is inside each class (cat/train) or in its name."""
    folders = by_folder(pictures)
    named = {name: split_name(name) for name in folders}
    split = {rest for word, rest in named.values() if word in TRAIN and rest} & {
        rest for word, rest in named.values() if word in TEST and rest}   # of cats_train and cats_test, cats
    if split:
        return [picture._replace(below=(*named[picture.below[0]], *picture.below[1:]))
                if picture.below and all(named[picture.below[0]]) and named[picture.below[0]][1] in split else picture
                for picture in pictures]
    inner = [{word for picture in inside for word, rest in map(split_name, picture.below[1:2]) if not rest}
             for inside in folders.values()]
    if len(folders) > 1 and all(words & {*TRAIN} and words & {*TEST} for words in inner):
        return [picture._replace(below=(split_name(picture.below[1])[0] or picture.below[1], picture.below[0],
                                        *picture.below[2:])) if len(picture.below) > 1 else picture
                for picture in pictures]
    return pictures


def stands_apart(folders: Mapping[str, Sequence[Picture]], train: str) -> bool:
    """Whether a folder called train is a part and no class: what stands beside it is nothing like it."""
    others = [name for name in folders if name != train]
    has_classes = len(by_folder(stepped(folders[train]))) > 1
    return all(letters(name) in COMPANIONS for name in others) or has_classes and not any(
        by_folder(stepped(folders[name])) for name in others)


def training_folders(folders: Mapping[str, Sequence[Picture]], tests: Sequence[str]) -> list[str]:
    """What is trained on beside these test parts where nothing is called train: their classes, or one container."""
    others = [name for name in folders if name not in tests]
    tested = {picture.below[1] for name in tests for picture in folders[name] if len(picture.below) > 1}
    if classes := [name for name in others if name in tested]:
        return classes if len(classes) < len(tested) else [name for name in others if letters(name) not in COMPANIONS]
    return [name for name in others if letters(name) in CONTAINERS][:1] if tests else []


def repeat_below(train: Sequence[Picture]) -> bool:
    """Whether the folders of the second level look like classes: each repeats, on average, in two of the first.

    Of patient/class, camera/class and style/class the second is the class, of site/date and class/video the first. The
    second level also has to be words, or fewer numbers than those of the first.
    """
    pairs = {picture.below[:2] for picture in train}
    if any(len(pair) < 2 for pair in pairs):
        return False
    firsts, seconds = ({pair[level] for pair in pairs} for level in (0, 1))
    if min(len(firsts), len(seconds)) < 2 or len(pairs) < 2 * len(seconds):
        return False
    if {letters(name) for name in seconds} <= CONTAINERS | COMPANIONS:
        return False
    return not numbered(seconds) or numbered(firsts) and len(seconds) < len(firsts)


def numbered(names: Collection[str]) -> bool:
    """Whether most of the names are numbers or dates, or end in them; ImageNet's n01440764 are names."""
    return 2 * sum(bool(re.search(r"\d", re.sub(r"^n\d{8}$", "", name))) for name in names) > len(names)


def letters(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())


# Images by their folders

def by_folder(pictures: Iterable[Picture]) -> dict[str, list[Picture]]:
    """The images in each folder of the first level; those beside the folders are in none."""
    found: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        if picture.below:
            found[picture.below[0]].append(picture)
    return found


def stepped(pictures: Iterable[Picture]) -> list[Picture]:
    """The images as they are seen from one folder further in."""
    return [picture._replace(below=picture.below[1:]) for picture in pictures]


def at(level: int, pictures: Iterable[Picture]) -> dict[Path, str]:
    """The folder of each image at a level, 0 the first; images in no folder of that level are left out."""
    return {picture.path: picture.below[level] for picture in pictures if len(picture.below) > level}


def files_of(pictures: Iterable[Picture]) -> set[str]:
    """The files that the images are, whatever links lead to them."""
    return {os.path.realpath(picture.path) for picture in pictures}


def part(pictures: Iterable[Picture], known: Mapping[Path, str]) -> Part:
    paths = [picture.path for picture in pictures]
    return Part(paths, [known.get(path) for path in paths])
