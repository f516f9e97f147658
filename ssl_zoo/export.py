"""An encoder as two files that any torch program can read: tensors (.safetensors) and what they are (.json)."""

import hashlib
import json
from inspect import isabstract
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import save_file

import ssl_zoo
from ssl_zoo import encoders


def save_encoder(encoder: encoders.Encoder, path: str | Path, *, size: int | None = None,
                 recipe: Any = None, metrics: dict[str, float] | None = None) -> Path:
    """Write `path` (.safetensors) and, beside it, what the tensors are (.json).

    Args:
        size: side of the images that the encoder saw last, pixels.
        recipe: plain values that made the run.
        metrics: by name of protocol.

    Returns:
        The path written.
    """
    path, description_path = files(path)
    description = {
        "format": 1,
        "architecture": {"class": type(encoder).__name__, "arguments": encoder.arguments, "dim": encoder.dim},
        "preprocessing": {"channels": "RGB, or one that is repeated", "input": "uint8, or float in [0, 1]",
                          "size": size, "normalisation": "inside the encoder",
                          "mean": encoder.arguments["mean"], "std": encoder.arguments["std"]},
        "metrics": metrics or {},
        "recipe": recipe,
        "versions": {"ssl_zoo": ssl_zoo.__version__, "torch": torch.__version__,
                     "torchvision": torchvision.__version__},
    }
    text = json.dumps(description, indent=2, default=str)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}, path)
    except SafetensorError as error:      # a full disk, for one
        raise OSError(f"the encoder could not be written to {path}: {error}") from error
    description_path.write_text(text + "\n")
    return path


def fingerprint(encoder: encoders.Encoder) -> str:
    """Of the weights and the architecture: another one when any changes."""
    digest = hashlib.blake2b(f"{type(encoder).__name__}{encoder.arguments}".encode(), digest_size=8)
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def files(path: str | Path) -> tuple[Path, Path]:
    """The two files of an encoder; `path` names either, or what stands before their endings."""
    stem = str(path).removesuffix(".safetensors").removesuffix(".json")
    return Path(f"{stem}.safetensors"), Path(f"{stem}.json")


def load_encoder(path: str | Path) -> encoders.Encoder:
    """The encoder that `save_encoder` wrote, in evaluation mode: images [B, 3, H, W] -> features [B, dim].

    Runs no code from the files: the class is one of `ssl_zoo.encoders`, the tensors are safetensors.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the files name an unknown encoder, or a tensor is missing, unexpected or of another shape.
    """
    path, description_path = files(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no encoder {path}; a run leaves one in its folder, and ssl-zoo export makes "
                                "one of a checkpoint")
    if not description_path.is_file():
        raise FileNotFoundError(f"{path} has no {description_path.name} beside it, which says what it holds; "
                                "keep the two files together")
    try:
        architecture = json.loads(description_path.read_text())["architecture"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{description_path} does not describe an encoder of ssl_zoo: give the file that a run left "
                         "beside it") from error
    kinds = {name: kind for name, kind in vars(encoders).items()
             if isinstance(kind, type) and issubclass(kind, encoders.Encoder) and not name.startswith("_")}
    kind = kinds.get(architecture["class"])
    if kind is None or isabstract(kind):
        raise ValueError(f"{description_path} names the encoder {architecture['class']}, which this version of "
                         "ssl_zoo does not have; build it yourself and load the tensors with safetensors")
    encoder = kind(**architecture["arguments"])
    encoders.load_strictly(encoder, encoders.read_state(path), path)
    return encoder.eval()
