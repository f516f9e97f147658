"""Are the recipes' runs those of another checkout? Compares every setting of every recipe, defaults included.

    python benchmarks/same_runs.py CHECKOUT

Prints each setting that differs, with both values and the recipes in which it does. Callbacks are compared by what they
measure and keep, because a list in `trainer.callbacks` and the groups `evaluation`, `report` and `checkpoints` say the
same; an unset precision is 32-true, and `devices: auto` is 1 on a CPU.
"""

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from record import ROOT

# runs in either checkout; before the commands had a room of their own, they stood in one file
DUMP = """
import sys
from pathlib import Path
try:
    from ssl_zoo.cli.fit import Cli
except ImportError:
    from ssl_zoo.cli import Cli

class Settings(Cli):
    def instantiate_classes(self):
        print(f"--- {recipe}", self.parser.dump(self.config, skip_none=False), sep="\\\\n")

for path in sorted(Path("recipes").rglob("*.yaml")):
    recipe = path.relative_to("recipes").with_suffix("").as_posix()
    Settings(["--config", str(path)], run=False)
""".replace("\\\\n", "\\n")


def settings(checkout: Path) -> dict[str, dict[str, Any]]:
    """By recipe all its settings, flat: name with dots -> value."""
    printed = subprocess.run([sys.executable, "-c", DUMP], cwd=checkout, check=True, text=True, capture_output=True,
                             env=os.environ | {"PYTHONPATH": str(checkout)}).stdout
    found = {}
    for one in printed.split("--- ")[1:]:
        name, _, text = one.partition("\n")
        found[name] = dict(flat(as_today(yaml.safe_load(text))))
    return found


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def as_today(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with its callbacks as the groups of today, and with values in one form that mean the same."""
    trainer = recipe["trainer"]
    trainer["precision"] = trainer["precision"] or "32-true"
    if trainer["accelerator"] == "cpu" and trainer["devices"] == "auto":
        trainer["devices"] = 1
    measured: set[str] = set()
    for callback in trainer.pop("callbacks") or []:
        name, arguments = callback["class_path"].rpartition(".")[2], callback.get("init_args", {})
        if name == "Report":
            recipe["report"] = arguments
        elif name == "ModelCheckpoint":
            recipe["checkpoints"] = {"every_n_epochs": arguments["every_n_epochs"]}
        elif name == "KNN":
            measured |= set(arguments["protocols"])
        else:
            measured.add({"LinearProbe": "linear_cached", "Health": "health", "Neighbours": "neighbours"}[name])
    recipe.setdefault("checkpoints", {"every_n_epochs": None})
    for one in recipe.pop("evaluation", {"protocols": []})["protocols"]:
        if one == "knn":
            measured |= {"knn_instdisc", "knn_dino"}
        else:
            measured |= {one} if isinstance(one, str) else set(one["init_args"]["votes"])
    return recipe | {"evaluation": sorted(measured)}


if __name__ == "__main__":
    there, here = settings(Path(sys.argv[1]).absolute()), settings(ROOT)
    differ: dict[str, list[str]] = defaultdict(list)
    for recipe in sorted(there.keys() | here.keys()):
        if recipe not in there or recipe not in here:
            differ[f"only {'here' if recipe in here else 'there'}"].append(recipe)
            continue
        for name in there[recipe].keys() | here[recipe].keys():
            values = there[recipe].get(name, "absent"), here[recipe].get(name, "absent")
            if values[0] != values[1]:
                differ[f"{name}: {values[0]} there, {values[1]} here"].append(recipe)
    for said, recipes in sorted(differ.items()):
        print(f"{said} ({len(recipes)}: {', '.join(recipes)})")
    print(f"{len(here)} recipes, {sum(map(len, here.values()))} settings, {len(differ)} differences")
    sys.exit(bool(differ))
