"""Imports point from the command line down to plain torch, never back, and only the shell reaches Lightning."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ssl_zoo"
LAYERS = ["paths files finite own_code distributed schedules",
          "pictures weights blocks grouped loggers provenance logs", "views published",
          "losses assignment memory heads encoders optim draws",
          "adaptive mixing sketching export start batches multi_view clusters vocabulary slots quality", "course",
          "method", "checkpoints saving", "methods data stopping monitor peers progress gradient_cache fast",
          "evaluation", "metrics bench features", "alike", "contract", "cli", "__main__"]
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer.split()}
LIGHTNING = ("ssl_zoo.bench", "ssl_zoo.method", "ssl_zoo.methods", "ssl_zoo.monitor", "ssl_zoo.checkpoints",
             "ssl_zoo.saving", "ssl_zoo.stopping", "ssl_zoo.peers", "ssl_zoo.gradient_cache", "ssl_zoo.fast",
             "ssl_zoo.contract", "ssl_zoo.cli", "ssl_zoo.data.images", "ssl_zoo.data.arrays", "ssl_zoo.data.digits",
             "ssl_zoo.data.folder", "ssl_zoo.data.hugging_face", "ssl_zoo.data.shards",
             "ssl_zoo.data.torchvision_sets", "ssl_zoo.evaluation.callback", "ssl_zoo.evaluation.curve",
             "ssl_zoo.evaluation.former", "ssl_zoo.data.photographs", "ssl_zoo.progress")
FILES = sorted(PACKAGE.rglob("*.py"))


def module(file):
    """ssl_zoo/methods/simclr.py -> ssl_zoo.methods.simclr"""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(file): file for file in FILES}


def part(name):   # ssl_zoo.methods.simclr -> methods
    return name.split(".")[1]


def executed(tree):
    """The nodes of a file that run: not those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from executed(node)


@cache
def imports(name):
    """The modules that a module names in its imports; `from ssl_zoo import x` is ssl_zoo.x."""
    found = set()
    for node in executed(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            files = {one for one in below if one in MODULES}
            found |= files if files and len(files) == len(below) else files | {node.module}
    return found


@cache
def closure(name):
    """All modules that are loaded with a module: what it imports, the packages around that, and what these import."""
    found, open_ = set(), [name]
    while open_:
        one = open_.pop()
        if one not in found:
            found.add(one)
            if one in MODULES:
                open_ += [*imports(one), *(one.rsplit(".", i)[0] for i in range(1, one.count(".") + 1))]
    return found


def is_lightning(name):
    return name.partition(".")[0] in ("pytorch_lightning", "lightning")


def knows_lightning(name):
    return any(name == allowed or name.startswith(f"{allowed}.") for allowed in LIGHTNING)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name):
    if name != "ssl_zoo":
        for other in imports(name):
            if other.startswith("ssl_zoo.") and part(other) != part(name):
                assert LEVEL[part(other)] < LEVEL[part(name)], f"{name} imports {other}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_shell_reaches_lightning_directly_or_through_others(name):
    if not knows_lightning(name):
        through = sorted(one for one in closure(name) if one in MODULES and any(map(is_lightning, imports(one))))
        assert not through, f"{name} loads {', '.join(through)}"


def test_an_import_of_an_import_is_followed():
    assert {"ssl_zoo.distributed", "torch", "ssl_zoo"} <= closure("ssl_zoo.evaluation.knn")
    assert "pytorch_lightning" in closure("ssl_zoo.evaluation.former")


def test_pure_parts_are_imported_without_lightning_and_the_names_of_protocols_without_torch():
    pure = [name for name in sorted(MODULES) if not knows_lightning(name) and not name.endswith("__main__")]
    assert {"ssl_zoo.losses", "ssl_zoo.metrics", "ssl_zoo.evaluation.knn", "ssl_zoo.evaluation.suite"} <= set(pure)
    say = f"""
import sys
from importlib import import_module
from ssl_zoo.evaluation import protocols
assert "knn" in protocols.names() and "torch" not in sys.modules
for name in {pure}:
    import_module(name)
    assert "pytorch_lightning" not in sys.modules, name
"""
    assert subprocess.run([sys.executable, "-c", say], check=False, cwd=ROOT).returncode == 0


def test_every_part_has_its_layer():
    assert {part(name) for name in MODULES if name != "ssl_zoo"} <= LEVEL.keys()


def test_nothing_is_called_utils():
    vague = {"utils", "helpers", "common", "core", "base", "misc", "manager"}
    assert not [path for path in PACKAGE.rglob("*") if path.stem in vague]


def test_the_base_class_is_short_and_so_are_the_methods():
    assert len((PACKAGE / "method.py").read_text().splitlines()) <= 120
    assert all(len(file.read_text().splitlines()) <= 100 for file in (PACKAGE / "methods").glob("[a-z]*.py"))


def test_no_file_is_long_and_no_function_does_not_fit_a_screen():
    for name, file in MODULES.items():
        text = file.read_text()
        assert len(text.splitlines()) <= 400, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40 + (name == "ssl_zoo.cli.evaluate"), f"{name}.{node.name}"
