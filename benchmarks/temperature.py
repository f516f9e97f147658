"""Uniformity, tolerance and accuracy by temperature: the curves of "Understanding the Behaviour of Contrastive Loss".

    python benchmarks/temperature.py [EPOCHS]       5 epochs of 10,000 images by default, some 25 minutes of one core

Trains cifar10/simclr_cpu, where all negatives count, and cifar10/hard_contrastive_cpu, where the hardest do, at each
temperature. Each run is recorded when it ends, and those that a record of as many epochs holds are not made again. The
paper's fig. 4 to 6 (arXiv:2012.09740): what the loss sees gets more even as the temperature falls, and images of a
class less alike; the hard loss stays even where the plain one does not. So the projections are measured beside the
encoder's features, which need not follow them. The picture is results/temperature.png.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

import pytorch_lightning as pl
import torch
from learning import arrays, run, unpack
from record import ROOT, record

from ssl_zoo.cli.messages import quiet
from ssl_zoo.evaluation import Context, Evaluation, Measured, Protocol, Quantity
from ssl_zoo.evaluation.charts import COLOURS, MARKERS, blank, picture
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.health import tolerance, uniformity
from ssl_zoo.evaluation.score import number

RECIPES = {"all negatives": "cifar10/simclr_cpu", "the hardest": "cifar10/hard_contrastive_cpu"}
TEMPERATURES = (0.03, 0.07, 0.2, 0.5, 1.0)
IMAGES, SEED = 10_000, 0
PANELS = {"uniformity": "uniformity; lower is more even", "tolerance": "tolerance: cosine within a class",
          "knn_instdisc": "accuracy of kNN, %"}
PLACES = {"projections": "-", "features": ":"}


class Spread(Protocol):
    """How even the projections and the features of test images are, and how alike those of a class."""

    name = "spread"
    quantities = {f"{place}/{number}": Quantity(f"{number} of the {place}", percent=False)
                  for place in PLACES for number in ("uniformity", "tolerance")}
    projector: torch.nn.Module

    @torch.no_grad()
    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        both = {"projections": self.projector(test.x), "features": test.x}
        return Measured({f"{place}/{name}": number(value) for place, x in both.items() for name, value in (
            ("uniformity", uniformity(x)), ("tolerance", tolerance(x, test.labels).conditional))})


class WithProjector(Evaluation):
    """Shows a `Spread` the run's projector."""

    def __init__(self) -> None:
        self.spread = Spread()
        super().__init__([self.spread])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.spread.projector = pl_module.projector      # type: ignore[assignment]
        super().setup(trainer, pl_module, stage)


NUMBERS = (*Spread.quantities, "knn_instdisc")


def draw(runs: dict[str, dict[str, dict[str, float]]], epochs: int) -> None:
    """A panel for each number, with a curve for each loss and each place, of the runs that there are."""
    figure = blank(12, 4, f"CIFAR-10, {IMAGES:,} images, {epochs} epochs")
    for axes, (panel, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        scale = 100 if "%" in label else 1
        for i, (negatives, found) in enumerate(runs.items()):
            for name in (name for name in NUMBERS if name.endswith(panel)):
                place = name.partition("/")[0]
                points = sorted((float(temperature), scale * one[name]) for temperature, one in found.items())
                if points:
                    axes.plot(*zip(*points, strict=True), color=COLOURS[i], marker=MARKERS[i],
                              linestyle=PLACES.get(place, "-"),
                              label=f"{negatives}, {place}" if place in PLACES else negatives)
        axes.set(xscale="log", xlabel="temperature", ylabel=label)
        axes.set_xticks(TEMPERATURES, [f"{temperature:g}" for temperature in TEMPERATURES])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    picture(figure).save(ROOT / "benchmarks/results/temperature.png")


def main(epochs: int) -> None:
    """Make the runs that the record does not hold, and record and draw each when it ends."""
    kept = ROOT / "benchmarks/results/temperature.json"
    before = json.loads(kept.read_text())["figures"] if kept.is_file() else {}
    alike = (before.get("epochs"), before.get("images")) == (epochs, IMAGES)
    runs = before["runs"] if alike else {negatives: {} for negatives in RECIPES}
    images = arrays(unpack(Path(tempfile.gettempdir()), IMAGES))
    for temperature, (negatives, recipe) in itertools.product(TEMPERATURES, RECIPES.items()):
        if str(temperature) in runs[negatives]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            one = run(recipe, images, SEED, folder, [
                "--model.temperature", str(temperature), "--trainer.max_epochs", str(epochs),
                "--trainer.check_val_every_n_epoch", str(epochs), "--evaluation.protocols", "[knn, health]",
                "--report.raw_pixels", "false"], [WithProjector()])
        last = list(one.values())[-1]
        runs[negatives][str(temperature)] = {name: last[name] for name in NUMBERS}
        record("temperature", {"images": IMAGES, "epochs": epochs, "seed": SEED, "runs": runs})
        draw(runs, epochs)


if __name__ == "__main__":
    quiet()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
