"""How do the full-size recipes of CIFAR-10 learn on one GPU? kNN by epoch, seconds an epoch and peak memory.

    python benchmarks/cifar10.py [--epochs 20] [--every 5] [RECIPE ...] [-- OPTION ...]

All of simclr, moco, swav, dcl, dclw, mochi and amcl where no name is given, seed 0, bfloat16; what stands behind --
goes to ssl-zoo fit. Each recipe's figures are recorded when it ends, the others' stay as they were. The schedule is
that of the epochs asked for. The images are the pack's, re-encoded as JPEG, so that figures are a little below the
published.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from learning import run, unpack
from record import ROOT, commit, record

from ssl_zoo.cli.messages import quiet

RECIPES = ("simclr", "moco", "swav", "dcl", "dclw", "mochi", "amcl")


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


def measure(name: str, epochs: int, every: int, folder: str, extra: list[str]) -> dict:
    clock = Clock()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    figures = run(unpack(Path(tempfile.gettempdir()), 50_000), 0, folder,
                  ["--trainer.max_epochs", str(epochs), "--trainer.check_val_every_n_epoch", str(every),
                   "--trainer.precision", "bf16-mixed", *extra], ROOT / f"recipes/cifar10/{name}.yaml", [clock])
    peak = round(torch.cuda.max_memory_allocated() / 2 ** 30, 2) if torch.cuda.is_available() else None
    return figures | {"epochs": epochs, "seconds_per_epoch": round(statistics.median(clock.seconds), 2),
                      "peak_gib": peak, "options": extra, "commit": commit()}


def main(recipes: list[str], epochs: int, every: int, extra: list[str]) -> None:
    kept = ROOT / "benchmarks/results/cifar10.json"
    results = json.loads(kept.read_text())["figures"] if kept.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in recipes or RECIPES:
            results[name] = measure(name, epochs, every, folder, extra)
            record("cifar10", results)


if __name__ == "__main__":
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every", type=int, default=5)
    options, extra = parser.parse_known_args()
    main(options.recipes, options.epochs, options.every, [word for word in extra if word != "--"])
