"""Where images come from (tensors in memory, or files that workers decode), and the loader of their batches."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.data.decoding import COLOURS, Decoder, LeftOut, Samples, Unread, attempted, read_image, stored_samples
from ssl_zoo.data.orders import Order, Shares, shuffled, some, spaced
from ssl_zoo.data.scaled import Factor, read_scaled
from ssl_zoo.data.transfer import on_device
from ssl_zoo.data.workers import Crew
from ssl_zoo.views import Augmentation, Canvases, Crops, Key, Scaled

# images, canvases or crops; labels [B], index [B]; by place, the files that could not be read
Loaded = tuple[Tensor | Canvases | Crops, Tensor, Tensor, dict[int, Unread]]
PLAIN = Key(0, 0, 0, 0)   # of batches from which nothing is drawn


class Request(NamedTuple):
    """One batch to load: which images, and the key of its views (None for plain images)."""

    places: np.ndarray
    key: Key | None


class Source:
    """What the sources of images have in common."""

    order: Order = staticmethod(shuffled)   # of a training epoch, unless a data module says otherwise

    def __len__(self) -> int:
        raise NotImplementedError

    def share(self, rank: int, processes: int) -> np.ndarray:
        """The places of the images that a process sees where all see each image once, without augmentation."""
        return np.arange(rank, len(self), processes)

    def some(self, wanted: int) -> np.ndarray:
        """At most `wanted` places, the same every time, in rising order."""
        return some(len(self), wanted)

    def spaced(self, wanted: int) -> list[int]:
        """At most `wanted` places of images to look at."""
        return spaced(len(self), wanted)

    def batches(self, plan: Sequence[Request], crew: Crew) -> Iterator[Loaded]:
        """The batches of a plan, which this source's crew loads ahead."""
        return crew.load(plan)


class Resident(Source):
    """Images of one size in memory, which the device crops.

    Args:
        images: [N, C, H, W] uint8.
        labels: [N].
    """

    preparation = {"resize": "none", "crop": "none"}   # before an encoder sees plain images

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Side of the plain images, pixels; of other shapes, the width."""
        return self.images.shape[-1]

    def subset(self, index: np.ndarray) -> "Resident":
        return Resident(self.images[torch.from_numpy(index)], self.labels[torch.from_numpy(index)])

    def to(self, device: torch.device) -> "Resident":
        """Move the images to `device` if they take at most a quarter of its free memory; otherwise they stay."""
        if device.type == "cuda" and self.images.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
            return self
        return Resident(self.images.to(device), self.labels.to(device))

    def __getitem__(self, request: Request) -> Loaded:
        index = torch.from_numpy(request.places).to(self.images.device, non_blocking=True)
        return self.images[index], self.labels[index], index, {}

    def read(self, i: int) -> Tensor:
        """One image, uint8 [C, H, W]."""
        return self.images[i].cpu()

    attempt = read   # images in memory are there

    def fingerprint(self) -> str:
        """A hash that changes when any pixel or label changes."""
        digest = hashlib.blake2b(str(list(self.images.shape)).encode(), digest_size=8)
        for values in (self.images, self.labels):
            digest.update(values.cpu().contiguous().numpy().data)
        return digest.hexdigest()


class Files(Source):
    """Images of any sizes, decoded when they are asked for.

    Args:
        read: image number -> uint8 [C, H, W]; raises if the image cannot be read. None reads the files of the names.
        names: the images' names, for messages, or their paths.
        labels: [N], -1 where unknown.
        size: side in pixels of plain images: the short side is resized to 8/7 of it, then the centre is cropped.
        decoder: how files become images.
        left_out: notes which images could not be read; all parts of a data set share one.
    """

    def __init__(self, read: Callable[[int], Tensor] | None, names: Sequence[str], labels: Tensor, size: int,
                 decoder: Decoder = COLOURS, left_out: LeftOut | None = None):
        self.reader, self.names, self.labels, self.size, self.decoder = read, names, labels, size, decoder
        self.left_out = LeftOut() if left_out is None else left_out
        self.augment: Augmentation | None = None   # cuts the crops of training batches
        self.scaled = False   # whether an image may be decoded at a share of its size that its crops allow

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: np.ndarray) -> Self:
        reader = None if self.reader is None else partial(read_at, self.reader, index)
        return type(self)(reader, [self.names[i] for i in index],
                          self.labels[torch.from_numpy(index)], self.size, self.decoder, self.left_out)

    def to(self, device: torch.device) -> Self:
        return self

    def decoded_by(self, decoder: Decoder) -> Self:
        """The same files, read in another way."""
        return type(self)(self.reader, self.names, self.labels, self.size, decoder, self.left_out)

    @property
    def preparation(self) -> dict[str, str]:
        """What `centre` does to each image before an encoder sees it, for whoever uses the encoder elsewhere."""
        return {"resize": f"the short side to {short_side(self.size)} pixels, bilinear, antialiased",
                "crop": f"the middle {self.size} x {self.size} pixels"}

    def read(self, place: int) -> Tensor:
        """One image, uint8 [C, H, W]; raises if it cannot be read."""
        return read_image(self.names[place], self.decoder) if self.reader is None else self.reader(place)

    def title(self, place: int) -> str:
        """What an image is called in tables; its name, but for those in shards the member's."""
        return self.names[place]

    def samples(self, place: int) -> Samples | None:
        """The pixels of an image of more than 8 bits as they are stored; None for others."""
        return stored_samples(self.names[place], self.decoder)

    def attempt(self, place: int) -> Tensor | Unread:
        """The image of a place, uint8 [C, H, W], or why there is none."""
        return attempted(self.read, place, self.names[place])

    def read_scaled(self, place: int, factor: Factor) -> Tensor | Scaled:
        """One image, reduced by what `factor` says of its height and width where its file can be read like that."""
        if self.reader is not None:
            return self.read(place)
        return read_scaled(self.names[place], self.decoder, factor)

    def attempt_scaled(self, place: int, factor: Factor) -> Tensor | Scaled | Unread:
        """As `attempt`, by `read_scaled`."""
        return attempted(partial(self.read_scaled, factor=factor), place, self.names[place])

    def first_readable(self, places: Iterable[int], unread: dict[int, Unread],
                       factor: Factor | None = None) -> tuple[int, Tensor | Scaled] | None:
        """The first place of which there is an image, and the image; those before it are added to `unread`."""
        for place in places:
            if place in unread:
                continue
            found = self.attempt(place) if factor is None else self.attempt_scaled(place, factor)
            if not isinstance(found, Unread):
                return place, found
            unread[place] = found
            if found.kind == "disk":
                break
        return None

    def __getitem__(self, request: Request) -> Loaded:
        """A plain batch leaves unreadable images out; a training batch takes the next readable one instead."""
        images: list[Any] = []
        index: list[int] = []
        unread: dict[int, Unread] = {}
        reduction = None if request.key is None or self.augment is None or not self.scaled else (
            self.augment.reduction(request.key, len(request.places)))
        for i in request.places.tolist():
            tries = range(1 if request.key is None else len(self))
            factor = None if reduction is None else partial(reduction.factor, len(images))
            if (chosen := self.first_readable(((i + step) % len(self) for step in tries), unread, factor)) is not None:
                index.append(chosen[0])
                images.append(chosen[1])
            elif request.key is not None or any(why.kind == "disk" for why in unread.values()):
                break   # no image can be read: do not try them all again for each place
        found_at = torch.tensor(index, dtype=torch.long)
        batch = self.plain(images) if request.key is None or not images else self.for_training(images, request.key)
        return batch, self.labels[found_at], found_at, unread

    def fingerprint(self) -> str:
        """A hash that changes when a file, a label, how files are read or the size of the plain images changes."""
        digest = hashlib.blake2b(f"{file_states(self.names)}{self.size}{self.decoder}".encode(), digest_size=8)
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()

    def plain(self, images: Sequence[Tensor]) -> Tensor:
        middles = [centre(image, self.size) for image in images]
        return torch.stack(middles) if middles else torch.empty(0, self.decoder.channels, self.size, self.size).byte()

    def for_training(self, images: Sequence[Any], key: Key) -> Tensor | Canvases | Crops:
        """What a training batch holds of its images: their crops, or plain images if there is no augmentation."""
        return self.plain(images) if self.augment is None else self.augment.cut(images, key)


def centre(image: Tensor, size: int) -> Tensor:
    """The middle of a uint8 image [C, H, W], size x size: what runs and `ssl-zoo evaluate` show to an encoder."""
    return F.center_crop(F.resize(image, [short_side(size)], antialias=True), [size, size])


def short_side(size: int) -> int:
    return round(size * 8 / 7)   # 256 for 224


class Loader:
    """The batches of a data set, in an order that is a function of (seed, epoch) and this process's rank.

    It keeps no random state. Its only state is its place in the epoch, in images of all processes, which Lightning's
    checkpoints save.

    Args:
        source: the images.
        batch_size: images in a batch of one process.
        workers: processes that load ahead; 0 loads in this one.
        training: shuffled, whole batches only, with keys for views; otherwise every image in order, plain.
        strict: refuse unreadable images instead of skipping them.
        order: of a training epoch's images; the source's own if left out.
    """

    batch_sampler = None   # Lightning reads it if there is a sampler

    def __init__(self, source: Resident | Files, batch_size: int, workers: int = 0, *,
                 training: bool = False, strict: bool = False, order: Order | None = None):
        self.source, self.batch_size, self.workers = source, batch_size, workers
        self.training, self.strict, self.order = training, strict, order or source.order
        self.crew: Crew | None = None         # of training, from the first epoch on
        self.device = torch.device("cpu")     # to which training batches are copied while the former is trained on
        self.epoch = 0
        self.shown = 0        # images that all processes have seen in this epoch
        self.running = False  # whether an epoch has begun, which the next pass does not go on with

    @property
    def sampler(self) -> "Loader":
        return self   # Lightning calls `sampler.set_epoch`

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:   # after a checkpoint of an epoch's end Lightning announces the next one
            self.epoch, self.shown, self.running = epoch, 0, False

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "shown": self.shown, "images": len(self.source)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the images of an epoch that were shown, by however many processes in batches of whatever size.

        Of another number of images the same share counts as shown, though these are others: their order is another.
        """
        shown = state["shown"] if "shown" in state else state["batch"] * self.together   # as older checkpoints have it
        self.epoch, self.running = state["epoch"], False
        self.shown = shown * len(self.source) // state.get("images", len(self.source))

    def settle(self, batches: int, per_step: int) -> int:
        """Let the rest of an epoch be whole steps, at least one, and return how many of its batches count as done.

        Where the images that were shown are no whole number of steps, the least number of them is shown again.

        Args:
            batches: that the trainer takes from an epoch.
            per_step: batches that accumulate for a step.
        """
        done = min(batches - 1, max(batches - self.left, self.shown // self.together))
        done -= done % per_step
        self.shown = max(0, min(self.shown, len(self.source) - (batches - done) * self.together))
        return done

    @property
    def together(self) -> int:
        """Images in a batch of all processes."""
        return self.batch_size * distributed.world_size()

    @property
    def left(self) -> int:
        """Batches of a training epoch that are left after those that were shown."""
        return (len(self.source) - self.shown) // self.together

    def __len__(self) -> int:
        images, processes = len(self.source), distributed.world_size()
        if self.training:
            return images // self.together
        return -(-len(self.source.share(distributed.rank(), processes)) // self.batch_size)

    def plan(self) -> list[Request]:
        """This process's share of what is left of the epoch."""
        if not self.training:
            mine = self.source.share(distributed.rank(), distributed.world_size())
            return [Request(mine[i:i + self.batch_size], None) for i in range(0, len(mine), self.batch_size)]
        seed, rank, processes = distributed.run_seed(), distributed.rank(), distributed.world_size()
        first = len(self) - self.left
        if isinstance(self.order, Shares):
            own = self.order.share(seed, self.epoch, rank, processes)[self.shown // processes:]
            return [Request(own[i * self.batch_size:(i + 1) * self.batch_size], Key(seed, self.epoch, first + i, rank))
                    for i in range(self.left)]
        places, wanted = self.order(seed, self.epoch, len(self.source)), self.shown + self.left * self.together
        if len(places) < wanted:
            raise ValueError(f"the order of epoch {self.epoch} has {len(places)} images, and its {len(self)} batches "
                             f"need {wanted}: let it repeat some")
        batches = np.ascontiguousarray(places[self.shown:wanted]).reshape(self.left, processes, self.batch_size)
        return [Request(batch[rank], Key(seed, self.epoch, i, rank)) for i, batch in enumerate(batches, first)]

    def __iter__(self) -> Iterator[tuple[Tensor | Canvases | Crops, Tensor, Tensor, Key]]:
        self.shown = 0 if self.running else self.shown
        self.running, plan = True, self.plan()
        for request, batch in zip(plan, on_device(self.load(plan), self.device), strict=True):
            self.report(batch[2], batch[3])
            self.shown += self.together
            yield *batch[:3], request.key or PLAIN

    def image(self, place: int) -> Tensor:
        """One plain image, uint8 [C, H, W]."""
        images, *_ = self.source[Request(np.array([place]), None)]
        assert isinstance(images, Tensor)
        return images[0]

    def load(self, plan: list[Request]) -> Iterator[Loaded]:
        workers = 0 if isinstance(self.source, Resident) else self.workers
        crew = self.crew or Crew(self.source, workers, pin_memory=torch.cuda.is_available(), stays=self.training)
        self.crew = crew if self.training else None
        return self.source.batches(plan, crew)

    def dismiss(self) -> None:
        """Let the workers end; a later pass has new ones."""
        self.crew = None

    def report(self, found: Tensor, unread: Mapping[int, Unread]) -> None:
        """Say why images are left out, of each once; stop where that is not allowed, or where a disk fails."""
        if not isinstance(self.source, Files):
            return
        for place, why in unread.items():
            new = self.source.left_out.note(self.source.names[place], why.require_disk())
            if self.strict:
                raise ValueError(f"{why.sentence}, or set strict to false to skip such files")
            if new:
                warnings.warn(f"{why.sentence}; it is skipped ({len(self.source.left_out.unread)} so far; set strict "
                              "to true to refuse)", stacklevel=2)
        if self.training and not len(found):
            raise none_readable(self.source)


def none_readable(source: Files, tried: int | None = None) -> ValueError:
    """The sentence on a data set of which no image can be read."""
    here = f"{tried} images that were tried, of {len(source)}," if tried else f"{len(source)} images"
    example = next(iter(source.left_out.unread.values())).sentence
    return ValueError(f"none of the {here} can be read ({source.left_out.kinds}), such as: {example}")


def file_states(names: Sequence[str]) -> str:
    """A hash that changes when a file is added, removed, renamed or written to; other names count as they are."""
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        digest.update(os.fsencode(f"\n{name}"))
        if os.path.isfile(name):
            state = os.stat(name)
            digest.update(os.fsencode(f"\0{os.path.abspath(name)}\0{state.st_size}\0{state.st_mtime_ns}"))
    return digest.hexdigest()


def read_at(read: Callable[[int], Tensor], places: np.ndarray, i: int) -> Tensor:
    return read(int(places[i]))
