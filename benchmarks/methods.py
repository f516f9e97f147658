"""Does every method learn? kNN on 5,000 images of CIFAR-10, of the trained less the untrained encoder's, on the CPU.

    python benchmarks/methods.py [RECIPE ...]    all of cifar10/*_cpu, three seeds, about 2 minutes each

Each run is recorded when it ends, with the commit at which it ran, and is not repeated: another call goes on where this
one stopped.
"""

import json
import sys
import tempfile
from pathlib import Path

import yaml
from learning import arrays, run, unpack
from record import ROOT, commit, record

from ssl_zoo.cli.messages import quiet
from ssl_zoo.cli.recipes import shipped

JUDGE = "cifar10/simclr_cpu"                     # its encoder weighs pairs, where a recipe has a judge
IMAGES, EPOCHS, SEEDS = 5000, 8, (0, 1, 2)       # 19 steps of 256 images an epoch
PROTOCOLS = ("knn_instdisc", "knn_dino", "linear_cached")


def measure(recipe: str, seed: int, folder: str) -> dict:
    """Steps, the processor's seconds, and by protocol accuracies, untrained and trained."""
    images = arrays(unpack(Path(tempfile.gettempdir()), IMAGES))
    extra = ["--trainer.max_epochs", str(EPOCHS), "--trainer.check_val_every_n_epoch", str(EPOCHS)]
    options = yaml.safe_load(shipped()[recipe].read_text())["model"]["init_args"]
    own = ["--model.images", str(IMAGES)] if "images" in options else []                     # of a table by image
    if "judge" in options:                                                                   # what SimCLR learns first
        run(JUDGE, images, seed, folder, extra)
        left = Path(folder, JUDGE).glob("version_*/encoder.safetensors")
        own += ["--model.judge", str(max(left, key=lambda file: file.stat().st_mtime))]
    found = run(recipe, images, seed, folder, [*extra, *own])
    last = list(found.values())[-1]
    return {"steps": found["steps"], "seconds": found["seconds"], "commit": commit(),
            **{name: {"untrained": found["untrained encoder"][name], "trained": last[name]} for name in PROTOCOLS}}


def with_run(runs: dict, found: dict) -> dict:
    """A method's figures, a list over the seeds each, with one more run of it."""
    lists = {key: [*runs.get(key, []), found[key]] for key in ("seconds", "commit")}
    return {"steps": found["steps"]} | lists | {
        name: {which: [*runs.get(name, {}).get(which, []), value] for which, value in found[name].items()}
        for name in PROTOCOLS}


if __name__ == "__main__":
    quiet()
    recipes = sys.argv[1:] or [name for name in shipped() if name.startswith("cifar10/") and name.endswith("_cpu")]
    kept = ROOT / "benchmarks/results/methods.json"
    results = json.loads(kept.read_text())["figures"]["methods"] if kept.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for recipe in recipes:
            name = Path(recipe).name.removesuffix("_cpu")
            for seed in SEEDS[len(results.get(name, {}).get("commit", [])):]:
                results[name] = with_run(results.get(name, {}), measure(recipe, seed, folder))
                record("methods", {"images": IMAGES, "epochs": EPOCHS, "seeds": SEEDS,
                                   "methods": dict(sorted(results.items()))})
