"""What limits a run: the sections add up to a step, the rates are those of the clock, and the advice follows."""

import json

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from ssl_zoo import bench
from ssl_zoo.cli.bench import bench as command
from tests.golden.make import RECIPE, write_images


def found(gpu=False, precision="32-true", compiled=False, arithmetic=0.5e12, **seconds):
    seconds = dict.fromkeys(bench.SECTIONS, 0.0) | {"encoders": 0.3, "backward": 0.6} | seconds
    return bench.Found(seconds, sum(seconds.values()), 64, 900.0, 4, 2000.0, arithmetic, 1e12,
                       "cuda:0" if gpu else "cpu", precision, compiled)


@pytest.mark.parametrize(("case", "words"), [
    (found(), "The network limits, with 100% of a step, which does 50% of the arithmetic"),
    (found(arithmetic=None), "The network limits, with 100% of a step: a smaller encoder"),
    (found(data=0.9), "The loader limits: 50% of a step waits for it, and alone it gives 900 images/s with 4 workers"),
    (found(views=0.9), "Views take 50% of a step; --model.augment.compile true"),
    (found(views=0.9, compiled=True), "Views take 50% of a step; they are compiled already"),
    (found(loss=0.9), "Heads, memory and loss take 50% of a step"),
    (found(logging=0.9), "Logs and callbacks take 50% of a step: raise --trainer.log_every_n_steps"),
    (found(gpu=True), "The network takes 100% of a step in float32: --trainer.precision bf16-mixed"),
    (found(gpu=True, precision="bf16-mixed", arithmetic=0.05e12), "The card does 5% of the arithmetic that it can"),
])
def test_the_largest_cause_is_named_first_with_what_to_change(case, words):
    assert bench.advice(case)[0].startswith(words)
    assert words in bench.table(case)


def test_shares_are_of_the_sections_and_the_rate_is_of_the_whole_step():
    case = found(views=0.1)
    assert sum(case.shares.values()) == pytest.approx(1)
    assert case.shares["views"] == pytest.approx(0.1)
    assert case.rate == pytest.approx(64)


def test_sections_measure_what_stands_between_start_and_stop(monkeypatch):
    clock = iter(np.arange(100) ** 2.0)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    sections = bench.Sections(torch.device("cpu"))
    with sections.profile("[Strategy].training_step"):              # not counted yet
        pass
    sections.counting = True
    with sections.profile("[Strategy].training_step"), sections.profile("[LightningModule].training_step"):
        pass                                                        # 0, 1, 4, 9: the outer one takes 9, the inner 3
    assert sections.of(".training_step") == 9
    assert sections.of(".backward") == 0


def test_an_encoder_that_calls_itself_counts_once():
    class Twice(nn.Module):
        def forward(self, x, again=True):
            return self(x, again=False) if again else x

    watch = bench.Stopwatch(bench.Sections(torch.device("cpu")), 1)
    watch.sections.counting = True
    module = Twice()
    watch.watch(module)
    module(torch.zeros(1))
    assert len(watch.sections.seconds) == 1
    assert not watch.sections.since


def test_the_command_measures_a_recipe_and_leaves_nothing_but_what_was_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images("images.npz")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    command(["--config", "recipe.yaml", "--steps", "3", "--json", "bench.json", "--output", "bench.png"])
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert set(figures["seconds"]) == set(bench.SECTIONS)
    assert all(figures["seconds"][name] > 0 for name in ("data", "views", "encoders", "loss", "backward", "optimizer",
                                                         "momentum"))
    assert figures["rate"] == pytest.approx(8 / figures["step"])
    assert min(figures["loader_rate"], figures["evaluation_rate"], figures["arithmetic"], figures["peak"]) > 0
    said = capsys.readouterr().out
    assert "images/s: steps of 8 images" in said
    assert figures["advice"][0] in said
    assert {file.name for file in tmp_path.iterdir()} == {"images.npz", "recipe.yaml", "bench.json", "bench.png"}


def test_a_step_of_accumulated_batches_has_the_images_of_all_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images("images.npz")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    command(["--config", "recipe.yaml", "--steps", "3", "--json", "bench.json",
             "--trainer.accumulate_grad_batches", "2"])
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["batch"] == 16
    # a step is measured once whole and once in sections, and neither is a batch of it
    assert 0.2 < figures["step"] / sum(figures["seconds"].values()) < 5


def test_no_step_is_one_sentence():
    with pytest.raises(ValueError, match="a measurement is of at least 1 step, not 0"):
        command(["--steps", "0"])
