"""Features that are taken once and kept on disk: a second evaluation of an encoder on the same images reads them."""

import hashlib
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_zoo.encoders import Encoder, evaluation_mode
from ssl_zoo.evaluation.features import Features


def extract(encoder: Encoder, batches: Iterable[Any], half: bool = False) -> Features:
    """The features of plain batches (uint8 images [B, 3, H, W], labels, places, ...), in the order of the places.

    The encoder runs on its own device in evaluation mode, in float32 and without autocast; the features come to the
    CPU.

    Args:
        half: keep them in float16.
    """
    device = encoder.mean.device
    rows: list[Tensor] = []
    labels, places = [], []
    with evaluation_mode(encoder):
        for images, some_labels, some_places, *_ in batches:
            if len(images):                                  # none of a batch of damaged files
                rows.append(encoder(images.to(device)).to(torch.float16 if half else torch.float32).cpu())
                labels.append(some_labels.cpu())
                places.append(some_places.cpu())
    if not rows:
        raise ValueError("none of the images can be read: are they images?")
    found = Features(torch.cat(rows), torch.cat(labels), torch.cat(places))
    if (found.places.diff() > 0).all():
        return found                                         # sorting would copy gigabytes
    order = found.places.argsort()
    return Features(*(column[order] for column in found))


def cached(path: Path, make: Callable[[], Features], *, dim: int | None = None, images: int | None = None) -> Features:
    """The features in the file, or those that `make` returns, which are then kept there for the next time.

    The path must name everything that the features depend on. A file that does not hold what was written there is
    written again, and where none can be written the features are used all the same.

    Args:
        dim: width of the features.
        images: the number of images in the part, of which some may be damaged and left out.
    """
    if path.is_file():
        kept = read(path)
        if kept is not None and fits(kept, dim, images):
            return kept
        warnings.warn(f"the features in {path} are damaged, or of an earlier version of ssl_zoo: they are taken again",
                      stacklevel=2)
    features = make()
    half = path.with_suffix(f".{uuid4().hex[:8]}.half")   # its own, for another run may write there too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in features._asdict().items()}, half,
                  {"checksum": checksum(features)})
        half.replace(path)
    except (OSError, SafetensorError) as error:           # a full disk is either
        warnings.warn(f"the features of {len(features.x)} images could not be kept in {path.parent} ({error}): make "
                      "room there; the evaluation goes on without, and the next one takes them again", stacklevel=2)
        with suppress(OSError):
            half.unlink()
    return features


def read(path: Path) -> Features | None:
    """The features in a file, or None where it is not as it was written."""
    try:
        columns = load_file(path)
        features = Features(columns["x"], columns["labels"], columns["places"])
        with safe_open(path, "pt") as file:
            return features if (file.metadata() or {}).get("checksum") == checksum(features) else None
    except (OSError, SafetensorError, KeyError):
        return None


def checksum(features: Features) -> str:
    """A hash of all values, their types and their shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for column in features:
        digest.update(f"{column.dtype}{list(column.shape)}".encode())
        digest.update(column.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fits(features: Features, dim: int | None, images: int | None) -> bool:
    """Whether there is one row for each label and place, and as many and as wide as there can be."""
    x, _, places = features
    return (x.ndim == 2 and x.dtype in (torch.float16, torch.float32) and dim in (None, x.shape[1])
            and all(column.shape == (len(x),) and column.dtype == torch.int64 for column in features[1:])
            and bool((places.diff() > 0).all())
            and (images is None or len(x) <= images and bool(((places >= 0) & (places < images)).all())))
