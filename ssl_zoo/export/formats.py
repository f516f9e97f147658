"""An encoder as files: one that a program can read, and a card that says what it is."""

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
from ssl_zoo.export import card, graphs, state_dicts
from ssl_zoo.export.usage import Usage
from ssl_zoo.files import put, whole
from ssl_zoo.finite import require_finite
from ssl_zoo.paths import encoder_files, export_path
from ssl_zoo.provenance import provenance
from ssl_zoo.weights import uncompiled


def save_encoder(encoder: encoders.Encoder, path: str | Path, *, size: int | None = None, recipe: Any = None,
                 metrics: Mapping[str, float] | None = None, protocols: Mapping[str, str] | None = None,
                 origin: Mapping[str, Any] | None = None, license: str | None = None) -> Path:
    """Write an encoder as its name ends, and a model card beside it (.md).

    `.safetensors`, also if it ends in nothing, is for `load_encoder` and has a description (.json). `.pth` is the state
    dict of torchvision's or timm's own model. `.onnx` and `.pt2` (torch.export) are programs that take uint8 images
    [B, C, H, W] and normalise for themselves. These three are read again and compared with the encoder.

    Args:
        encoder: compiled or not.
        size: side of the images that the encoder saw last, pixels.
        recipe: plain values that made the run.
        metrics: by name of protocol.
        protocols: what each of the metrics means, by the same names.
        origin: the provenance of the run, as it has recorded it; that of this call where left out.
        license: of the weights, as the card states it; unknown where left out.

    Returns:
        The path written.

    Raises:
        FileExistsError: one of the files is there already.
        ValueError: a weight is not finite, or the encoder cannot be written in this format.
    """
    encoder, path = unwrapped(encoder), export_path(path)
    require_finite(encoder, "this encoder", "it is not exported; take an earlier checkpoint")
    here = provenance()
    write(encoder, path, description(encoder, size) | {
        "metrics": dict(metrics or {}), "protocols": dict(protocols or {}), "recipe": recipe, "license": license,
        "provenance": origin or here, "exported": {name: here[name] for name in ("date", "command", "ssl_zoo")}})
    return path


def write(encoder: encoders.Encoder, path: Path, said: dict[str, Any]) -> None:
    """Write the file and what belongs beside it, all or nothing."""
    described = [encoder_files(path)[1]] if path.suffix == ".safetensors" else []
    for place in (path, card_path := Path(f"{path}.md"), *described):
        if place.exists():
            raise FileExistsError(f"{place} is there already and stays: name another file, or move that one away")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole(path) as half:
            said, usage = WRITERS[path.suffix](encoder, half, said)
            for place in described:
                put(place, json.dumps(said, indent=2, default=str) + "\n")
            put(card_path, card.text(said, path.name, usage.lines(path.name)))
    except BaseException:
        for place in (card_path, *described):
            place.unlink(missing_ok=True)
        raise


def description(encoder: encoders.Encoder, size: int | None) -> dict[str, Any]:
    """What the encoder is and how it is fed."""
    return {
        "format": 1,
        "architecture": {"class": class_name(type(encoder)), "arguments": encoder.arguments, "dim": encoder.dim},
        "fingerprint": fingerprint(encoder), "weights": encoder.weights and str(encoder.weights),
        "preprocessing": {**encoder.preprocessing, "channels": encoder.channels, "input": "uint8, or float in [0, 1]",
                          "size": size or encoder.preprocessing.get("size"), "normalisation": "inside the encoder",
                          "mean": encoder.arguments["mean"], "std": encoder.arguments["std"]},
        "versions": {"ssl_zoo": ssl_zoo.__version__, "torch": torch.__version__,
                     "torchvision": torchvision.__version__},
    }


def write_tensors(encoder: encoders.Encoder, path: Path, said: dict[str, Any]) -> tuple[dict[str, Any], Usage]:
    """For `load_encoder`: bit for bit, so that there is nothing to compare."""
    state: Mapping[str, Tensor] = uncompiled(encoder.state_dict())
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, path)
    except SafetensorError as error:      # a full disk, for one
        raise OSError(f"the encoder could not be written to {path}: {error}") from error
    return said, Usage.of_ssl_zoo(said["architecture"]["class"])


WRITERS = {".safetensors": write_tensors, ".pth": state_dicts.write, ".onnx": graphs.write_onnx,
           ".pt2": graphs.write_pt2}


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
