"""Any number of channels, from arrays and files through views and encoders to an export."""

from functools import partial

import numpy as np
import pytest
import tifffile
import timm as timm_library
import torch
import torchvision

from ssl_zoo import load_encoder, save_encoder
from ssl_zoo.data import ArrayImages, ImageFolder
from ssl_zoo.encoders import IMAGENET_MEAN, NarrowResNet, ResNet, Timm, Torchvision
from ssl_zoo.published import widened
from ssl_zoo.views import Augmentation, Canvases, Key, ViewSpec, pipeline
from tests.conftest import simclr, trainer
from tests.test_data import ready

KEY = Key(3, 1, 2, 0)
PLAIN = ViewSpec(size=16, count=2, jitter=0.8, saturation=0, hue=0, blur=0.5, solarize=0.5, vertical_flip=0.5)
ENCODERS = {"narrow": partial(NarrowResNet, 4, 2), "resnet": partial(ResNet, 18, True),
            "stem": partial(ResNet, 18), "torchvision": partial(Torchvision, "mobilenet_v3_small"),
            "timm": partial(Timm, "resnet10t"), "vit": partial(Timm, "vit_tiny_patch16_224", 32)}


def noise(channels, side=24, count=5):
    pixels = np.random.default_rng(channels).integers(0, 256, (count, channels, side, side))
    return torch.from_numpy(pixels.astype(np.uint8))


# Views

@pytest.fixture
def uncached():
    """No `dense` that another test has compiled."""
    pipeline.compiled.cache_clear()
    yield
    pipeline.compiled.cache_clear()


def test_rows_of_other_sizes_compile_each_for_itself(uncached, monkeypatch):
    """Sizes that change would become symbols, which the blur's table cannot be made of."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    rows = [ViewSpec(size=size, blur=0.5, jitter=0.8) for size in (16, 24, 20)]
    plain, compiled = (Augmentation(rows, compile=compile)(noise(3), KEY) for compile in (False, True))
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one.images, other.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("compile", [False, True])
def test_views_of_gray_in_other_numbers_of_channels_are_those_of_three(compile, uncached, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)   # `dense`, as it is
    row = ViewSpec(size=16, count=2, jitter=0.8, saturation=0, hue=0, blur=0.5, solarize=0.5)
    gray = noise(1)
    make = lambda channels: Augmentation([row], compile=compile)(gray.expand(-1, channels, -1, -1), KEY)   # noqa: E731
    for three, five in zip(make(3), make(5), strict=True):
        assert five.images.shape == (5, 5, 16, 16)
        assert (five.images == five.images[:, :1]).all()
        torch.testing.assert_close(five.images[:, :3], three.images, atol=2e-4, rtol=0)   # luma's weights make 0.9999


@pytest.mark.parametrize("size", [16, 72])
@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_memory_canvases_and_workers_make_the_same_views_of_any_channels(channels, size):
    row = ViewSpec(**vars(PLAIN) | {"size": size, "jitter": 0.0, "solarize": 0.0})
    augment, images = Augmentation([row]), noise(channels)
    augment.require_channels(channels)
    canvas = torch.zeros(5, channels, 32, 32, dtype=torch.uint8)
    canvas[..., :24, :24] = images
    for one, two, three in zip(augment(images, KEY), augment(Canvases(canvas, np.full((5, 2), 24)), KEY),
                               augment(augment.cut(list(images), KEY), KEY), strict=True):
        assert one.images.shape == (5, channels, size, size)
        torch.testing.assert_close(one.images, two.images, atol=1e-5, rtol=0)
        assert (one.images - three.images).abs().max() < 1 / 255                # workers round to bytes


def test_every_channel_goes_through_the_same_crop():
    images = noise(1).expand(-1, 7, -1, -1)
    for view in Augmentation([PLAIN])(images, KEY):
        assert (view.images == view.images[:, :1]).all()


@pytest.mark.parametrize("compile", [False, True])
def test_contrast_blends_with_the_mean_of_all_channels(compile, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    row = ViewSpec(size=24, clean=False, scale=(1, 1), ratio=(1, 1), flip=0, jitter=1.0, saturation=0, hue=0)
    images = noise(4)
    view, = Augmentation([row], compile=compile)(images, KEY)
    table, = Augmentation([row]).draw(np.full((5, 2), 24), KEY)
    for image, found, entry in zip(images / 255, view.images, table[0]["jitter"], strict=True):
        for step in entry["order"]:
            if step == 0:
                image = (image * entry["factors"][0]).clamp(0, 1)
            if step == 1:
                image = (entry["factors"][1] * image + (1 - entry["factors"][1]) * image.mean()).clamp(0, 1)
        torch.testing.assert_close(found, image, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"gray": 0.2}, "gray means red, green and blue; the images have 4 channels: set gray: 0 in the rows"),
    ({"jitter": 0.8}, "saturation and hue mean red, green and blue; .* set saturation: 0, hue: 0 in the rows"),
    ({"jitter": 0.8, "hue": 0.0, "gray": 0.1}, "saturation and gray mean .* have 4 channels"),
])
def test_what_means_colours_is_refused_by_name(options, sentence):
    augment = Augmentation([PLAIN, ViewSpec(size=16, **options)])
    for make in (lambda: augment(noise(4), KEY), lambda: augment.cut(list(noise(4)), KEY),
                 lambda: augment.require_channels(4)):
        with pytest.raises(ValueError, match=sentence):
            make()
    augment(noise(3), KEY)
    augment(noise(1), KEY)                                                     # which becomes three, as before


def test_kornias_operations_take_the_channels_that_they_can():
    def of(name, **options):
        return Augmentation([ViewSpec(size=16, extra=[{"class_path": f"kornia.augmentation.{name}",
                                                       "init_args": options}])])
    for name, options in (("RandomRotation", {"degrees": 90.0, "p": 1.0}), ("RandomErasing", {"p": 1.0}),
                          ("RandomGaussianNoise", {"std": 0.1, "p": 1.0})):
        augment = of(name, **options)
        augment.require_channels(5)
        assert augment(noise(5), KEY)[0].images.shape == (5, 5, 16, 16)
    with pytest.raises(ValueError, match="ColorJitter fails on views of 5 channels"):
        of("ColorJitter", brightness=0.1, hue=0.1).require_channels(5)


# Encoders

@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("channels", [1, 4])
def test_an_encoder_reads_its_channels_and_no_others_and_an_export_is_the_same(name, channels, tmp_path):
    encoder = ENCODERS[name](channels=channels).eval()
    images = noise(channels, 32, 2)
    features = encoder(images)
    assert features.shape == (2, encoder.dim)
    assert encoder.channels == encoder.arguments["channels"] == channels
    again = load_encoder(save_encoder(encoder, tmp_path / "encoder"))
    assert torch.equal(again(images), features)
    with pytest.raises(ValueError, match=rf"reads images \[B, {channels}, H, W\], not \[2, 3, 32, 32\]"):
        encoder(noise(3, 32, 2))


def test_every_channel_counts():
    encoder = ResNet(18, True, channels=5).eval()
    images = noise(5, 32, 1).float() / 255
    for channel in range(5):
        changed = images.clone()
        changed[:, channel] = 1 - changed[:, channel]
        assert not torch.allclose(encoder(changed), encoder(images), atol=1e-4)


@pytest.mark.parametrize("given", [1, 3])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 13])
def test_a_first_convolution_is_widened_by_timms_rule(given, channels):
    weight = torch.randn(8, given, 3, 3)
    if given == 3:
        expected = timm_library.models.adapt_input_conv(channels, weight)
    else:
        expected = weight.expand(-1, channels, -1, -1) / channels
    torch.testing.assert_close(widened(weight, channels), expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_published_weights_of_three_channels_start_an_encoder_of_others_and_that_is_said(channels, tmp_path, capsys):
    net = torchvision.models.resnet18()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    encoder = ResNet(18, weights=str(tmp_path / "resnet18.pth"), channels=channels)
    torch.testing.assert_close(encoder.backbone.conv1.weight, timm_library.models.adapt_input_conv(
        channels, net.conv1.weight.detach()))
    assert torch.equal(encoder.backbone.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
    assert (f"resnet18.pth: took 120 tensors; reshaped conv1.weight [64, 3, 7, 7] to [64, {channels}, 7, 7]"
            in capsys.readouterr().err)


def test_an_exported_encoder_of_three_channels_starts_one_of_four(tmp_path, capsys):
    three = NarrowResNet(4, 2, mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    four = NarrowResNet(4, 2, weights=str(save_encoder(three, tmp_path / "encoder")), channels=4)
    torch.testing.assert_close(four.backbone.conv1.weight,
                               widened(three.backbone.conv1.weight.detach(), 4))
    assert four.mean.flatten().tolist() == pytest.approx([*IMAGENET_MEAN, IMAGENET_MEAN[0]])
    assert "reshaped conv1.weight [4, 3, 3, 3] to [4, 4, 3, 3]" in capsys.readouterr().err


def test_imagenets_mean_is_spread_over_other_channels_and_ones_own_must_have_as_many_numbers():
    assert ResNet(18, channels=1).arguments["mean"] == pytest.approx([sum(IMAGENET_MEAN) / 3])
    assert ResNet(18, channels=5).arguments["mean"] == [*IMAGENET_MEAN, *IMAGENET_MEAN[:2]]
    assert ResNet(18, channels=2, mean=(0.1, 0.2), std=(1, 2)).arguments["mean"] == [0.1, 0.2]
    with pytest.raises(ValueError, match="an encoder of 4 channels has as many numbers in its mean, not 2"):
        ResNet(18, channels=4, mean=(0.1, 0.2))
    with pytest.raises(ValueError, match="an encoder reads images of at least 1 channel, not 0"):
        ResNet(18, channels=0)


def test_a_model_that_reads_three_channels_alone_is_refused_by_name():
    with pytest.raises(ValueError, match="torchvision's googlenet reads images of 3 channels, not of 4"):
        Torchvision("googlenet", channels=4)


# Whole runs

def folder_of_bands(root, channels, classes=("cat", "dog"), count=8):
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(200, 1700, (24, 26, channels)).astype(np.uint16)
            tifffile.imwrite(root / name / f"{i}.tif", pixels, photometric="minisblack", planarconfig="contig")
    return str(root)


def plain_simclr(channels):
    row = ViewSpec(size=16, count=2, jitter=0.8, saturation=0, hue=0, blur=0.5)
    return simclr(encoder=NarrowResNet(4, 2, channels=channels), augment=Augmentation([row]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cache", [False, True])
def test_a_run_on_files_of_five_deep_channels_tells_its_encoder_how_they_were_read(cache, tmp_path):
    data = ImageFolder(folder_of_bands(tmp_path / "data", 5), batch_size=6, evaluation_size=16, channels=5, workers=0,
                       levels="data", cache=str(tmp_path / "cache") if cache else None)
    method = plain_simclr(5)
    running = trainer(tmp_path, max_epochs=1)
    running.fit(method, data)
    assert running.callback_metrics["loss"].isfinite()
    low, high = method.encoder.preprocessing["levels"]
    assert 200 <= low < 210
    assert 1690 < high <= 1699
    assert method.encoder.preprocessing["channels"] == 5


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("channels", [1, 4])
def test_arrays_have_as_many_channels_as_they_are_said_to_have(channels, layout, tmp_path):
    pixels = noise(channels).numpy()
    np.savez(tmp_path / "a.npz", train_images=pixels if layout == "first" else pixels.transpose(0, 2, 3, 1))
    assert np.array_equal(ready(ArrayImages(str(tmp_path / "a.npz"), channels=channels)).train.images, pixels)


@pytest.mark.filterwarnings("ignore")
def test_gray_stays_one_channel_where_that_is_asked_for(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=noise(1, count=8)[:, 0].numpy())
    method = plain_simclr(1)
    trainer(tmp_path, max_epochs=1).fit(method, ArrayImages(str(tmp_path / "a.npz"), batch_size=4, channels=1))
    assert method.augment.channels == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("data", "encoder", "sentence"), [
    (4, 3, "the images have 4 channels and the encoder reads 3: set --data.channels and --model.encoder.channels al"),
    (3, 4, "the images have 3 channels and the encoder reads 4"), (4, 4, "saturation and hue and gray mean red")])
def test_what_does_not_fit_together_is_refused_before_the_first_batch(data, encoder, sentence, tmp_path):
    np.savez(tmp_path / "a.npz", train_images=noise(data).numpy())
    method = simclr(encoder=NarrowResNet(4, 2, channels=encoder))
    with pytest.raises(ValueError, match=sentence):
        trainer(tmp_path).fit(method, ArrayImages(str(tmp_path / "a.npz"), batch_size=4, channels=data))
