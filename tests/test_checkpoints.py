"""Encoders and methods from any file: nothing of a stranger's file runs, and nothing unnamed is imported."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from ssl_zoo import load_encoder, save_encoder
from ssl_zoo.checkpoints import load_method, read_checkpoint, read_encoder
from ssl_zoo.cli import run
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.paths import class_path, name_and_weights, own_data
from tests.conftest import same

MIDDLE = Path(__file__).parent / "golden/middle.ckpt"     # of MoCo on a NarrowResNet
MODULE = '''
from pathlib import Path
import torch
from ssl_zoo.encoders import NarrowResNet
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


@pytest.mark.parametrize("values", [
    {"_class_path": "their_module.Align"},
    {"encoder": {"class_path": "their_module.Mine", "init_args": {}}},
    {"contrast": {"class_path": "their_module.Align", "init_args": {}}},
    {"contrast": [{"deep": {"class_path": "their_module.Align"}}]},
])
def test_a_checkpoint_that_names_another_class_is_refused_and_nothing_is_imported(values, folder):
    with pytest.raises(ValueError, match=r"other\.ckpt names their_module\.\w+, which is not a class of ssl_zoo, and "
                                         r"files import nothing else .* add --trust their_module\.\w+$"):
        read_encoder(str(rewritten("other.ckpt", **values)))
    assert not Path("imported").exists()


@pytest.mark.parametrize(("values", "said"), [
    ({"_class_path": "ssl_zoo.methods.moco.torch"}, "which is not a subclass of Method"),
    ({"_class_path": "ssl_zoo.methods.NoMoCo"}, "which is not a subclass of Method"),
    ({"_class_path": "ssl_zoo.encoders.NarrowResNet"}, "which is not a subclass of Method"),
    ({"_class_path": "ssl_zoo.nowhere.MoCo"}, "cannot be imported"),
    ({"_class_path": "MoCo"}, "which is not a subclass of Method"),
    ({"encoder": {"class_path": "ssl_zoo.encoders.NarrowResNet", "init_args": {"depth": 3}}}, "does not fit the class"),
    ({"encoder": {"class_path": "ssl_zoo.schedules.WarmupCosine", "init_args": {}}}, "does not fit the class"),
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
