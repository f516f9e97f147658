"""Features that are taken once and kept on disk: a second evaluation of an encoder on the same images reads them."""

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
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


def cached(path: Path, make: Callable[[], Features]) -> Features:
    """The features in the file, or those that `make` returns, which are then kept there for the next time.

    The path must name everything that the features depend on. A file that cannot be read is written again, and where
    none can be written the features are used all the same.
    """
    try:
        kept = load_file(path)
        return Features(kept["x"], kept["labels"], kept["places"])
    except (OSError, SafetensorError, KeyError):
        features = make()
    half = path.with_suffix(f".{uuid4().hex[:8]}.half")   # its own, for another run may write there too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in features._asdict().items()}, half)
        half.replace(path)
    except (OSError, SafetensorError) as error:           # a full disk is either
        warnings.warn(f"the features of {len(features.x)} images could not be kept in {path.parent} ({error}): make "
                      "room there; the evaluation goes on without, and the next one takes them again", stacklevel=2)
        with suppress(OSError):
            half.unlink()
    return features
