"""What follows -- on a benchmark's command line goes to ssl-zoo fit, and only what comes before it names recipes."""

import importlib
import sys
from pathlib import Path

import pytest

SCHEDULE = ["--trainer.max_epochs", "20", "--trainer.check_val_every_n_epoch", "5"]


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    module = importlib.import_module("cifar10")

    def of(*words):
        monkeypatch.setattr(sys, "argv", ["cifar10.py", *words])
        return module.asked("What it measures.", epochs=20, every=5)
    return of


@pytest.mark.parametrize(("words", "recipes", "options"), [
    ([], [], SCHEDULE),
    (["cifar10/moco"], ["cifar10/moco"], SCHEDULE),
    (["--", "--trainer.precision", "32-true"], [], [*SCHEDULE, "--trainer.precision", "32-true"]),
    (["--epochs", "2", "a", "b", "--", "--model.augment.compile", "true", "--data.workers=4"], ["a", "b"],
     ["--trainer.max_epochs", "2", *SCHEDULE[2:], "--model.augment.compile", "true", "--data.workers=4"]),
    (["a", "--every", "1", "--", "--data.path", "x", "--"], ["a"],
     [*SCHEDULE[:3], "1", "--data.path", "x", "--"])], ids=str)
def test_recipes_come_before_the_dashes_and_options_of_fit_after_them(words, recipes, options, asked):
    assert asked(*words) == (recipes, options)


def test_an_option_of_fit_before_the_dashes_is_refused_with_the_way_out(asked, capsys):
    with pytest.raises(SystemExit):
        asked("cifar10/moco", "--trainer.precision", "32-true")
    assert "--trainer.precision 32-true: put options of ssl-zoo fit after --" in capsys.readouterr().err
