"""Where runs leave their files and from which checkpoint they go on: nothing that is there is ever replaced."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning.loggers import Logger

from ssl_zoo.cli import places, run
from tests.test_cli import fit, keep, refusal


class Remote(Logger):
    """A logger that makes no folder, as those of services."""

    name, version, save_dir = "project", "1a2b", "."

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, *_, **__):
        pass


def everything(folder="."):
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "recipe.yaml"]
    return {path: path.read_bytes() for path in files}


LOGGERS = {
    "csv": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "recipe"}},
    "none": False,
    "service": {"class_path": "tests.test_places.Remote"},
    "two": [{"class_path": name, "init_args": {"save_dir": "runs", "name": "recipe"}}
            for name in ("TensorBoardLogger", "CSVLogger")],
}


@pytest.mark.parametrize("logger", LOGGERS)
def test_no_run_replaces_anything_of_another_whatever_the_logger(recipe, logger):
    recipe["trainer"]["logger"] = LOGGERS[logger]
    recipe["trainer"] |= {"max_epochs": 1, "num_sanity_val_steps": 0}
    shared = Path("shared").absolute()
    keep(recipe, dirpath=str(shared), enable_version_counter=False, filename="mine", every_n_train_steps=2)
    fit(recipe)
    first = everything()
    assert any(path.name == "encoder.safetensors" for path in first)
    fit(recipe)
    second = everything()
    assert {path: second[path] for path in first} == first
    assert {"mine.ckpt", "mine-1.ckpt"} == set(os.listdir(shared))
    ends = ("config.yaml", "last.ckpt", "encoder.json", "report.txt")
    assert all(sum(path.name == name for path in second) == 2 for name in ends)
    assert {path.parts[:2] for path in second if path.name in ends} == {("runs", "recipe")}


@pytest.mark.parametrize("options", [
    ["--trainer.logger.version", "0"], ["--trainer.logger.version", "mine"],
    ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs", "--trainer.logger.name", "recipe",
     "--trainer.logger.version", "0"],
    ["--trainer.logger", "false", "--trainer.default_root_dir", "mine"]])
def test_a_folder_that_the_user_names_is_refused_if_an_earlier_run_is_in_it(recipe, options):
    recipe["trainer"] |= {"max_epochs": 1, "num_sanity_val_steps": 0}
    fit(recipe, *options) if "mine" not in options else run_in(recipe, options)
    before = everything()
    assert "has an earlier run in it, which would be overwritten" in refusal(recipe, *options)
    assert everything() == before


def run_in(recipe, options):
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(["fit", "--config", "recipe.yaml", *options])


def test_exports_and_reports_of_evaluations_are_not_replaced(recipe, capsys):
    folder = fit(recipe, "--trainer.max_epochs", "1")
    checkpoint = str(folder / "checkpoints/last.ckpt")
    before = everything()
    for output in ([], ["--output", "there.safetensors"]):
        run(["export", checkpoint, *output])
        with pytest.raises(SystemExit, match="is there already and stays: name another file, or move that one away"):
            run(["export", checkpoint, *output])
    for number in (0, 1):
        run(["evaluate", checkpoint, "--protocols", "nearest_class_mean"])
        assert f"evaluation/version_{number}/report.md" in capsys.readouterr().out
    assert {path: content for path, content in everything().items() if path in before} == before
    with pytest.raises(SystemExit, match="there is no protocol|no protocol"):
        run(["evaluate", checkpoint, "--protocols", "nothing"])
    assert sorted(path.name for path in Path("evaluation").glob("version_*")) == ["version_0", "version_1"]


# From which checkpoint

def steps(said):
    return [int(step) for step in re.findall(r"going on from \S+, step (\d+)", said)]


def test_a_checkpoint_that_is_given_to_resume_is_told_where_it_belongs(recipe):
    assert refusal(recipe, "--resume", "nowhere.ckpt") == (
        "ssl-zoo: resume: expected one of 'auto', not nowhere.ckpt; --ckpt_path takes a checkpoint's path")


def test_resume_auto_goes_on_from_the_newest_whole_checkpoint_or_starts(recipe, capsys):
    recipe["trainer"]["num_sanity_val_steps"] = 0
    first = fit(recipe, "--resume", "auto", "--trainer.max_epochs", "1")
    assert steps(capsys.readouterr().err) == []
    fit(recipe, "--resume", "auto", "--trainer.max_epochs", "2")
    assert steps(capsys.readouterr().err) == [7]
    second = Path("runs/recipe/version_1/checkpoints")
    content, damaged = (second / "last.ckpt").read_bytes(), flipped(second)
    (second / "torn.ckpt").write_bytes(content[:len(content) // 2])
    (second / "empty.ckpt").write_bytes(b"")
    os.utime(first / "checkpoints/last.ckpt")
    with pytest.warns(UserWarning, match="passed over: .*torn.ckpt is no checkpoint, or was cut short") as warned:
        fit(recipe, "--resume", "auto", "--trainer.max_epochs", "3")
    said = " ".join(str(one.message) for one in warned)
    assert "empty.ckpt is no checkpoint" in said
    assert "flipped.ckpt is damaged: not all of its bytes are those that were written; take another" in said
    assert steps(capsys.readouterr().err) == [14]
    assert "is damaged" in refusal(recipe, "--trainer.max_epochs", "3", "--ckpt_path", str(damaged))
    # a run with nothing left to do says so, and leaves nothing
    before = everything()
    fit(recipe, "--resume", "auto", "--trainer.max_epochs", "3")
    printed = capsys.readouterr()
    assert ("this run trained nothing: runs/recipe/version_2/checkpoints/last.ckpt stands at epoch 3 and step 21, and "
            "--trainer.max_epochs 3 and max_steps -1 allow no more; to train on, give them more") in printed.err
    assert printed.out == ""
    assert everything() == before


def flipped(folder):
    """A checkpoint with one other bit in a tensor, which torch loads without a word."""
    content = bytearray((folder / "last.ckpt").read_bytes())
    value = next(value for value in torch.load(folder / "last.ckpt", weights_only=True)["state_dict"].values()
                 if value.numel() > 50).numpy().tobytes()
    content[content.index(value) + 7] ^= 1
    (folder / "flipped.ckpt").write_bytes(content)
    torch.load(folder / "flipped.ckpt", weights_only=True)
    return folder / "flipped.ckpt"


def test_last_and_best_and_hpc_are_found_or_refused(recipe, capsys, monkeypatch):
    recipe["trainer"] |= {"num_sanity_val_steps": 0, "max_epochs": 3}
    for word, said in (("last", "there is no whole checkpoint in runs/recipe"), ("hpc", "there is no hpc_ckpt_"),
                       ("best", "there is no whole checkpoint in runs/recipe")):
        assert said in refusal(recipe, "--ckpt_path", word)
        assert os.listdir() == ["recipe.yaml"]
    keep(recipe, monitor="loss", filename="best", every_n_train_steps=1, save_top_k=1)
    folder = fit(recipe)
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["global_step"]
    capsys.readouterr()
    fit(recipe, "--ckpt_path", "last", "--trainer.max_epochs", "4")
    fit(recipe, "--ckpt_path", "best", "--trainer.max_epochs", "5")
    found = steps(capsys.readouterr().err)
    assert found[0] == 21
    assert found[1] >= best   # the second run has seen a lower loss, or it knows the first one's
    (Path("runs/recipe/slurm_7")).mkdir()
    shutil.copy(folder / "checkpoints/last.ckpt", "runs/recipe/slurm_7/hpc_ckpt_1.ckpt")
    run(["validate", "--config", "recipe.yaml", "--ckpt_path", "hpc"])
    config = yaml.safe_load(sorted(Path("runs/recipe").glob("version_*"))[-1].joinpath("config.yaml").read_text())
    assert config["ckpt_path"].endswith("hpc_ckpt_1.ckpt")


def test_a_run_that_max_time_ends_says_so_and_goes_on_where_it_was(recipe, capsys):
    recipe["trainer"] |= {"num_sanity_val_steps": 0, "max_epochs": 1000, "check_val_every_n_epoch": 10000}
    folder = fit(recipe, "--trainer.max_time", "00:00:00:02")
    said = capsys.readouterr().err
    done = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert (f"--trainer.max_time has ended this run at step {done}, with {7000 - done} left; the last good checkpoint "
            f"is {folder}") in said
    fit(recipe, "--resume", "auto", "--trainer.max_time", "00:00:00:02")
    assert "this run trained nothing" in (said := capsys.readouterr().err)
    assert "--trainer.max_time was used up before it; give it more" in said
    assert len(list(Path("runs/recipe").iterdir())) == 1


def test_a_run_without_batches_says_so(recipe, capsys):
    fit_nothing = ["--trainer.limit_train_batches", "0"]
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(["fit", "--config", "recipe.yaml", *fit_nothing])
    assert "this run trained nothing: it has no batches" in capsys.readouterr().err


# Not finite

def test_weights_that_are_not_finite_are_neither_saved_nor_exported_nor_evaluated(recipe):
    folder = fit(recipe, "--trainer.max_epochs", "1")
    content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    content["state_dict"]["encoder.backbone.conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(content, folder / "checkpoints/nan.ckpt")
    path, name = str(folder / "checkpoints/nan.ckpt"), "values that are not finite in encoder.backbone.conv1.weight"
    assert f"nan.ckpt has {name}: take an earlier checkpoint" in refusal(recipe, "--ckpt_path", path)
    with pytest.raises(SystemExit, match="not finite in backbone.conv1.weight: it is not exported"):
        run(["export", path])
    with pytest.raises(SystemExit, match="not finite in backbone.conv1.weight: take an earlier"):
        run(["evaluate", path, "--protocols", "nearest_class_mean"])
    assert not list(folder.glob("checkpoints/*.safetensors"))
    assert not list(folder.glob("checkpoints/*.json"))


def test_the_step_that_is_named_is_the_step_and_its_images_are_listed(recipe):
    recipe["trainer"].setdefault("callbacks", []).append(
        {"class_path": "tests.test_finite.Breaks", "init_args": {"what": "weights", "step": 10}})
    said = refusal(recipe)
    assert "the weights are not finite after step 10, whose loss was " in said
    assert "the last good checkpoint is runs/recipe/version_0/checkpoints/last.ckpt" in said
    assert torch.load("runs/recipe/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 7
    assert not list(Path("runs").rglob("images_of_step*"))   # the sentence has all eight
    assert len(json.loads("[" + said.partition("its images are ")[2].partition(")")[0] + "]")) == 8


def test_all_processes_look_for_earlier_runs_in_the_same_folder(tmp_path, monkeypatch):
    first = places.default(tmp_path / "recipe", False)
    monkeypatch.setattr(places.rank_zero_only, "rank", 1)
    assert Path(places.default(tmp_path / "recipe", False)).parent == Path(first).parent == tmp_path / "recipe"
