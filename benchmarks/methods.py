"""Does every method learn? kNN on 5,000 images of CIFAR-10, of the trained less the untrained encoder's, on the CPU.

    python benchmarks/methods.py [RECIPE ...]    all of recipes/cifar10/*_cpu.yaml, about a minute each

Each method's figures are recorded when it ends, with the commit at which it ran; the others' stay as they were.
"""

import json
import sys
import tempfile
from pathlib import Path

from learning import run, unpack
from record import ROOT, commit, record

from ssl_zoo.cli import quiet

IMAGES, EPOCHS = 5000, 8   # 19 steps of 256 images an epoch


def measure(recipe: Path, folder: str) -> dict:
    path = unpack(Path(tempfile.gettempdir()), IMAGES)
    figures = run(path, 0, folder, ["--trainer.max_epochs", str(EPOCHS), "--trainer.check_val_every_n_epoch",
                                    str(EPOCHS)], recipe)
    before, after = figures["untrained encoder"], list(figures.values())[-1]
    return {"steps": figures["steps"], "seconds": figures["seconds"],
            **{protocol: {"untrained": before[protocol], "trained": after[protocol],
                          "gain": round(after[protocol] - before[protocol], 4)}
               for protocol in ("knn_instdisc", "knn_dino", "linear_cached")}}


if __name__ == "__main__":
    quiet()
    recipes = [Path(name).absolute() for name in sys.argv[1:]] or sorted(ROOT.glob("recipes/cifar10/*_cpu.yaml"))
    kept = ROOT / "benchmarks/results/methods.json"
    results = json.loads(kept.read_text())["figures"]["methods"] if kept.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for recipe in recipes:
            results[recipe.stem.removesuffix("_cpu")] = measure(recipe, folder) | {"commit": commit()}
            record("methods", {"images": IMAGES, "epochs": EPOCHS, "seed": 0, "methods": dict(sorted(results.items()))})
