"""Several data sets in one call of evaluate: one table, a report for each, and none that loses the others'."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_zoo.cli import run
from ssl_zoo.cli.evaluate import names_of_sets, split_options, split_sets
from ssl_zoo.data import ArrayImages
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation import suite
from ssl_zoo.evaluation.transfer import printed, transfer
from ssl_zoo.export import save_encoder


def encoder(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NarrowResNet(4, 2).eval()


@pytest.fixture
def here(tmp_path, monkeypatch, arrays):
    """An encoder, two sets of arrays, a folder without labels."""
    monkeypatch.chdir(tmp_path)
    save_encoder(encoder(), tmp_path / "one")
    save_encoder(encoder(1), tmp_path / "two")
    with np.load(arrays) as content:
        np.savez("colours.npz", **content)
        np.savez("shifted.npz", **{name: (values + 20 if name.endswith("images") else values)
                                   for name, values in content.items()})
    (tmp_path / "plain").mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20), (60 * i, 9, 9)).save(tmp_path / f"plain/{i}.png")
    return tmp_path


def on(path):
    return ["--data", "ArrayImages", "--data.path", path]


def evaluated(capsys, *arguments, protocols=("nearest_class_mean", "logistic")):
    capsys.readouterr()
    run(["evaluate", *arguments, "--protocols", *protocols])
    return capsys.readouterr()


def test_one_table_has_a_column_for_each_data_set_and_each_has_the_report_that_it_would_have_alone(here, capsys):
    said, _ = evaluated(capsys, "one.safetensors", *on("colours.npz"), *on("shifted.npz"))
    table = said.partition("\n\n")[0].splitlines()
    assert re.split("  +", table[0].strip()) == ["colours.npz", "shifted.npz"]
    assert [line.split()[0] for line in table[1:]] == ["nearest_class_mean", "logistic"]
    assert said.count("colours.npz: one: above; logistic") == 1
    page = (here / "evaluation/version_0/report.md").read_text()
    assert "| nearest_class_mean |" in page
    assert "[colours.npz](colours.npz/report.md)" in page
    assert said.endswith("the whole table: evaluation/version_0/report.md\n")
    for name in ("colours.npz", "shifted.npz"):
        evaluated(capsys, "one.safetensors", *on(name), "--output", f"alone_{name}")
        own, alone = (json.loads(path.read_text())["encoders"]["one"]["scores"] for path in (
            here / f"evaluation/version_0/{name}/report.json", here / f"alone_{name}/version_0/report.json"))
        assert own == alone


def test_features_are_kept_for_each_set_and_a_second_call_reads_them_and_replaces_nothing(here, capsys, monkeypatch):
    evaluated(capsys, "one.safetensors", *on("colours.npz"), *on("shifted.npz"))
    kept = {file.name: file.stat().st_mtime_ns for file in (here / "evaluation/features").iterdir()}
    assert len(kept) == 4
    before = (here / "evaluation/version_0/report.md").read_text()
    monkeypatch.setattr(suite, "extract", lambda *_: pytest.fail("the features were taken again"))
    evaluated(capsys, "one.safetensors", *on("shifted.npz"), *on("colours.npz"))
    assert {file.name: file.stat().st_mtime_ns for file in (here / "evaluation/features").iterdir()} == kept
    assert (here / "evaluation/version_0/report.md").read_text() == before
    assert (here / "evaluation/version_1/shifted.npz/report.json").is_file()


def test_several_encoders_have_a_line_each_for_every_score_and_are_read_once(here, capsys, monkeypatch):
    import ssl_zoo.checkpoints as checkpoints
    read, real = [], checkpoints.read_encoder
    monkeypatch.setattr(checkpoints, "read_encoder", lambda given, *rest: (read.append(given), real(given, *rest))[1])
    said, _ = evaluated(capsys, "one.safetensors", "two.safetensors", *on("colours.npz"), *on("shifted.npz"),
                        protocols=("logistic",))
    assert [line.partition("  ")[0] for line in said.partition("\n\n")[0].splitlines()[1:]] == [
        "logistic, one", "logistic, two"]
    assert read == ["one.safetensors", "two.safetensors"]
    assert json.loads((here / "evaluation/version_0/colours.npz/report.json").read_text())["differences"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_set_that_is_not_there_or_has_no_labels_does_not_lose_the_others(here, capsys, order):
    sets = [on("nowhere.npz"), ["--data", "ImageFolder", "--data.root", "plain", "--data.evaluation_size", "16",
                                "--data.workers", "0"], on("colours.npz")][::order]
    with pytest.raises(SystemExit) as ended:
        evaluated(capsys, "one.safetensors", *sum(sets, []))
    assert "not all is there: nowhere.npz" in ended.value.code
    said, early = capsys.readouterr()
    assert "nowhere.npz will not be measured: no file of images at nowhere.npz" in early
    assert "nowhere.npz was not measured: no file of images at nowhere.npz" in said
    assert "plain was not measured" in said or "plain: left out" in said
    assert "needs labels" in said
    assert re.search(r"^logistic .*\d+\.\d \[", said, re.M)
    assert "nowhere.npz was not measured" in (here / "evaluation/version_0/report.md").read_text()


def test_where_no_set_can_be_measured_all_reasons_are_said_and_no_folder_is_left(here):
    with pytest.raises(SystemExit) as error:
        run(["evaluate", "one.safetensors", *on("nowhere.npz"), *on("missing.npz")])
    assert "nowhere.npz was not measured: no file of images at nowhere.npz; missing.npz was not" in str(error.value)
    assert not (here / "evaluation").exists()


def test_a_set_whose_evaluation_fails_does_not_lose_those_before_and_after_it(here, monkeypatch):
    sets = {name: ArrayImages("colours.npz") for name in ("first", "torn", "last")}
    for data in sets.values():
        data.setup("fit")
    real = suite.evaluate
    monkeypatch.setattr(suite, "evaluate", lambda encoders, data, *rest, **options: (
        real(encoders, data, *rest, **options) if data is not sets["torn"] else (_ for _ in ()).throw(
            RuntimeError("out of memory"))))
    found = transfer({"it": encoder()}, sets, here / "out", protocols=["logistic"])
    assert list(found.measured) == ["first", "last"]
    assert found.failed == {"torn": "out of memory"}
    assert "torn was not measured: out of memory" in printed(found)


def test_masks_are_measured_once_with_the_first_data_set(here, monkeypatch):
    sets, given = {name: ArrayImages("colours.npz") for name in ("first", "last")}, []
    for data in sets.values():
        data.setup("fit")
    real = suite.evaluate
    monkeypatch.setattr(suite, "evaluate", lambda *rest, dense, **options: (
        given.append(dense), real(*rest, **options))[1])
    transfer({"it": encoder()}, sets, here / "out", protocols=["nearest_class_mean"], dense=here / "voc")
    assert given == [here / "voc", None]


def test_a_misspelt_class_is_refused_before_anything_is_measured(here):
    with pytest.raises(SystemExit) as error:
        run(["evaluate", "one.safetensors", *on("colours.npz"), "--data", "ImageFolders", "--data.root", "plain"])
    assert "ImageFolder" in str(error.value)
    assert not (here / "evaluation").exists()


def test_options_before_the_first_of_several_sets_are_refused_with_the_way_out(here):
    with pytest.raises(SystemExit) as error:
        run(["evaluate", "one.safetensors", "--data.path", "x", *on("colours.npz"), *on("shifted.npz")])
    assert "--data.path stands before the first --data: of several data sets, each --data comes before" in str(
        error.value)


def test_options_belong_to_the_data_set_before_them():
    _, about = split_options(["it", "--data", "A", "--data.root=x", "--half", "--data=B", "--data.root", "y"])
    assert split_sets(about) == [["--data", "A", "--data.root=x"], ["--data=B", "--data.root", "y"]]
    assert split_sets(["--data.root", "x", "--data", "A"]) == [["--data.root", "x", "--data", "A"]]
    assert split_sets([]) == []


def test_data_sets_are_called_by_what_tells_them_apart():
    sets = [["--data", "ImageFolder", "--data.root", "a/birds/"], ["--data=ImageFolder", "--data.root=b/birds"],
            ["--data", "TorchvisionImages", "--data.name", "CIFAR10", "--data.root", "data"], ["--data", "Digits"],
            ["--data", "Digits"]]
    assert names_of_sets(sets) == ["a/birds/", "b/birds", "CIFAR10", "Digits", "Digits (2)"]
