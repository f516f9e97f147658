"""Encoders and methods from any file: nothing of a stranger's file runs, and nothing unnamed is imported."""

import json
import pickle
import re
import subprocess
import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml

from ssl_zoo import load_encoder, save_encoder
from ssl_zoo.checkpoints import load_method, read_checkpoint, read_encoder
from ssl_zoo.cli import run
from ssl_zoo.encoders import NarrowResNet, Timm, Torchvision
from ssl_zoo.paths import class_path, name_and_weights, own_data
from tests.conftest import same

MIDDLE = Path(__file__).parent / "golden/middle.ckpt"     # of MoCo on a NarrowResNet
MODULE = '''
from pathlib import Path
import torch
from ssl_zoo.encoders import NarrowResNet, Timm, Torchvision
from ssl_zoo.method import Method

Path("imported").touch()

class Mine(NarrowResNet):
    """An encoder of one's own."""
    def __init__(self, width: int = 4, **kwargs):
        super().__init__(width, 2, **kwargs)
        del self.arguments["stages"]
        self.scale = torch.nn.Parameter(torch.ones(8))
    def forward(self, images):
        return self.scale * super().forward(images)

class Align(Method):
    """A method of one's own."""
    def __init__(self, weight: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight
        self.head = torch.nn.Linear(self.encoder.dim, 4)
    def training_loss(self, batch):
        first, second = (self.head(self.encoder(view.images)) for view in batch.views)
        return self.weight * (first - second).square().mean()
'''


@pytest.fixture
def folder(tmp_path, monkeypatch, arrays):
    """An empty folder with a module of a method and an encoder in it, whose import leaves a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("their_module.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("their_module", None)


def forget():
    """As in a new process, in which the module has not been imported yet."""
    sys.modules.pop("their_module", None)
    Path("imported").unlink(missing_ok=True)


def trained(arrays):
    """A checkpoint that a run of someone's own method on someone's own encoder left."""
    Path("recipe.yaml").write_text(yaml.safe_dump({
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "model": {"class_path": "their_module.Align", "init_args": {
            "encoder": {"class_path": "their_module.Mine", "init_args": {"width": 4}},
            "augment": {"views": [{"size": 16, "count": 2}]}, "weight": 2.0, "schedule": {},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}}},
        "data": {"class_path": "ArrayImages", "init_args": {"path": str(arrays), "batch_size": 8}}}))
    run(["fit", "--config", "recipe.yaml"])
    forget()
    return next(Path().rglob("last.ckpt"))


def rewritten(path, **values):
    """The golden checkpoint with other hyper-parameters."""
    content = torch.load(MIDDLE, weights_only=True)
    content["hyper_parameters"] |= values
    torch.save(content, path)
    return path


def test_a_method_is_built_as_its_run_built_it():
    method = load_method(MIDDLE)
    content = torch.load(MIDDLE, weights_only=True)
    assert type(method).__name__ == "MoCo"
    assert (method.temperature, method.splits, method.symmetric) == (0.2, 2, True)
    assert same(dict(method.state_dict()), content["state_dict"])


def test_optimiser_schedule_and_others_operations_are_not_needed_and_not_imported(folder):
    row = {"size": 16, "count": 2, "extra": [{"class_path": "their_module.Erase", "init_args": {}}], "gone": 3}
    path = rewritten("other.ckpt", optimizer={"class_path": "their_module.Optimizer", "init_args": {"lr": 1.0}},
                     schedule={"class_path": "their_module.Schedule"},
                     augment={"class_path": "their_module.Augmentation", "init_args": {"views": [row], "gone": 1}})
    assert same(dict(load_method(path).state_dict()), torch.load(MIDDLE, weights_only=True)["state_dict"])
    assert not Path("imported").exists()


THEIRS = {"class_path": "their_module.Mine", "init_args": {}}


@pytest.mark.parametrize("values", [
    {"_class_path": "their_module.Align"},
    {"encoder": THEIRS},
    {"encoder": {"class_path": "ssl_zoo.encoders.NarrowResNet", "init_args": {"width": THEIRS}}},
    {"contrast": THEIRS},
    {"contrast": [{"deep": {"class_path": "their_module.Align"}}]},
    {"encoder": {"class_path": "ssl_zoo.encoders.NarrowResNet", "dict_kwargs": {"width": THEIRS}}},
])
def test_a_checkpoint_that_names_another_class_is_refused_and_nothing_is_imported(values, folder):
    with pytest.raises(ValueError, match=r"other\.ckpt names their_module\.\w+, which is not a class of ssl_zoo, and "
                                         r"files import nothing else .* add --trust their_module\.\w+$"):
        read_encoder(str(rewritten("other.ckpt", **values)))
    assert not Path("imported").exists()


@pytest.mark.parametrize("value", [
    "their_module.Mine", "their_module", json.dumps(THEIRS), yaml.safe_dump(THEIRS), "theirs.yaml", "./theirs.json",
    "their_module.py", ["their_module.Mine"], "!!python/object/apply:their_module.Mine []", "@theirs.yaml",
])
@pytest.mark.parametrize("name", ["encoder", "contrast", "projector"])
def test_a_string_in_a_file_is_never_more_than_a_string(name, value, folder):
    """Neither an import path, nor the path of another file, nor text that describes a class."""
    for file in ("theirs.yaml", "theirs.json"):
        Path(file).write_text(json.dumps(THEIRS))
    with pytest.raises(ValueError, match=r"other\.ckpt does not fit the class MoCo as it is now") as error:
        load_method(rewritten("other.ckpt", **{name: value}))
    assert "\n" not in str(error.value)
    data = {"class_path": "ssl_zoo.data.ArrayImages", "init_args": {"path": value, "batch_size": value}}
    encoder = save_encoder(NarrowResNet(4, 1), "encoder", recipe={"data": data})
    with pytest.raises(SystemExit, match="encoder.safetensors does not fit the class ArrayImages|no file of images"):
        run(["evaluate", str(encoder)])
    assert not Path("imported").exists()


@pytest.mark.parametrize(("values", "said"), [
    ({"_class_path": "ssl_zoo.methods.moco.torch"}, "which is not a subclass of Method"),
    ({"_class_path": "ssl_zoo.methods.NoMoCo"}, "which is not a subclass of Method"),
    ({"_class_path": "ssl_zoo.encoders.NarrowResNet"}, "which is not a subclass of Method"),
    ({"_class_path": "ssl_zoo.nowhere.MoCo"}, "cannot be imported"),
    ({"_class_path": "MoCo"}, "which is not a subclass of Method"),
    ({"encoder": {"class_path": "ssl_zoo.encoders.NarrowResNet", "init_args": {"depth": 3}}}, "does not fit the class"),
    ({"encoder": {"class_path": "ssl_zoo.schedules.WarmupCosine", "init_args": {}}}, "not a subclass of Module"),
    ({"encoder": {"class_path": "ssl_zoo.cli.fit.Cli", "init_args": {"arguments": []}}}, "not a subclass of Module"),
    ({"encoder": {"class_path": "ssl_zoo.encoders.BasicBlock", "init_args": {}}}, "not a subclass of Module"),
    ({"encoder": {"class_path": 3}}, "names a class by 3, which is no import path"),
    ({"encoder": {"class_path": "ssl_zoo..encoders.NarrowResNet"}}, "cannot be imported"),
    ({"encoder": {"class_path": "ssl_zoo.encoders.NarrowResNet", "init_args": {"width": 20_000}}}, "of another arch"),
    ({"encoder": {"class_path": "ssl_zoo.encoders.NarrowResNet", "init_args": {"width": "4"}}}, "does not fit the cl"),
    ({"encoder": 3}, "does not fit the class MoCo"), ({"queue": 10 ** 12}, "of another architecture"),
    ({"temperature": None}, "does not fit the class MoCo"),
    ({"augment": None}, "does not say which views"), ({"augment": {"init_args": {"views": [3]}}}, "which views"),
    ({"augment": {"init_args": {"views": "their_module"}}}, "there are no views named their_module"),
    ({"augment": {"init_args": {"views": [{"size": "x"}]}}}, "which views"),
])
def test_a_checkpoint_whose_classes_are_not_what_they_should_be_gets_one_sentence(values, said, folder):
    with pytest.raises((ValueError, ImportError), match=said):
        load_method(rewritten("other.ckpt", **values))


def test_lightnings_instantiator_in_a_file_is_never_called(folder):
    assert type(load_method(rewritten("other.ckpt", _instantiator="their_module.Align"))).__name__ == "MoCo"
    assert not Path("imported").exists()


class Touch:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_a_checkpoint_with_a_pickled_call_is_not_run(folder):
    torch.save({"state_dict": {}, "hyper_parameters": Touch()}, "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt holds more than tensors and plain values"):
        read_checkpoint("evil.ckpt")
    assert not Path("touched").exists()
    Path("pickle.ckpt").write_bytes(pickle.dumps(Touch()))
    with pytest.raises(ValueError, match=r"pickle\.ckpt is no checkpoint"):
        read_checkpoint("pickle.ckpt")
    assert not Path("touched").exists()


def test_a_method_and_an_encoder_of_ones_own_are_exported_and_read_where_they_are_trusted(folder, arrays, capsys):
    checkpoint = str(trained(arrays))
    with pytest.raises(SystemExit, match=r"names their_module\.Align, .* add --trust their_module\.Align\n"):
        run(["export", checkpoint])
    with pytest.raises(SystemExit, match=r"names their_module\.Mine, .* add --trust their_module\.Mine\n"):
        run(["export", checkpoint, "--trust", "their_module.Align"])
    forget()
    trusted = ["their_module.Align", "their_module.Mine"]
    run(["export", checkpoint, "--trust", trusted[0], "--trust", trusted[1], "--output", "mine"])
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    expected = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    assert same(dict(read_encoder("mine.safetensors", trusted).state_dict()), expected)
    assert json.loads(Path("mine.json").read_text())["architecture"]["class"] == "their_module.Mine"
    forget()
    with pytest.raises(ValueError, match=r"mine\.safetensors names their_module\.Mine, .* add --trust"):
        read_encoder("mine.safetensors")
    assert not Path("imported").exists()


def test_an_encoder_of_a_notebook_is_read_with_the_class_of_that_name():
    assert class_path("__main__.Mine", ["my_module.Mine"], "file") == "my_module.Mine"
    assert class_path("Mine", ["my_module.Mine"], "file") == "my_module.Mine"
    with pytest.raises(ValueError, match="add --trust __main__.Mine"):
        class_path("__main__.Mine", ["my_module.Other"], "file")


@pytest.mark.parametrize("named", ["os.system", "ssl_zooo.methods.MoCo", "torch.optim.SGD", "__main__.MoCo"])
def test_only_the_package_itself_is_imported_without_being_named(named):
    with pytest.raises(ValueError, match="which is not a class of ssl_zoo"):
        class_path(named, [], "file")
    assert class_path("ssl_zoo.methods.MoCo", [], "file") == "ssl_zoo.methods.MoCo"


def test_the_images_of_a_strangers_run_are_of_the_packages_classes_or_named(folder):
    data = {"class_path": "their_module.Images", "init_args": {"path": "x.npz"}}
    path = str(save_encoder(NarrowResNet(4, 1), "encoder", recipe={"data": data}))
    with pytest.raises(ValueError, match=r"encoder\.json names their_module\.Images, which is not a class of ssl_zoo"):
        own_data(path)
    assert own_data(path, ["their_module.Images"]) == data
    assert not Path("imported").exists()


def test_reading_an_exported_encoder_imports_no_lightning(tmp_path):
    path = save_encoder(NarrowResNet(4, 1), tmp_path / "encoder")
    code = f"import sys, ssl_zoo; ssl_zoo.load_encoder({str(path)!r}); assert 'pytorch_lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("given", "parts"), [
    ("resnet50", ("resnet50", "")), ("resnet50=there/resnet50.pth", ("resnet50", "there/resnet50.pth")),
    ("timm/vit=x=y.safetensors", ("timm/vit", "x=y.safetensors")), ("runs/epoch=1-step=14.ckpt",) * 2,
])
def test_an_equals_sign_divides_a_name_from_its_weights_but_no_path(given, parts, folder):
    assert name_and_weights(given) == (parts if isinstance(parts, tuple) else (given, ""))


def test_a_loaded_encoder_is_the_one_of_the_method():
    method = load_method(MIDDLE)
    assert same(dict(read_encoder(str(MIDDLE)).state_dict()), dict(method.encoder.state_dict()))
    golden = load_encoder(MIDDLE.parent / "encoder")
    assert golden.dim == method.encoder.dim


@pytest.mark.parametrize("change", [
    lambda content: [content.pop(name) for name in ("callbacks", "optimizer_states", "lr_schedulers", "loops")],
    lambda content: content.update(callbacks={"ReportToSlack": {"channel": "x"}} | content["callbacks"]),
    lambda content: content.update(callbacks={"Mine": {"columns": 3}, "Report2": ["x"]}),
])
def test_weights_alone_and_callbacks_of_any_name_are_exported(change, folder, capsys):
    content = torch.load(MIDDLE, weights_only=True)
    change(content)
    torch.save(content, "some.ckpt")
    run(["export", "some.ckpt"])
    assert capsys.readouterr().out == "some.safetensors\n"
    assert same(dict(load_encoder("some").state_dict()), dict(load_method(MIDDLE).encoder.state_dict()))


# Checkpoints of other programs

def test_another_programs_checkpoint_gets_one_sentence_in_every_command(folder, arrays):
    recipe = {"trainer": {"max_epochs": 1, "accelerator": "cpu"}, "data": {
        "class_path": "ArrayImages", "init_args": {"path": str(arrays), "batch_size": 8}},
        "model": {"class_path": "SimCLR", "init_args": {
            "encoder": {"class_path": "NarrowResNet", "init_args": {"width": 4, "stages": 2}}, "schedule": {},
            "augment": {"views": [{"size": 16, "count": 2}]},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}}}}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    state = {"backbone.conv1.weight": torch.rand(3)}
    for content, said in (
            ({"state_dict": state, "hyper_parameters": Namespace(name="x"), "pytorch-lightning_version": "1.6"},
             "holds more than tensors and plain values, .* name what it is: resnet50=their.ckpt"),
            ({"state_dict": state, "optimizer": {}, "epoch": 3}, "their.ckpt is no checkpoint of ssl-zoo fit"),
            ([1, 2], "is no checkpoint of ssl-zoo fit"), ({"state_dict": {"a": 3}, "pytorch-lightning_version": "2"},
                                                          "has a state_dict with other things than tensors")):
        torch.save(content, "their.ckpt")
        for command in (["export"], ["evaluate", "--data", "Digits"], ["fit", "--config", "recipe.yaml", "--ckpt_path"],
                        ["validate", "--config", "recipe.yaml", "--ckpt_path"]):
            with pytest.raises(SystemExit, match=said) as error:
                run([*command, "their.ckpt"])
            assert "weights_only" not in str(error.value)
            assert str(error.value).count("\n") == 1                # and the line about tracebacks
    torch.save({"state_dict": state, "pytorch-lightning_version": "1.6", "epoch": 1}, "their.ckpt")
    with pytest.raises(SystemExit, match="does not say how to build its encoder: .* or of another program"):
        run(["export", "their.ckpt"])
    with pytest.raises(SystemExit, match="was saved without loops, as with save_weights_only, so that no run can go"):
        run(["fit", "--config", "recipe.yaml", "--ckpt_path", "their.ckpt"])


# Descriptions that are not what ssl-zoo writes

def architecture(**changes):
    return lambda said: said["architecture"].update(changes)


def argument(**changes):
    return lambda said: said["architecture"]["arguments"].update(changes)


def instead(text):
    return lambda said: text


VARIANTS = {
    "empty": instead(""), "no JSON": instead("{'class': 1}"), "cut short": instead('{"architecture": {"class": "Narr'),
    "a list": instead("[]"), "null": instead("null"), "a number": instead("3"), "an empty object": instead("{}"),
    "too deep": instead("[" * 100_000), "not UTF-8": instead(b"\xff\xfe{"), "too large": instead(" " * (2 ** 24 + 1)),
    "architecture is a list": lambda said: said.update(architecture=[]),
    "no class": lambda said: said["architecture"].pop("class") and None,
    "class is a number": architecture(**{"class": 3}), "class is empty": architecture(**{"class": ""}),
    "class is a function": architecture(**{"class": "named"}),
    "class of another library": architecture(**{"class": "torch.nn.Linear"}), "class is a dunder": architecture(
        **{"class": "__builtins__"}), "no arguments": lambda said: said["architecture"].pop("arguments") and None,
    "arguments are a list": architecture(arguments=[4, 2]), "arguments are none": architecture(arguments={}),
    "another class": architecture(**{"class": "ResNet"}),
    "another class that fits": architecture(**{"class": "Timm", "arguments": {"name": "test_resnet"}}),
    "a hub's model": architecture(**{"class": "Timm", "arguments": {"name": "hf-hub:someone/model"}}),
    "a folder's model": architecture(**{"class": "Timm", "arguments": {"name": "local-dir:."}}),
    "no such model": architecture(**{"class": "Torchvision", "arguments": {"name": "__init__"}}),
    "dim": architecture(dim=9), "dim is a string": architecture(dim="8"),
    "an unknown argument": argument(depth=3), "an argument of the base class": argument(backbone=3),
    "width is a string": argument(width="4"), "width is a list": argument(width=[4]),
    "width is null": argument(width=None),
    "width is a fraction": argument(width=4.5), "width is negative": argument(width=-4),
    "width is 0": argument(width=0), "width 20,000": argument(width=20_000), "width 10**300": argument(width=10 ** 300),
    "stages is huge": argument(stages=10 ** 6), "stages is negative": argument(stages=-1),
    "mean of two": argument(mean=[0.5, 0.5]), "mean of strings": argument(mean=["a", "b", "c"]),
    "mean is null": argument(mean=None), "mean is NaN": argument(mean=[float("nan")] * 3),
    "mean is deep": argument(mean=[[0.1], [0.2], [0.3]]), "std is 0": argument(std=[0, 1, 1]),
    "std is infinite": argument(std=[float("inf")] * 3), "std is a number": argument(std=1.0),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_malformed_description_gets_one_sentence(name, folder):
    path = save_encoder(NarrowResNet(4, 2), "encoder")
    said = json.loads(Path("encoder.json").read_text())
    changed = VARIANTS[name](said)
    if isinstance(changed, str | bytes):
        Path("encoder.json").write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    else:
        Path("encoder.json").write_text(json.dumps(said))
    with pytest.raises((ValueError, ImportError)) as error:
        read_encoder(str(path))
    assert re.search(r"encoder\.(json|safetensors)", str(error.value))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_sizes_are_compared_before_anything_takes_memory(folder, monkeypatch):
    path, devices = save_encoder(NarrowResNet(4, 2), "encoder"), []
    monkeypatch.setattr(NarrowResNet, "start", lambda self: devices.append(self.mean.device.type))
    for width, made in ((20_000, ["meta"]), (4, ["meta", "cpu"])):
        said = json.loads(Path("encoder.json").read_text())
        said["architecture"]["arguments"]["width"] = width
        Path("encoder.json").write_text(json.dumps(said))
        devices.clear()
        with pytest.raises(ValueError, match="is of another architecture") if width > 4 else nullcontext():
            load_encoder(path)
        assert devices == made


def test_a_weights_argument_in_a_description_opens_no_file(folder):
    path = save_encoder(NarrowResNet(4, 2), "encoder")
    said = json.loads(Path("encoder.json").read_text())
    said["architecture"]["arguments"]["weights"] = "nowhere.pth"
    Path("encoder.json").write_text(json.dumps(said))
    assert same(dict(load_encoder(path).state_dict()), dict(load_encoder(path).state_dict()))


@pytest.mark.parametrize("make", [lambda: Timm("test_vit", image_size=64), lambda: Torchvision("mobilenet_v3_small")])
def test_encoders_of_other_libraries_pass_the_comparison_of_sizes(make, folder):
    pytest.importorskip("timm", reason="timm is not installed: pip install ssl_zoo[timm]")
    encoder = make()
    assert same(dict(load_encoder(save_encoder(encoder, "encoder")).state_dict()), dict(encoder.state_dict()))
