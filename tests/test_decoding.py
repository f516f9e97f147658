"""Decoding: which values become which bytes, what is behind a transparent pixel, and why a file is left out."""

import errno
import os
import warnings

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ssl_zoo.data import ArrayImages, ImageFolder, decoding
from ssl_zoo.data.decoding import Decoder, Unread, Unreadable, attempted, read_image
from ssl_zoo.data.sources import Files, Loader
from tests.test_data import STORED, joined, picture, ready, write_pictures

INTEGERS = ["int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
FLOATS = ["float16", "float32", "float64"]
RAMP = np.linspace(0, 1, 24 * 32).reshape(24, 32)


def bands(count, kind=np.uint16):
    return np.stack([np.roll(RAMP, i) * np.iinfo(kind).max for i in range(count)], 2).astype(kind)


def write(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)
    return path


def read(path, **options):
    """[H, W, C] uint8."""
    image = read_image(path, Decoder(**options))
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


# More than eight bits

@pytest.mark.parametrize("kind", INTEGERS + FLOATS)
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_a_type_that_uses_its_range_keeps_its_order_in_all_grays(kind, compression, tmp_path):
    if np.dtype(kind).kind == "f":
        pixels = RAMP.astype(kind)
    else:
        limits = np.iinfo(kind)
        pixels = np.array([int(limits.min) + round(float(share) * (int(limits.max) - int(limits.min)))
                           for share in RAMP.ravel()], dtype=object).clip(limits.min, limits.max)
        pixels = pixels.reshape(RAMP.shape).astype(kind)
    found = read(write(tmp_path / "a.tif", pixels, compression=compression))
    assert found.shape == (24, 32, 3)
    assert (found == found[..., :1]).all()                                    # gray, three times
    levels = found[..., 0].ravel().astype(int)
    assert (np.diff(levels) >= 0).all()
    assert (levels[0], levels[-1], len(np.unique(levels))) == (0, 255, 256)


@pytest.mark.parametrize("kind", ["uint16", "int16", "uint32", "int32", "int64", *FLOATS])
def test_two_levels_become_black_and_white_and_what_is_beyond_is_clipped(kind, tmp_path):
    pixels = np.array([[0, 200, 575, 950, 1325, 1700, 9000]]).astype(kind)
    found = read(write(tmp_path / "a.tif", pixels), levels=(200, 1700))[0, :, 0].tolist()
    assert found == ([0, 0, 64, 128, 191, 255, 255] if np.dtype(kind).kind == "f" else [0, 0, 63, 127, 191, 255, 255])


@pytest.mark.parametrize("name", ["colour.png", "colour.tif", "gray.png", "gray.tif", "gray.pgm", "gray.jp2"])
def test_every_format_of_sixteen_bits_has_them_for_the_levels(name, tmp_path):
    pixels = (RAMP * 4095).astype(np.uint16)
    pixels = np.dstack([pixels, pixels[::-1], pixels[:, ::-1]]) if "colour" in name else pixels
    if name.endswith("png"):
        (tmp_path / name).write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    elif name.endswith("jp2"):
        (tmp_path / name).write_bytes(imagecodecs.jpeg2k_encode(pixels, level=0))
    elif name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5\n32 24\n65535\n" + pixels.astype(">u2").tobytes())
    else:
        write(tmp_path / name, pixels, photometric="rgb" if pixels.ndim == 3 else None)
    expected = np.repeat(np.atleast_3d(pixels), 3 if pixels.ndim == 2 else 1, 2).astype(int) * 255 // 4095
    assert np.array_equal(read(tmp_path / name, levels=(0, 4095)), expected)


def test_a_jpeg2000_of_twelve_bits_has_them_as_its_whole_range(tmp_path):
    pixels = (RAMP * 4095).astype(np.uint16)
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(pixels, level=0, bitspersample=12))
    assert np.array_equal(read(tmp_path / "a.jp2")[..., 0], pixels.astype(int) * 255 // 4095)


def test_bytes_stay_as_they_are_whatever_the_levels(tmp_path):
    Image.fromarray(picture(9, 7)).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", levels=(200, 1700)), picture(9, 7))


def test_what_is_no_number_is_black_and_what_is_infinite_is_clipped(tmp_path):
    pixels = np.array([[np.nan, -np.inf, 0.5, np.inf]], np.float32)
    assert read(write(tmp_path / "a.tif", pixels))[0, :, 0].tolist() == [0, 0, 128, 255]


def test_white_may_be_zero(tmp_path):
    found = read(write(tmp_path / "a.tif", (RAMP * 65535).astype(np.uint16), photometric="miniswhite"))
    assert (found[0, 0, 0], found[-1, -1, 0]) == (255, 0)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_of_any_type_come_upright(kind, channels, orientation, tmp_path):
    upright = bands(channels, kind)
    write(tmp_path / "a.tif", STORED[orientation](upright).squeeze(), photometric="rgb" if channels == 3 else None,
          extratags=[(274, 3, 1, orientation, True)])
    assert np.array_equal(read(tmp_path / "a.tif", channels=channels), upright // (1 if kind is np.uint8 else 257))


@pytest.mark.parametrize(("pixels", "sentence"), [
    (RAMP * 5 - 2, r"has floats from -2 to 3, .*: set levels to data, or to two numbers"),
    (RAMP.astype(np.complex64), "has pixels of type complex64, which are not dark or bright"),
])
def test_pixels_whose_black_and_white_nobody_knows_are_refused_by_name(pixels, sentence, tmp_path):
    with pytest.raises(Unreadable, match=f"a.tif {sentence}"):
        read(write(tmp_path / "a.tif", pixels))


@pytest.mark.parametrize("levels", [(5, 5), (7, 3), (0, float("inf")), (0, float("nan"))])
def test_levels_are_two_rising_numbers(levels):
    with pytest.raises(ValueError, match="levels must be two rising numbers"):
        Decoder(levels=levels)


def deep_folder(folder, low, high, count=6, kind=np.uint16):
    """Images whose values are together from `low` to `high`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        write(folder / f"{i}.tif", (low + (high - low) * (RAMP + i) / count).astype(kind))
    return folder


def test_levels_of_the_data_are_measured_on_the_training_images_and_said_to_the_encoder(tmp_path):
    for name, high in (("train", 1700), ("test", 60000)):
        for kind in ("cat", "dog"):
            deep_folder(tmp_path / name / kind, 200, high)
    Image.fromarray(picture(24, 32)).save(tmp_path / "train" / "cat" / "bytes.png")   # does not count
    data = ready(ImageFolder(str(tmp_path), levels="data", workers=0))
    assert data.decoder.preprocessing == {"channels": 3, "levels": [200.0, 1700.0], "background": "white"}
    seen = torch.stack([data.train.read(i) for i in range(6)])
    assert (int(seen.min()), int(seen.max())) == (0, 255)
    assert len(seen.unique()) > 200
    assert int(data.test.read(5).min()) == 255                                         # clipped, not wrapped


def test_a_value_for_missing_pixels_is_not_measured(tmp_path):
    pixels = np.where(RAMP < 0.1, -9999, 1000 * RAMP).astype(np.float32)
    write(tmp_path / "a.tif", pixels, extratags=[(42113, "s", 0, "-9999", True)])
    low, high = ready(ImageFolder(str(tmp_path), levels="data", workers=0)).decoder.levels
    assert 99 < low < 110
    assert high == 1000


@pytest.mark.parametrize(("low", "high", "kind", "share", "grays"), [
    (200, 1700, np.uint16, "2.3%", 6), (0, 4095, np.uint16, "6.2%", 16), (0, 16383, np.uint16, "25.0%", 64),
    (-1000, 3000, np.int16, "6.1%", 16), (0, 0.02, np.float32, "2.0%", 6)])
def test_images_that_use_a_small_part_of_their_range_are_worth_a_warning(low, high, kind, share, grays, tmp_path):
    with pytest.warns(UserWarning, match=rf"from {low} to {high:g}, {share} of .* leaves {grays} of 256 grays: set "):
        ready(ImageFolder(str(deep_folder(tmp_path / "a", low, high, kind=kind)), workers=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready(ImageFolder(str(tmp_path / "a"), levels="data", workers=0))


def test_a_warning_of_a_few_deep_images_among_others_counts_them(tmp_path):
    deep_folder(tmp_path / "a", 0, 4095)
    for i in range(7):
        Image.fromarray(picture(24, 32)).save(tmp_path / "a" / f"bytes_{i}.png")
    with pytest.warns(UserWarning, match=r"^the images of more than 8 bits, [1-9]\d* of \d+ that were looked at,"):
        ready(ImageFolder(str(tmp_path / "a"), workers=0))


def test_images_that_would_be_a_single_gray_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match=r"values from 0 to 4000, 0\.0% of the .* such as \[0, 4000\]"):
        ready(ImageFolder(str(deep_folder(tmp_path, 0, 4000, kind=np.int32)), workers=0))


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32", "float64"])
def test_arrays_of_any_type_are_mapped_as_files_are(kind, tmp_path):
    pixels = np.stack([200 + 1500 * RAMP, 200 + 1500 * RAMP[::-1]]).astype(kind)
    np.savez(tmp_path / "a.npz", train_images=pixels)
    for levels in ("data", (200, 1700)):
        found = ready(ArrayImages(str(tmp_path / "a.npz"), levels=levels)).train.images
        for image, stored in zip(found, pixels, strict=True):
            expected = read(write(tmp_path / "a.tif", stored), levels=(200, 1700))
            assert np.array_equal(image.permute(1, 2, 0), expected)


def test_floats_that_were_bytes_are_bytes_again(tmp_path):
    given = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.savez(tmp_path / "a.npz", train_images=(given / 255).astype(np.float32))
    assert np.array_equal(ready(ArrayImages(str(tmp_path / "a.npz"))).train.images[:, 0], given)


# Channels

@pytest.mark.parametrize("count", [2, 4, 5, 13])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiff_has_as_many_channels_as_it_stores(count, layout, kind, tmp_path):
    stored = bands(count, kind)
    options = {} if layout == "pages" else {"planarconfig": layout}
    write(tmp_path / "a.tif", stored if layout == "contig" else stored.transpose(2, 0, 1), photometric="minisblack",
          **options)
    found = read(tmp_path / "a.tif", channels=count)
    assert np.array_equal(found, stored // (1 if kind is np.uint8 else 257))
    with pytest.raises(Unreadable, match=rf"set channels to {count}"):
        read(tmp_path / "a.tif")


def test_a_composite_of_three_pages_is_three_channels(tmp_path):
    stored = bands(3, np.uint8)
    write(tmp_path / "a.tif", stored.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"})
    assert np.array_equal(read(tmp_path / "a.tif"), stored)


def test_a_stack_is_refused_by_name_unless_its_planes_are_the_channels(tmp_path):
    write(tmp_path / "a.tif", bands(7, np.uint8).transpose(2, 0, 1), imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(Unreadable, match=r"a.tif is a stack of 7 images \(axes ZYX\): save each as a file of its own"):
        read(tmp_path / "a.tif")


def test_the_fourth_channel_of_a_png_is_one_where_four_are_wanted(tmp_path):
    stored = bands(4, np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", channels=4), stored)
    with pytest.raises(Unreadable, match="a.png has 4 channels, and channels is 5: set channels to 4, or leave"):
        read(tmp_path / "a.png", channels=5)


def test_near_infrared_that_a_writer_calls_opacity_has_the_levels_of_the_others(tmp_path):
    stored = (bands(4) / 65535 * 1700).astype(np.uint16)
    write(tmp_path / "a.tif", stored, photometric="rgb")                       # which says that the fourth is alpha
    assert read(tmp_path / "a.tif", channels=4, levels=(0, 1700)).max((0, 1)).tolist() == [255] * 4


def test_one_channel_of_colours_is_their_luma(tmp_path):
    Image.fromarray(picture(9, 7)).save(tmp_path / "a.png")
    expected = np.asarray(Image.fromarray(picture(9, 7)).convert("L"))[..., None]
    assert np.array_equal(read(tmp_path / "a.png", channels=1), expected)


# Transparency

@pytest.mark.parametrize("background", ["white", "#0080ff"])
@pytest.mark.parametrize("name", ["rgba.png", "la.png", "palette.png", "palette.gif", "key.png", "rgba.webp",
                                  "rgba.tif", "deep.png", "deep.tif"])
def test_the_background_is_behind_what_is_transparent(name, background, tmp_path):
    colours, alpha = np.full((8, 8, 3), 40, np.uint8), np.repeat(np.array([[0] * 4 + [255] * 4], np.uint8), 8, 0)
    image, path = Image.fromarray(np.dstack([colours, alpha])), tmp_path / name
    if name.startswith("deep"):
        deep = np.dstack([colours, alpha]).astype(np.uint16) * 257
        path.write_bytes(imagecodecs.png_encode(deep)) if name.endswith("png") else write(path, deep, photometric="rgb")
    elif name.startswith("key"):
        two = Image.fromarray(np.where(alpha > 0, 40, 200).astype(np.uint8))
        two.save(path, transparency=200)
    elif name.startswith("palette"):
        index = Image.fromarray(np.where(alpha > 0, 1, 0).astype(np.uint8), "P")
        index.putpalette([200, 0, 0, 40, 40, 40])
        index.save(path, transparency=0)
    else:
        image.convert("LA" if name.startswith("la") else "RGBA").save(path, **{"lossless": True} if "webp" in name else
                                                                      {})
    found = read(path, background=background)
    assert (found[:, 4:] == 40).all()
    assert found[0, 0].tolist() == ([255] * 3 if background == "white" else [0, 128, 255])


def test_a_background_that_is_no_colour_is_refused():
    with pytest.raises(ValueError, match="background must be a colour such as white, .* not transparent-ish"):
        Decoder(background="transparent-ish")


# Suffixes

@pytest.mark.parametrize("suffix", [".avif", ".jp2", ".jfif", ".j2k", ".jpe", ".qoi", ".tga", ".apng", ".dds"])
def test_what_pillow_reads_is_found(suffix, tmp_path):
    kind = {".jfif": "JPEG", ".jpe": "JPEG", ".j2k": "JPEG2000", ".jp2": "JPEG2000", ".apng": "PNG"}.get(suffix)
    Image.fromarray(picture(16, 24)).save(tmp_path / f"a{suffix}", kind)
    data = ready(ImageFolder(str(tmp_path), workers=0))
    assert np.abs(data.train.read(0).permute(1, 2, 0).numpy().astype(int) - picture(16, 24)).mean() < 8


# Reasons

def test_three_reasons_are_three_sentences_each_file_is_named_once_and_counted(tmp_path):
    write_pictures(tmp_path, 4, (".png",))
    (tmp_path / "000.png").unlink()
    (tmp_path / "000 broken.png").write_bytes(b"hello")                              # which is tried at the start
    write(tmp_path / "float.tif", RAMP[:, :20] / RAMP[:, :20].max() * 1000)
    Image.fromarray(picture(40, 50)).save(tmp_path / "large.png")
    data = ready(ImageFolder(str(tmp_path), max_pixels=600, evaluation_size=8, workers=0))
    data.train.augment = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for training in (False, True):
            for _ in range(2):
                list(Loader(data.train, 6, training=training))
    said = sorted(str(warning.message) for warning in caught)
    assert [name in text for name, text in zip(("broken", "float", "large"), said, strict=True)] == [True] * 3
    assert "cannot be read as an image (cannot identify image file)" in said[0]
    assert "has floats from 0 to 1000" in said[1]
    assert "has 50 x 40 pixels, more than max_pixels (600), and cannot be decoded at a scale" in said[2]
    assert sorted(data.left_out.kinds.split(", ")) == ["1 broken", "1 too large", "1 unsupported"]


def test_a_folder_of_unreadable_files_says_so_before_anything_runs(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"none of the 32 images that were tried, of 40, can be read \(32 broken\), "
                                         r"such as: .*0\.png cannot be read"):
        ready(ImageFolder(str(tmp_path), workers=0))


class Flaky:
    """Fails so many times with an error of the disk before it answers."""

    def __init__(self, times, number=errno.EIO):
        self.times, self.number, self.tries = times, number, 0

    def __call__(self, place):
        self.tries += 1
        if self.tries <= self.times:
            raise OSError(self.number, os.strerror(self.number))
        return torch.zeros(3, 4, 4, dtype=torch.uint8)


def test_a_disk_that_fails_is_asked_again_and_its_images_are_not_called_damaged(monkeypatch):
    monkeypatch.setattr(decoding, "PAUSES", (0.0, 0.0))
    assert isinstance(attempted(Flaky(2), 0, "a.png"), torch.Tensor)
    files = Files(Flaky(100), ["a.png", "b.png"], torch.tensor([0, 1]), 4)
    for training in (False, True):
        with pytest.raises(OSError, match=r"a.png|b.png was not read because its disk failed 3 times in a row"):
            list(Loader(files, 2, training=training))
    assert not files.left_out.unread


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_a_file_that_is_not_to_be_had_is_left_out_at_once_for_that_reason(number):
    flaky = Flaky(100, number)
    found = attempted(flaky, 0, "a.png")
    assert found == Unread("not opened", f"a.png cannot be opened ({os.strerror(number)}); give it back, or remove it")
    assert flaky.tries == 1


# Memory

@pytest.mark.parametrize(("suffix", "options"), [(".jpg", {}), (".jpg", {"progressive": True}), (".jp2", {})])
@pytest.mark.parametrize(("limit", "side"), [(10 ** 6, (160, 240)), (160 * 240, (160, 240)), (160 * 240 - 1, (80, 120)),
                                             (1200, (20, 30))])
def test_a_large_picture_is_decoded_at_the_scale_that_fits(suffix, options, limit, side, tmp_path):
    Image.fromarray(picture(160, 240)).save(tmp_path / f"a{suffix}", **options)
    found = read(tmp_path / f"a{suffix}", max_pixels=limit)
    assert found.shape == (*side, 3)
    expected = np.asarray(Image.fromarray(picture(160, 240)).resize(side[::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(found - expected).mean() < 12


def test_a_pyramid_is_read_at_the_level_that_fits(tmp_path):
    stored = (bands(3) // 257).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(stored, subifds=1, photometric="rgb")
        file.write(stored[::2, ::2], subfiletype=1, photometric="rgb")
    assert np.array_equal(read(tmp_path / "a.tif", max_pixels=200), stored[::2, ::2])


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "deep.tif", "deep.png"])
def test_a_picture_that_no_scale_makes_small_enough_is_refused_by_name(name, tmp_path):
    if name == "deep.tif":
        write(tmp_path / name, bands(3), photometric="rgb")
    elif name == "deep.png":
        (tmp_path / name).write_bytes(imagecodecs.png_encode(bands(3)))
    else:
        Image.fromarray(picture(24, 32)).save(tmp_path / name)
    with pytest.raises(Unreadable, match=rf"{name} has 32 x 24 pixels, more than max_pixels \(5\)") as caught:
        read(tmp_path / name, max_pixels=5)
    assert caught.value.kind == "too large"


def test_a_limit_of_ones_own_replaces_pils(tmp_path, monkeypatch):
    Image.fromarray(picture(24, 32)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)              # PIL would warn, and refuse twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path / "a.png").shape == (24, 32, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_deep_file_that_was_cut_is_never_read_as_if_it_were_whole(tmp_path):
    for name, options in (("a.tif", {}), ("lzw.tif", {"compression": "lzw"}), ("zip.tif", {"compression": "zlib"})):
        whole = write(tmp_path / name, bands(3), photometric="rgb", rowsperstrip=4, **options).read_bytes()
        for share in (0.1, 0.5, 0.9, 0.999):
            (tmp_path / name).write_bytes(whole[:int(share * len(whole))])
            found = attempted(lambda _, name=name: read_image(tmp_path / name), 0, name)
            assert isinstance(found, Unread), f"{name} cut at {share}"


def test_left_out_images_leave_a_whole_batch_of_the_others(tmp_path):
    write_pictures(tmp_path, 5, (".png",))
    write(tmp_path / "float.tif", RAMP * 1000)
    data = ready(ImageFolder(str(tmp_path), evaluation_size=8, workers=0))
    with pytest.warns(UserWarning, match="float.tif has floats from 0 to 1000"):
        assert joined([batch[2].tolist() for batch in Loader(data.train, 3)]) == [0, 1, 2, 3, 4]
