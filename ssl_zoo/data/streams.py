"""Images in shards as a source: each process reads its own shards, a block of them at a time, in shuffled order."""

import copy
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.data.decoding import COLOURS, Decoder, LeftOut, Samples, Unread, attempted, read_image, stored_samples
from ssl_zoo.data.fetching import Scratch, is_address, is_plain, webdataset
from ssl_zoo.data.orders import Blocks
from ssl_zoo.data.scaled import Factor, read_scaled
from ssl_zoo.data.shard_index import Shard
from ssl_zoo.data.sources import Files, Loaded, Request, file_states
from ssl_zoo.data.tars import BLOCK, name_of, pictures
from ssl_zoo.data.workers import Crew
from ssl_zoo.views import Scaled

OPEN = 128   # files and tables that a worker keeps at hand


class Enclosed(Files):
    """Images that are parts of larger files; a subclass says where the bytes of one are.

    Args:
        labels: [N], -1 where unknown; None without labels.
        images: their number N.
        size: side in pixels of plain images.
        decoder: how files become images.
        left_out: notes which images could not be read; all parts of a data set share one.
    """

    def __init__(self, labels: Tensor | None, images: int, size: int, decoder: Decoder, left_out: LeftOut | None):
        self.chosen: np.ndarray | None = None   # places among all images, rising, of a subset
        if labels is None:
            labels = torch.full((1,), -1).expand(images)   # eight bytes, whatever the number of images
        super().__init__(None, Names(self), labels, size, decoder, left_out)

    def content(self, whole: int) -> tuple[str, bytes]:
        """The name and the bytes of an image, by its place among all."""
        raise NotImplementedError

    def name(self, whole: int) -> str:
        """What an image is called as long as nobody has looked for it."""
        raise NotImplementedError

    def whole(self, place: int) -> int:
        """A place of this source among all images."""
        return place if self.chosen is None else int(self.chosen[place])

    def subset(self, index: np.ndarray) -> Self:
        return self.copied(labels=self.labels[torch.from_numpy(index)],
                           chosen=index if self.chosen is None else self.chosen[index])

    def decoded_by(self, decoder: Decoder) -> Self:
        return self.copied(decoder=decoder)

    def copied(self, **changes: Any) -> Self:
        other = copy.copy(self)
        vars(other).update(changes)
        other.names = Names(other)
        return other

    def read(self, place: int) -> Tensor:
        name, content = self.content(self.whole(place))
        return read_image(name, self.decoder, content)

    def read_scaled(self, place: int, factor: Factor) -> Tensor | Scaled:
        name, content = self.content(self.whole(place))
        return read_scaled(name, self.decoder, factor, content)

    def samples(self, place: int) -> Samples | None:
        name, content = self.content(self.whole(place))
        return stored_samples(name, self.decoder, content)

    def chosen_state(self) -> bytes:
        """What tells a subset with its labels from another one."""
        return self.labels.numpy().tobytes() + (b"" if self.chosen is None else self.chosen.tobytes())


class Names(Sequence[str]):
    """The names of the images of a source, made when asked for: millions of them would take gigabytes."""

    def __init__(self, source: Enclosed):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self.source.name(self.source.whole(range(len(self))[place]))


class Shards(Enclosed):
    """Images in tar files, as `Files` for those in folders.

    Args:
        shards: in the order in which their images are numbered.
        labels: [N], -1 where unknown; None without labels.
        size: side in pixels of plain images.
        block: shards that are shuffled together.
        scratch: where shards are fetched to.
        image: what the images are called behind their first dot; see `tars.pictures`.
        decoder: how files become images.
        left_out: notes which images could not be read; all parts of a data set share one.
    """

    order: Blocks

    def __init__(self, shards: Sequence[Shard], labels: Tensor | None, size: int, block: int, scratch: Scratch,
                 image: str | None = None, decoder: Decoder = COLOURS, left_out: LeftOut | None = None):
        self.shards = [shard._replace(labels=None) for shard in shards]
        self.block, self.scratch, self.image = block, scratch, image
        self.starts = np.concatenate([[0], np.cumsum([shard.images for shard in shards])]).astype(np.int64)
        super().__init__(labels, int(self.starts[-1]), size, decoder, left_out)
        self.order = Blocks(np.diff(self.starts), block)
        self.tables: dict[int, np.ndarray] = {}   # by shard, offset and size of its images [n, 2]
        self.opened: dict[int, Open] = {}         # by shard
        self.torn: set[int] = set()               # shards with fewer images than they should have

    def subset(self, index: np.ndarray) -> Self:
        other = super().subset(index)
        assert other.chosen is not None
        other.order = Blocks(np.diff(np.searchsorted(other.chosen, self.starts)), self.block)
        return other

    @property
    def remote(self) -> bool:
        """Whether some of the shards have to be fetched before an image of them can be read."""
        return not all(is_plain(shard.name) for shard in self.shards)

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """The numbers of the images' shards."""
        return np.searchsorted(self.starts, places if self.chosen is None else self.chosen[places], "right") - 1

    def where(self, whole: int) -> tuple[int, int]:
        """The number of an image's shard, and its number there, by its place among all."""
        number = int(np.searchsorted(self.starts, whole, "right")) - 1
        return number, whole - int(self.starts[number])

    def table(self, number: int) -> np.ndarray:
        """Offset and size of a shard's images [n, 2]."""
        if number not in self.tables:
            if len(self.tables) == OPEN:
                self.tables.clear()
            self.tables[number] = self.scratch.table(self.shards[number], self.image)
        return self.tables[number]

    def share(self, rank: int, processes: int) -> np.ndarray:
        """Neighbouring images, so that a process reads few shards."""
        return np.arange(len(self) * rank // processes, len(self) * (rank + 1) // processes)

    def spaced(self, wanted: int) -> list[int]:
        """Places of at most `wanted` images to look at: of shards that have to be fetched, only the first's."""
        return list(range(min(wanted, int(self.order.counts[self.order.counts > 0][0])))) if self.remote else (
            super().spaced(wanted))

    def some(self, wanted: int) -> np.ndarray:
        """At most `wanted` places, the same every time: of whole shards where each has to be fetched."""
        if not self.remote:
            return super().some(wanted)
        order = np.random.default_rng(0).permutation(len(self.order.counts))
        taken = order[:np.searchsorted(self.order.counts[order].cumsum(), wanted) + 1]
        return np.sort(np.concatenate([np.arange(self.order.starts[i], self.order.starts[i + 1]) for i in taken])[
            :wanted])

    # Reading an image

    def open(self, number: int, path: Path) -> "Open":
        if number not in self.opened:
            if len(self.opened) == OPEN:
                self.opened.clear()
            self.opened[number] = Open(path)
        return self.opened[number]

    def name(self, whole: int) -> str:
        number, row = self.where(whole)
        return f"{self.shards[number].name}, image {row}"

    def title(self, place: int) -> str:
        """Shard and member; the image's number where the shard would have to be fetched to find out."""
        number, row = self.where(self.whole(place))
        shard = self.shards[number]
        if not is_plain(shard.name):
            return self.names[place]
        offset = int(self.table(number)[row][0])
        return name_at(self.open(number, self.scratch.local(shard)).number, shard, offset)

    def content(self, whole: int) -> tuple[str, bytes]:
        number, row = self.where(whole)
        shard = self.shards[number]
        offset, size = self.table(number)[row].tolist()
        opened = self.open(number, Path(shard.name)) if is_plain(shard.name) else (
            self.scratch.read(shard, Open))   # not kept: it leaves the disk only when nobody has it open
        return name_at(opened.number, shard, offset), os.pread(opened.number, size, offset)

    def attempt(self, place: int) -> Tensor | Unread:
        name = self.found(place)
        return name if isinstance(name, Unread) else attempted(self.read, place, name)

    def attempt_scaled(self, place: int, factor: Factor) -> Tensor | Scaled | Unread:
        name = self.found(place)
        return name if isinstance(name, Unread) else attempted(partial(self.read_scaled, factor=factor), place, name)

    def found(self, place: int) -> str | Unread:
        """The name of an image that is in its shard, or why it is not."""
        number, row = self.where(self.whole(place))
        shard = self.shards[number]
        try:
            found = len(self.table(number))
            if found != shard.images and (found > shard.images or row >= found):
                return self.other_count(number, found)
            name, _ = self.content(self.whole(place))
        except (OSError, ValueError) as error:   # of the shard, which says nothing of the image
            return Unread("disk", str(error))
        return name

    def other_count(self, number: int, found: int) -> Unread:
        """Why an image is not in its shard: part of it is missing, or the index is that of another one."""
        shard = self.shards[number]
        said = f"{shard.name} has {found:,} images, and {shard.images:,} by its index"
        if found < shard.images and (why := self.scratch.read(shard, partial(pictures, image=self.image)).torn):
            return Unread("torn", f"{said}: it ends {why}")
        return Unread("disk", f"{said}: count them again with ssl-zoo shard, for labels and places would be others")

    def first_readable(self, places: Iterable[int], unread: dict[int, Unread],
                       factor: Factor | None = None) -> tuple[int, Tensor | Scaled] | None:
        """As for files; what is missing of a torn shard is passed over, and told of once, at the first place of it."""
        for place in places:
            number, row = self.where(self.whole(place))
            if place in unread or number in self.torn and row >= len(self.table(number)):
                continue
            found = self.attempt(place) if factor is None else self.attempt_scaled(place, factor)
            if not isinstance(found, Unread):
                return place, found
            if found.kind == "torn":
                self.torn.add(number)
                missing = int(self.starts[number]) + len(self.table(number))   # the first, among all images
                place = missing if self.chosen is None else int(np.searchsorted(self.chosen, missing))
            unread[place] = found
            if found.kind == "disk":
                break
        return None

    def batches(self, plan: Sequence[Request], crew: Crew) -> Iterator[Loaded]:
        if not self.remote or not plan:
            yield from super().batches(plan, crew)
            return
        if address := next((shard.name for shard in self.shards if is_address(shard.name)), ""):
            webdataset(address)   # a worker that is forked while a thread imports it waits for ever
        ahead, batches = Ahead(self, plan), super().batches(plan, crew)
        ahead.start()             # after the workers
        try:
            for batch in batches:
                yield batch
                ahead.next()
        finally:
            ahead.stop()

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(f"{self.size}{self.decoder}{self.image}".encode(), digest_size=8)
        for shard in self.shards:
            state = shard.checksum if is_address(shard.name) or shard.checksum is not None else file_states(
                [shard.name])
            digest.update(os.fsencode(f"\n{shard.name}\0{shard.images}\0{shard.bytes}\0{state}"))
        digest.update(self.chosen_state())
        return digest.hexdigest()


class Open:
    """A file that is open until nobody needs it."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def name_at(file: int, shard: Shard, offset: int) -> str:
    """The name of the member whose content starts at `offset`, with that of its shard."""
    return f"{shard.name}/{name_of(os.pread(file, BLOCK, offset - BLOCK))}"


class Ahead(threading.Thread):
    """Fetches the shards of a plan before its batches need them, and removes those that no later one needs.

    Where it fails, a worker that needs the shard tries again and says what is wrong.
    """

    def __init__(self, source: Shards, plan: Sequence[Request]):
        super().__init__(name="shards ahead", daemon=True)
        self.source, self.room = source, 2 * source.block + 1
        last: dict[int, int] = {}   # the last batch of each shard, in the order in which the shards are first needed
        for batch, request in enumerate(plan):
            last |= dict.fromkeys(np.unique(source.numbers(request.places)).tolist(), batch)
        self.last, self.done, self.ended = last, 0, False
        self.changed = threading.Condition()

    def run(self) -> None:
        there: list[int] = []
        for number in self.last:
            with self.changed:
                while not self.ended and len(there := self.needed(there)) >= self.room:
                    self.changed.wait()
                if self.ended:
                    return
                self.source.scratch.use(self.source.shards[number], self)
            there.append(number)
            with suppress(OSError, ValueError):
                self.source.scratch.local(self.source.shards[number])
            if self.ended:
                self.source.scratch.release(self.source.shards[number], self)

    def needed(self, there: list[int]) -> list[int]:
        """Those of the shards that a batch still to come needs; the others are removed."""
        for number in there:
            if self.last[number] < self.done:
                self.source.scratch.release(self.source.shards[number], self)
        return [number for number in there if self.last[number] >= self.done]

    def next(self) -> None:
        with self.changed:
            self.done += 1
            self.changed.notify()

    def stop(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify()
        self.source.scratch.leave(self)
