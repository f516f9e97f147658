"""Where a number comes from: the code, the packages, the command, the seed, the images, the date and the machine.

Runs, exports and reports record what `provenance` returns. What cannot be found out, such as the commit of an installed
package, is None: a record never fails what it is a record of.
"""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import ssl_zoo
from ssl_zoo.files import free, put
from ssl_zoo.paths import encoder_files, mapping, plain_json

FORMAT = 1
PACKAGE = Path(__file__).parent
NAME = "provenance.json"   # in a run's folder
# those on which a number may depend, where they are installed
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "kornia", "lightly", "torchmetrics", "tensorboard",
            "matplotlib", "jsonargparse", "safetensors", "numpy", "scipy", "pillow", "tifffile", "imagecodecs", "tqdm",
            "pyyaml", "timm", "mlxtend", "scikit-learn", "scikit-image", "webdataset", "datasets",
            "onnx", "onnxruntime", "onnxscript")
LOOKED_AT = 1000   # files whose sizes count; a network's disk may take a millisecond for each
PATIENCE = 10      # seconds that git has


def provenance(*, seed: int | None = None, data: Any = None, resumed: str | Path | None = None) -> dict[str, Any]:
    """Everything here that a number depends on, as plain values for JSON.

    Args:
        seed: of the run.
        data: a data module that is set up.
        resumed: the checkpoint that a run goes on from.
    """
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(sys.argv),
        "seed": seed,
        "resumed": None if resumed is None else str(resumed),
        "ssl_zoo": {"version": ssl_zoo.__version__, **package_code()},
        "working_folder": working_folder(),
        "packages": packages(),
        "machine": machine(),
        "data": None if data is None else images(data),
    }


def leave(folder: Path, **known: Any) -> None:
    """Record the provenance of a run in its folder; a run that goes on there leaves another file beside the first."""
    put(free(folder / NAME), json.dumps(provenance(**known), indent=2) + "\n")


def left_by(folder: Path) -> dict[str, Any] | None:
    """What a run has recorded in its folder, the last time if it has gone on there; None where there is nothing."""
    found = sorted(folder.glob(f"{Path(NAME).stem}*.json"), key=lambda path: (len(path.name), path.name))
    return plain_json(found[-1]) if found else None


def of_encoder(path: Path) -> dict[str, Any] | None:
    """The provenance of an exported encoder or of a checkpoint, None where its run has recorded none."""
    if path.suffix == ".ckpt":
        return left_by(path.absolute().parents[1])
    described = encoder_files(path)[1]
    return mapping(plain_json(described), "provenance") or None if described.is_file() else None


def command(arguments: Sequence[str]) -> str:
    """The command line as it can be typed again."""
    program, *rest = arguments or [""]
    name = "ssl-zoo" if Path(program).name == "__main__.py" and Path(program).parent == PACKAGE else Path(program).name
    return shlex.join([name, *rest])


# Code

def package_code() -> dict[str, Any]:
    """The commit of ssl_zoo's checkout, or the one that pip has installed it from, and whether the tree was clean."""
    if git(PACKAGE, "ls-files", "--error-unmatch", "__init__.py"):   # not that of a project with a venv inside
        return checkout(PACKAGE)
    with suppress(metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        installed = json.loads(metadata.distribution("ssl_zoo").read_text("direct_url.json") or "")
        return {"commit": installed["vcs_info"]["commit_id"], "clean": True}
    return {"commit": None, "clean": None}


def working_folder() -> dict[str, Any]:
    """The current folder, and its commit if it belongs to a git repository: a method of one's own may be in it."""
    try:
        here = Path.cwd()
    except OSError:                    # it has been removed
        return {"path": None, "commit": None, "clean": None}
    return {"path": str(here), **checkout(here)}


def checkout(folder: Path) -> dict[str, Any]:
    """The commit of a folder, and whether its files are as committed: new files count where they are Python's."""
    lines = (git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=normal") or "").splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    if commit is None or commit == "(initial)":
        return {"commit": None, "clean": None}
    changed = [line for line in lines if line[0] in "12u" or line[0] == "?" and line.endswith(".py")]
    return {"commit": commit, "clean": not changed}


def git(folder: Path, *arguments: str) -> str | None:
    """What git prints, None where it fails or is not there."""
    # GIT_DIR, which git sets for its hooks, names another repository; a lock would disturb a commit of the user's
    around = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=PATIENCE,
                              check=False, errors="replace", env=around | {"GIT_OPTIONAL_LOCKS": "0"})
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


# Packages and machine

@cache
def packages() -> dict[str, str]:
    """Python's version and those of the installed packages that matter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    return {"cpu": cpu(), "cores": cores(), "gpu": ", ".join(gpus) or None, "cuda": torch.version.cuda,
            "system": platform.platform()}


def cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Images

def images(data: Any) -> dict[str, Any]:
    """What a data module has read: its class, where it is, and number and fingerprint of the images of each part."""
    where = getattr(getattr(data, "understood", None), "where", None)
    root = os.path.abspath(os.path.expanduser(where)) if where else None
    return {"class": type(data).__name__, "root": root if root and os.path.exists(root) else where,
            **{name: of_part(getattr(data, name, None)) for name in ("train", "test")}}


def of_part(part: Any) -> dict[str, Any] | None:
    """The number of a part's images and a hash that is the same where the same images lie in another folder.

    Of files it is one of their names below their common folder, of their labels, and of a thousand sizes: it changes
    when images are added, removed, renamed, relabelled or scaled. Of images in memory it is one of all their pixels.
    """
    if part is None or not hasattr(part, "__len__"):
        return None
    names = getattr(part, "names", None)
    if isinstance(names, list) and names and os.path.isfile(names[0]):
        return {"images": len(part), "fingerprint": of_files(names, getattr(part, "labels", None))}
    return {"images": len(part), "fingerprint": part.fingerprint() if hasattr(part, "fingerprint") else None}


def of_files(names: Sequence[str], labels: torch.Tensor | None) -> str:
    top = len(os.path.dirname(os.path.commonprefix([os.path.dirname(name) + os.sep for name in names])))
    digest = hashlib.blake2b(digest_size=8)
    for line in (*(name[top:] for name in names), *sizes(names[::-(-len(names) // LOOKED_AT)])):
        digest.update(os.fsencode(f"{line}\n"))
    if labels is not None:
        digest.update(labels.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def sizes(names: Sequence[str]) -> Iterator[str]:
    """The bytes of each file; of one that is gone, nothing."""
    for name in names:
        try:
            yield str(os.stat(name).st_size)
        except OSError:
            yield "-"
