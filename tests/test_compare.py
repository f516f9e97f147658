"""The command compare: what is missing is run, what was interrupted goes on, and nothing is lost by what fails."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from ssl_zoo.cli import arms, children, run
from ssl_zoo.cli.fit import Cli
from ssl_zoo.evaluation import curve, records
from ssl_zoo.stopping import SafeStop
from tests.conftest import small_run

FIT = ["--trainer.logger=CSVLogger", "--seed_everything=0", "--trainer.logger.name=seed_0"]


def refused(*arguments):
    with pytest.raises(SystemExit) as ended:
        run(["compare", *arguments])
    return str(ended.value.code)


@pytest.fixture(scope="module")
def trained(arrays, tmp_path_factory):
    """A folder with two recipes, of one epoch and of two, and a run of each where a comparison looks for it.

    They are made here: in a process of its own, as a comparison starts it, each would take ten times as long.
    """
    whole = small_run(arrays)
    whole["report"] = {"raw_pixels": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("trained"))
        for epochs, name in enumerate(("one", "two"), 1):
            whole["trainer"] |= {"max_epochs": epochs, "accelerator": "cpu"}
            whole["checkpoints"] = {"every_n_epochs": 1}
            Path(f"{name}.yaml").write_text(yaml.safe_dump(whole))
            run(["fit", "--config", f"{name}.yaml", *FIT, f"--trainer.logger.save_dir=comparison/{name}"])
    return folder, whole


@pytest.fixture
def recipes(trained, tmp_path, monkeypatch):
    """The two recipes in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("one.yaml", "two.yaml"):
        shutil.copy(trained[0] / name, name)
    return copy.deepcopy(trained[1])


@pytest.fixture
def fit(trained):
    """Gives a recipe its finished run."""
    def leave(name):
        shutil.copytree(trained[0] / f"comparison/{name}", f"comparison/{name}")
        return Path(f"comparison/{name}/seed_0/version_0")
    return leave


def test_what_was_interrupted_goes_on_and_one_table_has_all(recipes, fit, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    fit("one")
    folder = fit("two")
    whole = curve.read(folder)
    for name in ("encoder.safetensors", "encoder.json", "checkpoints/last.ckpt"):
        (folder / name).unlink()                      # killed in the second epoch
    next((folder / "checkpoints").glob("epoch=1-*")).unlink()
    run(["compare", "one", "two", "--seeds", "1"])
    printed = capsys.readouterr()
    assert "run 1 of 1: two, seed 0" in printed.err
    assert "going on from" in Path("comparison/two/seed_0/log.txt").read_text()
    head, one, two, *_ = printed.out.splitlines()
    assert re.split("  +", head)[1:] == ["seeds", "knn_dino", "linear_cached", "health/rankme", "health/feature_std",
                                         "seconds", "processor's seconds"]
    assert (one.split()[0], two.split()[0]) == ("one", "two")
    assert "there is no test" in printed.out
    left = Path("comparison/reports/version_0")
    assert {path.name for path in left.iterdir()} >= {"comparison.md", "comparison.tex", "comparison.json",
                                                      "curves.png", "seconds.png", "report.json", "report.md"}
    assert records.read(left / "report.json")["encoders"].keys() == {"one, seed 0", "two, seed 0"}
    said = json.loads((left / "comparison.json").read_text())
    assert [one["folder"] for one in said["runs"]] == ["comparison/one/seed_0/version_0",
                                                       "comparison/two/seed_0/version_1"]
    assert "the runs saw different numbers of images: one 56, two 112" in said["remarks"]
    for name in ("knn_dino", "health/rankme"):
        assert said["runs"][1]["scores"][name] == whole["points"][-1]["scores"][name]
    again = curve.read(Path("comparison/two/seed_0/version_1"))
    assert [(point["step"], point["images"], point["scores"]) for point in again["points"]] == [
        (point["step"], point["images"], point["scores"]) for point in whole["points"]]
    assert all(a["seconds"] < b["seconds"] for a, b in zip(again["points"], again["points"][1:], strict=False))
    # finished runs are named by their folder, and what is there is not run again
    shutil.copytree("comparison/two/seed_0", "runs/two")
    monkeypatch.setattr(sys, "executable", "/nothing/is/run")
    run(["compare", "one", "runs/two", "--seeds", "1", "--protocols", "nearest_class_mean"])
    assert capsys.readouterr().out.splitlines()[2].split()[0] == "two"


def test_a_recipe_that_fails_loses_no_other_and_is_said_at_the_end(recipes, fit, capsys, monkeypatch):
    fit("one")
    Path("python").write_text("#!/bin/sh\nprintf 'pretraining: 0step\\rhalf      ssl-zoo: the loss is not finite\\n"
                              "(for the traceback: SSL_ZOO_DEBUG=1)\\n' >&2\nexit 1\n")
    Path("python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(Path("python").absolute()))
    said = refused("one", "two", "--seeds", "1")
    assert "not all is there, and the same command tries again: two, seed 0" in said
    printed = capsys.readouterr().out
    assert "two, seed 0 is not in the table: the loss is not finite (all of it: comparison/two/seed_0/log.txt)" in \
        printed
    assert re.search(r"^one +1 +\d+\.\d", printed, re.M)
    assert "Only one recipe has finished runs, and nothing is tested." in printed
    assert "two, seed 0 is not in the table: the loss" in Path("comparison/reports/version_0/comparison.md").read_text()


def test_other_images_another_recipe_and_what_is_misspelt_are_refused_before_anything_runs(recipes, fit, arrays,
                                                                                           tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nothing/is/run")
    with np.load(arrays) as found:
        np.savez(tmp_path / "others.npz", **dict(found) | {"train_images": found["train_images"][::-1]})
    recipes["data"]["init_args"]["path"] = "others.npz"
    Path("three.yaml").write_text(yaml.safe_dump(recipes))
    assert re.search("one and three have other training images .60 each, with fingerprints", refused("one", "three"))
    assert "one temperture=0.1: model > SimCLR: Option 'temperture' is not accepted; did you mean temperature?" in (
        said := refused("one", "--set", "model.temperture=0.1,0.2"))
    assert "accelerator" not in said
    assert not list(Path("comparison").glob("*/*"))
    folder = fit("one")
    said = refused("one", "two", "--set", "model.temperature=0.3")
    assert f"{folder} was made by another recipe than this: they differ in model.init_args.temperature (0.2 and 0.3)" \
        in said
    left = json.loads((folder / "provenance.json").read_text())
    left["data"]["test"]["images"] = 23
    (folder / "provenance.json").write_text(json.dumps(left))
    assert f"{folder} and one today have other test images (23 and 24; " in refused("one", "two")


@pytest.mark.parametrize(("arguments", "said"), [
    (["one"], "one alone is compared with nothing"),
    (["one", "one"], "one stands in the comparison more than once"),
    (["one", "nothing"], "there is no recipe nothing, and no folder of runs"),
    (["one", "."], ". is a folder without a finished run"),
    (["one", "two", "--set", "temperature"], "--set takes what a recipe has and its values"),
    (["one", "two", "--set", "seed_everything=1"], "seeds are counted by --seeds"),
    (["one", "two", "--seeds", "0"], "--seeds is 1 or more, not 0"),
    (["one", "two", "--protocols", "kn"], "kn"),
    (["one", "two", "--output", "one.yaml"], "--output one.yaml is a file"),
    (["one", "two", "--seed", "1"], "has no option --seed; did you mean --seeds?"),
])
def test_a_wrong_word_gets_one_sentence_before_torch_is_asked(recipes, arguments, said):
    assert said in refused(*arguments)


# Arms

def test_several_values_make_an_arm_each_with_every_recipe_and_one_value_changes_all(recipes):
    found = arms.found(["one", "two"], ["model.temperature=0.1, 0.2", "trainer.max_epochs=5",
                                        "model.projector=[8,4],9"])
    assert len(found) == 8
    assert found[0].name == "one temperature=0.1 projector=[8,4]"
    assert list(found[0].options) == ["--model.temperature=0.1", "--trainer.max_epochs=5", "--model.projector=[8,4]"]
    assert found[0].place == "one_temperature=0.1_projector=_8_4_"
    assert found[-1].name == "two temperature=0.2 projector=9"
    names = [arm.name for arm in arms.found(["cifar10/simclr", "folder/simclr", "cifar10/moco"], [])]
    assert names == ["cifar10/simclr", "folder/simclr", "moco"]


def test_finished_runs_are_found_by_seed_and_of_several_tries_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def left(place, config, encoder=True):
        Path(place).mkdir(parents=True)
        (Path(place) / "config.yaml").write_text(yaml.safe_dump(config))
        for name in ("encoder.safetensors", "encoder.json")[:2 * encoder]:
            (Path(place) / name).touch()
    for place, seed, whole in (("runs/x/version_0", 0, True), ("runs/x/version_10", 3, True),
                               ("runs/x/version_9", 1, True), ("runs/x/version_11", 4, False)):
        left(place, {"seed_everything": seed, "model": {"a": 1}}, whole)
    arm, _ = arms.found(["runs/x", "runs/x/version_0"], [])
    assert arm.name == "x"
    assert arms.seeds_of(arm) == {0: Path("runs/x/version_0"), 1: Path("runs/x/version_9"),
                                  3: Path("runs/x/version_10")}
    left("runs/y/seed_0/version_0", {"seed_everything": 0})
    left("runs/y/seed_0/version_1", {"seed_everything": 0})
    assert arms.finished(Path("runs/y")) == [Path("runs/y/seed_0/version_1")]
    left("runs/x/version_12", {"seed_everything": 5, "model": {"a": 2}})
    with pytest.raises(ValueError, match=r"version_12 are not seeds of one recipe: they differ in model.a \(1 and 2\)"):
        arms.seeds_of(arms.found(["runs/x", "runs/y"], [])[0])


def test_all_that_a_recipe_says_makes_it_another_recipe_but_not_how_a_run_was_started():
    config = {"seed_everything": 3, "resume": "auto", "ckpt_path": "last", "weights_only": None,
              "fast": {"compile": True}, "trainer": {"logger": False, "max_steps": 3, "default_root_dir": "x"}}
    assert arms.compared(config) == {"fast.compile": True, "trainer.max_steps": 3}


def test_a_run_that_is_stopped_has_counted_the_images_of_its_last_batch(recipes):
    cli = Cli(["--config", "one.yaml"], run=False)
    order = [type(callback) for callback in cli.trainer.callbacks]
    assert order.index(curve.Curve) < order.index(SafeStop)      # which saves at the batch's end


# Processes

@pytest.fixture
def ctrl_c_of_a_terminal():
    """A shell lets what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_of_a_terminal")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_reaches_a_run_once_and_is_awaited(tmp_path, name, status):
    program = ("import signal, sys, time\n"
               f"signal.signal(signal.{name}, lambda *_: print('asked', flush=True))\n"
               "print('ready', flush=True)\n"
               "signal.pause()\n"
               "time.sleep(0.3); print('saved', flush=True); sys.exit(130)\n")
    log = tmp_path / "log.txt"

    def ask():
        while not log.exists() or "ready" not in log.read_text():
            pass
        os.kill(os.getpid(), getattr(signal, name))
    asker = threading.Thread(target=ask)
    asker.start()
    with pytest.raises(SystemExit) as ended:
        children.watched([sys.executable, "-c", program], log, "run")
    asker.join()
    assert ended.value.code == status
    assert log.read_text() == "ready\nasked\nsaved\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_here_is_ignored_by_runs_too(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)    # nohup
    try:
        with children.forwarding(subprocess.Popen(["true"])) as asked:
            os.kill(os.getpid(), signal.SIGHUP)
        assert asked == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_comparison_at_a_time_works_in_a_folder_and_its_run_counts_after_its_death(tmp_path):
    with children.only_one(tmp_path):
        orphan = subprocess.Popen(["sleep", "60"], pass_fds=children.LOCK)
        with pytest.raises(ValueError, match="another ssl-zoo compare, or a run that one has started, works in"), \
                children.only_one(tmp_path):
            pass
    with pytest.raises(ValueError, match="name another --output"), children.only_one(tmp_path):
        pass
    orphan.kill()
    orphan.wait()
    with children.only_one(tmp_path):
        pass


def test_the_reason_of_a_failure_is_its_sentence_or_its_last_line_or_its_signal(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("ssl-zoo: an earlier try\n")
    before = log.stat().st_size
    for text, status, said in (("bar\rbar ssl-zoo: no memory\n(SSL_ZOO_DEBUG=1)\n", 1, "no memory"),
                               ("Traceback\n  KeyError: 'x'\n", 1, "KeyError: 'x'"), ("", 3, "status 3"),
                               ("bar", -signal.SIGKILL, "SIGKILL")):
        log.write_text("ssl-zoo: an earlier try\n" + text)
        assert said in children.reason(log, before, status)
