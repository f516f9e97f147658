"""What does each method learn from the same number of views? On 10,000 images of CIFAR-10, on the CPU.

    python benchmarks/zoo.py [--views 99840] [--seeds 3] [--at-once 2] [RECIPE ...]    3 minutes for a recipe and seed

Without names it runs one recipe of each class, cifar10/*_cpu. All have the encoder, optimiser, schedule and batch size
of COMMON, whatever their recipes say, and train until they have seen --views views, of whatever size; an image of two
views counts as two. All else, such as heads, temperatures, momenta, queues and views, is the recipe's, which was chosen
for a short run. Nothing was searched for, but for OBoW's words, crops, scale and momentum (the best of six tries of 50
steps), HaLP's weight and FT's batch and BYOL's (two or three tries of some hundred steps), all by kNN on test images,
seed 0. Seconds are those of the processor, on one thread and without evaluation, so that other work on the machine
counts little; memory is what training adds at its peak.

Each run is recorded when it ends, and is not repeated: another call goes on where this one stopped. Seed by seed, so
that after the first all methods are there. The table (results/zoo.md) and the pictures are made anew after each run.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
import yaml
from learning import unpack
from matplotlib.figure import Figure
from record import ROOT, commit, record

from ssl_zoo.cli.fit import Cli
from ssl_zoo.cli.messages import quiet
from ssl_zoo.cli.recipes import shipped
from ssl_zoo.evaluation.charts import COLOURS, LINES

IMAGES, MOMENTS = 10_000, 3      # evaluations while training, at even distances; the last is the result
COMMON = {"encoder": {"class_path": "NarrowResNet", "init_args": {"width": 32}},
          "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003, "weight_decay": 0.01}},
          "schedule": {"warmup": 0.05}}
BATCH = 256
PROTOCOLS = [{"class_path": "Knn", "init_args": {"votes": ["knn_dino"]}}, "linear_cached", "health"]
SHOWN = {"knn_dino": "{:.1%}", "linear_cached": "{:.1%}", "health/feature_std": "{:.2f}", "health/rankme": "{:.0f}"}
RESULTS = ROOT / "benchmarks/results"


class Curve(pl.Callback):
    """What each evaluation finds, after how many views and how many of the processor's seconds of training."""

    def __init__(self, views: int):
        self.views, self.seconds, self.points, self.peak = views, 0.0, [], 0.0
        self.since: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before, self.since = resident("VmRSS"), time.process_time()
        Path("/proc/self/clear_refs").write_text("5")          # the peak is counted from here

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.since is not None:                             # the untrained encoder's evaluation comes before
            self.seconds += time.process_time() - self.since
            self.peak = self.peak or resident("VmHWM") - self.before

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = {name: round(trainer.callback_metrics[name].item(), 4) for name in SHOWN}
        seen = trainer.global_step * self.views * BATCH
        self.points.append({"views": seen, "seconds": round(self.seconds, 1)} | found)
        if self.since is not None:
            self.since = time.process_time()


def resident(name: str) -> float:
    """MiB of this process in memory, now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def one_of_each() -> list[str]:
    """For each class the recipe cifar10/*_cpu of the shortest name, in alphabetical order."""
    found: dict[str, str] = {}
    for name in sorted((name for name in shipped() if name.startswith("cifar10/") and name.endswith("_cpu")), key=len):
        found.setdefault(yaml.safe_load(shipped()[name].read_text())["model"]["class_path"], name)
    return sorted(found.values())


def run(job: tuple[int, str, int, str]) -> tuple[str, dict]:
    """Train by a recipe's method and views, and by what is common to all: the method's name, and what was found."""
    seed, name, views, images = job
    torch.set_num_threads(1)
    quiet()
    recipe = yaml.safe_load(shipped()[name].read_text())
    options = recipe["model"]["init_args"]
    options |= COMMON | ({"images": IMAGES} if "images" in options else {})
    rows = Cli(["--config", str(shipped()[name]), "--trainer.accelerator", "cpu"], run=False).model.augment.count
    steps = views // (rows * BATCH * MOMENTS) * MOMENTS
    with tempfile.TemporaryDirectory() as folder:
        recipe |= {"data": {"class_path": "ArrayImages", "init_args": {"path": images, "batch_size": BATCH}},
                   "evaluation": {"protocols": PROTOCOLS}, "report": {"raw_pixels": False}, "seed_everything": seed,
                   "trainer": {"accelerator": "cpu", "max_epochs": -1, "max_steps": steps, "val_check_interval":
                               steps // MOMENTS, "check_val_every_n_epoch": None, "enable_progress_bar": False,
                               "logger": False, "enable_checkpointing": False, "default_root_dir": folder}}
        (file := Path(folder) / "zoo.yaml").write_text(yaml.safe_dump(recipe))
        cli, curve = Cli(["--config", str(file)], run=False), Curve(rows)
        cli.trainer.callbacks.append(curve)
        cli.trainer.fit(cli.model, cli.datamodule)
    return short(name), {"seed": seed, "steps": steps, "views_of_an_image": rows, "peak_mib": round(curve.peak),
                         "commit": commit(), "points": curve.points}


def short(recipe: str) -> str:
    """cifar10/simclr_cpu -> simclr"""
    return Path(recipe).name.removesuffix("_cpu")


def spread(values: list[float], form: str) -> str:
    """Mean and deviation over the seeds."""
    deviation = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
    return form.format(statistics.mean(values)) + deviation


def table(figures: dict) -> str:
    """One row for each method, the best kNN first; the untrained encoder last."""
    heads = ["method", "seeds", "steps", *SHOWN, "seconds", "MiB"]
    rows = []
    for name, runs in sorted(figures["runs"].items(), key=lambda item: -mean_of(item[1], "knn_dino")):
        last = [one["points"][-1] for one in runs]
        rows.append([name, str(len(runs)), str(runs[0]["steps"]),
                     *(spread([point[key] for point in last], form) for key, form in SHOWN.items()),
                     spread([point["seconds"] for point in last], "{:.0f}"),
                     spread([one["peak_mib"] for one in runs], "{:.0f}")])
    untrained = [one["points"][0] for one in max(figures["runs"].values(), key=len)]
    rows.append(["untrained encoder", str(len(untrained)), "0",
                 *(spread([point[key] for point in untrained], form) for key, form in SHOWN.items()), "", ""])
    lines = ["| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows]]
    said = f"After {figures['views']:,} views of {figures['images']:,} images; mean and deviation over seeds."
    return "\n".join([said, "", *lines, ""])


def mean_of(runs: list[dict], key: str, place: int = -1) -> float:
    return statistics.mean(one["points"][place][key] for one in runs)


def picture(figures: dict, axis: str, label: str) -> Figure:
    """kNN against views or seconds, a line for each method, named beside its end."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(figures["runs"].items(), key=lambda item: -mean_of(item[1], "knn_dino"))
    ends = []
    for number, (name, runs) in enumerate(ordered):
        places = range(len(runs[0]["points"]))
        colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
        drawn, = axes.plot([mean_of(runs, axis, place) for place in places],
                           [100 * mean_of(runs, "knn_dino", place) for place in places], label=name, marker="o",
                           markersize=3, linewidth=1, color=colour, linestyle=line)
        ends.append((*drawn.get_xydata()[-1], name))
    axes.set(title=f"All methods at one budget: {figures['images']:,} images of CIFAR-10, {figures['views']:,} views",
             xlabel=label, ylabel="accuracy of knn_dino, %")
    low, high = axes.get_ylim()
    heights = spread_out([end[1] for end in ends][::-1], low, high, 0.026 * (high - low))[::-1]
    for (x, y, name), height in zip(ends, heights, strict=True):
        axes.annotate(name, (x, y), (1.04, height), textcoords=("axes fraction", "data"), va="center", fontsize=7,
                      arrowprops={"arrowstyle": "-", "linestyle": ":", "color": "0.5", "relpos": (0, 0.5)})
    return figure


def spread_out(heights: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """Rising heights within limits, moved apart to a gap, or to what there is room for."""
    gap, found = min(gap, (high - low) / max(1, len(heights))), []
    for height in heights:
        found.append(max(height, found[-1] + gap if found else low))
    for place in reversed(range(len(found))):
        found[place] = min(found[place], found[place + 1] - gap if place + 1 < len(found) else high)
    return found


def show(figures: dict) -> None:
    (RESULTS / "zoo.md").write_text(table(figures))
    for axis, label in (("views", "views"), ("seconds", "the processor's seconds of training")):
        picture(figures, axis, label).savefig(RESULTS / f"zoo_{axis}.png", dpi=90)


def main(names: list[str], views: int, seeds: int, at_once: int) -> None:
    kept = RESULTS / "zoo.json"
    figures = json.loads(kept.read_text())["figures"] if kept.is_file() else {}
    asked = {"views": views, "images": IMAGES, "batch": BATCH, "common": COMMON}
    if figures and any(figures[key] != value for key, value in asked.items()):
        raise SystemExit(f"{kept} holds runs with other settings than {asked}: move it away, or ask for its own")
    runs: dict[str, list[dict]] = figures.get("runs", {})
    images = str(unpack(Path(tempfile.gettempdir()), IMAGES))
    jobs = [(seed, name, views, images) for seed in range(seeds) for name in names or one_of_each()
            if seed not in [one["seed"] for one in runs.get(short(name), [])]]
    # each run has a process, so that its memory is its own; a fork could inherit a lock of a picture that is drawn
    with multiprocessing.get_context("spawn").Pool(at_once, maxtasksperchild=1) as pool:
        for name, found in pool.imap_unordered(run, jobs, chunksize=1):
            runs[name] = sorted([*runs.get(name, []), found], key=lambda one: one["seed"])
            record("zoo", figures := asked | {"runs": dict(sorted(runs.items()))})
            show(figures)


if __name__ == "__main__":
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="RECIPE")
    parser.add_argument("--views", type=int, default=390 * BATCH, help="of all images together")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time, each on one thread")
    main(**vars(parser.parse_args()))
