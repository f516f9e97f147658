"""Tensors from any file: nothing in it runs, and nothing that it names is imported."""

import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

LEGACY_PICKLES = 4   # of torch.save before 1.6: magic number, protocol, system and the object; raw tensors follow
STARTS = {b"version https://git-lfs": "is a Git LFS pointer instead of the file: fetch it with git lfs pull",
                 b"<": "is a web page instead of the file: download the file itself", b"": "is empty: fetch it again"}


class Inert:
    """Stands in for an object of a class that a file names: it is made of nothing and keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class InertDict(Inert):
    """Likewise for classes of dictionaries, which are filled after they are made."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors file, or in whatever torch.save wrote, such as another program's checkpoint.

    Those of nested dictionaries have all keys in their names, as in state_dict.module.conv1.weight. Objects of other
    classes are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no tensors, or cannot be read without running code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; give the path of a .safetensors or .pth file")
    with path.open("rb") as file:
        start = file.read(64)
    for beginning, said in STARTS.items():
        if start == beginning or beginning and start.lstrip().startswith(beginning):
            raise ValueError(f"{path} {said}")
    try:
        content = load_file(path) if path.suffix == ".safetensors" or start[8:9] == b"{" else unpickled(path)
    except Exception as error:   # each reader has a dozen kinds of its own
        raise ValueError(f"{path} cannot be read as tensors alone ({type(error).__name__}): it must be a .safetensors "
                         "file, or a state dict or checkpoint that torch.save wrote, and whole") from error
    if isinstance(content, Mapping) and "_class_path" in (content.get("hyper_parameters") or ()):
        raise ValueError(f"{path} is a checkpoint of ssl-zoo fit, and holds more than an encoder; its encoder becomes "
                         f"a file with: ssl-zoo export {path}")
    if not (state := dict(flat(content, "", set()))):
        raise ValueError(f"{path} holds no tensors but in objects, which would run code when they are read: save the "
                         "module's state_dict() where its class is known")
    return state


def unpickled(path: Path) -> Any:
    """What torch.save wrote, with inert objects for whatever is no tensor and no plain value."""
    stand_ins: list[Any] = [(InertDict if name.lower().endswith("dict") else Inert, name) for name in named(path)]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True)


def named(path: Path) -> set[str]:
    """The import paths in a file that torch.save wrote."""
    found = set()
    with path.open("rb") as file, suppress(ValueError, StopIteration):   # what is no pickle torch.load refuses
        stream: Any = file
        if zipped := zipfile.is_zipfile(path):
            archive = zipfile.ZipFile(file)
            stream = archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        for _ in range(1 if zipped else LEGACY_PICKLES):
            for operation, argument, _ in pickletools.genops(stream):
                if operation.name == "GLOBAL":
                    module, name = str(argument).split(" ")
                    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                    found.add(f"{module}.{name}")   # of Python 3: torch.save writes those of Python 2
    return found


def flat(tree: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dictionaries, each dictionary once: a file may hold one in itself."""
    if isinstance(tree, Tensor):
        yield prefix[:-1], tree.detach()
    elif isinstance(tree, Mapping) and id(tree) not in seen:
        seen.add(id(tree))
        for name, inside in tree.items():
            yield from flat(inside, f"{prefix}{name}.", seen)


def uncompiled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that they have where no module is compiled."""
    return {name.replace("_orig_mod.", ""): value for name, value in state.items()}


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load `state` into `module`, or say in one sentence how the two differ and change nothing."""
    require_same_tensors(module, state, source)
    module.load_state_dict(state)


def require_same_tensors(module: nn.Module, state: Mapping[str, Tensor], source: str | Path,
                         way_out: str = "build the same encoder and heads as the run that wrote it") -> None:
    """Refuse a state whose tensors have other names or shapes than the module's."""
    own = module.state_dict()
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    reshaped = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if missing or unexpected or reshaped:
        examples = ", ".join(sorted([*missing, *unexpected, *reshaped])[:3])
        raise ValueError(f"{source} is of another architecture: {len(missing)} tensors missing, {len(unexpected)} "
                         f"unexpected, {len(reshaped)} of another shape ({examples}, ...); {way_out}")
