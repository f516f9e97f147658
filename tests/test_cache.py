"""Features taken once: in order, in evaluation mode, under a name for all they depend on, not lost to a full disk."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ssl_zoo.data import ArrayImages, ImageFolder
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation import cache
from ssl_zoo.evaluation.cache import cached, extract
from ssl_zoo.evaluation.features import Features, require_finite
from ssl_zoo.export import fingerprint
from tests.conftest import same


def features(rows=4):
    generator = torch.Generator().manual_seed(0)
    return Features(torch.randn(rows, 3, generator=generator), torch.arange(rows) % 2, torch.arange(rows))


def pixels(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1)).byte()


def encoder(seed=0, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NarrowResNet(4, 2, **changes)


# Extraction

def test_features_come_in_the_order_of_the_places_whatever_the_order_of_the_batches():
    images, subject = pixels(5, 3, 16, 16), encoder()
    batches = [(images[rows], torch.tensor(rows) * 10, torch.tensor(rows)) for rows in ([3, 0], [4], [2, 1])]
    found = extract(subject, batches)
    assert found.places.tolist() == [0, 1, 2, 3, 4]
    assert found.labels.tolist() == [0, 10, 20, 30, 40]
    with torch.no_grad():
        assert torch.allclose(found.x, subject.eval()(images), atol=1e-6)


def test_extraction_is_in_evaluation_mode_and_leaves_every_tensor_of_the_encoder_as_it_was():
    subject = encoder().train()
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    alone, together = (extract(subject, [(pixels(4, 3, 16, 16)[:n], torch.zeros(n), torch.arange(n))]) for n in (1, 4))
    assert torch.allclose(alone.x[0], together.x[0], atol=1e-6)   # a batch norm in training mode would see the others
    assert same(before, dict(subject.state_dict()))


def test_features_are_float32_also_under_autocast_and_float16_only_where_asked():
    batch = [(pixels(2, 3, 16, 16), torch.zeros(2), torch.arange(2))]
    subject = encoder()
    plain = extract(subject, batch).x
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extract(subject, batch).x, plain)
    half = extract(subject, batch, half=True).x
    assert half.dtype == torch.float16
    assert torch.equal(half, plain.half())


def test_images_whose_features_are_not_finite_are_named():
    broken = features(5)
    broken.x[1, 2], broken.x[3, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="the features of 2 of 5 images are not finite, such as those of b, d, ") as e:
        require_finite(broken.x, names="abcde")
    assert "\n" not in str(e.value)
    assert "--half" not in str(e.value)
    with pytest.raises(ValueError, match="leave out --half"):
        require_finite(broken.x.half())
    require_finite(features().x)


# The file

def test_features_are_made_once_and_read_back_bit_for_bit(tmp_path):
    made = []

    def make():
        made.append(1)
        return features()

    first, second = (cached(tmp_path / "new" / "key.safetensors", make) for _ in range(2))
    assert len(made) == 1
    assert same(first, second)
    assert same(second, features())


def test_half_precision_features_stay_so_in_the_file(tmp_path):
    half = features()._replace(x=features().x.half())
    cached(tmp_path / "key.safetensors", lambda: half)
    assert same(cached(tmp_path / "key.safetensors", features), half)


@pytest.mark.parametrize("content", [b"", b"cut short", b"\x10\0\0\0\0\0\0\0{}              "])
def test_a_file_that_is_no_whole_cache_is_made_anew(tmp_path, content):
    path = tmp_path / "key.safetensors"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="are damaged, or of an earlier version of ssl_zoo: they are taken again"):
        assert same(cached(path, features), features())
    assert same(cached(path, lambda: features(1)), features())   # and it is whole now


def rewrite(change):
    def write(path):
        columns = features()._asdict()
        change(columns)
        save_file(columns, path, {"checksum": cache.checksum(Features(**columns))})
    return write


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [
    flip,                                                                 # a bit of the last place
    lambda path: path.write_bytes(path.read_bytes()[:-8]),
    lambda path: save_file(features()._asdict(), path),                   # as an earlier version wrote it
    lambda path: save_file(features()._asdict(), path, {"checksum": "0" * 32}),
    rewrite(lambda columns: columns.update(x=torch.zeros(4, 2))),         # another width
    rewrite(lambda columns: columns.update(x=torch.zeros(3, 3))),
    rewrite(lambda columns: columns.update(labels=torch.zeros(4))),
    rewrite(lambda columns: columns.update(places=torch.tensor([0, 1, 1, 2]))),
    rewrite(lambda columns: columns.update(places=torch.tensor([0, 1, 2, 9]))),
])
def test_features_that_are_not_those_that_were_written_are_taken_again(damage, tmp_path):
    path = tmp_path / "key.safetensors"
    cached(path, features)
    damage(path)
    with pytest.warns(UserWarning, match="they are taken again"):
        assert same(cached(path, features, dim=3, images=4), features())
    assert same(cached(path, lambda: features(1), dim=3, images=4), features())


def test_a_full_disk_costs_the_cache_and_not_the_features(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.warns(UserWarning, match=r"4 images could not be kept in .*No space left on device.*goes on without"):
        assert same(cached(tmp_path / "key.safetensors", features), features())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_costs_the_cache_and_not_the_features(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="could not be kept"):
        assert same(cached(tmp_path / "file" / "key.safetensors", features), features())


# What its name depends on

def test_the_name_of_an_encoder_changes_with_any_weight_and_buffer_and_with_the_architecture():
    names = {fingerprint(encoder()), fingerprint(encoder(1)), fingerprint(encoder(mean=(0.1, 0.2, 0.3)))}
    for name, value in encoder().state_dict().items():
        changed = encoder()
        state = changed.state_dict()
        state[name].view(-1)[-1] += 1
        names.add(fingerprint(changed))
        assert value.shape == state[name].shape
    assert len(names) == 3 + len(encoder().state_dict())
    assert fingerprint(encoder()) == fingerprint(encoder().eval())


def test_the_name_of_arrays_changes_with_a_pixel_and_with_a_label(arrays):
    def source():
        data = ArrayImages(str(arrays))
        data.setup("fit")
        return data.train

    pixel, label = source(), source()
    pixel.images[7, 1, 3, 3] += 1
    label.labels[3] = 2 - label.labels[3] // 2
    assert len({source().fingerprint(), pixel.fingerprint(), label.fingerprint()}) == 3
    assert source().fingerprint() == source().fingerprint() != source().subset(np.arange(59)).fingerprint()


def test_the_name_of_a_folder_changes_with_its_files_their_content_and_the_size(tmp_path):
    for i, name in enumerate(("a/1.png", "a/2.png", "b/1.png", "b/2.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / name)

    def name(**options):
        data = ImageFolder(str(tmp_path), held_out=0.5, **options)
        data.setup("fit")
        return data.train.fingerprint(), data.test.fingerprint()

    first = name()
    assert first[0] != first[1]
    assert name() == first
    assert not set(name(evaluation_size=64)) & set(first)
    os.utime(tmp_path / "a/1.png", ns=(1, 1))
    os.utime(tmp_path / "a/2.png", ns=(1, 1))
    changed = name()
    assert changed != first
    shutil.move(tmp_path / "b/1.png", tmp_path / "b/3.png")
    assert name() != changed
