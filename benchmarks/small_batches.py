"""Does SogCLR learn from small batches what SimCLR needs large ones for? kNN at a batch of 32 and of 256, three seeds.

    python benchmarks/small_batches.py [--seeds 3] [METHOD ...]    about 5 minutes for a method, batch and seed

simclr, sogclr and isogclr as their recipes cifar10/*_cpu have them, on 5,000 images for the same number of epochs; the
learning rate is the recipes' times the root of batch / 256 for each method (the rule for Adam). Each run is recorded
when it ends, and is not repeated.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import yaml
from learning import arrays, run, unpack
from record import ROOT, commit, record

from ssl_zoo.cli.messages import quiet
from ssl_zoo.cli.recipes import shipped

IMAGES, EPOCHS, BATCHES, METHODS = 5000, 8, (32, 256), ("simclr", "sogclr", "isogclr")
PROTOCOLS = ("knn_instdisc", "knn_dino", "linear_cached")


def measure(method: str, batch: int, seed: int, folder: str) -> dict:
    """Steps, seconds, and the untrained and the trained encoder's accuracy by protocol."""
    options = yaml.safe_load(shipped()[f"cifar10/{method}_cpu"].read_text())["model"]["init_args"]
    rate = options["optimizer"]["init_args"]["lr"] * math.sqrt(batch / 256)
    extra = ["--trainer.max_epochs", EPOCHS, "--trainer.check_val_every_n_epoch", EPOCHS, "--data.batch_size", batch,
             "--model.optimizer.lr", rate, *(["--model.images", IMAGES] if "images" in options else [])]
    images = arrays(unpack(Path(tempfile.gettempdir()), IMAGES))
    found = run(f"cifar10/{method}_cpu", images, seed, folder, list(map(str, extra)))
    last = list(found.values())[-1]
    return {"seed": seed, "steps": found["steps"], "seconds": found["seconds"], "commit": commit(),
            **{name: {"untrained": found["untrained encoder"][name], "trained": last[name]} for name in PROTOCOLS}}


def main(methods: list[str], seeds: int) -> None:
    kept = ROOT / "benchmarks/results/small_batches.json"
    runs = json.loads(kept.read_text())["figures"]["runs"] if kept.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for method in methods or METHODS:
                for batch in BATCHES:
                    done = runs.setdefault(f"{method}, batch {batch}", [])
                    if seed not in [one["seed"] for one in done]:
                        done.append(measure(method, batch, seed, folder))
                        record("small_batches", {"images": IMAGES, "epochs": EPOCHS, "runs": runs})


if __name__ == "__main__":
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=3)
    main(**vars(parser.parse_args()))
