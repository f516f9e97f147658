"""What a run says while it goes on and at its end: to a terminal, to a file, and when it is to be quiet."""

import io
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from ssl_zoo import progress
from ssl_zoo.cli import run
from ssl_zoo.cli.messages import sentence
from ssl_zoo.methods import SimCLR
from ssl_zoo.progress import Pace, lasting, line


def test_a_time_is_said_in_its_two_largest_units():
    times = {0: "0 s", 59.6: "1 min", 59.4: "59 s", 130: "2 min 10 s", 3600: "1 h", 3 * 3600 + 301: "3 h 5 min",
             86400 * 2 + 3 * 3600 + 59: "2 d 3 h", 86400: "1 d", 3659: "1 h"}
    assert [lasting(seconds) for seconds in times] == list(times.values())


def test_the_time_left_is_that_of_the_batches_and_of_the_evaluations_between_them():
    pace = Pace()
    assert pace.left(10, 5) is None
    for now in (100.0, 101.0, 103.0):                # the first batch does not count
        pace.batch(now)
    assert pace.seconds == 1.5
    assert pace.left(10, float("inf")) == 15
    pace.evaluated(4.0)
    assert pace.left(10, 5) == 15 + 2 * 4
    assert pace.left(11, 5) == 16.5 + 3 * 4
    pace.since = 200.0                               # the evaluation and what came after it are no batch
    pace.batch(203.0)
    assert pace.seconds == 2.0
    assert pace.of_evaluations == 4.0


def test_a_line_leaves_out_what_is_not_known_yet():
    assert line(step="1/20", epoch="1/2", loss=4.15888, speed=None, left=None, metrics={}) == (
        "step 1/20 · epoch 1/2 · loss 4.159")
    assert line(step="5/20", epoch="1/2", loss=4.0, speed=1234.5, left=130, metrics={"knn_dino": torch.tensor(0.5731)}
                ) == "step 5/20 · epoch 1/2 · loss 4 · 1,234 images/s · 2 min 10 s left · knn_dino 0.573"


class Terminal(io.StringIO):
    """Where a bar may move."""

    def isatty(self):
        return True

    def seen(self):
        """The lines as they stand there at the end, carriage returns obeyed."""
        return [written.rpartition("\r")[2].rstrip() for written in self.getvalue().split("\n")]


@pytest.fixture
def fit(recipe, monkeypatch):
    """Run the recipe with a line at every step."""
    monkeypatch.setattr(progress, "LINES", (0.0, 0.0))
    monkeypatch.setattr(progress, "REDRAWN", 0.0)

    def of(*options):
        Path("small.yaml").write_text(yaml.safe_dump(recipe))
        run(["fit", "--config", "small.yaml", *options])
    return of


def test_a_file_gets_whole_lines_with_all_there_is_to_know(fit, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    fit()
    said = capsys.readouterr().err
    assert not set("\r\x1b█") & set(said)
    lines = said.splitlines()
    steps = [one for one in lines if one.startswith("step ")]
    of = int(re.match(r"step 1/(\d+) · epoch 1/2 · loss [\d.]+", steps[0])[1])
    assert len(steps) == of
    assert re.fullmatch(rf"step {of}/{of} · epoch 2/2 · loss [\d.]+ · [\d,]+ images/s · "
                        r"knn_instdisc [\d.]+ · knn_dino [\d.]+", steps[-1])
    assert re.search(r"images/s · \d+ s left · knn", steps[-2])
    assert "evaluating" not in lines
    assert "evaluating the untrained encoder" in lines
    assert any(one.startswith(f"done · step {of}/{of} · epoch 2/2 · ") for one in lines)
    took, = (one for one in lines if one.startswith("took "))
    assert re.fullmatch(r"took .* s, \d+ s of them to evaluate; at most [\d.]+ GiB of main memory", took)


def test_a_terminal_has_one_line_that_moves_and_an_error_has_its_own(fit, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "160")
    loss = SimCLR.training_loss

    def fails(self, batch):
        if self.trainer.global_step == 2:
            warnings.warn("a word of ours", stacklevel=1)
            raise ValueError("the third step fails")
        return loss(self, batch)
    monkeypatch.setattr(SimCLR, "training_loss", fails)
    with pytest.raises(SystemExit, match="the third step fails"):
        fit()
    moving = [one for one in terminal.seen() if "step 2/" in one]
    assert len(moving) == 1
    assert "loss" in moving[0]
    assert terminal.seen()[-1] == ""                  # the error begins a line


def test_a_quiet_run_prints_its_table_and_nothing_else(fit, capsys):
    fit("--quiet", "--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "0")
    said = capsys.readouterr()
    assert not [one for one in said.err.splitlines() if not re.search("[Ww]arning|arsonargparse|^ ", one)]
    assert "knn_dino" in said.out
    assert "quiet" not in Path("runs/small/version_0/config.yaml").read_text()


def test_a_warning_is_one_line_and_names_the_code_only_where_it_is_not_ours():
    assert sentence("3 images are broken", UserWarning, progress.__file__, 3) == "warning: 3 images are broken\n"
    assert sentence("use b", FutureWarning, "/their/file.py", 7) == "FutureWarning: use b (/their/file.py:7)\n"
