"""Encoders and methods from any file: tensors are read strictly, and no code of the file runs.

What a file calls by name is imported only if it is ssl_zoo's own, or if the caller names that class too.
"""

from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from ssl_zoo import encoders, paths
from ssl_zoo.encoders import Encoder
from ssl_zoo.views import Augmentation, ViewSpec
from ssl_zoo.weights import load_strictly, read_state

# in place of a recipe's own, for a method that is not trained
UNUSED: dict[str, Any] = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}, "schedule": {}}


def load_encoder(path: str | Path, *, kind: type[Encoder] | None = None) -> Encoder:
    """The encoder that `save_encoder` wrote, in evaluation mode: images [B, 3, H, W] -> features [B, dim].

    Runs no code from the files: the class is one of `ssl_zoo.encoders` or the one you give, the tensors are
    safetensors.

    Args:
        path: either of the two files, or their path without its ending.
        kind: the encoder's class, where it is one of your own.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the files name an unknown encoder, or a tensor is missing, unexpected or of another shape.
    """
    architecture = paths.description(path)["architecture"]
    path, described = paths.encoder_files(path)
    if kind is None:
        own = {name: one for name, one in vars(encoders).items()
               if isinstance(one, type) and issubclass(one, Encoder) and not isabstract(one) and name[0] != "_"}
        kind = own.get(architecture["class"])
    if kind is None:
        name = architecture["class"].rpartition(".")[2]
        raise ValueError(f"{described} names the encoder {architecture['class']}, which this version of ssl_zoo does "
                         f"not have; if it is yours, give its class: load_encoder(path, kind={name}), or on the "
                         f"command line --trust my_module.{name}")
    try:
        encoder = kind(**architecture["arguments"])
    except TypeError as error:   # an argument that it does not take
        raise ValueError(f"{described} does not fit the class {kind.__name__} as it is now: {error}") from error
    load_strictly(encoder, read_state(path), path)
    return encoder.eval()


def read_encoder(given: str, trusted: Sequence[str] = ()) -> Encoder:
    """An encoder by its file, its checkpoint, or its name, with weights from a file after an equals sign.

    Args:
        trusted: import paths of classes of your own that the files may name.
    """
    paths.check_encoder(given)
    name, weights = paths.name_and_weights(given)
    if name.endswith(".ckpt"):
        return load_method(name, trusted).evaluated
    if paths.is_exported(name):
        said = paths.description(name)["architecture"]["class"]
        path = paths.class_path(said, trusted, name)
        return load_encoder(name, kind=find(path, Encoder, name) if path in trusted else None)
    if (build := encoders.named(name)) is None:
        raise ValueError(paths.no_encoder(given))
    return build(weights=weights or None)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a training checkpoint holds: tensors and plain values, and nothing that would have to be run."""
    try:
        return torch.load(paths.check_whole(Path(path)), map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, ValueError):
        raise
    except Exception as error:   # pickle's, for whatever is no tensor or plain value
        raise ValueError(f"{path} holds more than tensors and plain values, which could run code when it is read, and "
                         "is not read: take a checkpoint that ssl-zoo fit left") from error


def load_method(path: str | Path, trusted: Sequence[str] = ()) -> Any:
    """The method of a checkpoint that a recipe's run left, of whatever class it is; its state is loaded strictly.

    Only what has a state is made again: the encoder and the heads. The views are the recipe's rows without operations
    of other libraries, and the optimiser and its schedule, which are never asked, are always the same.

    Args:
        path: a .ckpt file.
        trusted: import paths of classes that are not ssl_zoo's and may be imported, such as my_module.Align.
    """
    from ssl_zoo.method import Method  # and with it Lightning, which an encoder by itself does not need
    content = read_checkpoint(path)
    values = dict(content.get("hyper_parameters", {}))
    if "_class_path" not in values:
        raise ValueError(f"{path} is of a run built in Python and does not say how to build its encoder: write "
                         "it there with ssl_zoo.save_encoder(method.evaluated, path)")
    kind = find(paths.class_path(values.pop("_class_path"), trusted, path), Method, path)
    values |= {"encoder": without_weights(values["encoder"]), "augment": rows_alone(values["augment"])}
    needed = {name: value for name, value in values.items() if name not in UNUSED and name != "_instantiator"}
    method = built(kind, paths.with_trusted(needed, trusted, path) | UNUSED, path)
    method.on_load_checkpoint(content)
    method.load_state_dict(content["state_dict"])
    return method


def without_weights(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's encoder without the file that it started from: the checkpoint holds what became of it."""
    arguments = {name: value for name, value in encoder["init_args"].items() if name != "weights"}
    return {"class_path": encoder["class_path"], "init_args": arguments}


def rows_alone(augment: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's augmentation with nothing but its rows, and of these the fields that this version of ssl_zoo has."""
    views = augment["init_args"]["views"]
    known = {field.name for field in fields(ViewSpec)} - {"extra"}
    rows = views if isinstance(views, str) else [{name: value for name, value in row.items() if name in known}
                                                 for row in views]
    return {"class_path": f"{Augmentation.__module__}.{Augmentation.__name__}", "init_args": {"views": rows}}


def find(path: str, base: type, source: str | Path) -> Any:
    """The class of an import path; raises one sentence if there is none, or if it is not a subclass of `base`."""
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(import_module(module), name, None) if module else None
    except ModuleNotFoundError as error:
        raise ImportError(f"{path}, which {source} names, cannot be imported ({error}): run the command in the folder "
                          "of its file, or install it") from error
    if not isinstance(kind, type) or not issubclass(kind, base):
        raise ValueError(f"{source} names {path}, which is not a subclass of {base.__name__}: take the version "
                         "of ssl_zoo, or of your own class, that wrote it")
    return kind


def built(kind: type, values: dict[str, Any], source: str | Path) -> Any:
    """A method from plain values, as the command line makes it from a recipe."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "method", fail_untyped=False)
    try:
        return parser.instantiate_classes(parser.parse_object({"method": values})).method
    except (ArgumentError, TypeError) as error:   # an argument that the class does not take, for one
        raise ValueError(f"{source} does not fit the class {kind.__name__} as it is now: {error}") from error
