"""A protocol is one object in one file: what the package's have in common, and one that a user brings."""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

import ssl_zoo.evaluation.protocols as room
from ssl_zoo.cli import run
from ssl_zoo.evaluation import Evaluation
from ssl_zoo.evaluation.accuracy import OF_UNBALANCED
from ssl_zoo.evaluation.protocol import Protocol, quantity
from ssl_zoo.evaluation.protocols import find, names
from ssl_zoo.evaluation.protocols.linear_cached import LinearCached
from tests.conftest import simclr, trainer

FILES = [file for file in sorted(Path(room.__file__).parent.glob("*.py")) if file.name != "__init__.py"]

# What a user writes: one file, and no line elsewhere.
MARGIN = '''
import torch

from ssl_zoo.evaluation import Measured, Protocol, Quantity
from ssl_zoo.evaluation.score import number


class Margin(Protocol):
    """By how much the own class mean is nearer than the nearest other one.

    Args:
        scale: multiplies it.
    """

    name = "margin"
    quantities = {"margin": Quantity("distance to the nearest other class mean, less that to the own", percent=False),
                  "margin_share": Quantity("share of the test images that are nearest to their own class mean")}

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def measure(self, train, test, context):
        means = torch.stack([train.x[train.labels == c].mean(0) for c in range(len(context.classes))])
        far = torch.cdist(test.x, means)
        own = far.gather(1, test.labels[:, None])[:, 0]
        other = far.scatter(1, test.labels[:, None], torch.inf).amin(1)
        return Measured({"margin": number(self.scale * (other - own).mean().item()),
                         "margin_share": number((other > own).double().mean().item())})
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_module.py").write_text(MARGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_module", None)


@pytest.mark.parametrize("name", names())
def test_a_file_is_a_protocol_of_its_name_whose_numbers_are_explained(name):
    protocol = find(name)
    assert isinstance(protocol, Protocol)
    assert protocol.name == name
    assert all(key.startswith(name) or name == "knn" for key in protocol.quantities if key not in OF_UNBALANCED)
    assert all(found.sentence and "\n" not in found.sentence for found in protocol.quantities.values())
    assert type(protocol).__doc__


def test_every_file_is_found_and_no_list_has_to_be_kept():
    assert names() == [file.stem for file in FILES]
    assert not [file.name for file in FILES if len([node for node in ast.parse(file.read_text()).body
                                                    if isinstance(node, ast.ClassDef)]) != 1]


def test_of_several_keys_the_longest_explains_a_score():
    protocols = [find("health"), find("knn")]
    assert quantity("health/tolerance_joint", protocols)[0] == "health/tolerance"
    assert quantity("knn_dino_10_top5", protocols)[0] == "knn_dino"
    assert quantity("linear_grid", protocols) is None


@pytest.mark.parametrize(("name", "sentence"), [
    ("logistics", "there is no protocol logistics; did you mean logistic?"),
    ("xyz", "there is no protocol xyz; there are corruptions, fewshot, finetune, finetune_simclr"),
])
def test_a_name_that_is_no_protocols_is_refused_with_what_there_is(name, sentence):
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
        find(name)


RECIPE = {"seed_everything": 0,
          "trainer": {"accelerator": "cpu", "max_epochs": 2, "check_val_every_n_epoch": 1, "callbacks": [
              {"class_path": "Evaluation", "init_args": {"protocols": [
                  {"class_path": "my_module.Margin", "init_args": {"scale": 100.0}}, "naive_bayes",
                  {"class_path": "LinearCached", "init_args": {"epochs": 3}}]}},
              {"class_path": "Report"}],
              "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs", "name": "mine"}}},
          "model": {"class_path": "SimCLR", "init_args": {
              "encoder": {"class_path": "NarrowResNet", "init_args": {"width": 4, "stages": 2}},
              "augment": {"views": [{"size": 16, "count": 2}]}, "projector": [16, 8],
              "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.003}}, "schedule": {}}}}


def test_a_users_protocol_is_measured_in_a_run_and_by_evaluate_with_its_sentence_and_unit(mine, arrays, capsys):
    recipe = RECIPE | {"data": {"class_path": "ArrayImages", "init_args": {"path": str(arrays), "batch_size": 8}}}
    (mine / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(["fit", "--config", "recipe.yaml"])
    table = capsys.readouterr().out
    lines = {line.split()[0]: line for line in table.splitlines() if line.startswith("margin")}
    assert "%" not in lines["margin"]
    assert lines["margin_share"].endswith(" %")
    assert "linear_cached_3_epochs" in table
    assert "margin_share" in table.partition("highest of 2 evaluations")[2]      # a share has a best epoch, ...
    assert "margin " not in table.partition("highest of 2 evaluations")[2]       # ... and a plain number none
    left = mine / "runs/mine/version_0"
    metrics = json.loads((left / "encoder.json").read_text())["metrics"]
    run(["evaluate", str(left / "encoder.safetensors"), "--protocols", "my_module.Margin", "naive_bayes",
         "--output", "out"])
    printed = capsys.readouterr().out
    assert any(line.startswith("margin_share") and line.endswith(" %") for line in printed.splitlines())
    report = json.loads((mine / "out/version_0/report.json").read_text())
    (column,) = report["encoders"].values()
    assert column["scores"]["margin"]["value"] == pytest.approx(metrics["margin"] / 100, rel=1e-4)
    assert column["scores"]["margin_share"]["value"] == pytest.approx(metrics["margin_share"])
    assert report["protocols"]["margin"] == "distance to the nearest other class mean, less that to the own"
    assert "- `margin_share`: share of the test images" in (mine / "out/version_0/report.md").read_text()


@pytest.mark.filterwarnings("ignore")
def test_a_runs_checkpoint_keeps_the_classifier_of_a_protocol(tmp_path, data):
    evaluation = Evaluation([LinearCached(2), "naive_bayes"])
    running = trainer(tmp_path, evaluation, max_epochs=1, enable_checkpointing=True)
    running.fit(simclr(), datamodule=data)
    running.save_checkpoint(tmp_path / "it.ckpt")
    kept = torch.load(tmp_path / "it.ckpt", weights_only=True)["callbacks"]["Evaluation"]
    assert kept["latest"] == evaluation.latest
    assert kept["protocols"]["linear_cached"]["head"].keys() == {"mean", "std", "linear.weight", "linear.bias"}
    other = Evaluation(["health", LinearCached(2)])                   # a run may go on with other protocols
    other.load_state_dict(kept)
    for name, value in other.protocols[1].head.items():
        assert torch.equal(value, evaluation.protocols[0].head[name])
