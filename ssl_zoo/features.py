"""Features of any images outside of a run: in memory, or in a file that other programs read."""

import csv
import glob
import importlib.util
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

import ssl_zoo
from ssl_zoo.data.counting import ENDS, find, holds_shards
from ssl_zoo.data.decoding import COLOURS, SUFFIXES, Decoder
from ssl_zoo.data.fetching import Scratch, is_address
from ssl_zoo.data.layout import TEST, TRAIN, split_name
from ssl_zoo.data.sources import Files, Loader, none_readable
from ssl_zoo.data.streams import Shards
from ssl_zoo.data.tree import counted, scan, suffix_of
from ssl_zoo.encoders import Encoder, check_size, evaluation_mode
from ssl_zoo.evaluation.cache import cached, extract
from ssl_zoo.evaluation.features import Features, require_finite
from ssl_zoo.export import fingerprint
from ssl_zoo.files import put, whole
from ssl_zoo.finite import require_finite as require_finite_weights

BATCH = 256
PIECE = 16          # batches that are kept together, so that a call that was ended loses at most as many

Images = str | Path | Sequence[str | Path]


class Embedded(NamedTuple):
    """Images by name, and their features; those that cannot be read are in neither."""

    names: list[str]             # paths as given or found; of shards, the shard's and the member's
    features: Tensor             # [N, D] float32, on the CPU
    maps: Tensor | None = None   # [N, D, h, w], likewise


class Written(NamedTuple):
    """A file of features."""

    path: Path
    images: int     # that it holds
    given: int      # that there were: the others could not be read
    features: int   # of each image
    cells: tuple[int, ...] = ()   # [D, h, w], the shape of its map


class WithMaps(nn.Module):
    """An encoder whose feature map comes behind its features, flattened: [B, D + D * h * w]."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder, self.mean = encoder, encoder.mean

    def forward(self, images: Tensor) -> Tensor:
        maps = self.encoder.maps(images)
        pooled = type(self.encoder).forward is Encoder.forward           # no second pass for a mean of the same maps
        return torch.cat([maps.mean((2, 3)) if pooled else self.encoder(images), maps.flatten(1)], 1)


def shape_of_maps(encoder: Encoder, size: int) -> tuple[int, ...]:
    """The shape [D, h, w] of the feature map of an image; raises if the encoder has none."""
    with evaluation_mode(encoder):
        return tuple(encoder.maps(torch.zeros(1, encoder.channels, size, size, device=encoder.mean.device)).shape[1:])


def embed(encoder: Encoder, images: Images, *, size: int | None = None, workers: int = 2, maps: bool = False
          ) -> Embedded:
    """The features of images, prepared as the encoder's runs prepared theirs, in the order of the images.

    Args:
        encoder: on the device that is to encode, as `load_encoder("encoder").to("cuda")`.
        images: a folder with all below it, an image, a pattern with asterisks, a text file with a path in each line, a
            sequence of paths, or shards as `ImageShards` takes them.
        size: side of the images in pixels; that of the encoder's last evaluation if left out.
        workers: processes that decode files.
        maps: give each image's feature map, too, which takes h * w times the memory.

    Raises:
        FileNotFoundError: there is no such image.
        ValueError: no image can be read, the size is unknown, the encoder has overflowed, or has no maps.
    """
    source = images_in(images, encoder, size, workers)
    cells = shape_of_maps(encoder, source.size) if maps else ()
    found = taken(encoder, source, workers, maps=maps)
    return Embedded(names_of(source, found.places), found.x[:, :encoder.dim],
                    found.x[:, encoder.dim:].unflatten(1, cells) if maps else None)


def embed_to_file(encoder: Encoder, images: Images, output: str | Path, *, size: int | None = None, workers: int = 2,
                  maps: bool = False) -> Written:
    """Write the names and features of images as .parquet, .npz or .csv, in little memory whatever their number.

    With `maps` a .npz has an array `maps` [N, D, h, w], too, and a .parquet a column of tensors [D, h, w].

    Until all are there they are kept in a folder `<output>.parts`, with which the same call goes on where one was
    ended. Nothing that exists is replaced.

    Args:
        output: the file; the other arguments are those of `embed`.

    Raises:
        FileExistsError: there is such a file.
        ValueError: as for `embed`; or the parts are those of other features.
    """
    path = require_new(Path(output), maps)
    source = images_in(images, encoder, size, workers)
    cells = shape_of_maps(encoder, source.size) if maps else ()
    parts = path.with_name(f"{path.name}.parts")
    pieces = take(encoder, source, parts, workers, maps)
    count = sum(len(places) for places, _ in read(pieces))
    if not count:
        shutil.rmtree(parts)
        raise none_readable(source)
    require_new(path, maps)                              # for it may have come meanwhile, and the parts remain
    written = Written(path, count, len(source), encoder.dim, cells)
    with whole(path) as half:
        WRITERS[path.suffix](half, lambda: ((names_of(source, places), x) for places, x in read(pieces)), written)
    shutil.rmtree(parts)
    return written


def taken(encoder: Encoder, source: Files, workers: int, folder: Path | None = None, what: str = "features",
          maps: bool = False) -> Features:
    """The features of the images of a source; kept in a folder for the next time if one is given."""
    def make() -> Features:
        bar = tqdm(Loader(source, BATCH, workers), what, unit="batch", file=sys.stderr, disable=None)
        if (found := encoded(WithMaps(encoder) if maps else encoder, iter(bar))) is None:
            raise none_readable(source)
        return found

    # the names that an evaluation gives to its files
    name = f"{fingerprint(encoder)}_{source.fingerprint()}_plain_{ssl_zoo.__version__}.safetensors"
    found = make() if folder is None else cached(folder / name, make, dim=encoder.dim, images=len(source))
    require_finite(found.x, names=names_of(source, found.places[:2 ** 16]) if len(source) <= 2 ** 16 else None)
    return found


def encoded(encoder: Any, batches: Iterator[Any]) -> Features | None:
    """The features of plain batches, None where all their files are damaged."""
    readable = (batch for batch in batches if len(batch[0]))
    first = next(readable, None)
    try:
        return None if first is None else extract(encoder, chain([first], readable))
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{BATCH} images of this size do not fit into the memory of {encoder.mean.device}: give a "
                         "smaller --size, or --device cpu") from error


def names_of(source: Files, places: Tensor) -> list[str]:
    """The names of images, in UTF-8, which a file's name need not be."""
    return [os.fsencode(source.title(place)).decode("utf-8", "backslashreplace") for place in places.tolist()]


# Which images a name means

def images_in(images: Images, encoder: Encoder, size: int | None = None, workers: int = 2) -> Files:
    """The images that a folder, a path, a pattern, a list or shards stand for, as the encoder reads them."""
    size = size or encoder.preprocessing.get("size")
    if size is None:
        raise ValueError("this encoder does not know the size of its images: give --size, in pixels")
    require_finite_weights(encoder, "the encoder", "take an earlier checkpoint of its run")
    check_size(encoder, size)
    decoder = COLOURS.like({**encoder.preprocessing, "channels": encoder.channels})
    if isinstance(images, str | Path) and in_shards(str(images)):
        return shards(str(images), size, decoder, workers)
    paths = paths_in(str(images)) if isinstance(images, str | Path) else [str(path) for path in images]
    if not paths:
        raise ValueError("there are no images in an empty list")
    lacking = [path for path in paths if not os.path.isfile(path)]
    if lacking:
        raise FileNotFoundError(f"{len(lacking)} of {counted(len(paths), 'image')} are not there, such as {lacking[0]}")
    return Files(None, paths, torch.full((len(paths),), -1), size, decoder)


def in_shards(given: str) -> bool:
    """Whether a name is that of shards; a folder's own images count more than a .tar beside them."""
    if is_address(given) or given.lower().endswith((".json", *ENDS)):
        return True
    folder = Path(given).expanduser()
    inside = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
    return any(holds_shards(one) for one in inside if one.is_dir() and (
        one == folder or split_name(one.name)[0] in (*TRAIN, *TEST))) and not scan(folder, SUFFIXES)[0]


def shards(given: str, size: int, decoder: Decoder, workers: int) -> Files:
    scratch = Scratch()
    train, test, _ = find(given, scratch, None, workers)
    both = [*train.shards, *([] if test is None else test.shards)]
    return Shards(both, None, size, 1, scratch, decoder=decoder)


def paths_in(given: str) -> list[str]:
    """The images below a folder, of a pattern, or in the lines of a text file; an image is itself."""
    path = Path(given).expanduser()
    if path.is_dir():
        found = [str(picture.path) for picture in scan(path, SUFFIXES)[0]]
        return found or refuse(f"there are no images in {given}, nor below it")
    if path.is_file():
        return [str(path)] if suffix_of(path.name) in SUFFIXES else listed(path)
    if glob.has_magic(given):
        found = [name for name in sorted(glob.glob(str(path), recursive=True)) if suffix_of(name) in SUFFIXES]
        return found or refuse(f"no image has a path like {given}")
    return refuse(f"there are no images at {given}: give a folder, an image, a pattern in quotation marks, a text file "
                  "with a path in each line, or shards")


def refuse(said: str) -> list[str]:
    raise FileNotFoundError(said)


def listed(path: Path) -> list[str]:
    """The paths in the lines of a text file, from the current folder or else from the file's."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is neither an image nor a text file with a path in each line") from error
    if not lines:
        raise ValueError(f"{path} is empty: write the path of an image in each line")
    return [line if os.path.isfile(line) or not (path.parent / line).is_file() else str(path.parent / line)
            for line in lines]


# The features of very many images: pieces on the disk, then one file

def take(encoder: Encoder, source: Files, parts: Path, workers: int, maps: bool = False) -> list[Path]:
    """Keep the features of the images in pieces, and return their files; those that are there are not taken again."""
    net, many = (WithMaps(encoder), 1) if maps else (encoder, PIECE)         # 256 maps are some 100 MB
    about = json.dumps({"encoder": fingerprint(encoder), "images": source.fingerprint(), "batch": BATCH,
                        "piece": many, "maps": maps, "ssl_zoo": ssl_zoo.__version__})
    note = parts / "about.json"
    parts.mkdir(parents=True, exist_ok=True)
    if note.is_file() and note.read_text() != about:
        raise ValueError(f"{parts} holds features of another encoder, or of other images: remove it, or name another "
                         "file to write")
    put(note, about)
    step = BATCH * many
    pieces = [parts / f"{start}.safetensors" for start in range(0, len(source), step)]
    done = next((i for i, piece in enumerate(pieces) if not piece.is_file()), len(pieces))
    left = source.subset(np.arange(done * step, len(source)))
    with tqdm(desc="features", unit="image", total=len(source), initial=done * step if done < len(pieces) else
              len(source), file=sys.stderr, disable=None) as bar:
        batches = iter(Loader(left, BATCH, workers))
        for piece in pieces[done:]:
            found = encoded(net, watched(islice(batches, many), bar))
            x, places = (torch.empty(0, encoder.dim), torch.empty(0).long()) if found is None else (
                found.x, found.places + done * step)
            if len(x):
                require_finite(x, names=names_of(source, places))
            with whole(piece) as half:
                save_file({"x": x, "places": places}, half)
    return pieces


def watched(batches: Iterator[Any], bar: Any) -> Iterator[Any]:
    for batch in batches:
        yield batch
        bar.update(min(BATCH, bar.total - bar.n))


def read(pieces: Sequence[Path]) -> Iterator[tuple[Tensor, Tensor]]:
    """Places [n] and features [n, D] of one piece after the other."""
    for piece in pieces:
        found = load_file(piece)
        yield found["places"], found["x"]


def require_new(path: Path, maps: bool = False) -> Path:
    """A path to write to, of which nothing is in the way."""
    if path.suffix not in WRITERS:
        raise ValueError(f"features are written as {', '.join(WRITERS)}, and not as {path.name}")
    if maps and path.suffix == ".csv":
        raise ValueError(f"a table of text holds no maps: write a .npz or .parquet in place of {path.name}")
    if os.path.lexists(path):
        raise FileExistsError(f"{path} is there already, and nothing is replaced: remove it or name another file")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError("a .parquet file needs pyarrow: pip install pyarrow, or write a .npz or .csv")
    return path


Rows = Callable[[], Iterator[tuple[list[str], Tensor]]]   # names, and features [n, D], with maps [n, D + D * h * w]


def write_npz(path: Path, rows: Rows, about: Written) -> None:
    """Arrays `names` [N], `features` [N, D] and perhaps `maps` [N, D, h, w], read by numpy.load without pickle."""
    columns: dict[str, tuple[slice, tuple[int, ...]]] = {"features": (slice(about.features), (about.features,))}
    if about.cells:
        columns["maps"] = slice(about.features, None), about.cells
    with zipfile.ZipFile(path, "w") as archive:
        for name, (part, shape) in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<f4", "fortran_order": False, "shape": (about.images, *shape)})
                for _, x in rows():
                    file.write(x[:, part].numpy().astype("<f4").tobytes())
        with archive.open("names.npy", "w", force_zip64=True) as file:
            names = np.array([name for some, _ in rows() for name in some])
            np.lib.format.write_array(file, names, allow_pickle=False)


def write_csv(path: Path, rows: Rows, about: Written) -> None:
    """A line for each image: its name, then its features in nine digits, which give the float32 back exactly."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *(f"feature_{i}" for i in range(about.features))])
        for names, x in rows():
            writer.writerows([name, *(f"{value:.9g}" for value in row)] for name, row in zip(names, x.tolist(),
                                                                                            strict=True))


def write_parquet(path: Path, rows: Rows, about: Written) -> None:
    """Columns `name`, `features`, a list of D float32, and perhaps `maps`, float32 tensors [D, h, w]."""
    pa: Any = import_module("pyarrow")             # of an extra
    pq: Any = import_module("pyarrow.parquet")
    kinds = [("name", pa.string()), ("features", pa.list_(pa.float32(), about.features))]
    if about.cells:
        kinds.append(("maps", pa.fixed_shape_tensor(pa.float32(), about.cells)))
    with pq.ParquetWriter(path, pa.schema(kinds)) as writer:
        for names, x in rows():
            if names:
                features = pa.array(x[:, :about.features].numpy().ravel())
                columns = [pa.array(names), pa.FixedSizeListArray.from_arrays(features, about.features)]
                if about.cells:
                    maps = x[:, about.features:].unflatten(1, about.cells).numpy()
                    columns.append(pa.FixedShapeTensorArray.from_numpy_ndarray(maps))
                writer.write_table(pa.table(columns, schema=pa.schema(kinds)))


WRITERS: dict[str, Callable[[Path, Rows, Written], None]] = {
    ".parquet": write_parquet, ".npz": write_npz, ".csv": write_csv}
