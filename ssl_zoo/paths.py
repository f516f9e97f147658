"""What the files that people name are, found out without torch: a wrong path is reported before anything is loaded."""

import json
import re
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
LARGEST = 2 ** 24   # bytes of a description
EXPORTS = {".safetensors": "for ssl_zoo", ".pth": "the state dict of torchvision's or timm's own model",
           ".onnx": "ONNX", ".pt2": "torch.export"}
ONNX = ("onnx", "onnxscript", "onnxruntime")   # the extra onnx


def encoder_files(path: str | Path) -> tuple[Path, Path]:
    """The two files of an exported encoder; `path` names either, or is what stands before their endings."""
    stem = str(path).removesuffix(".safetensors").removesuffix(".json")
    return Path(f"{stem}.safetensors"), Path(f"{stem}.json")


def export_path(given: str | Path) -> Path:
    """The file that an export of this name writes; its ending says how, and without one it is .safetensors."""
    path = Path(given)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it, such as {path / 'encoder.onnx'}")
    if path.suffix not in EXPORTS:
        if path.suffix != ".json" and re.fullmatch(r"\.[A-Za-z]\w*", path.suffix):   # .1 is part of a name
            raise ValueError(f"{path} ends in {path.suffix}, which is no format of exports: name a file that ends in "
                             + ", ".join(f"{ending} ({what})" for ending, what in EXPORTS.items()))
        return encoder_files(path)[0]
    if path.suffix == ".onnx" and (missing := [name for name in ONNX if find_spec(name) is None]):
        raise ImportError(f"{path} is written and checked with {' and '.join(missing)}, which is not installed: pip "
                          "install ssl_zoo[onnx]")
    return path


def name_and_weights(given: str) -> tuple[str, str]:
    """The text before and after an equals sign, unless the sign is part of a path, as in epoch=1-step=14.ckpt."""
    name, _, weights = given.partition("=")
    if Path(given).is_file() or encoder_files(given)[0].is_file() or not may_be_model(name):
        return given, ""
    return name, weights


def may_be_model(name: str) -> bool:
    """Whether torchvision or timm could have a model of this name: none has a folder in it."""
    return "/" not in name.removeprefix("timm/")


def is_exported(name: str) -> bool:
    """Whether a name is that of an exported encoder's files, there or not, and not that of a model."""
    return name.endswith(".safetensors") or encoder_files(name)[1].is_file()


def check_encoder(given: str) -> None:
    """Raise one sentence if the files that `given` names are not there; a model's name passes."""
    name, weights = name_and_weights(given)
    if name.endswith(".ckpt"):
        check_whole(Path(name))
    elif is_exported(name):
        description(name)
    elif weights:
        check_weights(weights)
    elif Path(name).is_file() or not may_be_model(name):
        raise ValueError(no_encoder(given))


def no_encoder(given: str) -> str:
    return (f"there is no encoder {given}: give an exported encoder's .safetensors, a .ckpt, or the name of a model of "
            "torchvision or timm, with its weights as in resnet50=resnet50.pth")


def check_weights(path: str | Path) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}; give the path of a .safetensors or .pth file")


def check_whole(checkpoint: Path) -> Path:
    """The path, if a checkpoint is there and was written to its end."""
    if not checkpoint.is_file():
        raise FileNotFoundError(f"no checkpoint at {checkpoint}; ssl-zoo fit leaves them in its run's folder, "
                                "under checkpoints")
    if not zipfile.is_zipfile(checkpoint):   # as torch.save writes it, with the contents at its end
        raise ValueError(f"{checkpoint} is no checkpoint, or was cut short; take another of its folder, or for "
                         f"weights of another program name their encoder: resnet50={checkpoint}")
    return checkpoint


def description(path: str | Path) -> dict[str, Any]:
    """What an exported encoder's .json says.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: it does not describe an encoder.
    """
    tensors, described = encoder_files(path)
    if not tensors.is_file():
        raise FileNotFoundError(f"there is no encoder {tensors}; a run leaves one in its folder, and ssl-zoo export "
                                "makes one of a checkpoint")
    if not described.is_file():
        raise FileNotFoundError(f"{tensors} has no {described.name} beside it, which says what it holds; "
                                "keep the two files together")
    said = plain_json(described)
    architecture = mapping(said, "architecture")
    if not isinstance(architecture.get("class"), str) or not isinstance(architecture.get("arguments"), dict):
        raise ValueError(f"{described} does not describe an encoder of ssl_zoo: give the file that a run left beside "
                         "it")
    return said


def plain_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file, all of whose numbers are finite; anything else raises one sentence."""
    def refused(constant: str) -> None:
        raise ValueError(f"it has the number {constant}")

    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        said = json.loads(path.read_text(encoding="utf-8"), parse_constant=refused)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON as ssl-zoo writes it ({error}): give the file that a run left") from error
    return said if isinstance(said, dict) else {}


def mapping(tree: Any, name: str) -> dict[str, Any]:
    """A dictionary in a dictionary, empty where there is none."""
    found = tree.get(name) if isinstance(tree, dict) else None
    return found if isinstance(found, dict) else {}


def own_data(given: str, trusted: Sequence[str] = ()) -> Any:
    """The images that a run's encoder has learnt from, as its recipe names them.

    Args:
        given: a checkpoint, or an exported encoder.
        trusted: import paths of classes that are not ssl_zoo's and may be imported.
    """
    recipe, source = own_recipe(given)
    if not isinstance(recipe, dict) or "data" not in recipe:
        raise ValueError(f"{given} does not say on which images to evaluate it: name them with --data, as in --data "
                         "ImageFolder --data.root my_images")
    data = with_trusted(recipe["data"], trusted, source)
    if not isinstance(data, dict) or "class_path" not in data:
        raise ValueError(f"{source} does not say of which class its images are: name them with --data, as in --data "
                         "ImageFolder --data.root my_images")
    return data


def plain_yaml(path: Path) -> Any:
    """What is in a YAML file, as plain values."""
    import yaml  # a tenth of a second, which no other use of this file should cost
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML ({str(error).splitlines()[0]}): take the file that a run left") from error


def own_recipe(given: str) -> tuple[Any, Path]:
    """The recipe of the run that left a checkpoint or an exported encoder, None where it is unknown, and its file."""
    described, config = encoder_files(given)[1], Path(given).absolute().parent.parent / "config.yaml"
    if given.endswith(".ckpt") and config.is_file():
        return plain_yaml(config), config
    return plain_json(described).get("recipe") if described.is_file() else None, described


def with_trusted(tree: Any, trusted: Sequence[str], source: str | Path) -> Any:
    """Plain values from a file, in which every `class_path` is one that may be imported."""
    if isinstance(tree, list):
        return [with_trusted(value, trusted, source) for value in tree]
    if not isinstance(tree, dict):
        return tree
    return {name: class_path(value, trusted, source) if name == "class_path" else with_trusted(value, trusted, source)
            for name, value in tree.items()}


def class_path(named: str, trusted: Sequence[str], source: str | Path) -> str:
    """The import path of a class that the file `source` names.

    A file may come from anyone, so what it names is imported only if it belongs to ssl_zoo, or if the user has named
    a class of that name himself. The module may then be another one: a class from a notebook is called __main__ there.
    """
    if not isinstance(named, str):
        raise ValueError(f"{source} names a class by {named!r}, which is no import path: take a file that ssl-zoo "
                         "wrote")
    module, _, name = named.rpartition(".")
    for own in trusted:
        if own.rpartition(".")[2] == name:
            return own
    if not module or module.partition(".")[0] == PACKAGE:   # a name alone is that of a class of ssl_zoo
        return named
    raise ValueError(f"{source} names {named}, which is not a class of ssl_zoo, and files import nothing else by "
                     f"themselves: if you trust it, add --trust {named}")
