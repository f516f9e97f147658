"""Tar files as WebDataset has them: which of their members are images, where they lie, and what their labels are.

The headers are read by this file, not by `tarfile`, which takes three times as long and ends without a word at a
damaged one: of a torn shard it would show fewer images.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_zoo.data.decoding import SUFFIXES
from ssl_zoo.data.labels import LABELS
from ssl_zoo.data.tree import counted, some_of

BLOCK = 512   # bytes of a header; contents are padded to whole blocks
CLASSES = {"cls", *LABELS}   # what a member with the label of an image is called behind the first dot
REGULAR, LONG_NAME, EXTENDED, EXTENDED_ALL = b"0\0" b"7", b"L", b"x", b"g"
LARGEST_LABEL = 2 ** 16   # bytes; a longer one is none


class Torn(ValueError):
    """A tar file that ends, or is damaged, before its end. The sentence begins with where."""


class Member(NamedTuple):
    """A file inside a tar file."""

    name: str
    offset: int   # of its content
    size: int     # bytes


class Pictures(NamedTuple):
    """The images of a tar file, in its order."""

    members: list[Member]
    labels: list[str]      # "" where unknown
    torn: str              # where it ends too early, and why; empty for a whole one
    left_out: list[str]    # what else is in it, that nobody would expect there
    others: Counter[str]   # files that are no images, by their suffix

    @property
    def offsets(self) -> np.ndarray:
        return np.array([(member.offset, member.size) for member in self.members], np.int64).reshape(-1, 2)


def members(file: int) -> Iterator[Member]:
    """The regular files of an uncompressed tar file.

    Args:
        file: number of the open file.

    Raises:
        Torn: it is no tar file, or ends before its end.
    """
    length, place, name = os.fstat(file).st_size, 0, ""
    while place < length:
        header = os.pread(file, BLOCK, place)
        if not header.strip(b"\0"):
            return            # the mark of the end
        size = checked(header, place)
        content, place = place + BLOCK, place + BLOCK + -(-size // BLOCK) * BLOCK
        if content + size > length:
            raise Torn(f"inside {name or name_of(header)}, of whose {size:,} bytes {length - content:,} are there")
        kind = header[156:157]
        if kind == LONG_NAME:
            name = text(os.pread(file, size, content))
        elif kind == EXTENDED:
            name = path_of(os.pread(file, size, content)) or name
        elif kind != EXTENDED_ALL:
            if kind in REGULAR:
                yield Member(name or name_of(header), content, size)
            name = ""
    raise Torn("without the two empty blocks that end a tar file: whoever wrote it did not close it")


def checked(header: bytes, place: int) -> int:
    """The size of a member's content in bytes."""
    try:
        if len(header) < BLOCK or int(text(header[148:156]) or "0", 8) != sum(header) - sum(header[148:156]) + 256:
            raise ValueError
        if header[124] & 128:   # eight gigabytes or more
            return int.from_bytes(header[125:136], "big")
        if (size := int(text(header[124:136]) or "0", 8)) < 0:       # after which the same header would come again
            raise ValueError
        return size
    except ValueError:
        if not place:
            raise Torn(f"at its start, {header[:16]!r}, which is not that of an uncompressed tar file") from None
        raise Torn(f"at byte {place:,}, where a header should be") from None


def text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape").strip()


def name_of(header: bytes) -> str:
    prefix = text(header[345:500]) if header[257:262] == b"ustar" and header[262:263] == b"\0" else ""
    return f"{prefix}/{text(header[:100])}" if prefix else text(header[:100])


def path_of(records: bytes) -> str:
    """The path among the records of an extended header, "<length> <key>=<value>" each; empty if it has none.

    Raises:
        Torn: it is damaged.
    """
    while records.strip(b"\0"):   # some writers pad them
        length, _, _ = records.partition(b" ")
        if not (length.isdigit() and len(length) < 20 and 0 < int(length) <= len(records)):   # of 0, it would not end
            raise Torn(f"inside an extended header, at {records[:16]!r}, which is no record of one")
        key, _, value = records[len(length) + 1:int(length) - 1].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
        records = records[int(length):]
    return ""


def split(name: str) -> tuple[str, str]:
    """The key and the rest of a member's name, cut at the first dot of its last part, as WebDataset does."""
    folder, slash, last = name.rpartition("/")
    key, _, rest = last.partition(".")
    return f"{folder}{slash}{key}", rest.lower()


def pictures(path: str | Path, image: str | None = None, labelled: bool = True) -> Pictures:
    """The images of an uncompressed tar file.

    An image belongs to the label of the same key wherever both stand. Of two members with one name the first counts.

    Args:
        path: of the tar file.
        image: what the images are called behind their first dot, such as jpg, where a key has several pictures.
        labelled: read the labels, too.

    Raises:
        ValueError: a key has two pictures, and `image` does not say which is meant.
    """
    found: dict[str, Member] = {}
    beside: dict[str, dict[str, Member]] = {"label": {}, "json": {}}   # by key
    keys: dict[str, None] = {}
    again, others, torn = [], Counter[str](), ""
    with open(path, "rb") as file:
        try:
            for member in members(file.fileno()):
                if concealed(member.name):
                    continue
                key, rest = split(member.name)
                keys[key], last = None, f".{rest.rpartition('.')[2]}"
                if rest == image if image else last in SUFFIXES:
                    again += [member.name] if member.name in found else []
                    found.setdefault(member.name, member)
                elif rest in CLASSES or rest == "json":
                    beside["json" if rest == "json" else "label"].setdefault(key, member)
                else:
                    others[last if rest else member.name] += 1
        except Torn as error:
            torn = str(error)
        one_each(found, path)
        own = [split(name)[0] for name in found]
        words = read_labels(file.fileno(), own, beside["label"], beside["json"]) if labelled else []
    without = list(keys.keys() - set(own)) if labelled else []
    left_out = [f"{counted(len(names), 'sample')} {why} ({some_of(sorted(names))})" for names, why in (
        (without, "without an image"), (again, "with the name of another one")) if names]
    return Pictures(list(found.values()), words, torn, left_out, others)


def concealed(name: str) -> bool:
    """Whether a member is WebDataset's own, or hidden: not in `./` alone, where tar's members may be."""
    parts = name.split("/")
    return parts[-1].startswith("__") or any(part.startswith(".") and part.strip(".") for part in parts)


def one_each(found: dict[str, Member], path: str | Path) -> None:
    """Refuse two pictures of one key: nothing says which of them is the image."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in found:
        key, rest = split(name)
        kinds[key].append(rest)
        if len(kinds[key]) > 1:
            raise ValueError(f"{path} has two pictures of the key {key}, {' and '.join(kinds[key])}: say which are the "
                             f"images, as in image: {kinds[key][0]}; a key ends at the first dot of a name")


def read_labels(file: int, keys: list[str], labels: dict[str, Member], described: dict[str, Member]) -> list[str]:
    """A word for each key, from the member that is its label or from a field of its .json; "" where there is none."""
    if not labels and described and not in_json(file, next(iter(described.values()))):
        return [""] * len(keys)   # captions, of millions of images: do not read them
    return [content(file, labels[key]) if key in labels else
            in_json(file, described[key]) if not labels and key in described else "" for key in keys]


def content(file: int, member: Member) -> str:
    return text(os.pread(file, min(member.size, LARGEST_LABEL), member.offset))


def in_json(file: int, member: Member) -> str:
    try:
        said = json.loads(os.pread(file, member.size, member.offset))
        found = next(said[name] for name in ("cls", *LABELS) if name in said)
    except (ValueError, StopIteration, TypeError):
        return ""
    return str(found) if isinstance(found, int | str) and not isinstance(found, bool) else ""
