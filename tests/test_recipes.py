"""Every recipe is a whole run: it has a name, builds, trains a batch, and its heading says what it is."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torchvision
import yaml
from PIL import Image

from ssl_zoo.cli import recipes, run
from ssl_zoo.cli.fit import Cli
from ssl_zoo.cli.messages import quiet
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.export import save_encoder

ROOT = Path(__file__).parents[1]
RECIPES = recipes.shipped()
CPU = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "sync_batchnorm": "false",
       "precision": "32-true"}   # many CPUs take ten times as long for bfloat16
OPTIONAL = {"More devices", "Rule of thumb", "One machine"}


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
    for folder in ("train", "val"):
        Path("my_shards", folder).mkdir(parents=True)
        with tarfile.open(f"my_shards/{folder}/0.tar", "w") as shard:
            shard.add("my_images")
    quiet()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_one_batch(name, surroundings):
    small = {"--trainer.fast_dev_run": "1", "--data.batch_size": "4"}
    parts = yaml.safe_load(RECIPES[name].read_text())
    for option, value in (("data.workers", 0), ("model.splits", 1),     # 4 images make no groups
                          ("model.global_batch", 4), ("model.start", 0),    # and MoCHi mixes from the first step
                          ("model.clusters", 2), ("model.smallest", 1), ("model.negatives", 1), ("model.pool", 2),
                          ("model.images", {"cifar10": 200, "imagenet": 8}.get(name.partition("/")[0], 6))):
        part, _, argument = option.partition(".")
        if argument in parts[part]["init_args"]:
            small[f"--{option}"] = str(value)
    if "slice_size" in parts["model"]["init_args"]:             # 4 images span no more than 3 directions
        small |= {"--model.slice_size": "4", "--model.projector": "[8, 3]"}
    if judge := parts["model"]["init_args"].get("judge"):      # that an earlier run has left
        save_encoder(NarrowResNet(4, 2), judge)
    if name.startswith(("imagenet", "shards")):   # its views are 4 seconds of work at full size
        small |= ({"--model.encoder.name": "vit_tiny_patch16_224"}
                  if parts["model"]["init_args"]["encoder"]["class_path"] == "Timm" else
                  {"--model.encoder.depth": "18"})
    arguments = ["--config", str(RECIPES[name]), *(f"--trainer.{option}={value}" for option, value in CPU.items()),
                 *(word for pair in small.items() for word in pair)]
    cli = Cli(arguments, run=False)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.callback_metrics["loss"].isfinite()


@pytest.mark.parametrize("name", RECIPES)
def test_heading_says_paper_command_hardware_time_and_expectation(name):
    said = recipes.heading(RECIPES[name])
    assert [field for field in said if field not in OPTIONAL] == list(recipes.FIELDS)
    assert "arXiv:" in said["Paper"]
    assert said["Run"].startswith(f"ssl-zoo fit --config {name}")
    assert all(len(said[field].partition(";")[0]) <= 40 for field in recipes.COLUMNS), "too long for the list"
    script = said["Measured by"].partition("python ")[2].partition(" ")[0]
    assert (ROOT / script.rstrip(",")).is_file() or name.startswith("imagenet")


def test_expected_numbers_are_those_of_the_records():
    done = subprocess.run([sys.executable, "benchmarks/render.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_recipe_says_nothing_that_is_said_for_all():
    """So that what a recipe says is what makes it different."""
    for name, path in RECIPES.items():
        parts = yaml.safe_load(path.read_text())
        assert parts.keys() <= {"trainer", "evaluation", "report", "checkpoints", "fast", "model", "data"}, name
        assert not parts["trainer"].keys() & {"logger", "callbacks", "enable_model_summary"}, name
        assert not {"devices: 1}", "devices: 1,"} & set(path.read_text().split()), name


def test_all_recipes_together_are_short():
    lines = [line for path in RECIPES.values() for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(RECIPES) >= 54
    assert len(lines) <= 19 * len(RECIPES)


@pytest.mark.parametrize("text", ["# no field here\n", "# Paper: x\n# a line that continues nothing\n"])
def test_a_heading_of_another_form_is_refused(text, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text + "trainer: {}\n")
    with pytest.raises(ValueError, match="is not '# Field: text', nor does it continue one"):
        recipes.heading(tmp_path / "recipe.yaml")


def test_a_name_means_the_shipped_recipe_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "recipes/cifar10/simclr.yaml"
    for arguments in (["fit", "--config", "cifar10/simclr"], ["fit", "-c", "cifar10/simclr.yaml"]):
        assert recipes.with_recipes([*arguments, "--x", "1"])[2:] == [str(shipped), "--x", "1"]
    assert recipes.with_recipes(["--config=cifar10/simclr", "--config"]) == [f"--config={shipped}", "--config"]


def test_a_file_in_the_current_folder_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cifar10").mkdir()
    Path("cifar10/simclr.yaml").write_text("trainer: {}\n")
    assert recipes.path_of("cifar10/simclr") == recipes.path_of("cifar10/simclr.yaml") == "cifar10/simclr.yaml"
    assert recipes.path_of("cifar10/moco") == str(ROOT / "recipes/cifar10/moco.yaml")


def test_settings_in_place_of_a_file_are_left_to_the_parser():
    for settings in ("{trainer: {max_epochs: 1}}", "trainer: null", "seed_everything: 1\ntrainer: null"):
        assert recipes.with_recipes(["fit", "--config", settings]) == ["fit", "--config", settings]


@pytest.mark.parametrize(("name", "said"), [
    ("cifar10/simcrl", "there is no recipe cifar10/simcrl; did you mean cifar10/simclr?"),
    ("recipes/cifar10/moco_v2.yaml", "there is no recipe recipes/cifar10/moco_v2.yaml; did you mean cifar10/moco_v3?"),
    ("xyz", "there is no recipe xyz; ssl-zoo recipes lists those there are"),
])
@pytest.mark.parametrize("command", ["fit", "validate", "preview", "check"])
def test_a_misspelt_name_is_reported_before_torch_is_loaded(command, name, said, tmp_path):
    script = f"import sys; sys.argv = ['ssl-zoo', '{command}', '--config', '{name}']\n" \
             "from ssl_zoo.__main__ import main\n" \
             "try: main()\n" \
             "finally: assert not {'torch', 'pytorch_lightning'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, f"ssl-zoo: {said}")


@pytest.mark.parametrize(("typed", "name"), [
    ("recipes/cifar10/simclr.yaml", "cifar10/simclr"), ("/a/recipes/b/ssl_zoo/recipes/quickstart.yaml", "quickstart"),
    ("cifar10/mine.yaml", "cifar10/mine"), ("/somewhere/mine.yaml", "mine"), ("../mine.yaml", "mine"),
    ("{trainer: {}}", "unnamed"),
])
def test_a_run_is_named_after_its_recipes_path(typed, name):
    assert recipes.run_name(["fit", "--config", typed, "--config", "recipes/other.yaml"][:3]) == name
    assert recipes.run_name(["fit", f"--config={typed}"]) == name
    assert recipes.run_name(["fit"]) == "unnamed"


def test_the_list_has_paper_hardware_time_and_expectation_of_every_recipe(capsys):
    run(["recipes"])
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["recipe", "paper", "hardware", "time", "expected"]
    assert [line.split()[0] for line in lines] == list(RECIPES)
    simclr = next(line for line in lines if line.startswith("cifar10/simclr "))
    for said in ("arXiv:2002.05709", "one GPU with 8 GB", "87 minutes", "knn_instdisc 84.8 %"):
        assert said in simclr


def test_the_list_can_be_narrowed_and_one_recipe_shown_whole(capsys):
    run(["recipes", "2010.01028"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + sum("mochi" in name for name in RECIPES)
    run(["recipes", "cifar10/mochi"])
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()][:2] == ["Paper", "Setting"]
    with pytest.raises(SystemExit, match="no recipe has mohci in its name or heading"):
        run(["recipes", "mohci"])


def test_the_list_loads_nothing_heavy():
    script = "import sys; sys.argv = ['ssl-zoo', 'recipes']; from ssl_zoo.__main__ import main; main(); " \
             "assert not {'torch', 'pytorch_lightning', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_an_installed_package_has_the_recipes(tmp_path):
    """Built as pip builds it, and run from an empty folder."""
    source, installed, empty = (tmp_path / name for name in ("source", "installed", "empty"))
    empty.mkdir()
    for name in ("ssl_zoo", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", installed], cwd=source,
                   check=True, capture_output=True)
    for arguments, said in ((["recipes", "quickstart"], "Paper: SimCLR"),
                            (["fit", "--config", "quickstat"], "did you mean quickstart?")):
        done = subprocess.run([sys.executable, "-m", "ssl_zoo", *arguments], cwd=empty, capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(installed)})
        assert said in done.stdout + done.stderr


def test_defaults_are_printed_saved_and_overridden(tmp_path, arrays, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = yaml.safe_load(RECIPES["quickstart"].read_text())
    whole["trainer"] |= {"max_epochs": 1, "check_val_every_n_epoch": 3}
    whole["checkpoints"] = {"every_n_epochs": 1}
    whole["model"]["init_args"]["encoder"]["init_args"] = {"width": 4, "stages": 2}
    whole["model"]["init_args"]["augment"]["views"] = [{"size": 16, "count": 2}]
    whole["data"] = {"class_path": "ArrayImages", "init_args": {"path": str(arrays), "batch_size": 8}}
    Path("mine.yaml").write_text(yaml.safe_dump(whole))
    run(["fit", "--config", "mine", "--report.raw_pixels", "false"])
    saved = yaml.safe_load(Path("runs/mine/version_0/config.yaml").read_text())
    trainer = saved["trainer"]
    assert (saved["seed_everything"], trainer["devices"], trainer["precision"]) == (0, 1, "32-true")
    assert (trainer["num_sanity_val_steps"], trainer["check_val_every_n_epoch"]) == (-1, 3)
    assert (trainer["logger"]["init_args"]["save_dir"], trainer["logger"]["init_args"]["name"]) == ("runs", "mine")
    assert saved["report"] == {"raw_pixels": False}
    assert saved["checkpoints"] == {"every_n_epochs": 1, "every_n_steps": None, "full_disk": "go on"}
    assert saved["evaluation"]
    assert sorted(path.name for path in Path("runs/mine/version_0/checkpoints").iterdir())[1] == "last.ckpt"


def test_a_callback_in_the_recipes_own_list_replaces_the_default_of_its_kind(surroundings):
    cli = Cli(["--config", str(RECIPES["quickstart"]), "--trainer.callbacks", "Report"], run=False)
    report, = (callback for callback in cli.trainer.callbacks if type(callback).__name__ == "Report")
    assert not report.raw_pixels       # the recipe's report: {raw_pixels: true} is that of the default
