"""The command new."""

import importlib.util
import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_zoo.cli.messages import Options
from ssl_zoo.cli.recipes import PACKAGE, shipped
from ssl_zoo.files import put
from ssl_zoo.paths import plain_yaml

USED = ("Batch", "F", "Method", "Tensor")                    # names that the written file needs
OF_ALL = ("encoder", "augment", "optimizer", "schedule")   # options of a model that every method has
# Of `ssl-zoo new Align`, which the README shows
METHOD = '''import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.distributed import gather
from ssl_zoo.heads import mlp
from ssl_zoo.method import Batch, Method


class {name}(Method):
    """Two views of an image have the same projection, and the batch spreads over the sphere (arXiv:2005.10242).

    Args:
        width: of the projection.
    """

    def __init__(self, width: int = 128, **kwargs):
        super().__init__(**kwargs)
        self.augment.require_views("{name}")
        self.projector = mlp(self.encoder.dim, self.encoder.dim, width)

    def training_loss(self, batch: Batch) -> Tensor:
        z1, z2 = (F.normalize(self.projector(self.encoder(view.images)), dim=-1) for view in batch.views)
        spread = (crowding(gather(z1)) + crowding(gather(z2))) / 2     # of the rows of all processes
        return (z1 - z2).square().sum(-1).mean() + spread


def crowding(z: Tensor) -> Tensor:
    """The paper's uniformity at t = 2, plus 4, of unit rows z [B, D]: 4 where all are equal, less where they spread."""
    return (z @ z.T).mul(4).exp().mean().log()
'''
RECIPE = '''# Paper: {name}, a method of {file}.py
# Run: ssl-zoo fit --config {file}
{settings}'''
TEST = '''import math

import torch

from ssl_zoo.cli import run
from {file} import crowding


def test_{file}_keeps_the_contract():
    run(["check", "{file}.{name}"])      # ends with status 1 where it does not


def test_crowding_is_what_the_equation_gives_at_known_points():
    assert math.isclose(crowding(torch.eye(4)), math.log((4 * math.exp(4) + 12) / 16), rel_tol=1e-6)   # orthogonal
    assert math.isclose(crowding(torch.eye(4)[:1].repeat(3, 1)), 4, rel_tol=1e-6)                      # all equal
'''


def new(arguments: Sequence[str]) -> None:
    """Begin a method of your own: write the class, a recipe and a test into this folder, to be changed.

    They train and pass ssl-zoo check as they are. Nothing that exists is replaced.
    """
    parser = Options("new", new.__doc__)
    parser.add_argument("name", metavar="NAME", help="what the class is called, such as Align")
    name = parser.parse_args(arguments).name
    require_class_name(name)
    file = re.sub(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    files = {Path(f"{file}.py"): METHOD, Path(f"{file}.yaml"): RECIPE, Path(f"test_{file}.py"): TEST}
    require_free(file, list(files))
    settings = recipe_of(f"{file}.{name}")
    for path, text in files.items():
        put(path, text.format(name=name, file=file, settings=settings))
    method, recipe, test = files
    print(f"{method}: the method; training_loss is its equation\n"
          f"{recipe}: a recipe; ssl-zoo fit --config {file}\n"
          f"{test}: its test; pytest {test}\n"
          f"what every method promises: ssl-zoo check {file}.{name}")


def require_class_name(name: str) -> None:
    """Refuse what cannot be the name of a class, is not written as one, or is a method's of ssl_zoo."""
    if not name.isidentifier():
        near = "".join(word[0].upper() + word[1:] for word in re.findall(r"[^\W_]+", re.sub(r"^\W*\d+", "", name)))
        raise ValueError(f"{name!r} is not a name that Python takes for a class"
                         + (f": {near} would be" if near.isidentifier() else ", such as Align"))
    if keyword.iskeyword(name) or name in USED:
        whose = "of Python's own" if keyword.iskeyword(name) else "that the file itself needs"
        raise ValueError(f"{name} is a word {whose}: take another name, such as Align")
    known = {found.lower(): found for path in sorted((PACKAGE / "methods").glob("*.py"))
             for found in re.findall(r"(?m)^class (\w+)\(Method\)", path.read_text())}
    if taken := known.get(name.lower()):
        raise ValueError(f"ssl_zoo has a {taken} already: take another name, or train it with ssl-zoo fit --model "
                         f"{taken}")
    if not name[0].isupper():
        near = name.strip("_").title().replace("_", "") or "Align"
        raise ValueError(f"a class is written with a capital letter: {near} instead of {name}")


def require_free(file: str, files: Sequence[Path]) -> None:
    """Refuse files that are there, and a name that a module or a recipe has."""
    if there := [path for path in files if path.exists() or path.is_symlink()]:
        raise FileExistsError(f"{there[0]} is there already, and nothing is replaced: take another name, or another "
                              "folder")
    if keyword.iskeyword(file):
        raise ValueError(f"{file}.py cannot be imported, for {file} is a word of Python's own: take another name")
    for module in (file, f"test_{file}"):
        if module in sys.builtin_module_names or importlib.util.find_spec(module) is not None:
            raise ValueError(f"{module}.py would hide the module {module}, which is there already: take another name")
    if file in shipped():
        raise ValueError(f"{file}.yaml would hide the recipe {file}, which is shipped: take another name")


def recipe_of(path: str) -> str:
    """The settings of the quickstart, with another method that has its default options."""
    whole = plain_yaml(shipped()["quickstart"])
    model = whole.pop("model")["init_args"]
    parts = {option: value for option, value in model.items() if option in OF_ALL}
    return (lines(whole, "") + f"model:\n  class_path: {path}\n  init_args:\n" + lines(parts, "    "))


def lines(settings: dict[str, Any], indent: str) -> str:
    """A line for each setting, or some where it is long."""
    import yaml
    texts = {name: yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=100).strip()
             for name, value in settings.items()}
    return "".join(f"{indent}{name}: {text}\n".replace("\n", f"\n{indent}  ").rstrip() + "\n"
                   for name, text in texts.items())
