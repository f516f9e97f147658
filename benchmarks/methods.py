"""Does every method learn? kNN on 5,000 images of CIFAR-10, of the trained less the untrained encoder's, on the CPU.

    python benchmarks/methods.py [RECIPE ...]    all of cifar10/*_cpu, three seeds, about 3 minutes each

Each method's figures are recorded when it ends, with the commit at which it ran; the others' stay as they were.
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
IMAGES, EPOCHS, SEEDS = 5000, 8, (0, 1, 2)   # 19 steps of 256 images an epoch


def measure(recipe: str, folder: str) -> dict:
    """Steps, the processor's seconds of each run, and by protocol accuracies, untrained and trained."""
    images = arrays(unpack(Path(tempfile.gettempdir()), IMAGES))
    extra = ["--trainer.max_epochs", str(EPOCHS), "--trainer.check_val_every_n_epoch", str(EPOCHS)]
    options, runs = yaml.safe_load(shipped()[recipe].read_text())["model"]["init_args"], []
    for seed in SEEDS:
        own = ["--model.images", str(IMAGES)] if "images" in options else []                 # of a table by image
        if "judge" in options:                                                               # what SimCLR learns first
            run(JUDGE, images, seed, folder, extra)
            left = Path(folder, JUDGE).glob("version_*/encoder.safetensors")
            own += ["--model.judge", str(max(left, key=lambda file: file.stat().st_mtime))]
        runs.append(run(recipe, images, seed, folder, [*extra, *own]))
    return {"steps": runs[0]["steps"], "seconds": [one["seconds"] for one in runs],
            **{protocol: {"untrained": [one["untrained encoder"][protocol] for one in runs],
                          "trained": [list(one.values())[-1][protocol] for one in runs]}
               for protocol in ("knn_instdisc", "knn_dino", "linear_cached")}}


if __name__ == "__main__":
    quiet()
    recipes = sys.argv[1:] or [name for name in shipped() if name.startswith("cifar10/") and name.endswith("_cpu")]
    kept = ROOT / "benchmarks/results/methods.json"
    results = json.loads(kept.read_text())["figures"]["methods"] if kept.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for recipe in recipes:
            results[Path(recipe).name.removesuffix("_cpu")] = measure(recipe, folder) | {"commit": commit()}
            record("methods", {"images": IMAGES, "epochs": EPOCHS, "seeds": SEEDS,
                               "methods": dict(sorted(results.items()))})
