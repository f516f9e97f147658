"""Every recipe is a whole run: it builds, trains a batch, and its heading says what it is."""

from pathlib import Path

import pytest
import torchvision
import yaml
from PIL import Image

from ssl_zoo.cli.fit import Cli
from ssl_zoo.cli.messages import quiet

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/**/*.yaml"))
CPU = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "sync_batchnorm": "false"}


class SmallCIFAR10(torchvision.datasets.FakeData):
    """Stands in for the download: as large as 200 neighbours need, arrays as CIFAR10 has them."""

    def __init__(self, root, train=True, download=False):
        super().__init__(200 if train else 20, (3, 32, 32), 10)
        generator = __import__("numpy").random.default_rng(0)
        self.data = generator.integers(0, 256, (self.size, 32, 32, 3), dtype="uint8")
        self.targets = [i % 10 for i in range(self.size)]


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """An empty folder to run in, with the data that recipes name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", SmallCIFAR10)
    for folder in ("my_images/cat", "my_images/dog", "imagenet/train/a", "imagenet/train/b", "imagenet/val/a",
                   "imagenet/val/b"):
        Path(folder).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40 + i, 50), (40 * i, 90, 0)).save(f"{folder}/{i}.jpg")
    quiet()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_recipe_trains_one_batch(recipe, surroundings):
    small = {"--trainer.fast_dev_run": "1", "--data.batch_size": "4"}
    parts = yaml.safe_load(recipe.read_text())
    for name, value in (("data.workers", 0), ("model.splits", 1),     # 4 images make no groups
                        ("model.global_batch", 4), ("model.start", 0)):   # and MoCHi mixes from the first step
        part, _, argument = name.partition(".")
        if argument in parts[part]["init_args"]:
            small[f"--{name}"] = str(value)
    if recipe.parent.name == "imagenet":   # its views are 4 seconds of work at full size
        small["--model.encoder.depth"] = "18"
    arguments = ["--config", str(recipe), *(f"--trainer.{name}={value}" for name, value in CPU.items()),
                 *(word for pair in small.items() for word in pair)]
    cli = Cli(arguments, run=False)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.callback_metrics["loss"].isfinite()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_heading_says_paper_command_time_and_expectation(recipe):
    heading = recipe.read_text().split("\nseed_everything")[0]
    for wanted in ("arXiv:", f"--config {recipe.relative_to(ROOT)}", "Hardware", "ime", "Expected", "Against the"):
        assert wanted in heading, wanted
    assert "TIME" not in heading
    assert "EXPECTED" not in heading
