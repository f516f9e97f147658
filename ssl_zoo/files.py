"""Files that are whole or not there, and names that are given away once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Write a file in one step: whoever finds it, even after a power failure, finds all of it or the one before.

    Yields the path of a hidden file beside it, on the same file system, to write to. At the end that file takes the
    name; if anything fails it is removed, and what had the name before stays as it was.
    """
    path = Path(path)
    half = path.with_name(f".{path.name}.half")
    try:
        yield half
        synchronise(half)
        os.replace(half, path)
    except BaseException as error:
        with suppress(OSError):
            half.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error   # a full disk names no file
        raise
    with suppress(OSError):        # some file systems have no folders that can be synchronised
        synchronise(path.parent)   # the new name, too, is on the disk


def synchronise(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put(path: Path, text: str) -> None:
    """Write a text in one step."""
    with whole(path) as half:
        half.write_text(text)


def claim(parent: str | Path) -> Path:
    """Make the next folder version_<n> of `parent` and return it: two callers at once never get the same one."""
    parent = Path(parent)
    number = 1 + max((version(place) for place in parent.glob("version_*")), default=-1)
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.exists():   # a file stands where a folder above it should
                raise
            number += 1
        else:
            return folder


def version(folder: Path) -> int:
    """The number of a folder version_<n>, -1 for any other name."""
    number = folder.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1


def free(path: Path) -> Path:
    """The path itself, or if it is taken, the first of name-1.ending, name-2.ending, ... that is not."""
    number, found = 0, path
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found
