"""Exports for other programs: they give the encoder's features, or one sentence says why there is none."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from torch import nn

from ssl_zoo import load_encoder, paths, save_encoder
from ssl_zoo.checkpoints import load_method
from ssl_zoo.cli import run
from ssl_zoo.encoders import NarrowResNet, ResNet, Torchvision
from ssl_zoo.export import graphs
from ssl_zoo.export.usage import Different, noise
from tests.conftest import same
from tests.test_export import timm_encoder, trained

MIDDLE = Path(__file__).parent / "golden/middle.ckpt"
PAGE = (Path(__file__).parents[1] / "docs/export.md").read_text()
WITHOUT = "import sys\nsys.modules['ssl_zoo'] = None\n"   # every import of it fails


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def onnxruntime():
    for name in paths.ONNX:
        pytest.importorskip(name, reason="ONNX needs the extra: pip install ssl_zoo[onnx]")
    return pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """The encoder of the golden checkpoint as ONNX, which takes the longest of all formats to write."""
    onnxruntime()
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    run(["export", str(MIDDLE), "--output", str(path), "--license", "mit"])
    return path


def card(path):
    return Path(f"{path}.md").read_text()


def front_matter(path):
    return yaml.safe_load(card(path).split("---\n")[1])


def features(encoder, images):
    with torch.no_grad():
        return encoder.eval()(images)


def close(found, expected):
    return (torch.as_tensor(found) - expected).abs().max() <= 1e-5 * expected.abs().max()


# Graphs

def test_onnx_takes_any_batch_and_size_and_says_what_it_is(onnx_file):
    encoder, session = load_method(MIDDLE).evaluated, onnxruntime().InferenceSession(onnx_file)
    for batch, height, width in ((1, 16, 16), (5, 16, 16), (2, 33, 50)):
        images = noise(batch, 3, height, width)
        assert close(session.run(None, {"images": images.numpy()})[0], features(encoder, images))
    assert [one.shape for one in session.get_inputs()] == [["batch", 3, "height", "width"]]
    assert [one.shape for one in session.get_outputs()] == [["batch", 8]]
    about = session.get_modelmeta().custom_metadata_map
    said = json.loads(about["ssl_zoo"])
    assert (said["metrics"]["linear_cached"], said["license"], about["license"]) == (1.0, "mit", "mit")
    assert said["preprocessing"]["input"] == "uint8"
    assert b"site-packages" not in onnx_file.read_bytes()   # nor any other path of this machine
    with pytest.raises(Exception, match="expected: .*uint8"):   # [0, 1] is not taken for 0 to 255
        session.run(None, {"images": (images / 255).numpy()})


def test_pt2_takes_any_batch_and_size_and_says_what_it_is():
    encoder, extra = trained(NarrowResNet(4, 2, channels=2)), {"ssl_zoo.json": ""}
    path = save_encoder(encoder, "encoder.pt2", size=16)
    program = torch.export.load(path, extra_files=extra).module()
    for batch, height, width in ((1, 16, 16), (5, 16, 16), (2, 33, 50)):
        images = noise(batch, 2, height, width)
        assert close(program(images), features(encoder, images))
    assert torch.equal(program(images.int()), program(images))
    with pytest.raises(RuntimeError, match="not implemented for 'Float'"):      # [0, 1] is not taken for 0 to 255
        program(images / 255)
    assert json.loads(extra["ssl_zoo.json"])["preprocessing"]["channels"] == 2
    assert "- sizes that the file takes: any that the encoder takes" in card(path)


class OneSize(NarrowResNet):
    """As vision transformers are without dynamic positions."""

    def forward(self, images):
        assert images.shape[-2:] == (16, 16), "16 pixels only"
        return super().forward(images)


def test_an_encoder_of_one_size_is_exported_for_it():
    path = save_encoder(encoder := OneSize(4, 1), "one.pt2", size=16)
    program, images = torch.export.load(path).module(), noise(4, 3, 16, 16)
    assert close(program(images), features(encoder, images))
    assert "- sizes that the file takes: 16 x 16 alone" in card(path)
    with pytest.raises(ValueError, match=r"does not take images of 32 pixels \(16 pixels only\)"):
        save_encoder(encoder, "other.pt2", size=32)


@pytest.mark.parametrize("wrap", [
    lambda encoder: torch.compile(encoder, backend="eager"),
    lambda encoder: encoder.compile(backend="eager") or encoder,
    lambda encoder: setattr(encoder, "backbone", torch.compile(encoder.backbone, backend="eager")) or encoder])
def test_a_compiled_encoder_is_exported_as_the_one_inside(wrap):
    encoder, images = trained(NarrowResNet(4, 1)), noise(3, 3, 16, 16)
    expected = features(encoder, images)
    path = save_encoder(wrap(encoder), "encoder.pt2", size=16)
    assert close(torch.export.load(path).module()(images), expected)


def test_a_transformer_is_exported():
    encoder = timm_encoder("test_vit", image_size=32)
    program = torch.export.load(save_encoder(encoder, "vit.pt2", size=32)).module()
    for height, width in ((32, 32), (48, 64)):
        images = noise(3, 3, height, width)
        assert close(program(images), features(encoder, images))


# State dicts

def test_torchvision_loads_a_resnet_strictly():
    encoder = trained(ResNet(18))
    save_encoder(encoder, "resnet18.pth", size=32)
    net = torchvision.models.resnet18()
    net.fc = nn.Identity()
    net.load_state_dict(torch.load("resnet18.pth", weights_only=True), strict=True)
    images = noise(2, 3, 48, 48)
    assert close(features(net, encoder.normalize(images)), features(encoder, images))
    assert front_matter("resnet18.pth")["library_name"] == "torchvision"
    again = ResNet(18, weights="resnet18.pth")
    assert same(dict(again.backbone.state_dict()), dict(encoder.backbone.state_dict()))


def test_timm_loads_a_resnet_and_its_own_models_by_checkpoint_path():
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install ssl_zoo[timm]")
    encoders = {"resnet18": ResNet(18), "test_vit": timm_encoder("test_vit", image_size=32)}
    for name, encoder in encoders.items():
        save_encoder(encoder, f"{name}.pth", size=32)
        options = {"img_size": 32} if name == "test_vit" else {}
        net = timm.create_model(name, num_classes=0, checkpoint_path=f"{name}.pth", **options)
        images = noise(2, 3, 32, 32)
        assert close(features(net, encoder.normalize(images)), features(encoder, images))
        net.reset_classifier(7)
        assert net(images / 255).shape == (2, 7)
    assert front_matter("test_vit.pth")["library_name"] == "timm"


@pytest.mark.parametrize(("make", "lines"), [
    (lambda: ResNet(18, small_images=True, channels=4), ["torch.nn.Conv2d(4, 64, kernel_size=(3, 3)", "net.maxpool ="]),
    (lambda: Torchvision("mobilenet_v3_small", channels=2), ['net.set_submodule("classifier.3"', "nn.Conv2d(2, "]),
    (lambda: timm_encoder("test_resnet", channels=4, mean=(0.1, 0.2, 0.3, 0.4)), ["in_chans=4", "[0.1, 0.2, 0.3, 0."]),
])
def test_the_cards_program_makes_the_features_of_any_channels_and_stem(make, lines):
    encoder = trained(make())
    save_encoder(encoder, "encoder.pth", size=32)
    program = re.search("```python\n(.*?)```", card("encoder.pth"), re.DOTALL)[1]
    assert all(line in program for line in lines)
    names = {"images": noise(2, encoder.channels, 32, 32)}
    exec(program, names)
    assert close(names["features"], features(encoder, names["images"]))


# Without ssl_zoo

def test_the_pages_programs_run_where_ssl_zoo_cannot_be_imported(onnx_file):
    programs = re.findall("```python\n(.*?)```", PAGE, re.DOTALL)
    run(["export", str(MIDDLE), "--output", "encoder.pt2"])
    shutil.copy(onnx_file, "encoder.onnx")
    save_encoder(trained(ResNet(18)), "resnet18.pth", size=32)
    plain = [program for program in programs if "ssl_zoo" not in program and "timm" not in program]   # see below
    assert len(plain) == 3
    assert all(len([line for line in program.splitlines() if line]) <= 10 for program in plain)
    end = "\nprint(*(tuple(one.shape) for one in found), (found[0] - torch.as_tensor(found[1])).abs().max() < 1e-4)"
    code = WITHOUT + "found = []\n" + "\n".join(f"{program}\nfound.append(features)" for program in plain) + end
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == "(4, 8) (4, 8) (4, 512) tensor(True)\n"


def test_timms_program_makes_the_features_of_torchvisions():
    pytest.importorskip("timm", reason="timm is not installed: pip install ssl_zoo[timm]")
    save_encoder(trained(ResNet(18)), "resnet18.pth", size=32)
    found = []
    for program in [one for one in re.findall("```python\n(.*?)```", PAGE, re.DOTALL) if '"resnet18.pth"' in one][1:]:
        exec(program, names := {})
        assert "ssl_zoo" not in program
        found.append(names["features"])
    assert len(found) == 2
    assert close(*found)


# The card

def test_the_card_of_a_checkpoint_says_what_made_it_and_what_it_is_worth(capsys):
    run(["export", str(MIDDLE), "--license", "apache-2.0"] + ["--output", "encoder"])
    assert capsys.readouterr().out == "encoder.safetensors\n"
    assert front_matter("encoder.safetensors") == {
        "license": "apache-2.0", "library_name": "ssl_zoo", "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised-learning", "moco", "ssl_zoo"]}
    said, text = json.loads(Path("encoder.json").read_text()), card("encoder.safetensors")
    assert f"| `knn_dino` | {said['metrics']['knn_dino']:.4g} | 20 nearest (or as many as the name says)" in text
    assert "pretrained by MoCo" in text
    assert f"fingerprint of architecture and weights: {said['fingerprint']}" in text
    assert yaml.safe_load(re.search("```yaml\n(.*?)```", text, re.DOTALL)[1])["model"]["class_path"].endswith("MoCo")
    assert said["exported"]["ssl_zoo"]["version"] in text


def test_what_is_unknown_is_not_invented():
    save_encoder(NarrowResNet(4, 1), "encoder")
    assert front_matter("encoder.safetensors")["license"] == "unknown"
    text = card("encoder.safetensors")
    for line in ("data: unknown", "seed: unknown", "code: unknown", "resize before: not recorded",
                 "None are recorded"):
        assert line in text


def test_an_exported_encoder_is_exported_again_with_all_that_is_known_of_it():
    run(["export", str(MIDDLE), "--output", "first"])
    first = json.loads(Path("first.json").read_text())
    run(["export", "first.safetensors", "--output", "second.safetensors", "--license", "mit"])
    run(["export", "second.safetensors", "--output", "third"])
    third = json.loads(Path("third.json").read_text())
    for name in ("architecture", "fingerprint", "metrics", "protocols", "recipe", "provenance"):
        assert third[name] == first[name]
    assert first["protocols"].keys() == first["metrics"].keys() > {"knn_dino"}
    assert (first["license"], third["license"]) == (None, "mit")
    assert same(dict(load_encoder("third").state_dict()), dict(load_encoder("first").state_dict()))


def test_weights_of_others_become_a_file_and_the_card_names_theirs():
    torch.save(ResNet(18).backbone.state_dict(), "theirs.pth")
    run(["export", "resnet18=theirs.pth", "--output", "ours", "--size", "64"])
    assert "- weights: theirs.pth" in card("ours.safetensors")
    assert "- side in pixels: 64" in card("ours.safetensors")


def test_a_checkpoint_keeps_how_plain_images_were_prepared(recipe):
    recipe["trainer"]["max_epochs"] = 1
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(["fit", "--config", "recipe.yaml"])
    folder = next(Path("runs").glob("*/version_0"))
    run(["export", str(folder / "checkpoints/last.ckpt"), "--output", "later"])
    later, left = (json.loads(path.read_text())["preprocessing"]
                   for path in (Path("later.json"), folder / "encoder.json"))
    assert later == left
    assert later["crop"] == "none"
    assert "images to train on (fingerprint" in card("later.safetensors")
    assert card(folder / "encoder.safetensors").count("protocol") > 0


# One sentence each

class Branching(NarrowResNet):
    def forward(self, images):
        found = super().forward(images)
        return found if found.mean() > 0 else -found


class OneBatch(NarrowResNet):
    def forward(self, images):
        return super().forward(images).view(2, -1)[:len(images)]


class Dropping(NarrowResNet):
    def forward(self, images):
        return nn.functional.dropout(super().forward(images), 0.5, training=True)


@pytest.mark.parametrize(("make", "name", "sentence"), [
    (lambda: Branching(4, 1), "it.pt2", r"Branching cannot be written as a graph .* \(Could not guard on data-depend.*"
                                        r"torch\.where takes the place of if.*, or export it as \.safetensors"),
    (lambda: Branching(4, 1), "it.onnx", "Branching cannot be written as a graph"),
    (lambda: OneBatch(4, 1), "it.pt2", "OneBatch cannot be written as a graph for batches of any size"),
    (lambda: Dropping(4, 1), "it.pt2", "the file's features differ from the encoder's by .*: they may differ by 0"),
    (lambda: NarrowResNet(4, 1).half(), "it.pt2", r"the encoder has weights in float16, .* give encoder\.float\(\)"),
    (lambda: ResNet(18).bfloat16(), "it.pth", "the encoder has weights in bfloat16"),
    (lambda: NarrowResNet(4, 1), "it.pth", r"neither torchvision nor timm has a NarrowResNet, .* export it as \.onnx"),
    (lambda: NarrowResNet(4, 1), "it.pt", r"it\.pt ends in \.pt, which is no format of exports: .*\.pth \(the state"),
    (lambda: NarrowResNet(4, 1), "it.engine", r"ends in \.engine, which is no format"),
    (lambda: NarrowResNet(4, 1), ".", r"\. is a folder: name a file in it, such as encoder\.onnx"),
])
def test_what_cannot_be_exported_gets_a_sentence_and_leaves_nothing(make, name, sentence, capfd):
    if name.endswith("onnx"):
        onnxruntime()
    with pytest.raises(ValueError, match=sentence):
        save_encoder(make(), name, size=16)
    assert os.listdir() == []
    assert capfd.readouterr() == ("", "")   # torch prints the whole graph where it fails


def test_a_file_with_other_weights_is_refused():
    save_encoder(NarrowResNet(4, 1), "other.pt2", size=16)
    with pytest.raises(Different, match="of 1 images of 16 x 16 pixels the file's features differ from the encoder's"):
        graphs.PT2.require_equal(NarrowResNet(4, 1).eval(), Path("other.pt2"), [(1, 16, 16)])


@pytest.mark.parametrize("taken", ["encoder.pt2", "encoder.pt2.md"])
def test_nothing_that_exists_is_replaced(taken):
    Path(taken).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{taken} is there already and stays"):
        save_encoder(NarrowResNet(4, 1), "encoder.pt2", size=16)
    assert {path: Path(path).read_text() for path in os.listdir()} == {taken: "mine"}


def test_without_the_extra_onnx_a_sentence_says_so_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(paths, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"encoder\.onnx is written and checked with onnx and onnxscript and "
                                         r"onnxruntime, which is not installed: pip install ssl_zoo\[onnx\]"):
        run(["export", str(MIDDLE), "--output", "encoder.onnx"])


def test_more_weights_than_an_onnx_file_holds_are_refused():
    encoder = NarrowResNet(4, 1)
    encoder.backbone.register_buffer("table", torch.empty(600_000_000, device="meta"))
    with pytest.raises(ValueError, match=r"weights have 2\.4 GB, and an ONNX file holds 2: export it as \.pt2"):
        graphs.write_onnx(encoder, Path("encoder.onnx"), {"preprocessing": {"size": 16}})


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["resnet18", "--output", "it.onnx"], "resnet18 by itself is untrained: name its weights too, as in resnet18="),
    (["start.safetensors"], "--output is missing: name the file to write, such as encoder.onnx"),
    (["start.safetensors", "--output", "start"], "start.safetensors is there already and stays"),
    (["start.safetensors", "--output", "it.pt2"], "the size of the encoder's images is unknown, .*command line --size"),
    (["start.safetensors", "--output", "it.pt2", "--size", "0"], "--size is 1 or more, not 0"),
    (["start.onnx", "--output", "it.pt2"], "there is no encoder start.onnx: give an exported encoder's .safetensors"),
    (["start.safetensors", "--format", "onnx"], "ssl-zoo export has no option --format"),
])
def test_a_wrong_command_gets_one_sentence(arguments, sentence):
    onnxruntime()
    save_encoder(NarrowResNet(4, 1), "start")
    Path("start.onnx").write_text("")
    with pytest.raises(SystemExit, match=sentence):
        run(["export", *arguments])


def test_a_number_after_a_point_is_part_of_the_name():
    assert save_encoder(NarrowResNet(4, 1), "lr0.1") == Path("lr0.1.safetensors")


def test_the_checkpoint_of_a_compiled_encoder_is_exported():
    content = torch.load(MIDDLE, weights_only=True)
    content["state_dict"] = {name.replace("encoder.backbone.", "encoder.backbone._orig_mod."): value
                             for name, value in content["state_dict"].items()}
    torch.save(content, "compiled.ckpt")
    run(["export", "compiled.ckpt", "--output", "encoder.pt2"])
    images = noise(2, 3, 16, 16)
    assert close(torch.export.load("encoder.pt2").module()(images), features(load_method(MIDDLE).evaluated, images))


def test_padding_as_tensorflows_is_exported_for_one_size_in_seconds():
    layers = pytest.importorskip("timm.layers", reason="timm is not installed: pip install ssl_zoo[timm]")
    encoder = NarrowResNet(4, 1)
    encoder.backbone.conv1 = layers.Conv2dSame(3, 4, 3, stride=2, bias=False)
    path = save_encoder(encoder, "encoder.pt2", size=16)
    assert "- sizes that the file takes: 16 x 16 alone" in card(path)
    images = noise(3, 3, 16, 16)
    assert close(torch.export.load(path).module()(images), features(encoder, images))
