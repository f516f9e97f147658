"""An exported encoder: two files that make it again, bit for bit, and run no code."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file
from torch import nn

import ssl_zoo
from ssl_zoo import checkpoints, export, load_encoder, save_encoder
from ssl_zoo.encoders import NarrowResNet, ResNet, Timm
from tests.conftest import same

MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.3, 0.6)


def timm_encoder(name="test_resnet", **options):
    pytest.importorskip("timm", reason="timm is not installed: pip install ssl_zoo[timm]")
    return Timm(name, **options)


ENCODERS = [lambda: ResNet(18, small_images=True), lambda: NarrowResNet(4, 2, mean=MEAN, std=STD),
            lambda: timm_encoder(mean=MEAN)]


def trained(encoder):
    """After two batches in training mode, so that the running statistics are none that a new encoder has."""
    images = torch.randint(256, (2, 4, encoder.channels, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    with torch.no_grad():
        for batch in images:
            encoder(batch)
    return encoder


@pytest.fixture
def exported(tmp_path):
    return save_encoder(trained(NarrowResNet(4, 2)), tmp_path / "encoder")


def description(path):
    return json.loads(path.with_suffix(".json").read_text())


# There and back

@pytest.mark.parametrize("make", ENCODERS)
def test_a_loaded_encoder_gives_the_same_bits(make, tmp_path):
    encoder, images = trained(make()), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    loaded = load_encoder(save_encoder(encoder, tmp_path / "encoder"))
    assert type(loaded) is type(encoder)
    with torch.no_grad():
        assert torch.equal(loaded(images), encoder.eval()(images))
    assert (loaded.arguments, loaded.dim) == (encoder.arguments, encoder.dim)


def test_a_loaded_encoder_evaluates_and_the_saved_one_goes_on_as_it_was(tmp_path):
    encoder = NarrowResNet(4, 2)
    loaded = load_encoder(save_encoder(encoder, tmp_path / "encoder"))
    assert encoder.training
    assert not any(module.training for module in loaded.modules())


@pytest.mark.parametrize("written", ["encoder", "encoder.safetensors", "encoder.json", "new/folder/encoder"])
@pytest.mark.parametrize("read", [str, Path, lambda path: path.with_suffix(""), lambda path: path.with_suffix(".json")])
def test_any_ending_names_the_same_two_files(written, read, tmp_path):
    path = save_encoder(NarrowResNet(4, 1), tmp_path / written)
    assert path == (tmp_path / written).with_suffix(".safetensors")
    assert sorted(file.name for file in path.parent.iterdir()) == ["encoder.json", "encoder.safetensors",
                                                                       "encoder.safetensors.md"]
    assert load_encoder(read(path)).dim == 4


def test_two_names_with_dots_in_them_are_two_encoders(tmp_path):
    paths = [save_encoder(NarrowResNet(width, 1), tmp_path / f"lr0.{width}") for width in (3, 6)]
    assert [load_encoder(path).dim for path in paths] == [3, 6]


def test_layers_in_another_memory_order_are_exported_as_they_are(tmp_path):
    encoder = trained(NarrowResNet(4, 2)).to(memory_format=torch.channels_last)
    loaded = load_encoder(save_encoder(encoder, tmp_path / "encoder"))
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("wrap", [
    lambda encoder: torch.compile(encoder, backend="eager"), nn.DataParallel,
    lambda encoder: nn.DataParallel(torch.compile(encoder, backend="eager")),
    lambda encoder: setattr(encoder, "backbone", torch.compile(encoder.backbone, backend="eager")) or encoder])
def test_an_encoder_that_is_compiled_or_wrapped_is_exported_under_its_own_class(wrap, tmp_path):
    encoder = trained(NarrowResNet(4, 2))
    before, known = {name: value.clone() for name, value in encoder.state_dict().items()}, export.fingerprint(encoder)
    wrapped = wrap(encoder)
    assert export.fingerprint(wrapped) == known
    path = save_encoder(wrapped, tmp_path / "encoder")
    assert description(path)["architecture"]["class"] == "NarrowResNet"
    assert same(dict(load_encoder(path).state_dict()), before)


def test_what_is_no_encoder_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="an Encoder is exported, not a Linear: give method.evaluated"):
        save_encoder(nn.Linear(2, 2), tmp_path / "encoder")
    assert not list(tmp_path.iterdir())


# What the description says

def test_the_description_says_what_made_the_encoder_and_how_to_feed_it(tmp_path):
    recipe = {"encoder": {"class_path": "NarrowResNet"}, "temperature": 0.1, "folder": tmp_path}
    path = save_encoder(NarrowResNet(4, 2, mean=MEAN, std=STD), tmp_path / "encoder", size=32, recipe=recipe,
                        metrics={"knn_dino": 0.75})
    said = description(path)
    assert said["architecture"] == {"class": "NarrowResNet", "dim": 8, "arguments": {
        "width": 4, "stages": 2, "mean": list(MEAN), "std": list(STD)}}
    assert said["preprocessing"]["mean"] == list(MEAN)
    assert said["preprocessing"]["std"] == list(STD)
    assert said["preprocessing"]["size"] == 32
    assert said["metrics"] == {"knn_dino": 0.75}
    assert said["recipe"] == {**recipe, "folder": str(tmp_path)}       # what JSON has no form for, as text
    assert said["versions"] == {"ssl_zoo": ssl_zoo.__version__, "torch": torch.__version__,
                                "torchvision": torchvision.__version__}


def test_without_recipe_and_metrics_the_description_says_so(exported):
    said = description(exported)
    assert (said["metrics"], said["recipe"], said["preprocessing"]["size"]) == ({}, None, None)


# No code runs

def test_the_tensors_are_plain_safetensors_under_the_encoders_own_names(exported):
    state, arrays = load_encoder(exported).state_dict(), load_arrays(exported)       # read without torch
    assert arrays.keys() == state.keys()
    assert all((array == state[name].numpy()).all() for name, array in arrays.items())


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_pickle_in_the_place_of_the_tensors_is_not_unpickled(write, exported, tmp_path):
    write({"mean": Touch(tmp_path / "touched")}, exported)
    with pytest.raises(Exception):   # noqa: B017, PT011  # how it is refused does not matter here
        load_encoder(exported)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("statement", ["import ssl_zoo", "from ssl_zoo import __version__", "import ssl_zoo.schedules"])
def test_importing_the_package_alone_imports_no_torch(statement):
    code = f"{statement}; import sys; assert not {{'torch', 'torchvision', 'numpy', 'PIL'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_packages_public_names_are_those_of_checkpoints_and_export():
    assert ssl_zoo.load_encoder is checkpoints.load_encoder
    assert ssl_zoo.save_encoder is export.save_encoder
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ssl_zoo.nothing


# What does not fit

def test_tensors_without_their_description_are_refused(exported):
    exported.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"encoder\.safetensors has no encoder\.json beside it"):
        load_encoder(exported)


def test_a_description_without_its_tensors_is_refused(exported):
    exported.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no encoder .*encoder\.safetensors"):
        load_encoder(exported)


@pytest.mark.parametrize(("change", "count"), [
    (lambda state: state.pop("backbone.conv1.weight"), "1 tensors missing, 0 unexpected, 0 of another shape"),
    (lambda state: state.update({"backbone.fc.weight": torch.zeros(2)}),
     "0 tensors missing, 1 unexpected, 0 of another shape"),
    (lambda state: state.update({"backbone.conv1.weight": torch.zeros(4, 3, 5, 5)}),
     "0 tensors missing, 0 unexpected, 1 of another shape"),
])
def test_tensors_that_do_not_fit_the_description_are_refused_and_named(change, count, exported):
    state = load_file(exported)
    change(state)
    save_file(state, exported)
    with pytest.raises(ValueError, match=rf"{count} \(backbone\.\w+\.weight, "):
        load_encoder(exported)


@pytest.mark.parametrize("name", ["VisionTransformer", "Mapping", "Tensor", "load_strictly", "Path",
                                  "Encoder", "_ResNet"])
def test_a_class_that_is_none_of_the_packages_encoders_is_refused(name, exported):
    said = description(exported)
    said["architecture"]["class"] = name
    exported.with_suffix(".json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=rf"encoder\.json names the encoder {name}, which this version of ssl_zoo"):
        load_encoder(exported)


class Mine(NarrowResNet):
    """Someone's own encoder, with a layer that no encoder of the package has."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.extra = nn.Linear(2, 2)


def test_someone_elses_encoder_is_exported_and_loads_only_where_its_class_is_given(tmp_path):
    encoder, images = Mine(width=4, stages=1).eval(), torch.rand(2, 3, 32, 32)
    path = save_encoder(encoder, tmp_path / "encoder")
    assert description(path)["architecture"]["class"] == f"{__name__}.Mine"
    with pytest.raises(ValueError, match=rf"names the encoder {__name__}\.Mine, .*load_encoder\(path, kind=Mine\), or "
                                         r"on the command line --trust my_module\.Mine"):
        load_encoder(path)
    again = load_encoder(path, kind=Mine)
    assert type(again) is Mine
    with torch.no_grad():
        assert torch.equal(again(images), encoder(images))
    assert torch.equal(again.extra.weight, encoder.extra.weight)


def test_a_class_that_does_not_fit_the_files_is_refused(tmp_path):
    path = save_encoder(NarrowResNet(4, 1), tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"encoder\.safetensors is of another architecture: 2 tensors missing"):
        load_encoder(path, kind=Mine)
    with pytest.raises(ValueError, match=r"encoder\.json does not fit the class ResNet as it is now: .*'?width'?"):
        load_encoder(path, kind=ResNet)
