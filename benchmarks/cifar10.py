"""How do the full-size recipes of CIFAR-10 learn on one GPU? kNN by epoch, seconds an epoch and peak memory.

    python benchmarks/cifar10.py [--epochs 20] [--every 5] [RECIPE ...] [-- OPTION ...]

Without names it runs cifar10/simclr, moco, swav, dcl, dclw, mochi and amcl, with seed 0 and each recipe's own
precision; what follows -- goes to ssl-zoo fit. Each recipe's figures are recorded when it ends, and the others' stay as
they were. The schedule is that of the epochs asked for. The images are the pack's, which are re-encoded as JPEG, so
figures are a little below the published ones.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from learning import arrays, run, unpack
from record import ROOT, commit, record

from ssl_zoo.cli.messages import quiet

RECIPES = tuple(f"cifar10/{name}" for name in ("simclr", "moco", "swav", "dcl", "dclw", "mochi", "amcl"))


class Clock(pl.Callback):
    """Seconds of each epoch's training, without its evaluation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        if trainer.is_last_batch:                      # evaluation comes next
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.start)


def measure(name: str, images: list[str], folder: str, extra: list[str]) -> dict:
    """A run's figures with the median seconds of an epoch and the peak of the GPU's memory."""
    clock = Clock()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    figures = run(name, images, 0, folder, extra, [clock])
    peak = round(torch.cuda.max_memory_allocated() / 2 ** 30, 2) if torch.cuda.is_available() else None
    return figures | {"seconds_per_epoch": round(statistics.median(clock.seconds), 2), "peak_gib": peak,
                      "options": extra, "commit": commit()}


def measure_all(recipes: Sequence[str], images: list[str], extra: list[str], benchmark: str) -> None:
    """Record each recipe's figures when it ends; those of other recipes stay as they were."""
    kept = ROOT / "benchmarks/results" / f"{benchmark}.json"
    results = json.loads(kept.read_text())["figures"] if kept.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in recipes:
            results[name] = measure(name, images, folder, extra)
            record(benchmark, results)


def asked(doc: str | None, epochs: int, every: int) -> tuple[list[str], list[str]]:
    """The recipes named on the command line, and the options for each run."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--every", type=int, default=every, help="epochs between evaluations")
    words = sys.argv[1:]
    dashes = words.index("--") if "--" in words else len(words)   # argparse would take what follows for recipes
    options, unknown = parser.parse_known_args(words[:dashes])
    if unknown:
        parser.error(f"{' '.join([*options.recipes, *unknown])}: put options of ssl-zoo fit after --")
    return options.recipes, ["--trainer.max_epochs", str(options.epochs), "--trainer.check_val_every_n_epoch",
                             str(options.every), *words[dashes + 1:]]


if __name__ == "__main__":
    quiet()
    recipes, options = asked(__doc__, epochs=20, every=5)
    measure_all(recipes or RECIPES, arrays(unpack(Path(tempfile.gettempdir()), 50_000)), options, "cifar10")
