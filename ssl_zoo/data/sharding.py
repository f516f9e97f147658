"""Images in files, written as shards: tar files of about one size, a label beside each image, and their index.

The order is random and always the same, so that neighbours in a shard are no more alike than any two images. A shard
gets its name when it is whole and on the disk; `index.partial` keeps what is written, and the same call goes on there.
"""

import fcntl
import hashlib
import io
import json
import os
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torchvision.transforms.v2.functional as F
from tqdm import tqdm

from ssl_zoo.data.canvases import shrunk
from ssl_zoo.data.counting import UNFINISHED
from ssl_zoo.data.decoding import LeftOut, Unread, attempted, stored_samples
from ssl_zoo.data.shard_index import INDEXES, Index, Shard
from ssl_zoo.data.sources import Files, file_states
from ssl_zoo.data.workers import load_ahead

PIECE = 2 ** 20      # bytes that are read at once for a checksum
JPEGS = {".jpg", ".jpeg", ".jpe", ".jfif"}


class Settings(NamedTuple):
    """How images are written.

    Args:
        size: shorter side in pixels to which larger images are reduced; all are JPEGs then. None copies the files.
        quality: of these JPEGs, 1 to 95.
        megabytes: a shard is closed once it has as many (of 10^6 bytes).
    """

    size: int | None = None
    quality: int = 90
    megabytes: float = 200


class Entry(NamedTuple):
    """An image as it goes into a shard."""

    suffix: str
    content: bytes


class Entries:
    """The images of a part as they go into shards, or why one does not."""

    def __init__(self, files: Files, settings: Settings):
        self.files, self.settings = files, settings

    def __getitem__(self, place: int) -> Entry | Unread:
        return attempted(self.entry, place, self.files.names[place])

    def entry(self, place: int) -> Entry:
        path, size = Path(self.files.names[place]), self.settings.size
        if size is None:
            return Entry(path.suffix.lower(), path.read_bytes())
        image = self.files.read(place)
        small = shrunk(image, size)
        if small is image and path.suffix.lower() in JPEGS:
            return Entry(path.suffix.lower(), path.read_bytes())   # a second JPEG of it would only lose
        file = io.BytesIO()
        F.to_pil_image(small).save(file, "JPEG", quality=self.settings.quality)
        return Entry(".jpg", file.getvalue())


def write_part(files: Files, classes: Sequence[str], folder: Path, settings: Settings, root: Path,
               workers: int) -> Index:
    """Write the images of one part, or what a former call has not written.

    Args:
        files: the images; their names are paths.
        classes: names by label; none without labels.
        folder: for the shards and their index.json.
        settings: how they are written.
        root: the images' folder, from which their names in the shards begin.
        workers: processes that read and reduce images.

    Raises:
        ValueError: the folder holds something else.
        OSError: the disk is full; the same call goes on later.
    """
    order = np.random.default_rng(0).permutation(len(files))
    about = {"settings": settings._asdict(), "classes": list(classes), "images": len(files),
             "state": hashlib.blake2b(f"{file_states(files.names)}{files.labels.tolist()}".encode(),
                                      digest_size=8).hexdigest()}
    if (known := finished(folder, about)) is not None:
        return known
    with journal(folder, about) as (file, rows):
        start = rows[-1]["next"] if rows else 0
        plan = order[start:].tolist()
        bar = tqdm(load_ahead(Entries(files, settings), plan, workers), f"writing {folder.name}", len(order),
                   initial=start, unit="image", dynamic_ncols=True, file=sys.stderr, disable=None)
        entries = ((start + i, place, entry) for i, (place, entry) in enumerate(zip(plan, bar, strict=True)))
        while (row := write_shard(entries, files, folder, len(rows), settings, root)) is not None:
            rows.append(row)
            file.write(json.dumps(row).encode() + b"\n")
            flush(file)
        return close(folder, about, rows)


def write_shard(entries: Iterator[tuple[int, int, Entry | Unread]], files: Files, folder: Path, number: int,
                settings: Settings, root: Path) -> dict[str, Any] | None:
    """Write the next shard and say what is in it; None where no image is left."""
    path = folder / f"{number:06}.tar"
    half = path.with_suffix(".half")
    labels: list[int] = []
    left_out: list[tuple[str, str]] = []   # kind and sentence
    following = None
    try:
        with open(half, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, place, entry in entries:
                following = number + 1
                if isinstance(entry, Unread):
                    left_out.append((entry.kind, entry.require_disk().sentence))
                    continue
                label = int(files.labels[place])
                name = f"{number:09}-{slug(Path(files.names[place]), root)}"
                add(tar, f"{name}{entry.suffix}", entry.content)
                if label >= 0:
                    add(tar, f"{name}.cls", str(label).encode())
                labels.append(label)
                if file.tell() >= settings.megabytes * 10 ** 6:
                    break
            tar.close()
            flush(file)
        if following is None:
            return None
        if not labels:
            return {"name": path.name, "images": 0, "next": following, "left_out": left_out}
        name_it(half, path)
    except OSError as error:
        raise OSError(f"{folder} has {number} whole shards, and the next cannot be written ({error.strerror or error}):"
                      " make room, and give the same command again, which goes on from there") from error
    finally:
        half.unlink(missing_ok=True)
    return {"name": path.name, "images": len(labels), "bytes": path.stat().st_size, "checksum": checksum(path),
            "next": following, "left_out": left_out} | ({"labels": labels} if max(labels) >= 0 else {})


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file without owner and time, so that the same images make the same shards."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def slug(path: Path, root: Path) -> str:
    """The end of an image's path in letters that any tar file and any reader of shards takes; it has no dot."""
    below = path.relative_to(root) if path.is_relative_to(root) else path
    return re.sub(r"[^A-Za-z0-9-]+", "_", str(below.with_suffix("")))[-60:]


def name_it(half: Path, path: Path) -> None:
    """Give a whole shard its name; one that has it already must be the same, left by a call that was killed here."""
    if not path.exists():
        half.replace(path)
    elif checksum(path) != checksum(half):
        raise FileExistsError(f"{path} is there and is another file")


def checksum(path: Path) -> int:
    found = 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            found = zlib.crc32(piece, found)
    return found


def flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


# What is written already

def finished(folder: Path, about: dict[str, Any]) -> Index | None:
    """The index of a folder that is all written; None where there is something to do."""
    index = folder / INDEXES[0]
    if index.is_file():
        said = json.loads(index.read_text())
        require_same(said, about, folder)
        return Index([Shard(**row) for row in said["shards"]], said["classes"], said["left_out"])
    if folder.is_dir() and not (folder / UNFINISHED).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder} has files that ssl-zoo shard did not begin: name another folder for the shards")
    return None


@contextmanager
def journal(folder: Path, about: dict[str, Any]) -> Iterator[tuple[BinaryIO, list[dict[str, Any]]]]:
    """The file that keeps what is written, open for more, and the rows of the shards that are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / UNFINISHED, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another ssl-zoo shard is writing to {folder}: wait for it, or name another folder"
                             ) from None
        file.seek(0)
        lines = file.read().split(b"\n")[:-1]     # the last one ends, unless a call was killed while it wrote it
        if lines:
            require_same(json.loads(lines[0]), about, folder)
        rows: list[dict[str, Any]] = []
        for row in map(json.loads, lines[1:]):
            path = folder / row["name"]
            if row["images"] and not (path.is_file() and path.stat().st_size == row["bytes"]):
                break     # taken away: it and all that follow are written again
            rows.append(row)
        file.truncate(0)
        file.writelines(json.dumps(one).encode() + b"\n" for one in [about, *rows])
        flush(file)
        yield file, rows


def require_same(said: dict[str, Any], about: dict[str, Any], folder: Path) -> None:
    """Refuse to go on with other images or settings than those that were written."""
    others = [name for name in about if said.get(name) != about[name]]
    if others:
        what = {"settings": f"settings, {said.get('settings')}", "state": "images"}.get(others[0], others[0])
        raise ValueError(f"{folder} has shards of other {what}: name another folder, or remove this one first")


def close(folder: Path, about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Index:
    """Write index.json, by which readers know that all shards are there."""
    kept = LeftOut()
    for row in rows:
        for kind, sentence in row["left_out"]:
            kept.note(sentence, Unread(kind, sentence))
    shards = [Shard(**{name: value for name, value in row.items() if name in Shard._fields}) for row in rows
              if row["images"]]
    if not shards:
        raise ValueError(f"none of the {about['images']} images can be read, such as: {rows[0]['left_out'][0][1]}")
    index = Index(shards, about["classes"], kept.sentences)
    half = folder / f"{INDEXES[0]}.half"
    with open(half, "w") as file:
        file.write(index.as_json(settings=about["settings"], state=about["state"]))
        flush(file)
    half.replace(folder / INDEXES[0])
    (folder / UNFINISHED).unlink()
    return index


def require_eight_bits(files: Files) -> None:
    """Refuse to make JPEGs of images of more bits."""
    for place in files.spaced(32):
        name = files.names[place]
        found = attempted(lambda i: stored_samples(files.names[i], files.decoder), place, name)
        if found is not None and not isinstance(found, Unread):
            raise ValueError(f"{name} has {found.bits} bits, and a JPEG 8: leave --size out, and files are copied as "
                             "they are")
