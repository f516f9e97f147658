"""The index of a set of shards: how many images each has, of how many bytes, and with which labels.

`ssl-zoo shard` writes `index.json` beside its shards; `sizes.json`, as img2dataset's and OpenCLIP's sets have it, and
webdataset's own (`shardlist`) are read as well.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

KIND, VERSION = "shards of ssl_zoo", 1
ADDRESS = r"[a-z][a-z0-9+.]+:"             # the start of one, not of a path
INDEXES = ("index.json", "sizes.json")   # what one is called beside its shards


class Shard(NamedTuple):
    """One tar file."""

    name: str                     # its path or address
    images: int
    bytes: int | None = None
    checksum: int | None = None   # CRC-32 of the bytes
    labels: Sequence[int | str] | None = None   # of its images, in their order: places among the classes, or words


class Index(NamedTuple):
    """A set of shards, in the order in which their images are numbered."""

    shards: list[Shard]
    classes: list[str]
    left_out: list[str]

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    def beside(self, folder: Path) -> "Index":
        """The same shards, those below `folder` named from there."""
        return self._replace(shards=[shard._replace(name=named_from(folder, shard.name)) for shard in self.shards])

    def as_json(self, **more: Any) -> str:
        """The content of an index.json."""
        rows = [{name: value for name, value in shard._asdict().items() if value is not None} for shard in self.shards]
        text = json.dumps({"kind": KIND, "version": VERSION, "images": self.images, "classes": self.classes,
                           "left_out": self.left_out, **more, "shards": rows}, separators=(",", ":"))
        return re.sub(r'(\{"name":)', r"\n\1", text) + "\n"   # a line for each shard


def named_from(folder: Path, name: str) -> str:
    if re.match(ADDRESS, name):
        return name
    path = Path(name).absolute()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def parse(content: bytes, name: str) -> Index:
    """Read an index; its shards are beside it unless it names whole paths or addresses.

    Args:
        content: of the file.
        name: its path or address.
    """
    try:
        said = json.loads(content)
        if not isinstance(said, dict):
            raise TypeError
        if said.get("kind") == KIND and said["version"] > VERSION:
            raise ValueError(f"{name} is of a later version of ssl_zoo: update ssl_zoo, or write the shards again")
        if said.get("kind") == KIND:
            shards = [Shard(**row) for row in said["shards"]]
        elif "shardlist" in said:
            shards = [Shard(row["url"], row["nsamples"], row.get("filesize")) for row in said["shardlist"]]
        else:
            shards = [Shard(shard, images) for shard, images in said.items()]
        if not all(isinstance(shard.images, int) and shard.images >= 0 for shard in shards):
            raise TypeError
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is no index of shards, which has the number of images of each, as in "
                         '{"00000.tar": 10000}: ssl-zoo shard SHARDS INDEX.json writes one') from error
    place = name.rpartition("/")[0]
    return Index([shard._replace(name=beside(place, shard.name)) for shard in shards if shard.images],
                 [*said.get("classes", [])] if said.get("kind") == KIND else [],
                 [*said.get("left_out", [])] if said.get("kind") == KIND else [])


def beside(place: str, name: str) -> str:
    """The path or address of a shard that an index at `place` names."""
    alone = name.startswith(("/", "~")) or re.match(ADDRESS, name) or not place
    return name if alone else f"{place}/{name}"


def require_whole(index: Index, name: str) -> None:
    """Refuse local shards that are missing, or have not the bytes that their index says, before anything runs."""
    for shard in index.shards:
        if re.match(ADDRESS, shard.name):
            continue
        path = Path(shard.name)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there, and {name} lists it: give it back, or take its line out of "
                                    "the index")
        if shard.bytes is not None and (found := path.stat().st_size) != shard.bytes:
            raise ValueError(f"{path} has {found:,} bytes, and {shard.bytes:,} by {name}: write or copy it again, or "
                             "take its line out of the index")


def words_of(shards: Sequence[Shard], classes: Sequence[str]) -> list[str] | None:
    """The label of each image as a word, "" where unknown; None where no shard has labels."""
    if all(shard.labels is None for shard in shards):
        return None
    return [word for shard in shards for word in (
        [""] * shard.images if shard.labels is None else [as_word(label, classes) for label in shard.labels])]


def as_word(label: int | str, classes: Sequence[str]) -> str:
    """A label's class; a number of text is a place among the classes, unless it is the name of one."""
    place = int(label) if isinstance(label, int) or label.isdecimal() and label not in classes else -1
    if 0 <= place < len(classes):
        return classes[place]
    return "" if isinstance(label, int) and label < 0 else str(label)
