"""Imports point from the command line down to plain torch, never back."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ssl_zoo"
LAYERS = ["distributed schedules pictures", "views",
          "losses assignment memory heads encoders optim", "adaptive mixing export", "method",
          "methods data monitor checkpoints", "evaluation", "cli", "__main__"]
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer.split()}
LIGHTNING = {"method", "methods", "evaluation", "data", "monitor", "cli"}
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


def part(module):   # ssl_zoo.methods.simclr -> methods
    return module.split(".")[1]


def here(file):
    return part(".".join(("ssl_zoo", *file.relative_to(PACKAGE).with_suffix("").parts)))


def imports(file):
    """Modules that a file imports; `from ssl_zoo import x` is ssl_zoo.x, and of the package itself nothing else is."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "ssl_zoo":
            yield from (f"ssl_zoo.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    for module in imports(file):
        if module.startswith("ssl_zoo.") and part(module) != here(file):
            assert LEVEL[part(module)] < LEVEL[here(file)], f"{here(file)} imports {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_the_shell_knows_lightning(file):
    if here(file) not in LIGHTNING:
        assert not [module for module in imports(file) if re.match("pytorch_lightning|lightning", module)]


def test_every_part_has_its_layer():
    assert {here(file) for file in FILES} == LEVEL.keys()


def test_nothing_is_called_utils():
    vague = {"utils", "helpers", "common", "core", "base", "misc", "manager"}
    assert not [path for path in PACKAGE.rglob("*") if path.stem in vague]


def test_the_base_class_is_short_and_so_are_the_methods():
    assert len((PACKAGE / "method.py").read_text().splitlines()) <= 120
    assert all(len(file.read_text().splitlines()) <= 80 for file in (PACKAGE / "methods").glob("[a-z]*.py"))
