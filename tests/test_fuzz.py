"""Files that someone changed at random: the right result, or one sentence; never a traceback from the depths."""

import copy
import json
import os
import random
import struct
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from ssl_zoo import cli, save_encoder
from ssl_zoo.checkpoints import read_encoder
from ssl_zoo.cli import messages
from ssl_zoo.cli.fit import Cli
from ssl_zoo.encoders import Encoder, NarrowResNet
from ssl_zoo.paths import own_data

MIDDLE = Path(__file__).parent / "golden/middle.ckpt"
MORE = int(os.environ.get("SSL_ZOO_FUZZ", "1"))   # times as many changes as a run of all tests has the time for
RECIPE = {
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 5},
    "evaluation": {"protocols": ["knn", {"class_path": "ssl_zoo.evaluation.protocols.health.Health"}]},
    "model": {"class_path": "SimCLR", "init_args": {
        "encoder": {"class_path": "NarrowResNet", "init_args": {"width": 4, "mean": [0.1, 0.1, 0.1]}},
        "augment": {"views": [{"size": 16, "count": 2, "scale": [0.3, 1.0], "kernel": 5}]}, "projector": [16, 8],
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}}, "schedule": {"warmup": 0.05}}},
    "data": {"class_path": "ArrayImages", "init_args": {"path": "images.npz", "batch_size": 8}}}
VALUES = [None, True, -1, 0, 3, 0.5, 1e300, 10 ** 40, "", "x", "1", "os.system", "ssl_zoo.data.Images", "NarrowResNet",
          "recipe.yaml", "{a: 1}", [], [None], [[1]], {}, {"a": 1}, {"class_path": "their_module.Mine"},
          {"class_path": None}, {"class_path": "NarrowResNet", "init_args": None}, {"init_args": {}}]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("their_module.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    yield
    assert not Path("imported").exists() or "recipe" in request.node.name   # which the user names, and with it this
    sys.modules.pop("their_module", None)


def places(tree, place=()):
    """The ways to all values in nested dictionaries and lists."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*place, key)
        yield from places(value, (*place, key))


def changed(tree, draw):
    """The tree with one value replaced, removed, renamed or added."""
    tree = copy.deepcopy(tree)
    *way, last = draw.choice(list(places(tree)))
    inside = tree
    for key in way:
        inside = inside[key]
    kind = draw.randrange(8)
    if kind == 0:
        del inside[last]
    elif kind == 1 and isinstance(inside, dict):
        inside[draw.choice([f"{last}s", "", "class_path", "init_args", "__class__", 3])] = inside.pop(last)
    else:
        inside[last] = draw.choice(VALUES)
    return tree


def garbled(content, draw, within=None):
    """Bytes of which some were lost, repeated or flipped, among the first ones."""
    content = bytearray(content)
    start = draw.randrange(min(within or len(content), len(content)))
    stop = start + draw.randrange(1, 9)
    kind = draw.randrange(4)
    if kind == 0:
        del content[start:stop]
    elif kind == 1:
        del content[start:]
    elif kind == 2:
        content[start:start] = content[start:stop]
    else:
        content[start:stop] = draw.randbytes(stop - start)
    return bytes(content)


def outcome(do):
    """The result, or the sentence instead; any other error is one from the depths."""
    try:
        return do()
    except Exception as error:
        if not messages.expected(error):
            raise
        said = str(error)
    assert "\n" not in said
    assert len(said) < 1000
    return said


@pytest.mark.parametrize("seed", range(10 * MORE))
def test_a_changed_recipe_builds_or_gets_one_sentence(seed, monkeypatch, capsys):
    monkeypatch.setattr(cli, "dispatch", lambda command, arguments: Cli(arguments, run=False))
    draw = random.Random(seed)
    text = yaml.safe_dump(changed(RECIPE, draw))
    if seed % 4 == 3:
        text = garbled(yaml.safe_dump(RECIPE).encode(), draw).decode(errors="replace")
    Path("recipe.yaml").write_text(text)
    said = "ssl-zoo: "
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli.run(["fit", "--config", "recipe.yaml"])
    except SystemExit as ended:
        said = str(ended.code)
    assert said.startswith("ssl-zoo: "), text
    assert said.count("\n") <= 1                               # the sentence, and how to see the traceback
    assert len(said) < 2000


@pytest.mark.parametrize("seed", range(40 * MORE))
def test_a_changed_description_gives_the_encoder_or_one_sentence(seed):
    draw = random.Random(seed)
    path = save_encoder(NarrowResNet(4, 2), "encoder", recipe=RECIPE)
    said = changed(json.loads(Path("encoder.json").read_text()), draw)
    Path("encoder.json").write_text(json.dumps(said))
    if seed % 4 == 3:
        Path("encoder.json").write_bytes(garbled(Path("encoder.json").read_bytes(), draw))
    found = outcome(lambda: read_encoder(str(path)))
    assert isinstance(found, str | Encoder)
    outcome(lambda: own_data(str(path)))


@pytest.mark.parametrize("seed", range(40 * MORE))
def test_a_changed_safetensors_file_gives_an_encoder_or_one_sentence(seed):
    draw = random.Random(seed)
    path = save_encoder(NarrowResNet(4, 2), "encoder")
    content = path.read_bytes()
    length, = struct.unpack("<Q", content[:8])
    if seed % 2:
        header = json.dumps(changed(json.loads(content[8:8 + length]), draw)).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length:])
    else:
        path.write_bytes(garbled(content, draw, within=8 + length))
    found = outcome(lambda: read_encoder(str(path)))
    assert isinstance(found, str | Encoder)
    found = outcome(lambda: NarrowResNet(4, 2, weights=str(path)))
    assert isinstance(found, str | Encoder)


@pytest.mark.parametrize("seed", range(30 * MORE))
def test_a_changed_checkpoint_gives_an_encoder_or_one_sentence(seed):
    draw = random.Random(seed)
    if seed % 3:
        content = torch.load(MIDDLE, weights_only=True)
        part = draw.choice(["hyper_parameters", "hyper_parameters", None])
        if part:
            content[part] = changed(content[part], draw)
        else:
            content = changed({name: value for name, value in content.items() if name != "optimizer_states"}, draw)
        torch.save(content, "some.ckpt")
    else:
        Path("some.ckpt").write_bytes(garbled(MIDDLE.read_bytes(), draw))
    found = outcome(lambda: read_encoder("some.ckpt"))
    assert isinstance(found, str | Encoder)
    outcome(lambda: NarrowResNet(4, 2, weights="some.ckpt"))
