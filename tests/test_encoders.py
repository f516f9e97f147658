"""Encoders: what they make of an image, what they accept, and which files they start from."""

import pickle
import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.transforms.v2.functional import normalize

from ssl_zoo.encoders import Encoder, NarrowResNet, ResNet, Timm, Torchvision
from ssl_zoo.export import save_encoder
from ssl_zoo.weights import load_strictly

MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.3, 0.6)


@pytest.fixture(autouse=True)
def same_weights():
    """The random weights of a test are its own, and the tests after it are left as they were."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="timm is not installed: pip install ssl_zoo[timm]")


def pixels(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).byte()


def lively(encoder):
    """In evaluation mode, with batch norms that move and scale, so that a norm left out is seen."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias.data):
                values.uniform_(-0.2, 0.2)
            for values in (module.running_var, module.weight.data):
                values.uniform_(0.8, 1.2)
    return encoder.eval()


def one_sentence(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 400


# Shapes

@pytest.mark.parametrize(("make", "size", "dim", "map_size"), [
    (lambda: ResNet(18), (64, 64), 512, (2, 2)),
    (lambda: ResNet(18), (96, 33), 512, (3, 2)),
    (lambda: ResNet(18), (32, 32), 512, (1, 1)),
    (lambda: ResNet(18, small_images=True), (32, 32), 512, (4, 4)),
    (lambda: NarrowResNet(), (32, 32), 128, (4, 4)),
    (lambda: NarrowResNet(width=4, stages=1), (32, 32), 4, (16, 16)),
    (lambda: NarrowResNet(width=6, stages=2), (32, 20), 12, (8, 5)),
])
def test_a_resnets_features_are_its_maps_averaged_over_the_places(make, size, dim, map_size):
    encoder, images = lively(make()), pixels(2, 3, *size)
    features, maps = encoder(images), encoder.maps(images)
    assert encoder.dim == dim
    assert maps.shape == (2, dim, *map_size)
    assert features.shape == (2, dim)
    assert torch.allclose(features, maps.flatten(2).sum(-1) / maps[0, 0].numel(), atol=1e-6)
    assert not torch.allclose(features[0], features[1], atol=1e-3)


@pytest.mark.parametrize("width", [4, 10])
def test_a_narrow_resnet_doubles_its_channels_and_halves_its_maps_from_stage_to_stage(width):
    net = NarrowResNet(width, stages=4).backbone
    x, shapes = net.conv1(torch.zeros(1, 3, 64, 64)), []
    for name, stage in net.named_children():
        if name.startswith("layer"):
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(width, 32, 32), (2 * width, 16, 16), (4 * width, 8, 8), (8 * width, 4, 4)]


# Images and normalisation

ENCODERS = [lambda **options: ResNet(18, small_images=True, **options), lambda **options: NarrowResNet(4, 2, **options)]


@pytest.mark.parametrize("make", ENCODERS)
def test_a_grey_image_is_the_same_as_its_channel_three_times(make):
    encoder, grey = lively(make()), pixels(2, 1, 16, 16)
    assert torch.equal(encoder(grey), encoder(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("make", ENCODERS)
def test_bytes_are_the_same_as_shares_of_full_brightness(make):
    encoder, images = lively(make()), pixels(2, 3, 16, 16)
    assert torch.equal(encoder(images), encoder(images.float() / 255))


@pytest.mark.parametrize("options", [{}, {"mean": MEAN, "std": STD}])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_torchvisions(channels, options):
    images = pixels(2, channels, 8, 8)
    expected = normalize(images.repeat(1, 3 // channels, 1, 1) / 255, list(options.get("mean", (0.485, 0.456, 0.406))),
                         list(options.get("std", (0.229, 0.224, 0.225))))
    assert torch.allclose(NarrowResNet(4, 1, **options).normalize(images), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 2, 32, 32), (2, 4, 32, 32), (2, 32, 32, 3), (1, 2, 3, 32, 32)])
def test_what_is_no_batch_of_images_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=r"reads images .* not \[" + ", ".join(map(str, shape))):
        NarrowResNet(4, 1)(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("images", [torch.uint8, torch.float32, torch.float16])
def test_an_encoder_of_another_precision_takes_images_of_any(dtype, images):
    encoder = lively(NarrowResNet(4, 2))
    given = pixels(2, 3, 16, 16) if images == torch.uint8 else (pixels(2, 3, 16, 16) / 255).to(images)
    expected = encoder(pixels(2, 3, 16, 16))
    found = encoder.to(dtype)(given)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected, atol=0.1)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("change", "said"), [
    (lambda images: images * 255, "from 0 to 255"), (lambda images: (images - 0.5) / 0.5, "from -1 to 1"),
    (lambda images: images * float("nan"), "from nan to nan"), (lambda images: images + 0.01, "from 0.01 to 1.01")])
def test_images_that_are_normalised_or_go_to_255_are_refused(change, said, train):
    images = torch.linspace(0, 1, 96).view(2, 3, 4, 4)
    encoder = NarrowResNet(4, 1).train(train)
    with pytest.raises(ValueError, match=f"floats in .0, 1., and these images go {said}: .* leave out Norm") as error:
        encoder(change(images))
    assert one_sentence(error)
    encoder(images + 5e-4)   # what rounding leaves, after a resize


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.bool])
def test_integers_that_are_not_bytes_are_refused(dtype):
    with pytest.raises(ValueError, match=f"as uint8, or as floats in .0, 1., not as {dtype}"):
        NarrowResNet(4, 1)(torch.zeros(2, 3, 8, 8, dtype=dtype))


def test_a_training_loop_reads_the_range_of_its_first_images_alone_and_evaluation_of_all():
    encoder, images = NarrowResNet(4, 1), torch.rand(2, 3, 8, 8)
    encoder(images)
    encoder(images * 255)
    with pytest.raises(ValueError, match="floats in"):
        encoder.eval()(images * 255)
    encoder(images[:0])
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), encoder(images))


@pytest.mark.parametrize("std", [(1.0, 0.0, 1.0), (1.0, 1.0, -0.2)])
def test_a_deviation_that_is_not_above_zero_is_refused(std):
    with pytest.raises(ValueError, match="std must be above 0"):
        NarrowResNet(4, 1, std=std)


@pytest.mark.parametrize("depth", [18, 50])
def test_the_backbone_is_torchvisions_resnet_without_classifier(depth):
    encoder, images = lively(ResNet(depth, mean=MEAN, std=STD)), pixels(2, 3, 32, 32)
    plain = getattr(torchvision.models, f"resnet{depth}")()
    plain.fc = nn.Identity()
    plain.load_state_dict(encoder.backbone.state_dict(), strict=True)
    expected = plain.eval()(normalize(images / 255, list(MEAN), list(STD)))
    assert torch.allclose(encoder(images), expected, rtol=1e-4, atol=1e-5)


def test_the_layers_of_a_small_images_stem_start_with_torchvisions_spread():
    weight = ResNet(18, small_images=True).backbone.conv1.weight
    assert weight.shape == (64, 3, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)   # He's, over the outputs


# timm

@pytest.mark.parametrize("name", ["resnet10t", "test_efficientnet"])
def test_a_convolutional_net_of_timms_averages_its_maps(timm, name):
    encoder, images = lively(Timm(name)), pixels(2, 3, 64, 96)
    features, maps = encoder(images), encoder.maps(images)
    assert features.shape == (2, encoder.dim)
    assert maps.shape == (2, encoder.dim, 2, 3)
    assert torch.allclose(features, maps.mean((2, 3)), atol=1e-5)


@pytest.mark.parametrize(("name", "size", "side"), [
    ("test_vit", 64, 4),                            # one token before the patches, and the features are that one
    ("test_vit2", 64, 4),                           # one too, and the features are not
    ("deit_tiny_distilled_patch16_224", 32, 2),     # two
    ("swin_tiny_patch4_window7_224", 64, 2),        # channels last
])
def test_features_and_maps_are_those_that_timm_itself_gives(timm, name, size, side):
    encoder, images = Timm(name, image_size=size, mean=MEAN, std=STD).eval(), pixels(2, 3, size or 64, size or 64)
    plain = timm.create_model(name, num_classes=0, **{"img_size": size} if size else {}).eval()
    plain.load_state_dict(encoder.backbone.state_dict(), strict=True)
    normal = normalize(images / 255, list(MEAN), list(STD))
    features, maps = encoder(images), encoder.maps(images)
    maps_there = plain.forward_intermediates(normal, indices=1, norm=True, intermediates_only=True,
                                             output_fmt="NCHW")[-1]
    assert torch.allclose(features, plain(normal), rtol=1e-4, atol=1e-5)
    assert maps.shape == (2, encoder.dim, side, side)
    assert torch.allclose(maps, maps_there, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_mambaout"])
def test_a_net_with_a_layer_after_its_pooling_is_refused_in_a_sentence(timm, name):
    with pytest.raises(ValueError, match=f"timm's {name} has a layer between its pooling and its classifier") as error:
        Timm(name)
    assert one_sentence(error)


def test_a_model_of_timms_normalises_as_its_weights_were_trained(timm):
    name = "vit_tiny_patch16_224.augreg_in21k"
    encoder = Timm(name)
    assert encoder.arguments["mean"] == encoder.arguments["std"] == [0.5, 0.5, 0.5]
    assert encoder.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert Timm(name, mean=MEAN).arguments | {"name": name} == encoder.arguments | {"mean": list(MEAN)}


def test_a_transformer_of_timms_takes_views_of_several_sizes(timm):
    encoder = Timm("vit_tiny_patch16_224", image_size=64).eval()
    for size in (32, 64, 96):
        assert encoder.maps(pixels(1, 3, size, size)).shape == (1, encoder.dim, size // 16, size // 16)
        assert encoder(pixels(1, 3, size, size)).shape == (1, encoder.dim)


def test_a_name_that_timm_does_not_know_is_refused_with_names_like_it(timm):
    with pytest.raises(ValueError, match=r"timm has no model named resnet_10; it has .*resnet") as error:
        Timm("resnet_10")
    assert one_sentence(error)


# Weights to start from

def saved(state, path):
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("make", ENCODERS)
def test_an_encoder_starts_from_an_exported_one(make, tmp_path):
    exported, images = lively(make(mean=MEAN, std=STD)), pixels(2, 3, 16, 16)
    path = save_encoder(exported, tmp_path / "encoder")
    encoder = make(mean=MEAN, std=STD, weights=str(path)).eval()
    assert torch.equal(encoder(images), exported(images))


def test_an_encoder_that_starts_from_an_exported_one_describes_the_normalisation_it_took_over(tmp_path):
    path = save_encoder(NarrowResNet(4, 1, mean=MEAN, std=STD), tmp_path / "encoder")
    encoder = NarrowResNet(4, 1, weights=str(path))
    for name, buffer in (("mean", encoder.mean), ("std", encoder.std)):
        assert encoder.arguments[name] == pytest.approx(buffer.flatten().tolist())


def test_a_resnet_starts_from_the_file_that_torchvision_publishes(tmp_path):
    published, images = lively(torchvision.models.resnet18()), pixels(2, 3, 32, 32)
    encoder = ResNet(18, weights=saved(published.state_dict(), tmp_path / "resnet18.pth")).eval()
    published.fc = nn.Identity()
    expected = published(normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert torch.allclose(encoder(images), expected, rtol=1e-4, atol=1e-5)


def test_a_timm_encoder_starts_from_a_timm_state_dict(timm, tmp_path):
    state = lively(timm.create_model("test_resnet", num_classes=0)).state_dict()
    encoder = Timm("test_resnet", weights=saved(state, tmp_path / "timm.pth"))
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_timm_encoder_leaves_the_classifier_of_a_whole_state_dict_out(timm, tmp_path):
    state = lively(timm.create_model("test_resnet", num_classes=7)).state_dict()
    encoder = Timm("test_resnet", weights=saved(state, tmp_path / "timm.pth"))
    assert encoder.backbone.state_dict().keys() == {name for name in state if not name.startswith("fc.")}


@pytest.mark.parametrize("name", ["googlenet", "densenet121"])
def test_a_torchvision_model_takes_the_files_that_torchvision_publishes(name, tmp_path, monkeypatch):
    """GoogLeNet's weights expect other pixels, and DenseNet's files have names of before 2017."""
    options = {"googlenet": {"transform_input": True, "aux_logits": True, "init_weights": False}}.get(name, {})
    published, images = lively(getattr(torchvision.models, name)(**options)), pixels(2, 3, 64, 64)
    old = re.sub(r"denselayer(\d+)\.(norm|conv)(\d)", r"denselayer\1.\2.\3", "\n".join(published.state_dict()))
    state = dict(zip(old.split("\n"), published.state_dict().values(), strict=True))
    encoder = Torchvision(name, weights=saved(state, tmp_path / "published.pth")).eval()
    setattr(published, encoder.classifier, nn.Identity())
    expected = published(normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert torch.allclose(encoder(images), expected, rtol=1e-4, atol=1e-5)


# A name for each place where torchvision keeps its classifiers
@pytest.mark.parametrize(("name", "classifier"), [
    ("resnext50_32x4d", "fc"), ("mobilenet_v3_small", "classifier.3"), ("vit_b_32", "heads.head"), ("swin_t", "head")])
def test_a_torchvision_model_gives_what_its_classifier_reads(name, classifier, tmp_path):
    published, images = lively(torchvision.models.get_model(name)), pixels(2, 3, 224, 224)
    encoder = Torchvision(name, weights=saved(published.state_dict(), tmp_path / "published.pth")).eval()
    read = []
    published.get_submodule(classifier).register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    published(normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert encoder(images).shape == (2, encoder.dim)
    assert torch.allclose(encoder(images), read[0], rtol=1e-4, atol=1e-5)


def test_a_torchvision_model_without_a_linear_classifier_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="squeezenet1_1 ends in no linear layer") as error:
        Torchvision("squeezenet1_1")
    assert one_sentence(error)


def test_a_name_that_torchvision_does_not_know_is_refused_with_names_like_it():
    with pytest.raises(ValueError, match="torchvision has no classification model named convnext_tinny; it has convne"):
        Torchvision("convnext_tinny")


def test_a_torchvision_encoder_says_that_it_has_no_maps():
    with pytest.raises(ValueError, match="mobilenet_v3_small has its feature maps"):
        Torchvision("mobilenet_v3_small").maps(pixels(1, 3, 32, 32))


@pytest.mark.parametrize("make", [lambda path: ResNet(34, weights=path),
                                  lambda path: ResNet(18, small_images=True, weights=path),
                                  lambda path: NarrowResNet(weights=path)])
def test_weights_of_another_architecture_are_refused_in_a_sentence(make, tmp_path):
    path = saved(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"resnet18\.pth (is of another architecture: \d+ tensors missing|does not "
                                         r"hold this encoder's weights).* it holds resnet18$") as error:
        make(path)
    assert one_sentence(error)


def test_an_export_of_another_width_is_refused_in_a_sentence(tmp_path):
    path = save_encoder(NarrowResNet(4, 2), tmp_path / "encoder")
    with pytest.raises(ValueError, match="of another architecture: 0 tensors missing, 0 unexpected, 30 of") as error:
        NarrowResNet(5, 2, weights=str(path))
    assert one_sentence(error)


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere.safetensors"])
def test_weights_that_are_not_there_are_refused_with_their_path(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no weights at .*{name}") as error:
        NarrowResNet(4, 1, weights=str(tmp_path / name))
    assert one_sentence(error)


def test_a_training_checkpoint_is_refused_with_the_command_that_makes_an_encoder_of_it(tmp_path):
    checkpoint = {"state_dict": NarrowResNet(4, 1).state_dict(), "epoch": 3, "loops": {},
                  "hyper_parameters": {"_class_path": "ssl_zoo.methods.SimCLR"}}
    with pytest.raises(ValueError, match=r"last\.ckpt is a checkpoint of ssl-zoo fit, .* ssl-zoo export") as error:
        NarrowResNet(4, 1, weights=saved(checkpoint, tmp_path / "last.ckpt"))
    assert one_sentence(error)


@pytest.mark.parametrize("name", ["module.pth", "text.pth", "text.safetensors"])
def test_a_file_that_holds_no_tensors_is_refused_in_a_sentence(name, tmp_path):
    path = tmp_path / name
    if name == "module.pth":
        torch.save(torchvision.models.resnet18(), path)
    else:
        path.write_text("hello, I am no encoder")
    with pytest.raises(ValueError, match=name) as error:
        ResNet(18, weights=str(path))
    assert one_sentence(error)


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2))])
def test_weights_run_no_code_of_their_file(write, tmp_path):
    write({"mean": Touch(tmp_path / "touched")}, tmp_path / "weights.pth")
    with pytest.raises(Exception):   # noqa: B017, PT011  # how it is refused does not matter here
        NarrowResNet(4, 1, weights=str(tmp_path / "weights.pth"))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("change", "count"), [
    (lambda state: state.pop("bias"), "1 tensors missing, 0 unexpected, 0 of another shape"),
    (lambda state: state.update(scale=torch.zeros(1)), "0 tensors missing, 1 unexpected, 0 of another shape"),
    (lambda state: state.update(bias=torch.zeros(3)), "0 tensors missing, 0 unexpected, 1 of another shape"),
])
def test_a_state_that_does_not_fit_changes_nothing(change, count):
    module, state = nn.Linear(3, 2), nn.Linear(3, 2).state_dict()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=f"the file is of another architecture: {count}"):
        load_strictly(module, state, "the file")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_an_encoder_is_its_arguments_made_again(timm):
    for encoder in (ResNet(18, small_images=True, mean=MEAN), NarrowResNet(6, 2, std=STD), Timm("test_resnet")):
        again: Encoder = type(encoder)(**encoder.arguments)
        assert again.arguments == encoder.arguments
        assert torch.equal(again.mean, encoder.mean)
        assert torch.equal(again.std, encoder.std)
        assert {name: value.shape for name, value in again.state_dict().items()} == {
            name: value.shape for name, value in encoder.state_dict().items()}
