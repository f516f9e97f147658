"""Which shards a name means, and what is in those that no index describes."""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ssl_zoo.data.fetching import SUFFIXES, Scratch, expand, is_address, is_plain, read_whole
from ssl_zoo.data.layout import TEST, TRAIN, split_name
from ssl_zoo.data.shard_index import INDEXES, Index, Shard, parse, require_whole
from ssl_zoo.data.tars import Pictures, pictures
from ssl_zoo.data.tree import counted, hidden, some_of
from ssl_zoo.data.workers import load_ahead

ENDS = (".tar", *(f".tar{end}" for end in SUFFIXES[::2]), *SUFFIXES[1::2])
UNFINISHED = "index.partial"   # of shards that are being written


class Parts(NamedTuple):
    """The shards to train on, and those to test on."""

    train: Index
    test: Index | None
    test_name: str = ""


def find(root: str | Sequence[str], scratch: Scratch, image: str | None, workers: int) -> Parts:
    """The parts that a folder has, by the names of its folders or shards; or shards to train on, by any other name.

    Args:
        root: a folder, an index, or shards by path or address, with braces for many.
        scratch: where packed shards are unpacked.
        image: see `tars.pictures`.
        workers: processes that count.
    """
    folder = Path(root).expanduser() if isinstance(root, str) and not is_address(root) else None
    if folder is None or not folder.is_dir():
        return Parts(index_of(root, scratch, image, workers), None)
    inside = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not hidden(path.name)}
    if not holds_shards(folder):
        parts = by_part({name: [str(path)] for name, path in inside.items() if holds_shards(path)})
        if not parts:
            raise FileNotFoundError(f"there are no shards in {folder}, nor in folders train and val below it: a shard "
                                    "is a .tar with images, and ssl-zoo shard writes them")
    else:
        known = [str(folder / name) for name in INDEXES if (folder / name).is_file()][:1]
        if not known and (folder / UNFINISHED).is_file():
            raise ValueError(f"the shards in {folder} are not all written: the same ssl-zoo shard command goes on with "
                             "them")
        parts = {"": known} if known else by_part({path.name: [str(path)] for path in shards_in(folder)})
    train = next((word for word in (*TRAIN, "") if word in parts), None)
    if train is None:
        raise ValueError(f"the shards in {folder} are of {some_of(sorted(parts))} and none of train: name those to "
                         "train on")
    test = next((word for word in TEST if word in parts), "")
    named = [names[0] if len(names) == 1 else names for names in (parts[train], parts.get(test, []) if test else [])]
    return Parts(index_of(named[0], scratch, image, workers),
                 index_of(named[1], scratch, image, workers) if test else None, test)


def by_part(names: dict[str, list[str]]) -> dict[str, list[str]]:
    """Paths by the word for their part that is in their names; "" for none."""
    parts: dict[str, list[str]] = {}
    for name, paths in names.items():
        parts.setdefault(split_name(re.sub(r"\..*", "", name))[0], []).extend(paths)
    return parts


def holds_shards(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (*INDEXES, UNFINISHED)) or bool(shards_in(folder))


def shards_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(ENDS) and not hidden(path.name))


def index_of(name: str | Sequence[str], scratch: Scratch, image: str | None, workers: int) -> Index:
    """The index of a part: read where there is one, counted where its shards are local.

    Args:
        name: an index, a folder, or shards, with braces for many.
    """
    if isinstance(name, str) and name.endswith(".json"):
        index = parse(read_whole(name if is_address(name) else str(Path(name).expanduser())), name)
        require_whole(index, name)
        if not index.shards:
            raise ValueError(f"{name} lists no images")
        return index
    if isinstance(name, str) and not is_address(name) and Path(name).expanduser().is_dir():
        return find(name, scratch, image, workers).train
    names = [one for given in ([name] if isinstance(name, str) else name) for one in expand(given)]
    if addresses := [one for one in names if is_address(one)]:
        raise ValueError(f"the images of {counted(len(addresses), 'shard')} such as {addresses[0]} must be counted once"
                         ", which reads them all: ssl-zoo shard SHARDS counts.json does it; then name counts.json here")
    return count([str(Path(one).expanduser()) for one in names], scratch, image, workers)


class Contents:
    """What is in each shard and its bytes, packed where it is, or in a sentence why it is not known."""

    def __init__(self, names: Sequence[str], scratch: Scratch, image: str | None):
        self.names, self.scratch, self.image = names, scratch, image

    def __getitem__(self, i: int) -> tuple[Pictures, int | None] | str:
        shard = Shard(self.names[i], 0)
        try:
            path = self.scratch.local(shard)
            size = path.stat().st_size if is_plain(shard.name) else self.scratch.fetched.get(shard.name)
            return pictures(path, self.image), size
        except (OSError, ValueError) as error:
            return str(error).replace(str(self.scratch.path(shard, ".tar")), shard.name)
        finally:
            self.scratch.forget(shard)


def count(names: Sequence[str], scratch: Scratch, image: str | None, workers: int, quiet: bool = True) -> Index:
    """Look into each shard: how many images there are, their labels, and what else.

    Raises:
        ValueError: a shard cannot be read, a key has two images, or there is no image.
    """
    once = list(dict.fromkeys(names))
    left_out = [f"{counted(len(names) - len(once), 'shard')} that stood there twice"] * (len(once) < len(names))
    shards: list[Shard] = []
    others, torn, empty = Counter[str](), [], []
    found = load_ahead(Contents(once, scratch, image), range(len(once)), workers if len(once) > workers else 0)
    for name, known in zip(once, tqdm(found, "counting images", len(once), unit="shard", disable=quiet or None,
                                    file=sys.stderr), strict=True):
        if isinstance(known, str):
            raise ValueError(known)
        one, size = known
        if one.torn:
            torn.append(f"the rest of {name} after {counted(len(one.members), 'image')}, for it ends {one.torn}")
        elif not one.members:
            empty.append(name)
        left_out.extend(f"of {name} {said}" for said in one.left_out)
        others += one.others
        if one.members:
            shards.append(Shard(name, len(one.members), size, None, one.labels if any(one.labels) else None))
    listed = some_of([f"{n:,} {kind}" for kind, n in sorted(others.items(), key=lambda item: (-item[1], item[0]))])
    left_out += torn + [f"{what}: {which}" for what, which in (
        ("shards without images", some_of(empty)), ("files of other kinds", listed)) if which]
    if not shards:
        raise ValueError(f"there are no images in {some_of(once)} (left out: {'; '.join(left_out)})")
    return Index(shards, [], left_out)
