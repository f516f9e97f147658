import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.data.decoding import MAX_PIXELS, Decoder, LeftOut
from ssl_zoo.data.folder import check_held_out, hold_out
from ssl_zoo.data.images import OfFiles
from ssl_zoo.data.labels import LABELS, as_places
from ssl_zoo.data.layout import TEST, TRAIN, split_name
from ssl_zoo.data.levels import Choice
from ssl_zoo.data.sources import file_states
from ssl_zoo.data.streams import Enclosed
from ssl_zoo.data.summary import Understood
from ssl_zoo.data.tree import some_of

NAMES = ("image", "images", "img", "picture", "jpg", "png", "pixel_values", "bytes")


class HuggingFaceImages(OfFiles):
    """Images in Parquet files, or in a data set of Hugging Face's library `datasets` that was saved to disk.

    Nothing is fetched. Parquet files are copied once into the library's cache (HF_DATASETS_CACHE), from which any row
    can be read. Splits train and validation (or test) are the two parts; without them a share of each class is held
    out.

    Args:
        root: a folder that save_to_disk wrote, or with .parquet files in it or below, or one such file.
        batch_size: images in a training batch of each process.
        image: column of the images; the only one that can hold images if left out.
        label: column of the labels; one called label, or the like, if left out.
        held_out: share of each class to test on, if there is no test part.
        evaluation_size: side in pixels of the images that evaluation sees.
        train_images: use only this many training images, the same ones in every run; null uses all.
        workers: processes on each device that decode files.
        strict: refuse unreadable images instead of skipping them.
        channels: of the images: 3 for colours (gray is repeated), 1 for gray, any other number for files with just
            these channels.
        levels: the two values that become black and white in files of more than 8 bits, as for ImageFolder.
        background: the colour behind transparent pixels.
        max_pixels: larger pictures are decoded at a reduced scale if they can be, and left out otherwise.
    """

    train: "Rows"
    test: "Rows | None"

    def __init__(self, root: str, batch_size: int = 256, image: str | None = None, label: str | None = None,
                 held_out: float = 0.1, evaluation_size: int = 224, train_images: int | None = None, workers: int = 2,
                 strict: bool = False, channels: int = 3, levels: Choice = "file", background: str = "white",
                 max_pixels: int = MAX_PIXELS):
        super().__init__(batch_size, train_images, workers, strict)
        self.decode_by(levels, channels, background=background, max_pixels=max_pixels)
        check_held_out(held_out)
        self.root, self.image, self.label = root, image, label
        self.held_out, self.evaluation_size = held_out, evaluation_size

    def prepare_data(self) -> None:
        read(Path(self.root).expanduser())   # one process fills the library's cache while the others wait

    def load(self) -> tuple["Rows", "Rows | None", list[str]]:
        parts = read(Path(self.root).expanduser())
        train_name = next((word for word in (*TRAIN, "") if word in parts), "")
        test_name = next((word for word in TEST if word in parts), "")
        if train_name not in parts:
            raise ValueError(f"{self.root} has the splits {some_of(list(parts))} and none called train: rename the one "
                             "to train on")
        left_out = [f"{name or 'rows without a split'} ({len(rows):,} images)" for name, rows in parts.items()
                    if name not in (train_name, test_name)]
        chosen = {name: parts[name] for name in dict.fromkeys([train_name, test_name]) if name in parts}
        image = image_column(chosen[train_name], self.image)
        label = label_column(chosen[train_name], self.label, image)
        names = getattr(chosen[train_name].features[label], "names", []) if label else []
        labels, classes, notes = as_places({f"{label} of {name}": values(rows, label) if label else None
                                            for name, rows in chosen.items()}, names)
        train, test, *_ = [*(Rows(rows, image, None if own is None else torch.from_numpy(own), f"{self.root} {name}",
                                  self.evaluation_size, self.decoder, self.left_out)
                             for (name, rows), own in zip(chosen.items(), labels, strict=True)), None]
        assert train is not None
        self.understood = Understood(self.root, test_name, [*notes, f"images in the column {image}"], left_out)
        if test is None and bool((train.labels >= 0).any()):
            kept, tested = hold_out(train.labels.numpy(), self.held_out)
            self.understood = self.understood._replace(test=f"held out, {100 * self.held_out:g} % of each class")
            train, test = (train.subset(kept), train.subset(tested)) if len(tested) else (train, None)
        return train, test, classes


class Rows(Enclosed):
    """The images in a column of a table.

    Args:
        rows: the table, a `datasets.Dataset`.
        image: the column.
        labels: [N], -1 where unknown; None without labels.
        where: what the table is called, for messages.
        size: side in pixels of plain images.
        decoder: how files become images.
        left_out: notes which images could not be read; all parts of a data set share one.
    """

    def __init__(self, rows: Any, image: str, labels: Tensor | None, where: str, size: int, decoder: Decoder,
                 left_out: LeftOut | None = None):
        self.rows, self.image, self.where = rows.select_columns([image]).with_format("arrow"), image, where
        super().__init__(labels, len(rows), size, decoder, left_out)

    def name(self, whole: int) -> str:
        return f"{self.where}, row {whole}"

    def content(self, whole: int) -> tuple[str, bytes]:
        found = self.rows[whole].column(0)[0].as_py()
        name, given = self.name(whole), found if isinstance(found, dict) else {"bytes": found}
        if given.get("bytes") is not None:
            return f"{name} ({given['path']})" if given.get("path") else name, given["bytes"]
        if given.get("path"):
            return given["path"], Path(given["path"]).read_bytes()
        raise ValueError("there is no image")

    def fingerprint(self) -> str:
        files = file_states([one["filename"] for one in self.rows.cache_files])
        digest = hashlib.blake2b(f"{files}{self.image}{self.size}{self.decoder}".encode(), digest_size=8)
        digest.update(self.chosen_state())
        return digest.hexdigest()


def library() -> Any:
    try:
        import datasets  # here, because importing it takes seconds
    except ImportError as error:
        raise ImportError("Parquet files and Hugging Face's data sets are read by its library datasets, which is not "
                          "installed: pip install ssl_zoo[datasets]") from error
    return datasets


def read(root: Path) -> dict[str, Any]:
    """The tables of a saved data set or of Parquet files, by the word for their part; "" for one without."""
    if not root.exists():
        raise FileNotFoundError(f"there is no {root.absolute()}; give another --data.root")
    if any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        found = library().load_from_disk(str(root))
        return {part_of(name): rows for name, rows in found.items()} if isinstance(found, dict) else {"": found}
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*.parquet") if path.is_file())
    if not files or files[0].suffix != ".parquet":
        raise FileNotFoundError(f"there are no .parquet files in {root}, nor a data set that save_to_disk wrote: use "
                                "ImageFolder for files of images, ImageShards for .tar files")
    if broken := [path for path in files if not is_whole(path)]:
        raise ValueError(f"{broken[0]} is not a Parquet file, or not a whole one: copy it again, or take it away")
    parts: dict[str, list[str]] = {}
    for path in files:
        word = part_of(path.stem) or next(filter(None, map(part_of, path.relative_to(root).parts[:-1][::-1])), "")
        parts.setdefault(word or "rest", []).append(str(path))
    load = library().load_dataset
    try:
        found = load("parquet", data_files=parts)
    except Exception as error:   # of the library, with the cause at its end
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(f"the Parquet files in {root} cannot be read together ({cause})") from error
    return {"" if name == "rest" else name: rows for name, rows in found.items()}


def is_whole(path: Path) -> bool:
    """Whether a Parquet file has its first and last four bytes."""
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(-min(4, path.stat().st_size), 2)
        return start == file.read() == b"PAR1"


def part_of(name: str) -> str:
    return split_name(name)[0]


def image_column(rows: Any, wanted: str | None) -> str:
    """The column that holds images: of the type Image, or of bytes."""
    if wanted is not None:
        return among(rows, wanted)
    kinds = {name: type(feature).__name__ for name, feature in rows.features.items()}
    found = [name for name, kind in kinds.items() if kind == "Image"] or [
        name for name, feature in rows.features.items() if of_bytes(feature)]
    found = [name for name in NAMES if name in found] if len(found) > 1 else found
    if not found:
        raise ValueError(f"none of the columns {', '.join(kinds)} holds images for certain: say which with --data.image"
                         )
    return found[0]


def of_bytes(feature: Any) -> bool:
    """Whether a column is of bytes, alone or beside a path."""
    kind = feature.get("bytes") if isinstance(feature, dict) else feature
    return getattr(kind, "dtype", None) in ("binary", "large_binary")


def label_column(rows: Any, wanted: str | None, image: str) -> str | None:
    if wanted is not None:
        return among(rows, wanted)
    return next((name for name in LABELS if name in rows.features and name != image), None)


def among(rows: Any, name: str) -> str:
    if name not in rows.features:
        raise ValueError(f"there is no column {name}; there are {', '.join(rows.features)}")
    return name


def values(rows: Any, column: str) -> np.ndarray:
    """The values of a column, as numbers or words."""
    found = rows.select_columns([column]).with_format("arrow")[:].column(0)
    if str(found.type).startswith(("int", "uint")) and not found.null_count:
        return found.to_numpy()   # of millions, in no time
    plain = found.to_pylist()
    return np.asarray(plain, object) if found.null_count else np.asarray(plain)
