"""Encoders and methods from any file: tensors are read strictly, and no code of the file runs.

What a file calls by name is imported only if it is ssl_zoo's own, or if the caller names that class too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ssl_zoo import encoders, paths
from ssl_zoo.encoders import Encoder
from ssl_zoo.finite import listed, not_finite
from ssl_zoo.schedules import WarmupCosine
from ssl_zoo.views import Augmentation, ViewSpec
from ssl_zoo.weights import load_strictly, read_state, require_same_tensors, uncompiled


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
    said = paths.description(path)
    architecture = said["architecture"]
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
    make = partial(instance, kind, architecture["arguments"], described)
    require_size(make, header(path), path)
    encoder = make()
    if architecture.get("dim", encoder.dim) != encoder.dim:
        raise ValueError(f"{described} names {architecture['dim']} features, and the encoder that it describes has "
                         f"{encoder.dim}: take the two files that were written together")
    load_strictly(encoder, read_state(path), path)
    encoder.preprocessing = preprocessing_in(said, described)
    return encoder.eval()


def preprocessing_in(content: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """How an encoder's images were read from their files, as its description or its run's checkpoint says."""
    said = content.get("preprocessing") or {}
    if not isinstance(said, Mapping):
        raise ValueError(f"{source} describes the images as {said}: take the file that ssl_zoo wrote")
    known = ("levels", "background", "size", "resize", "crop")
    said = {**said, **paths.mapping(content, "preparation")}   # of a checkpoint, which keeps it apart
    return {name: said[name] for name in known if said.get(name) is not None}


def header(path: Path) -> dict[str, Tensor]:
    """The names and shapes in a .safetensors file, as tensors without values."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
    except Exception as error:   # of whatever kind the reader's are
        raise ValueError(f"{path} is no .safetensors file, or was cut short ({error}): copy it again") from error


def require_size(make: Any, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse a file whose tensors are not those of the module that `make` makes, before any of it takes memory."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=()):
            module = make()
    except ValueError as error:
        if "meta" in str(error):   # a class that reads its own values cannot be made without
            return
        raise
    require_same_tensors(module, state, source)


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
        return load_encoder(name, kind=class_at(path, Encoder, name) if path in trusted else None)
    if (build := encoders.named(name)) is None:
        raise ValueError(paths.no_encoder(given))
    return build(weights=weights or None)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a training checkpoint holds: tensors and plain values, and nothing that would have to be run."""
    weights = f"; if it holds an encoder of another program, name what it is: resnet50={path}"
    try:
        content = torch.load(paths.check_whole(Path(path)), map_location="cpu", weights_only=True, mmap=True)
    except (FileNotFoundError, ValueError):
        raise
    except (RuntimeError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no checkpoint, or was cut short; take another of its folder") from error
    except Exception as error:   # pickle's, for whatever is no tensor or plain value
        raise ValueError(f"{path} holds more than tensors and plain values, which could run code when it is read, and "
                         f"is not read: take a checkpoint that ssl-zoo fit left{weights}") from error
    states = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(states, Mapping) or "pytorch-lightning_version" not in content:
        raise ValueError(f"{path} is no checkpoint of ssl-zoo fit{weights}")
    if not all(isinstance(value, Tensor) for value in states.values()):
        raise ValueError(f"{path} has a state_dict with other things than tensors: take a checkpoint that ssl-zoo fit "
                         "left")
    return dict(content)


def check_resumable(path: str | Path, module: nn.Module | None = None) -> None:
    """Raise one sentence if a run cannot go on from a checkpoint, for one because a weight of `module` is not finite in
    it.
    """
    content = read_checkpoint(path)
    weights = {name for name, _ in module.named_parameters()} if module else set()
    if names := not_finite({name: value for name, value in content["state_dict"].items() if name in weights}):
        raise ValueError(f"{path} has values that are not finite in {listed(names)}: take an earlier checkpoint")
    if missing := [name for name in ("loops", "optimizer_states", "lr_schedulers") if name not in content]:
        raise ValueError(f"{path} was saved without {missing[0]}, as with save_weights_only, so that no run can go on "
                         f"from it; start from its encoder: ssl-zoo export {path}, then --model.encoder.weights")


def load_method(path: str | Path, trusted: Sequence[str] = ()) -> Any:
    """The method of a checkpoint that a recipe's run left, of whatever class it is; its state is loaded strictly.

    Only what has a state is made again: the encoder and the heads. The views are the recipe's rows without operations
    of other libraries and without a judge, and the optimiser and its schedule, which are never asked, are always the
    same.

    Args:
        path: a .ckpt file.
        trusted: import paths of classes that are not ssl_zoo's and may be imported, such as my_module.Align.
    """
    from ssl_zoo.method import Method  # and with it Lightning, which an encoder by itself does not need
    content = read_checkpoint(path)
    values = content.get("hyper_parameters")
    if not isinstance(values, Mapping) or "_class_path" not in values:
        raise ValueError(f"{path} does not say how to build its encoder: it is of a run built in Python, where you "
                         "write it with ssl_zoo.save_encoder(method.evaluated, path), or of another program, whose "
                         f"encoder you name: resnet50={path}")
    kind = class_at(paths.class_path(values["_class_path"], trusted, path), Method, path)
    needed = {name: value for name, value in values.items()
              if name not in ("_class_path", "_instantiator", "augment", "optimizer", "schedule", "judge")}
    needed = paths.with_trusted(needed, trusted, path) | {
        "augment": rows_alone(values.get("augment"), path), "schedule": WarmupCosine(),
        "optimizer": partial(torch.optim.SGD, lr=0.1)}
    make = partial(instance, kind, needed, path, trusted)
    state = uncompiled(content["state_dict"])
    if not trusted:                                          # classes of one's own may change what they load
        require_size(make, state, path)
    method = make()
    if not any("_orig_mod." in name for name in method.state_dict()):
        content["state_dict"] = state
    method.on_load_checkpoint(content)
    load_strictly(method, content["state_dict"], path)
    of_data = [state for state in content.values() if isinstance(state, Mapping) and "preprocessing" in state]
    method.evaluated.preprocessing = preprocessing_in(of_data[0] if of_data else {}, path)
    return method


def rows_alone(augment: Any, source: str | Path) -> Augmentation:
    """A recipe's augmentation with nothing but its rows, and of these the fields that this version of ssl_zoo has."""
    known = {field.name for field in fields(ViewSpec)} - {"extra"}

    def row(values: Mapping[str, Any]) -> ViewSpec:
        plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                 for name, value in values.items() if name in known}
        return ViewSpec(**plain)

    try:
        views: Any = augment["init_args"]["views"]
        rows: Any = views if isinstance(views, str) else [row(values) for values in views]
        return Augmentation(rows)
    except Exception as error:   # whatever values of a file lead to
        raise ValueError(f"{source} does not say which views it has learnt from ({type(error).__name__}: {error}): "
                         "take a checkpoint that ssl-zoo fit left") from error


def class_at(path: str, base: type, source: str | Path) -> Any:
    """The class of an import path; raises one sentence if there is none, or if it is not a subclass of `base`."""
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(import_module(module), name, None) if module else None
    except ModuleNotFoundError as error:
        raise ImportError(f"{path}, which {source} names, cannot be imported ({error}): run the command in the folder "
                          "of its file, or install it") from error
    ours = path.partition(".")[0] == paths.PACKAGE
    if not isinstance(kind, type) or not issubclass(kind, base) or ours and not kind.__module__.startswith("ssl_zoo."):
        raise ValueError(f"{source} names {path}, which is not a subclass of {base.__name__}: take the version "
                         "of ssl_zoo, or of your own class, that wrote it")
    return kind


def instance(kind: type, values: Mapping[str, Any], source: str | Path, trusted: Sequence[str] = ()) -> Any:
    """An object from a file's plain values. Where these name a class it is made; a string is never more than a string.

    Raises:
        ValueError: the class does not take the values.
    """
    try:
        hints = get_type_hints(kind.__init__)   # type: ignore[misc]
    except (NameError, TypeError):              # of names that only a type checker knows
        hints = {}
    arguments = {}
    for name, value in values.items():
        if name == "weights" and issubclass(kind, Encoder):   # the file that a run started from is not needed
            continue
        hint = hints.get(name)
        arguments[name] = (hint(**value) if isinstance(value, dict) and isinstance(hint, type) and is_dataclass(hint)
                           else revived(value, source, trusted))
    try:
        return kind(**arguments)
    except Exception as error:   # whatever values of a file lead to
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{source} does not fit the class {kind.__name__} as it is now: {why}") from error


def revived(value: Any, source: str | Path, trusted: Sequence[str]) -> Any:
    """A file's value with objects in place of the class paths in it, which `with_trusted` has seen."""
    if isinstance(value, list):
        return [revived(one, source, trusted) for one in value]
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {name: revived(one, source, trusted) for name, one in value.items()}
    path = value["class_path"]
    kind = class_at(path, object if path in trusted else nn.Module, source)
    return instance(kind, {**paths.mapping(value, "init_args"), **paths.mapping(value, "dict_kwargs")}, source, trusted)
