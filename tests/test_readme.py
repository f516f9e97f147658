"""What the README and the pages of docs/ tell people to type and to write works as it stands there, in its order."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torchvision
from PIL import Image

from ssl_zoo.cli import compare as comparing
from ssl_zoo.cli import run
from ssl_zoo.contract import CHECKS
from ssl_zoo.evaluation.protocols import find, names
from tests.test_recipes import SmallCIFAR10

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text()
         for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
SMALL = {"--trainer.max_epochs": "1", "--data.batch_size": "4", "--trainer.accelerator": "cpu",
         "--trainer.limit_train_batches": "2", "--trainer.limit_val_batches": "1",
         "--trainer.check_val_every_n_epoch": "1"}
FEW = {"--epochs": "1", "--data": "ImageFolder", "--data.root": "my_images", "--data.evaluation_size": "32"}
NO_RUN = ("check", "compare", "duplicates", "embed", "evaluate", "export", "new", "preview", "recipes", "shard",
          "similar")
SHELLS = ("", "sh", "bash", "shell", "console")


class Step(NamedTuple):
    """A command, a program or a file of a page."""

    page: str
    kind: str      # the command's first word, python, or file
    text: str

    def __str__(self):
        return f"{self.page}: {self.text.splitlines()[0][:60]}"


def steps(page, text):
    """Programs stand between ```python and ```; commands are indented by four, or stand between ```sh and ```.

    A block whose first line is a comment that names a file is that file.
    """
    for language, block, line in re.findall(r"(?ms)^ *```(\w*)\n(.*?)^ *```$|^ {4}((?:ssl-zoo|make|pip) .*?)$", text):
        if re.match(r"# [\w/]+\.\w+\n", block):
            yield Step(page, "file", block)
        elif language == "python":
            yield Step(page, "python", block)
        for command in [line] if line else block.splitlines() if language in SHELLS else []:
            if re.match("(ssl-zoo|make|pip) ", command := command.strip()):
                yield Step(page, command.split()[0], command)


STEPS = [step for page, text in PAGES.items() for step in steps(page, text)]
FIRST = [step for place, step in enumerate(STEPS)       # what several pages tell to type is run once
         if step.kind in ("file", "python") or step.text not in [earlier.text for earlier in STEPS[:place]]]
FIRST.sort(key=lambda step: step.text.startswith("ssl-zoo compare"))     # of runs that other pages make


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
    pytest.importorskip("skimage", reason="the photographs come with the extra quickstart")
    run(["fit", "--config", "quickstart", *(word for pair in SMALL.items() for word in pair)])
    yield folder
    os.chdir(before)
    sys.path.remove(str(folder))       # where `run` has put it, for methods of one's own
    for name, module in list(sys.modules.items()):
        if str(folder) in (getattr(module, "__file__", "") or ""):
            del sys.modules[name]


@pytest.fixture(scope="module")
def defined():
    """By page the names that its programs have made so far."""
    return {page: {} for page in PAGES}


@pytest.mark.parametrize("step", [step for step in FIRST if step.kind in ("file", "python", "ssl-zoo")], ids=str)
def test_step_works(step, folder, defined, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    if step.kind == "file":
        (folder / step.text.split()[1]).write_text(step.text)
        return
    if step.kind == "python":
        exec(compile(step.text, step.page, "exec"), defined[step.page])
        return
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", SmallCIFAR10)
    arguments = shlex.split(step.text)[1:]
    if {"--help", "--model.help", "--data.help", "--print_config"} & set(arguments):
        with pytest.raises(SystemExit) as ended:
            run(arguments)
        assert ended.value.code == 0
        assert len(capsys.readouterr().out) > 500
        return
    if arguments[0] == "compare":      # trains for hours: here its words are read, and its recipes and runs found
        for part in ("train", "measure"):
            monkeypatch.setattr(comparing, part, lambda *given: comparing.Told())
    run([*arguments, *(word for pair in smaller(arguments).items() for word in pair)])
    check_printed(arguments, capsys.readouterr().out)


def smaller(arguments):
    """Options that make a command of the documents short."""
    if arguments[0] in NO_RUN:
        if arguments.count("--data") > 1:
            return {"--protocols": "knn"}
        return FEW if {"finetune", "corruptions"} & set(arguments) else {}
    if arguments[0] == "bench":
        return {"--steps": "1", "--data.batch_size": "8"}
    if arguments[0] == "validate":
        return {"--trainer.limit_val_batches": "1"}
    small = dict(SMALL)
    if {"--ckpt_path", "--resume"} & set(arguments):
        small["--trainer.max_epochs"] = "2"
    if chosen := not arguments[1].startswith("-"):
        del small["--data.batch_size"]   # it is chosen with the method's options
    if chosen or "folder/" in " ".join(arguments):
        small["--data.workers"] = "0"
    return small


def check_printed(arguments, printed):
    if arguments[0] == "check":
        assert "FAILED" not in printed
        shown = "".join(f"    {line}\n" for line in printed.splitlines())
        assert "--checks" in arguments or shown.count("\n") == 1 + len(CHECKS)
        assert "--checks" in arguments or shown in PAGES["docs/own-method.md"]
    elif arguments[0] == "new":
        written = Path(printed.partition(":")[0]).read_text()
        assert [step.text for step in STEPS if f"class {arguments[1]}(" in step.text] == [written]
    elif arguments[0] == "export":
        place = arguments.index("--output") + 1 if "--output" in arguments else None
        assert printed.strip().endswith(arguments[place] if place else "last.safetensors")
    elif arguments[0] == "recipes":
        assert "arXiv:2002.05709" in printed
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
    elif arguments[0] in ("evaluate", "fit", "validate"):
        assert any(start in printed for start in ("knn_", "finetune/", "corruptions/"))


@pytest.mark.parametrize("step", [step for step in FIRST if step.kind == "make"], ids=str)
def test_make_target_exists(step):
    subprocess.run([*step.text.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_programs_do_what_their_page_says(folder, defined):
    """The last of this file's tests that looks at what the programs above have made."""
    names = defined["docs/encoders.md"]
    assert len(names["features"]) == 4
    assert names["maps"].shape[:2] == names["features"].shape
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(names["resnet"].eval()(names["encoder"].eval().normalize(images)),
                           names["encoder"](images))


def test_every_protocol_is_explained_in_the_words_of_the_reports():
    table = dict(re.findall(r"^\| `([\w/]+)` \| (.+) \|$", PAGES["docs/evaluation.md"], re.MULTILINE))
    assert table == {key: found.sentence for protocol in map(find, names())
                     for key, found in protocol.quantities.items()}


def test_steps_are_found_where_they_stand():
    page = "    make docs\n\n```python\n    ssl-zoo fit\n```\n```\nssl-zoo new A\n```\n```text\nssl-zoo no\n```\n"
    page += "```yaml\n# a/b.yaml\nx: 1\n```\nssl-zoo in a sentence\n"
    assert [(step.kind, step.text) for step in steps("page", page)] == [
        ("make", "make docs"), ("python", "    ssl-zoo fit\n"), ("ssl-zoo", "ssl-zoo new A"),
        ("file", "# a/b.yaml\nx: 1\n")]


def test_the_readme_is_short():
    assert len(PAGES["README.md"].split()) < 1500


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_repository_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path, _, place = link.partition("#")
        if "://" in link:
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        headings = re.findall(r"(?m)^#+ (.+)$", target.read_text()) if place else ()
        assert not place or place in [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings], link
