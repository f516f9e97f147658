"""Where a number comes from: recorded by runs, exports and reports, in words that a schema holds."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator

from ssl_zoo import provenance
from ssl_zoo.cli import run
from ssl_zoo.data.sources import Files, Resident
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation import records
from ssl_zoo.export import fingerprint, save_encoder
from ssl_zoo.paths import plain_json
from tests.test_cli import fit

ROOT = Path(__file__).parents[1]
OLD = {   # as version 0.1.0 wrote it
    "data": {"class": "ArrayImages", "classes": ["0", "1"], "fingerprints": ["ab", "cd"], "understood": ["84 images"],
             "images": {"training": 60, "test": 24}},
    "encoders": {"first": {"fingerprint": "0123", "features": 8, "images": {"training": 60, "test": 24}, "notes": {},
                           "scores": {"knn_dino": {"value": 0.5, "interval": [0.3, 0.7], "deviation": None,
                                                   "mean_over": "image", "count": 24}}}},
    "differences": [], "left_out": [], "protocols": {"knn_dino": "nearest neighbours"},
    "versions": {"ssl_zoo": "0.1.0", "torch": "2.11.0", "torchvision": "0.26.0"}}


def complaints(report):
    schema = records.schema()
    Draft202012Validator.check_schema(schema)
    return [error.message for error in Draft202012Validator(schema).iter_errors(report)]


# Code

@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], capture_output=True, text=True,
                              check=True).stdout.strip()
    git("init", "-q", "-b", "branch.py")
    return tmp_path, git


def test_a_checkout_is_clean_until_a_file_of_its_commit_or_a_new_file_of_python_differs(repository, monkeypatch):
    folder, git = repository
    assert provenance.checkout(folder) == {"commit": None, "clean": None}   # nothing is committed
    (folder / "method.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    (folder / "inside").mkdir()
    (folder / "notes.txt").touch()
    assert provenance.checkout(folder / "inside") == {"commit": commit, "clean": True}
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    monkeypatch.setenv("PATH", "/nowhere:" + os.environ["PATH"])
    (folder / "other.py").touch()
    assert provenance.checkout(folder) == {"commit": commit, "clean": False}
    (folder / "other.py").unlink()
    (folder / "method.py").write_text("a = 2\n")
    assert provenance.checkout(folder) == {"commit": commit, "clean": False}
    monkeypatch.setenv("PATH", "")                                           # a machine without git
    assert provenance.checkout(folder) == {"commit": None, "clean": None}


def test_an_installed_package_has_the_commit_that_pip_took_and_not_that_of_the_project_around(
        repository, monkeypatch):
    folder, git = repository
    (folder / "a.py").touch()
    git("add", ".")
    git("commit", "-q", "-m", "a project with a venv inside")
    (package := folder / "venv/ssl_zoo").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(provenance, "PACKAGE", package)

    class Installed:
        def __init__(self, text):
            self.text = text

        def read_text(self, name):
            return self.text if name == "direct_url.json" else None
    for text, commit in ((None, None), ('{"url": "file:///x", "dir_info": {}}', None), ('"', None),
                         ('{"url": "git", "vcs_info": {"vcs": "git", "commit_id": "4f2a"}}', "4f2a")):
        monkeypatch.setattr(provenance.metadata, "distribution", lambda _, text=text: Installed(text))
        assert provenance.package_code()["commit"] == commit


def test_the_command_can_be_typed_again_and_all_packages_that_the_project_needs_are_recorded():
    main = str(ROOT / "ssl_zoo/__main__.py")
    assert provenance.command([main, "fit", "--data.root", "my images"]) == "ssl-zoo fit --data.root 'my images'"
    assert provenance.command(["/usr/bin/ssl-zoo", "fit"]) == "ssl-zoo fit"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tools = ("dev", "docs")                     # on which no number depends
    used = [line for name, lines in project["optional-dependencies"].items() if name not in tools for line in lines]
    names = {re.match(r"[\w-]+", line)[0] for line in [*project["dependencies"], *used]} - {"ssl_zoo"}
    assert names <= set(provenance.PACKAGES)
    assert provenance.packages()["torch"] == torch.__version__.partition("+")[0]


# Images

def photographs(folder, *names, size=10):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    return [str(folder / name) for name in names]


def part(names, labels=(0, 1)):
    return provenance.of_part(Files(None, names, torch.tensor(labels), 32))


def test_images_have_one_fingerprint_wherever_they_lie_and_another_one_when_they_change(tmp_path):
    names = photographs(tmp_path / "one", "cat/1.jpg", "car/2.jpg")
    first = part(names)
    assert first["images"] == 2
    shutil.copytree(tmp_path / "one", moved := tmp_path / "elsewhere" / "two")
    assert part([name.replace(str(tmp_path / "one"), str(moved)) for name in names]) == first
    others = [part(photographs(tmp_path / "three", "cat/1.jpg", "car/3.jpg")),
              part(photographs(tmp_path / "six", "cat/1.jpg", "cat/2.jpg")),
              part(photographs(tmp_path / "four", "cat/1.jpg", "car/2.jpg", size=11)),
              part(photographs(tmp_path / "five", "cat/1.jpg", "car/2.jpg", "car/3.jpg"), (0, 1, 1)),
              part(names, (1, 0)), part(names[::-1])]
    assert len({one["fingerprint"] for one in [first, *others]}) == 7
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    found = provenance.of_part(Resident(pixels, torch.tensor([0, 1])))
    assert found == provenance.of_part(Resident(pixels.clone(), torch.tensor([0, 1])))
    assert found != provenance.of_part(Resident(pixels + 1, torch.tensor([0, 1])))
    assert provenance.of_part(None) is None


def test_sizes_of_at_most_a_thousand_files_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(provenance, "sizes", lambda names: asked.append(len(names)) or iter(()))
    for count in (1, 1000, 1001, 5000):
        provenance.of_files([f"/a/{place}.jpg" for place in range(count)], None)
    assert asked == [1, 1000, 501, 1000]


# What records it

def test_a_run_its_export_and_the_reports_of_run_validation_and_evaluation_say_where_they_come_from(recipe, arrays):
    recipe["seed_everything"] = 5
    folder = fit(recipe)
    made = plain_json(folder / "provenance.json")
    assert made["seed"] == 5
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", made["date"])
    assert made["data"]["class"] == "ArrayImages"
    assert made["data"]["root"] == str(arrays)
    assert (made["data"]["train"]["images"], made["data"]["test"]["images"]) == (60, 24)
    assert made["working_folder"]["path"] == str(Path.cwd())
    assert plain_json(folder / "encoder.json")["provenance"] == made
    of_run = records.read(folder / "report.json")
    assert of_run["kind"] == "run"
    assert of_run["provenance"] == made
    assert list(of_run["encoders"]) == ["raw pixels", "untrained encoder", "epoch 1", "epoch 2"]
    assert of_run["encoders"]["epoch 2"]["scores"]["knn_dino"]["count"] == 24
    assert "knn_dino" in of_run["protocols"]
    assert of_run["verdicts"].keys() == {"epoch 2"}
    assert complaints(of_run) == []
    checkpoint = str(folder / "checkpoints/last.ckpt")
    run(["export", checkpoint])
    assert plain_json(folder / "checkpoints/last.json")["provenance"] == made
    run(["validate", "--config", str(folder / "config.yaml"), "--ckpt_path", checkpoint])
    validated = records.read(next(path for path in Path("runs").rglob("report.json") if path.parent != folder))
    assert validated["kind"] == "validation"
    assert validated["provenance"]["resumed"] == checkpoint
    assert validated["encoders"]["encoder"]["scores"] == of_run["encoders"]["epoch 2"]["scores"]
    assert complaints(validated) == []
    run(["evaluate", str(folder / "encoder.safetensors"), checkpoint, "--protocols", "knn", "health"])
    evaluated = records.read(Path("evaluation/version_0/report.json"))
    assert evaluated["kind"] == "evaluation"
    assert evaluated["provenance"]["data"] == made["data"]
    assert complaints(evaluated) == []
    for about in evaluated["encoders"].values():
        assert about["provenance"] == made
    assert str(folder / "encoder.safetensors") in [about["path"] for about in evaluated["encoders"].values()]


def test_a_run_that_goes_on_in_its_folder_leaves_both_records(tmp_path):
    for seed in range(11):
        provenance.leave(tmp_path, seed=seed)
    assert plain_json(tmp_path / "provenance.json")["seed"] == 0
    assert provenance.left_by(tmp_path)["seed"] == 10
    assert provenance.left_by(tmp_path / "nothing") is None


def test_an_encoder_that_a_program_exports_says_so_and_one_of_an_earlier_version_says_nothing(tmp_path):
    encoder = NarrowResNet(4, 2)
    path = save_encoder(encoder, tmp_path / "mine")
    assert provenance.of_encoder(path)["data"] is None
    said = json.loads((tmp_path / "mine.json").read_text())
    del said["provenance"]
    (tmp_path / "mine.json").write_text(json.dumps(said))
    assert provenance.of_encoder(path) is None
    assert len(fingerprint(encoder)) == 16


# Reports

def test_an_earlier_report_reads_as_one_of_today_that_lacks_what_it_did_not_record(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(OLD))
    found = records.read(tmp_path / "report.json")
    assert complaints(found) == []
    assert found["kind"] == "evaluation"
    assert found["encoders"] == OLD["encoders"]
    assert found["provenance"]["ssl_zoo"] == {"version": "0.1.0", "commit": None, "clean": None}
    assert found["provenance"]["packages"]["torch"] == "2.11.0"


@pytest.mark.parametrize(("content", "said"), [
    ({"format": 3, "encoders": {}}, "is of format 3, and this version of ssl_zoo reads up to 2"),
    ({"columns": {}}, "is no report of ssl_zoo"),
])
def test_what_is_no_report_or_one_of_a_later_version_is_refused(tmp_path, content, said):
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        records.read(tmp_path / "report.json")


def test_the_schema_refuses_a_number_without_its_source_and_a_field_that_it_does_not_know(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(OLD))
    good = records.read(tmp_path / "report.json")
    for wrong in (good | {"mean": 1.0}, good | {"provenance": {"seed": 0}},
                  {name: value for name, value in good.items() if name != "provenance"},
                  good | {"encoders": {"a": {"scores": {"knn": {"value": "high"}}}}}):
        assert complaints(wrong)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    text = records.of_run("run", None, {"epoch 1": {"health/rankme": np.nan}}, {}, [], None, None)
    (tmp_path / "report.json").write_text(text)
    found = records.read(tmp_path / "report.json")
    assert found["encoders"]["epoch 1"]["scores"]["health/rankme"]["value"] is None
    assert complaints(found) == []
