"""The files below a folder: which are images, and what else is there."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

SYSTEM = {"__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
          "thumbs.db", "desktop.ini"}
RUN_FILES = {"config.yaml", "hparams.yaml", "report.json"}   # one is in each version_<n> that a run has left


class Picture(NamedTuple):
    """A file that is an image by its name."""

    path: Path
    below: tuple[str, ...]   # the folders in which it is, from the one that is being understood


class Passed(NamedTuple):
    """What a walk has passed over: by kind, the paths below its root."""

    hidden: list[str]
    runs: list[str]
    closed: list[str]     # folders that may not be read
    again: list[str]      # links to folders that are visited elsewhere
    broken: list[str]     # links that lead nowhere
    empty: list[str]      # folders in which there is no image, nor below
    others: Counter[str]  # files by their suffix
    linked: set[Path]     # images that are links

    def sentences(self) -> list[str]:
        kinds = {"hidden or of the system": self.hidden, "pictures of runs": self.runs,
                 "folders that may not be opened": self.closed, "links to folders that count elsewhere": self.again,
                 "links that lead nowhere": self.broken, "folders without images": self.empty}
        said = [f"{kind}: {some_of(sorted(found))}" for kind, found in kinds.items() if found]
        others = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))
        listed = some_of([f"{count:,} {suffix}" for suffix, count in others])
        return [*said, f"files of other kinds: {listed}"] if others else said


def scan(root: Path, suffixes: Collection[str], besides: Path | None = None) -> tuple[list[Picture], Passed]:
    """Find the images in a folder and below it, in the order of their paths, and what was passed over.

    Links are followed, each folder is visited once, so that loops end; where a folder can be reached by a link and
    without one, its place is the one without.

    Args:
        suffixes: of images, in lower case with their dot.
        besides: a file that is no image and not passed over either.
    """
    found: list[Picture] = []
    passed = Passed([], [], [], [], [], [], Counter(), set())
    seen: set[tuple[int, int]] = set()
    visited: list[tuple[str, ...]] = []
    folders: list[tuple[Path, tuple[str, ...]]] = [(root, ())]
    links: list[tuple[Path, tuple[str, ...]]] = []
    while folders or links:
        folder, below = folders.pop() if folders else links.pop()
        state = folder.stat()
        if (state.st_dev, state.st_ino) in seen:
            passed.again.append("/".join(below))
            continue
        seen.add((state.st_dev, state.st_ino))
        visited.append(below)
        for entry in entries(folder, below, passed):
            suffix = suffix_of(entry.name)
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append((folder / entry.name, (*below, entry.name)))
            elif not entry.is_file():
                passed.broken.append("/".join((*below, entry.name)))
            elif suffix in suffixes:
                found.append(Picture(folder / entry.name, below))
                passed.linked.update([found[-1].path] if entry.is_symlink() else [])
            elif besides is None or not (folder / entry.name).samefile(besides):
                passed.others[suffix or entry.name] += 1
    passed.hidden[:] = [name for name in passed.hidden if name.endswith("/") or suffix_of(name) in suffixes]
    passed.empty.extend(empty(visited, [picture.below for picture in found], [*passed.runs, *passed.closed]))
    return sorted(found, key=lambda picture: (*picture.below, picture.path.name)), passed


def entries(folder: Path, below: tuple[str, ...], passed: Passed) -> list[os.DirEntry[str]]:
    """What is in a folder, last name first, without what is hidden; nothing of a run's folder or of a closed one."""
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
    except PermissionError:
        passed.closed.append("/".join(below) or str(folder))
        return []
    if below and re.fullmatch(r"version_\d+", folder.name) and RUN_FILES & {entry.name for entry in found}:
        passed.runs.append("/".join(below))
        return []
    passed.hidden.extend("/".join((*below, entry.name)) + "/" * entry.is_dir() for entry in found if hidden(entry.name))
    return [entry for entry in found if not hidden(entry.name)]


def empty(visited: Iterable[tuple[str, ...]], filled: Iterable[tuple[str, ...]], named: Iterable[str]) -> list[str]:
    """The folders with no image in them or below, without those inside another one or named elsewhere."""
    used = {below[:depth] for below in (*filled, *(tuple(name.split("/")) for name in named))
            for depth in range(len(below) + 1)}
    return ["/".join(below) for below in visited if below not in used and below[:-1] in used]


def hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def suffix_of(name: str) -> str:
    """In lower case with its dot; empty without one."""
    return os.path.splitext(name)[1].lower()


def counted(count: int, thing: str) -> str:
    """`1 image`, `1,200 images`, `3 classes`."""
    return f"{count:,} {thing}" + ("" if count == 1 else "es" if thing.endswith("s") else "s")


def some_of(names: Collection[str], most: int = 3) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join([*names][:most]) + more
