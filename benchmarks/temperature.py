"""Uniformity, tolerance and accuracy by temperature: the curves of "Understanding the Behaviour of Contrastive Loss".

    python benchmarks/temperature.py [EPOCHS]       10 epochs of 10,000 images by default, some 50 minutes on two cores

Trains cifar10/simclr_cpu, where all negatives count, and cifar10/hard_contrastive_cpu, where the hardest do, at each
temperature. Each run is recorded when it ends, and those that a record of as many epochs holds are not made again. The
paper's fig. 4 to 6 (arXiv:2012.09740): the features get more even as the temperature falls, and images of a class less
alike; the hard loss stays even where the plain one does not. The picture is results/temperature.png.
"""

import json
import sys
import tempfile
from pathlib import Path

from learning import arrays, run, unpack
from record import ROOT, record

from ssl_zoo.cli.messages import quiet
from ssl_zoo.evaluation.charts import COLOURS, LINES, MARKERS, blank, picture

RECIPES = {"all negatives": "cifar10/simclr_cpu", "the hardest": "cifar10/hard_contrastive_cpu"}
TEMPERATURES = (0.03, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
IMAGES, SEED = 10_000, 0
NUMBERS = {"health/uniformity": "uniformity; lower is more even",
           "health/tolerance": "tolerance: cosine within a class", "knn_instdisc": "accuracy of kNN, %"}


def draw(runs: dict[str, dict[str, dict[str, float]]], epochs: int) -> None:
    """A panel for each number, with a curve for each loss, of the runs that there are."""
    figure = blank(12, 4, f"CIFAR-10, {IMAGES:,} images, {epochs} epochs")
    for axes, (number, label) in zip(figure.subplots(1, len(NUMBERS)), NUMBERS.items(), strict=True):
        for i, (negatives, found) in enumerate(runs.items()):
            scale = 1 if "/" in number else 100
            points = sorted((float(temperature), scale * one[number]) for temperature, one in found.items())
            if points:
                axes.plot(*zip(*points, strict=True), color=COLOURS[i], marker=MARKERS[i], linestyle=LINES[i],
                          label=negatives)
        axes.set(xscale="log", xlabel="temperature", ylabel=label)
        axes.set_xticks(TEMPERATURES, [f"{temperature:g}" for temperature in TEMPERATURES])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    picture(figure).save(ROOT / "benchmarks/results/temperature.png")


if __name__ == "__main__":
    quiet()
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    kept = ROOT / "benchmarks/results/temperature.json"
    before = json.loads(kept.read_text())["figures"] if kept.is_file() else {}
    runs = before["runs"] if before.get("epochs") == epochs else {negatives: {} for negatives in RECIPES}
    images = arrays(unpack(Path(tempfile.gettempdir()), IMAGES))
    for temperature in TEMPERATURES:
        for negatives, recipe in RECIPES.items():
            if str(temperature) in runs[negatives]:
                continue
            with tempfile.TemporaryDirectory() as folder:
                one = run(recipe, images, SEED, folder, [
                    "--model.temperature", str(temperature), "--trainer.max_epochs", str(epochs),
                    "--trainer.check_val_every_n_epoch", str(epochs), "--evaluation.protocols", "[knn, health]",
                    "--report.raw_pixels", "false"])
            last = list(one.values())[-1]
            runs[negatives][str(temperature)] = {number: last[number] for number in NUMBERS}
            record("temperature", {"images": IMAGES, "epochs": epochs, "seed": SEED, "runs": runs})
            draw(runs, epochs)
