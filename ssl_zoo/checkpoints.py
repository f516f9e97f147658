"""Encoders and methods from files that a run or a user left."""

import copy
import json
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from ssl_zoo import encoders
from ssl_zoo.export import files, load_encoder
from ssl_zoo.method import Method


def read_encoder(given: str) -> encoders.Encoder:
    """An encoder by its file, its checkpoint, or its name, with weights from a file after an equals sign."""
    name, weights = name_and_weights(given)
    if name.endswith(".ckpt"):
        checkpoint = check_whole(Path(name))
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        return load_method(checkpoint, content.get("hyper_parameters", {})).evaluated
    if files(name)[1].is_file() or name.endswith(".safetensors"):
        return load_encoder(name)
    kind = encoders.named(name)
    if kind is None:
        raise ValueError(f"there is no encoder {given}: give an exported encoder's .safetensors, a .ckpt, or the name "
                         "of a model of torchvision or timm, with its weights as in resnet50=resnet50.pth")
    return kind(weights=weights or None)


def name_and_weights(given: str) -> tuple[str, str]:
    """What stands before and after an equals sign, unless it is part of a path, as in epoch=1-step=14.ckpt."""
    if Path(given).is_file() or files(given)[0].is_file():
        return given, ""
    name, _, weights = given.partition("=")
    return name, weights


def own_data(given: str) -> Any:
    """The images that a run's encoder has learnt from, as its recipe names them."""
    described, config = files(given)[1], Path(given).absolute().parents[1] / "config.yaml"
    recipe = None
    if given.endswith(".ckpt") and config.is_file():
        recipe = yaml.safe_load(config.read_text())
    elif described.is_file():
        recipe = json.loads(described.read_text()).get("recipe")
    if not isinstance(recipe, dict) or "data" not in recipe:
        raise ValueError(f"nobody knows on which images to evaluate {given}: name them with --data, as in --data "
                         "ImageFolder --data.root my_images")
    return recipe["data"]


def check_whole(checkpoint: Path) -> Path:
    """The path, if a checkpoint is there and was written to its end."""
    if not checkpoint.is_file():
        raise FileNotFoundError(f"no checkpoint at {checkpoint}; ssl-zoo fit leaves them in its run's folder, "
                                "under checkpoints")
    if not zipfile.is_zipfile(checkpoint):   # as torch.save writes it, with the contents at its end
        raise ValueError(f"{checkpoint} is no checkpoint, or was cut short; take another of its folder")
    return checkpoint


def load_method(checkpoint: Path, values: Mapping[str, Any]) -> Method:
    """The method of a checkpoint that a recipe's run left, of whatever class it is."""
    if "_class_path" not in values:
        raise ValueError(f"{checkpoint} is of a run built in Python and does not say how to build its encoder: write "
                         "it there with ssl_zoo.save_encoder(method.evaluated, path)")
    module, _, name = values["_class_path"].rpartition(".")
    kind = getattr(import_module(module), name)
    if not issubclass(kind, Method):
        raise ValueError(f"{checkpoint} holds a {name}, which is no method of ssl_zoo")
    encoder = copy.deepcopy(values["encoder"])
    encoder["init_args"].pop("weights", None)   # the checkpoint holds what became of them
    return kind.load_from_checkpoint(checkpoint, map_location="cpu", encoder=encoder)
