"""The command check."""

import copy
import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_zoo import contract
from ssl_zoo.cli.messages import Options, did_you_mean
from ssl_zoo.cli.recipes import path_of

# Sizes of constructor arguments by their names, at most, so that a method trains in a second: a recipe's are a GPU's.
SMALL = {"queue": 20, "prototypes": 6, "splits": 2, "hardest": 8, "pairs": 4, "with_query": 3, "start": 0,
         "queue_start": 0, "freeze_steps": 2, "global_batch": 8, "images": 27}
WIDTH, WIDTHS = 16, ("projector", "predictor")      # of hidden layers, and the arguments that list them
PARTS: dict[str, Any] = {
    "encoder": {"class_path": "NarrowResNet", "init_args": {"width": 4, "stages": 2}},
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}},
    "schedule": {"warmup": 0.2, "start": 0.1},
}
SIDE = 16                                           # pixels of the largest view
VIEWS = {
    "two views": [{"size": 16, "count": 2, "jitter": 0.8, "gray": 0.2, "blur": 0.5, "solarize": 0.2}],
    "multi-crop": [{"size": 16, "count": 2, "jitter": 0.8, "role": "global"},
                   {"size": 8, "count": 3, "role": "local", "scale": [0.05, 0.3]}],
}


def check(arguments: Sequence[str]) -> None:
    """Find out whether a method keeps the contract: on noise images, with a small encoder and small sizes.

    METHOD is a class by its import path, such as my_module.Align of my_module.py in the current folder, or one of
    ssl_zoo's methods by its name; with --config, the method of a recipe, reduced in size.
    """
    parser = Options("check", check.__doc__, others=("--model.",),
                     epilog="Options --model.NAME VALUE are those of the method, as in ssl-zoo fit.")
    parser.add_argument("method", nargs="?", metavar="METHOD", help="the class to check")
    parser.add_argument("--config", help="a recipe whose method is checked, by its file or its name")
    parser.add_argument("--checks", nargs="+", metavar="NAME", help="only these checks, of those that are printed")
    options, rest = parser.parse_known_args(arguments)
    if (options.method is None) == (options.config is None):
        raise ValueError("check one method: name a class, such as ssl-zoo check my_module.Align, or a recipe with "
                         "--config")
    checks = options.checks or list(contract.NAMES)
    if missing := [name for name in checks if name not in contract.NAMES]:
        raise ValueError(f"there is no check {missing[0]}{did_you_mean(missing[0], contract.NAMES)}")
    build, said = small_method(options.method, options.config and Path(path_of(options.config)), rest)
    print(said)
    failed = 0
    for result in contract.results(build, checks):
        failed += not result.passed
        print(f"{'ok' if result.passed else 'FAILED':8}{result.name:14}{result.sentence}", flush=True)
    if failed:
        sys.exit(f"{failed} of {len(checks)} checks failed")


def small_method(name: str | None, recipe: Path | None, options: Sequence[str]) -> tuple[Any, str]:
    """What builds the method at a small size, and what it builds, for the heading."""
    import yaml
    model: Any = {"class_path": name}
    if recipe is not None:
        model = copy.deepcopy((yaml.safe_load(recipe.read_text()) or {}).get("model"))
        if not isinstance(model, dict) or "class_path" not in model:
            raise ValueError(f"{recipe} names no method: it needs model: class_path")
    given = model.setdefault("init_args", {})
    given |= sizes(class_called(model["class_path"]), given) | PARTS
    rows = given.get("augment", {}).get("views")
    tries = VIEWS if rows is None else {"the recipe's views": small_rows(rows)}
    errors = []
    for views, rows in tries.items():
        given["augment"] = {"views": rows}
        build = functools.partial(method_of, ("--model", json.dumps(model), *options))
        try:
            method = build()
        except ValueError as error:        # perhaps it wants another number of views
            errors.append(error)
        else:
            plain = {key: value for key, value in method.hparams.items() if isinstance(value, int | float | str | list)}
            shown = ", ".join(f"{key}={value}" for key, value in plain.items())
            sides = sorted({f"{view.size}" for view in method.augment.views})
            return build, (f"{type(method).__name__}({shown}) on {type(method.encoder).__name__} of "
                           f"{method.encoder.dim} features, {views} of {' and '.join(sides)} pixels")
    raise errors[0]


def method_of(arguments: Sequence[str]) -> Any:
    """The method that these options describe."""
    from ssl_zoo.cli.fit import Parser
    from ssl_zoo.method import Method
    parser = Parser("ssl-zoo check")
    parser.add_lightning_class_args(Method, "model", subclass_mode=True)
    return parser.instantiate_classes(parser.parse_args(list(arguments))).model


def class_called(path: str) -> type:
    """A class by its import path, or one of ssl_zoo's methods by its name."""
    from importlib import import_module
    module, _, name = path.rpartition(".")
    kind = getattr(import_module(module or "ssl_zoo.methods"), name, None)
    if not isinstance(kind, type):
        raise ValueError(f"there is no class {name} in {module or 'ssl_zoo.methods'}")
    return kind


def sizes(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of a class that are too large for a check, at the size they get: of what is given or default."""
    parameters = {name: one for parent in reversed(kind.__mro__) if "__init__" in vars(parent)
                  for name, one in inspect.signature(parent.__init__).parameters.items()}   # type: ignore[misc]
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        value = given.get(name, parameter.default)
        if name in SMALL and value is parameter.empty:
            found[name] = SMALL[name]
        elif name in SMALL and type(value) is int:
            found[name] = min(value, SMALL[name])
        elif name in WIDTHS and isinstance(value, list | tuple):
            found[name] = [min(width, WIDTH) for width in value]
    return found


def small_rows(rows: Any) -> list[dict[str, Any]]:
    """A recipe's rows of views, with the largest at 16 pixels."""
    from ssl_zoo.views.specs import PRESETS
    if isinstance(rows, str):
        rows = [dataclasses.asdict(row) for row in PRESETS[rows]]
    largest = max(row["size"] for row in rows)
    return [{name: value for name, value in row.items() if name != "kernel"} |
            {"size": min(row["size"], max(8, row["size"] * SIDE // largest))} for row in rows]
