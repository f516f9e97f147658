"""Shards that are no plain local file: fetched, unpacked, and kept in a folder for as long as their images are needed.
"""

import bz2
import fcntl
import gzip
import hashlib
import lzma
import os
import re
import shutil
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from ssl_zoo.data.shard_index import ADDRESS, Shard
from ssl_zoo.data.tars import pictures

PAUSES = (1.0, 10.0)   # seconds before a server is asked again
NEW = 60               # seconds for which a folder may wait to be locked by its owner
PIECE = 2 ** 20        # bytes that are copied at once
PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}   # by their first bytes
SUFFIXES = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz")                      # by which local ones are known
PREFIX = "ssl_zoo_shards_"
USERS = threading.Lock()   # held while those of a scratch folder change
T = TypeVar("T")


def is_address(name: str) -> bool:
    """Whether a name is a URL, and no path: https://..., s3://..., pipe:..."""
    return re.match(ADDRESS, name) is not None


def is_plain(name: str) -> bool:
    """Whether a shard is a local file that can be read in place."""
    return not is_address(name) and not name.lower().endswith(SUFFIXES)


def webdataset(name: str) -> Any:
    """The library that opens addresses, imported where one is given: it takes a second."""
    try:
        import webdataset
    except ImportError as error:
        raise ImportError(f"webdataset opens {name}, and is not installed: pip install ssl_zoo[shards]") from error
    return webdataset


def open_address(name: str) -> Any:
    """A stream of the bytes of a path or an address, by webdataset: of http(s), gs, hf, sftp, or `pipe:` a command."""
    if not is_address(name):
        return open(name, "rb")
    try:
        return webdataset(name).gopen(name, "rb")
    except ValueError as error:
        scheme = name.partition(":")[0]
        raise ValueError(f"webdataset opens no {scheme}: addresses ({name}): let a command do it, as in 'pipe:aws s3 cp"
                         " s3://bucket/{000..999}.tar -'") from error


def expand(name: str) -> list[str]:
    """The shards that a name with braces stands for, as webdataset expands it: x-{000..999}.tar."""
    return webdataset(name).shardlists.expand_urls(name) if re.search(r"\{.*\}", name) else [name]


class Scratch:
    """A folder of this process and its workers for shards and their tables; gone when the process ends.

    Those of processes that were killed are removed by the next one. TMPDIR says where it is.
    """

    def __init__(self) -> None:
        clear_left()
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            self.lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise OSError(f"there is no room for shards in {tempfile.gettempdir()} ({error.strerror}): set TMPDIR to "
                          "another folder") from error
        self.users: dict[Path, set[object]] = {}   # the plans for which a fetched shard stays
        self.fetched: dict[str, int] = {}       # bytes of the shards that this process fetched, as they came
        fcntl.flock(self.lock, fcntl.LOCK_SH)   # as long as this process or one of its workers lives
        self.end = weakref.finalize(self, remove, self.folder, os.getpid())

    def local(self, shard: Shard) -> Path:
        """The path of a plain tar file with the shard's content: its own, or one that is fetched now.

        Raises:
            OSError: it cannot be fetched, or is not what the index says; the sentence names it.
        """
        if is_plain(shard.name):
            return Path(shard.name)
        path = self.path(shard, ".tar")
        if not path.exists():
            with open(path.with_suffix(".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)   # one process fetches, the others wait for it
                try:
                    if not path.exists():
                        self.fetched[shard.name] = fetch(shard, path)
                finally:
                    fcntl.flock(lock, fcntl.LOCK_UN)   # closing alone leaves it to a worker forked meanwhile
        return path

    def read(self, shard: Shard, how: Callable[[Path], T]) -> T:
        """What `how` reads of the shard's file, which another plan may remove before it is open."""
        try:
            return how(self.local(shard))
        except FileNotFoundError:
            if is_plain(shard.name):
                raise
            return how(self.local(shard))

    def path(self, shard: Shard, suffix: str) -> Path:
        return self.folder / f"{hashlib.blake2b(os.fsencode(shard.name), digest_size=12).hexdigest()}{suffix}"

    def table(self, shard: Shard, image: str | None) -> np.ndarray:
        """Offset and size of the shard's images [n, 2], found by the first process that asks."""
        kept = self.path(shard, f"_{image}.npy")
        with suppress(OSError):
            return np.load(kept)
        found = self.read(shard, lambda path: pictures(path, image, labelled=False)).offsets
        half = kept.with_suffix(f".{os.getpid()}.half")
        with suppress(OSError):   # no room: every worker looks for itself
            with open(half, "wb") as file:
                np.save(file, found)
            half.replace(kept)
        return found

    def forget(self, shard: Shard) -> None:
        """Remove a fetched shard; a worker that has it open reads on, and one that needs it again fetches it."""
        self.path(shard, ".tar").unlink(missing_ok=True)

    # Only the process that owns the folder calls these: a worker would know none of the users that come later.

    def use(self, shard: Shard, user: object) -> None:
        """Keep a fetched shard until this user, and each other one, has released it."""
        with USERS:
            self.users.setdefault(self.path(shard, ".tar"), set()).add(user)

    def release(self, shard: Shard, user: object) -> None:
        with USERS:
            self.drop(self.path(shard, ".tar"), user)

    def leave(self, user: object) -> None:
        """Release all shards; those that a worker fetched and nobody uses are removed, too."""
        with USERS:
            for path in {*self.users, *self.folder.glob("*.tar")}:
                self.drop(path, user)

    def drop(self, path: Path, user: object) -> None:
        users = self.users.get(path, set())
        users.discard(user)
        if not users:
            self.users.pop(path, None)
            path.unlink(missing_ok=True)


def clear_left() -> None:
    """Remove the folders whose processes have ended without doing so."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError), open(folder / "lock", "r+") as lock:
            if time.time() - os.stat(lock.fileno()).st_mtime < NEW:
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)   # fails while one of them lives
            shutil.rmtree(folder, ignore_errors=True)


def remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:   # and no worker, which inherits this
        shutil.rmtree(folder, ignore_errors=True)


def fetch(shard: Shard, path: Path) -> int:
    """Copy a shard to `path`, unpacked; ask again where it fails or is not what the index says.

    Returns:
        Its bytes before they were unpacked, which an index has.
    """
    for pause in (*PAUSES, None):
        half = path.with_suffix(f".{os.getpid()}.half")
        try:
            count = copy(shard, half)
            half.replace(path)
            return count
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            if getattr(error, "errno", None) == 28:
                raise OSError(f"there is no room for {shard.name} in {path.parent}: set TMPDIR to a folder with room "
                              "for the shards of two blocks, or lower --data.block") from error
            if pause is None:
                raise OSError(f"{shard.name} could not be fetched, {len(PAUSES) + 1} times in a row ({reason(error)}): "
                              "go on from the last checkpoint when it answers") from error
            time.sleep(pause)
        finally:
            half.unlink(missing_ok=True)
    raise AssertionError("the last try returns or raises")


def copy(shard: Shard, half: Path) -> int:
    checksum, count, first = 0, 0, b""
    with open_address(shard.name) as source, open(half, "wb") as file:
        while piece := source.read(PIECE):
            first = first or piece[:6]
            checksum, count = zlib.crc32(piece, checksum), count + len(piece)
            file.write(piece)
    if shard.bytes is not None and count != shard.bytes:
        raise OSError(f"it has {count:,} bytes, and {shard.bytes:,} by its index")
    if shard.checksum is not None and checksum != shard.checksum:
        raise OSError("its checksum is not that of its index")
    unpack = next((opener for start, opener in PACKED.items() if first.startswith(start)), None)
    if unpack is not None:
        packed = half.with_suffix(".packed")
        half.replace(packed)
        try:
            with unpack(packed) as source, open(half, "wb") as file:
                shutil.copyfileobj(source, file, PIECE)
        finally:
            packed.unlink()
    return count


def reason(error: BaseException) -> str:
    """Why, in a few words: of a command only how it ended."""
    ended = re.search(r"exit (-?\d+) \(read\)", str(error))
    return f"its command ended with status {ended[1]}" if ended else str(error) or type(error).__name__


def read_whole(name: str) -> bytes:
    """The content of a small file at a path or an address."""
    try:
        with open_address(name) as source:
            stream: BinaryIO = source
            return b"".join(iter(lambda: stream.read(PIECE), b""))
    except OSError as error:
        raise OSError(f"{name} cannot be read ({reason(error)})") from error
