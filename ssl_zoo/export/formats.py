"""An encoder as two files that any torch program can read: tensors (.safetensors) and what they are (.json)."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

import ssl_zoo
from ssl_zoo import encoders
from ssl_zoo.files import put, whole
from ssl_zoo.finite import require_finite
from ssl_zoo.paths import encoder_files
from ssl_zoo.provenance import provenance
from ssl_zoo.weights import uncompiled


def save_encoder(encoder: encoders.Encoder, path: str | Path, *, size: int | None = None,
                 recipe: Any = None, metrics: dict[str, float] | None = None,
                 origin: Mapping[str, Any] | None = None) -> Path:
    """Write `path` (.safetensors) and, beside it, what the tensors are (.json).

    Args:
        encoder: compiled or not.
        size: side of the images that the encoder saw last, pixels.
        recipe: plain values that made the run.
        metrics: by name of protocol.
        origin: the provenance of the run, as it has recorded it; that of this call where left out.

    Returns:
        The path written.

    Raises:
        FileExistsError: one of the two files is there already.
        ValueError: a weight is not finite.
    """
    encoder = unwrapped(encoder)
    path, description_path = encoder_files(path)
    for place in (path, description_path):
        if place.exists():
            raise FileExistsError(f"{place} is there already and stays: name another file, or move that one away")
    require_finite(encoder, "this encoder", "it is not exported; take an earlier checkpoint")
    description = {
        "format": 1,
        "architecture": {"class": class_name(type(encoder)), "arguments": encoder.arguments, "dim": encoder.dim},
        "preprocessing": {**encoder.preprocessing, "channels": encoder.channels, "input": "uint8, or float in [0, 1]",
                          "size": size, "normalisation": "inside the encoder",
                          "mean": encoder.arguments["mean"], "std": encoder.arguments["std"]},
        "metrics": metrics or {},
        "recipe": recipe,
        "provenance": origin or provenance(),
        "versions": {"ssl_zoo": ssl_zoo.__version__, "torch": torch.__version__,
                     "torchvision": torchvision.__version__},
    }
    write(uncompiled(encoder.state_dict()), path, json.dumps(description, indent=2, default=str) + "\n",
          description_path)
    return path


def write(state: Mapping[str, Tensor], path: Path, text: str, text_path: Path) -> None:
    """Write tensors and what they are, both or neither."""
    path.parent.mkdir(parents=True, exist_ok=True)
    put(text_path, text)
    try:
        with whole(path) as half:
            save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, half)
    except BaseException as error:
        text_path.unlink()
        if isinstance(error, SafetensorError):      # a full disk, for one
            raise OSError(f"the encoder could not be written to {path}: {error}") from error
        raise


def fingerprint(encoder: encoders.Encoder) -> str:
    """A hash of the architecture and the weights, which changes when any of them does."""
    encoder = unwrapped(encoder)
    digest = hashlib.blake2b(f"{type(encoder).__name__}{encoder.arguments}".encode(), digest_size=8)
    for name, value in uncompiled(encoder.state_dict()).items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def unwrapped(encoder: Any) -> encoders.Encoder:
    """The encoder itself, out of what torch.compile or DistributedDataParallel has put around it."""
    while not isinstance(encoder, encoders.Encoder):
        inside = getattr(encoder, "_orig_mod", getattr(encoder, "module", None))
        if inside is None:
            raise ValueError(f"an Encoder is exported, not a {type(encoder).__name__}: give method.evaluated, or an "
                             "encoder of ssl_zoo.encoders")
        encoder = inside
    return encoder


def class_name(kind: type[encoders.Encoder]) -> str:
    """The bare name of a class of `ssl_zoo.encoders`; the import path of any other."""
    return kind.__name__ if getattr(encoders, kind.__name__, None) is kind else f"{kind.__module__}.{kind.__qualname__}"
