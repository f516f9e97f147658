"""ssl_zoo: self-supervised vision pretraining on PyTorch Lightning."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "embed", "embed_to_file", "load_encoder", "save_encoder"]
HOMES = {"embed": "ssl_zoo.features", "embed_to_file": "ssl_zoo.features", "load_encoder": "ssl_zoo.checkpoints",
         "save_encoder": "ssl_zoo.export"}


def __getattr__(name: str) -> Any:
    if name in HOMES:   # on first use: importing ssl_zoo itself must not import torch
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'ssl_zoo' has no attribute {name!r}")
