"""Files decoded at a share of their size: the same draws and boxes, and the pixels of whole ones to two levels."""

import functools
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_zoo.data import ImageFolder
from ssl_zoo.data.canvases import decode_once
from ssl_zoo.data.decoding import COLOURS, Decoder
from ssl_zoo.data.fetching import Scratch
from ssl_zoo.data.scaled import read_scaled
from ssl_zoo.data.shard_index import Shard
from ssl_zoo.data.sources import Files, Request
from ssl_zoo.data.streams import Shards
from ssl_zoo.evaluation import suite as evaluated
from ssl_zoo.views import Augmentation, Key, Scaled, ViewSpec

LEVELS = 2   # mean difference; on 64 photographs of ImageNet, whose factors are 2 and 4, it is 1.3
KEY = Key(3, 1, 4, 0)
ROWS = [ViewSpec(32, count=2, scale=(0.3, 1.0), ratio=(0.5, 2.0)),
        ViewSpec(20, count=3, scale=(0.05, 0.3), interpolation="bicubic", overlap=0.2, blur=0.5, flip=0.5),
        ViewSpec(24, clean=True)]


@functools.cache
def noise():
    """Noise with the spectrum of photographs, whose amplitude falls with the frequency."""
    side = 1024
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) + 1 / side
    pixels = np.fft.irfft2(np.fft.rfft2(np.random.default_rng(0).standard_normal((3, side, side))) / frequencies)
    pixels = 128 + 50 * pixels / pixels.std((1, 2), keepdims=True)
    return pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def photograph(height, width, seed=0, mode="RGB"):
    """The noise, from another place on for each seed; it repeats itself without an edge."""
    pixels = np.tile(np.roll(noise(), (97 * seed, 61 * seed), (0, 1)), (2, 2, 1))
    return Image.fromarray(pixels[:height, :width]).convert(mode)


def saved(path, height, width, seed=0, mode="RGB", orientation=None, **options):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    photograph(height, width, seed, mode).save(path, exif=exif, quality=90, **options)
    return str(path)


def source_of(names, scaled, rows=ROWS, decoder=COLOURS):
    source = Files(None, names, torch.full((len(names),), -1), 32, decoder)
    source.augment, source.scaled = Augmentation(rows), scaled
    source.augment.channels = decoder.channels
    return source


def batch(names, scaled, **options):
    return source_of(names, scaled, **options)[Request(np.arange(len(names)), KEY)][0]


def assert_same_draws(one, other):
    assert np.array_equal(one.sizes, other.sizes)
    for a, b in zip(one.tables, other.tables, strict=True):
        assert a.tobytes() == b.tobytes()


def difference(one, other):
    """Mean over the pixels, in levels, of each row."""
    return [(a.float() - b.float()).abs().mean().item() for a, b in zip(one.pixels, other.pixels, strict=True)]


def factors_of(names, rows=ROWS):
    """How far each file of a batch is reduced."""
    reduction = Augmentation(rows).reduction(KEY, len(names))
    found = [read_scaled(name, Decoder(), lambda h, w, place=place: reduction.factor(place, h, w))
             for place, name in enumerate(names)]
    return [image.factor if isinstance(image, Scaled) else 1 for image in found]


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"mode": "L"}], ids=str)
def test_reduced_files_give_the_crops_of_whole_ones_to_two_levels(options, tmp_path):
    shapes = (403, 605), (401, 130), (1200, 1600), (33, 40), (301, 277), (640, 760), (700, 520)
    names = [saved(tmp_path / f"{i}.jpg", *shape, i, **options) for i, shape in enumerate(shapes)]
    assert {1, 2, 4, 8} == set(factors_of(names))
    whole, reduced = batch(names, False), batch(names, True)
    assert_same_draws(whole, reduced)
    assert 0 < max(difference(whole, reduced)) < LEVELS
    channel = Decoder(channels=1)
    gray = [ViewSpec(32, count=2, scale=(0.3, 1.0))]
    whole, reduced = (batch(names, scaled, rows=gray, decoder=channel) for scaled in (False, True))
    assert whole.pixels[0].shape[2] == 1
    assert 0 < max(difference(whole, reduced)) < LEVELS


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_files_are_reduced_upright(orientation, tmp_path):
    """Sides that are no multiple of the factor leave a pixel that reaches beyond the edge: it is never the first."""
    names = [saved(tmp_path / f"{i}.jpg", *shape, i, orientation=orientation)
             for i, shape in enumerate([(800, 1200), (801, 1203), (806, 1206)])]
    assert [factor > 1 for factor in factors_of(names)] == [True, orientation == 1, True]
    whole, reduced = batch(names, False), batch(names, True)
    assert_same_draws(whole, reduced)
    assert 0 < max(difference(whole, reduced)) < LEVELS


def test_each_crop_keeps_the_pixels_of_its_view_and_no_factor_is_smaller_than_it_could_be():
    augmentation, images, found = Augmentation(ROWS), 12, set()
    sizes = np.random.default_rng(0).integers(30, 2500, (images, 2))
    for number in range(20):
        key = Key(0, 0, number, 0)
        tables, reduction = augmentation.draw(sizes, key), augmentation.reduction(key, images)
        for place in np.random.default_rng(number).permutation(images):
            factor = reduction.factor(place, *sizes[place])
            found.add(factor)
            fits = [all((table["crop"][:, place, 2:] >= each * spec.size).all()
                        for table, spec in zip(tables, ROWS, strict=True)) for each in (1, 2, 4, 8)]
            assert factor == max([1, *(each for each, fit in zip((1, 2, 4, 8), fits, strict=True) if fit)])
    assert found == {1, 2, 4, 8}


def test_files_that_need_all_their_pixels_give_the_same_bytes(tmp_path):
    """Small ones, other formats, and one beyond `max_pixels`, which is decoded at a share of its size already."""
    names = [saved(tmp_path / "small.jpg", 60, 70), saved(tmp_path / "picture.png", 800, 900),
             saved(tmp_path / "large.jpg", 1400, 1500), saved(tmp_path / "picture.webp", 300, 400)]
    decoder = Decoder(max_pixels=1000 * 1000)
    whole, reduced = (batch(names, scaled, decoder=decoder) for scaled in (False, True))
    assert_same_draws(whole, reduced)
    assert whole.sizes[2].tolist() == [700, 750]
    assert all(map(torch.equal, whole.pixels, reduced.pixels))


def test_plain_images_and_canvases_are_those_of_whole_files(tmp_path):
    names = [saved(tmp_path / f"{i}.jpg", 640, 960, i) for i in range(3)]
    whole, reduced = source_of(names, False), source_of(names, True)
    plain = Request(np.arange(3), None)
    assert torch.equal(whole[plain][0], reduced[plain][0])
    kept = decode_once(reduced, str(tmp_path / "cache"), 100, 0)
    kept.augment, kept.scaled = Augmentation(ROWS), True
    before = decode_once(whole, str(tmp_path / "other"), 100, 0)[Request(np.arange(3), KEY)][0]
    after = kept[Request(np.arange(3), KEY)][0]
    assert torch.equal(before.pixels, after.pixels)
    assert np.array_equal(before.sizes, after.sizes)


def test_a_broken_file_gives_its_place_to_the_next_one_which_is_reduced_for_that_place(tmp_path):
    names = [saved(tmp_path / f"{i}.jpg", 640 + 80 * i, 960, i) for i in range(4)]
    content = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(content[:len(content) // 3])
    results = [source_of(names, scaled)[Request(np.arange(4), KEY)] for scaled in (False, True)]
    assert results[0][2].tolist() == results[1][2].tolist() == [0, 2, 2, 3]
    assert results[0][3] == results[1][3]
    assert_same_draws(results[0][0], results[1][0])
    assert 0 < max(difference(results[0][0], results[1][0])) < LEVELS


def test_shards_are_reduced_as_files_are(tmp_path):
    names = [saved(tmp_path / f"{i}.jpg", 640, 960, i) for i in range(3)]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names:
            tar.add(name, arcname=Path(name).name)
    shards = Shards([Shard(str(tmp_path / "a.tar"), 3)], None, 32, 2, Scratch())
    shards.augment, request = Augmentation(ROWS), Request(np.arange(3), KEY)
    for scaled in (False, True):
        shards.scaled = scaled
        found, expected = shards[request][0], batch(names, scaled)
        assert_same_draws(found, expected)
        assert all(map(torch.equal, found.pixels, expected.pixels))


def test_a_run_reduces_its_files_and_a_protocol_does_not(tmp_path):
    for i in range(4):
        (tmp_path / "a").mkdir(exist_ok=True)
        saved(tmp_path / "a" / f"{i}.jpg", 300, 300, i)
    data = ImageFolder(str(tmp_path), batch_size=2)
    data.setup("fit")
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(augment=Augmentation(ROWS)), overfit_batches=0,
                                   strategy=SimpleNamespace(root_device=torch.device("cpu")))
    assert data.train_dataloader().source.scaled
    evaluation = evaluated.Source(data, data.val_dataloader(), tmp_path, half=False)
    training, _ = evaluation.batches(Augmentation(ROWS))
    assert training.source.augment is not None
    assert not training.source.scaled
