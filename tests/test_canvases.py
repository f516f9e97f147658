"""Kept canvases: images are decoded once, and views and evaluation are those of the images that were kept."""

import os
import pickle
import resource
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from ssl_zoo.data import ImageFolder, decoding
from ssl_zoo.data.canvases import Decoded
from ssl_zoo.data.sources import Loader, Request
from ssl_zoo.views import Augmentation, Canvases, Key, ViewSpec
from tests.conftest import simclr, trainer
from tests.test_data import indices, joined, picture, ready, said, same, write_pictures

KEY = Key(7, 1, 2, 0)
SMALL = ViewSpec(size=12, count=2, jitter=0.8, gray=0.2, blur=0.5, solarize=0.2)
LARGE = ViewSpec(size=72, interpolation="bicubic")   # beyond 64 pixels, a CPU cuts crops in another way


def kept(root, cache, **options):
    return ready(ImageFolder(str(root), cache=str(cache), **{"evaluation_size": 8, "workers": 0} | options))


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path):
    """Nine pictures of 14 to 18 by 13 to 19 pixels."""
    write_pictures(tmp_path / "pictures", 9)
    return tmp_path / "pictures"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


# What is kept

@pytest.mark.parametrize(("before", "after"), [
    ((40, 60), (16, 24)), ((60, 40), (24, 16)), ((50, 50), (16, 16)), ((40, 61), (16, 24)),   # the shorter side
    ((14, 19), (14, 19)), ((16, 32), (16, 32)), ((1, 1), (1, 1)),                             # nothing is enlarged
    ((20, 100), (6, 32)), ((300, 12), (32, 1)), ((1, 200), (1, 32)),                          # no panoramas
])
def test_an_image_is_kept_as_its_resize_to_the_size_of_the_cache(before, after, root, cache):
    root = root.parent / "one"
    save(root / "image.png", picture(*before))
    image = kept(root, cache, cache_size=16).train.read(0)
    expected = Image.fromarray(picture(*before)).resize(after[::-1], Image.Resampling.BILINEAR)   # PIL's antialiases
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, *after))
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).max() <= (before != after)


def spoil(root):
    """Make every file unreadable, in a way that shows only to those who read it."""
    for path in root.rglob("*.*"):
        state = path.stat()
        path.write_bytes(bytes(state.st_size))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_later_epochs_and_runs_read_no_image_file(root, cache):
    first = kept(root, cache)
    before = list(Loader(first.train, 4, training=True))
    file, = cache.iterdir()
    written = file.stat()
    spoil(root)
    assert same(list(Loader(first.train, 4, training=True)), before)
    assert same(list(Loader(kept(root, cache).train, 4, training=True)), before)
    assert list(cache.iterdir()) == [file]
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


@pytest.mark.parametrize("differ", [
    lambda root: save(root / "003.jpg", picture(9, 13)),
    lambda root: os.utime(root / "003.jpg", (0, 0)),
    lambda root: (root / "003.jpg").unlink(),
    lambda root: (root / "003.jpg").rename(root / "0030.jpg"),
    lambda root: write_pictures(root, 1, first=20),
])
def test_a_folder_that_has_changed_is_decoded_anew(differ, root, cache):
    kept(root, cache)
    differ(root)
    again = kept(root, cache).train
    assert len(list(cache.iterdir())) == 2
    for i, name in enumerate(again.names):
        assert np.array_equal(again.read(i).permute(1, 2, 0), np.asarray(Image.open(name)))


def test_folders_sizes_and_parts_share_a_folder_of_caches(root, cache):
    for name in ("cat", "dog"):
        write_pictures(root.parent / "classes" / name, 5)
    kept(root, cache)
    kept(root, cache, cache_size=10)
    data = kept(root.parent / "classes", cache, train_images=3)
    sizes = sorted(path.stat().st_size for path in cache.iterdir())
    assert (len(data.train), len(data.test), len(sizes)) == (3, 2, 4)
    for part in (data.train, data.test):   # no more is kept than is used
        assert 4 + sum(20 + part.read(i).numel() for i in range(len(part))) in sizes


def test_workers_write_the_cache_that_one_process_writes(root, cache):
    for workers in (0, 2):
        kept(root, cache / str(workers), workers=workers)
    one, other = cache.rglob("*.bin")
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()


def test_a_source_travels_without_its_pixels(root, cache):
    source = kept(root, cache).train
    sent = pickle.dumps(source)
    assert len(sent) < 2500 < next(cache.iterdir()).stat().st_size
    order = Request(np.array([3, 8, 1]), KEY)
    assert same(pickle.loads(sent)[order], source[order])


# What has happened to the file

def images_of(source):
    return [source.read(i) for i in range(len(source))]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.7, 0.9999])
def test_half_a_cache_is_written_again_before_a_run(share, root, cache):
    expected = images_of(kept(root, cache).train)
    path = next(cache.iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:int(share * len(whole))])
    assert same(images_of(kept(root, cache).train), expected)
    assert path.read_bytes() == whole


def test_a_cache_with_a_damaged_index_is_written_again(root, cache):
    expected = images_of(kept(root, cache).train)
    path = next(cache.iterdir())
    whole = path.read_bytes()
    for place in (0, 4, 40, 183):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        assert same(images_of(kept(root, cache).train), expected)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [
    lambda whole: whole[:400] + bytes(700) + whole[1100:], lambda whole: whole[:-900], lambda whole: whole[:184],
    lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])])
def test_an_image_that_has_changed_in_the_cache_during_a_run_is_decoded_and_put_back(damage, root, cache):
    source = kept(root, cache).train
    expected = images_of(source)
    path = next(cache.iterdir())
    whole = path.read_bytes()
    with open(path, "r+b") as file:                      # the same file, which the source has open
        damaged = damage(whole)
        file.truncate(len(damaged))
        file.write(damaged)
    assert same(images_of(source), expected)
    assert path.read_bytes() == whole


def test_a_damaged_image_that_cannot_be_put_back_is_right_all_the_same(root, cache, monkeypatch):
    source = kept(root, cache).train
    expected = images_of(source)
    path = next(cache.iterdir())
    path.write_bytes(bytes(path.stat().st_size))
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    assert same(images_of(source), expected)


def test_another_way_of_reading_has_another_cache(root, cache):
    Image.fromarray(np.dstack([picture(9, 9), np.zeros((9, 9), np.uint8)])).save(root / "000.png")
    for background, colour in (("white", 255), ("black", 0)):
        assert (kept(root, cache, background=background).train.read(0) == colour).all()
    assert len(list(cache.iterdir())) == 2


def test_a_file_that_could_not_be_opened_is_tried_again_and_a_broken_one_is_not(root, cache, monkeypatch):
    (root / "000.png").rename(root / "away")
    (root / "000.png").symlink_to(root / "away")
    (root / "001.jpg").write_bytes(b"hello")
    closed = root / "000.png"
    opening = Image.open

    def refuse(path, *_, **__):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return opening(path)
    monkeypatch.setattr(Image, "open", refuse)
    source = kept(root, cache).train
    assert [source.attempt(i).kind for i in (0, 1)] == ["not opened", "broken"]
    assert "Permission denied" in source.attempt(0).sentence
    closed = None
    (root / "001.jpg").write_bytes(b"hello")
    assert np.array_equal(source.read(0).permute(1, 2, 0), np.asarray(opening(root / "000.png")))
    assert "001.jpg cannot be read as an image" in source.attempt(1).sentence


def test_a_disk_that_fails_while_the_cache_is_written_is_not_the_caches(root, cache, monkeypatch):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")
    monkeypatch.setattr(Image, "open", fail)
    monkeypatch.setattr(decoding, "PAUSES", ())
    with pytest.raises(OSError, match=r"000.png was not read because its disk failed 1 times .*Input/output error"):
        kept(root, cache)
    assert not list(cache.iterdir())


# Where there is no room

@pytest.fixture
def little_room():
    """Files of this process end at 4,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_that_finds_no_room_says_so_and_leaves_nothing_behind(workers, root, cache):
    data = ImageFolder(str(root), cache=str(cache), workers=workers)
    for _ in range(2):   # and does not go on without it
        with pytest.raises(OSError, match=f"9 decoded images could not be kept in {cache} .*: make room there, give "
                                          "another --data.cache, or leave it out"):
            data.prepare_data()
    assert list(cache.iterdir()) == []


def test_a_cache_in_what_is_no_folder_is_refused_with_its_path(root):
    cache = root / "000.png" / "cache"
    with pytest.raises(OSError, match=rf"could not be kept in {cache} \(Not a directory\)"):
        kept(root, cache)
    assert len(list(root.iterdir())) == 9


def test_a_cache_of_images_without_pixels_is_refused():
    with pytest.raises(ValueError, match="cache_size is at least 1 pixel, not 0"):
        ImageFolder("anywhere", cache="there", cache_size=0)


# Batches

@pytest.mark.parametrize(("sides", "canvas"), [
    ([(14, 19), (40, 31), (9, 50)], (64, 64)), ([(32, 32)], (32, 32)), ([(33, 32), (5, 5)], (64, 32)),
    ([(500, 200), (70, 300)], (96, 96)),                     # reduced to (96, 38) and (22, 96)
])
def test_a_canvas_holds_each_image_in_its_corner_and_its_sides_are_multiples_of_32(sides, canvas, tmp_path, cache):
    for i, side in enumerate(sides):
        save(tmp_path / "pictures" / f"{i}.png", picture(*side, seed=i))
    source = kept(tmp_path / "pictures", cache, cache_size=48).train
    canvases, _, index, _ = source[Request(np.arange(len(sides)), KEY)]
    assert canvases.pixels.shape == (len(sides), 3, *canvas)
    assert max(canvas) <= 2 * 48
    for pixels, (height, width), i in zip(*canvases, index.tolist(), strict=True):
        image = source.read(i)
        assert (height, width) == tuple(image.shape[1:])
        assert torch.equal(pixels[:, :height, :width], image)
        assert pixels.long().sum() == image.long().sum()     # and zeros around it


@pytest.mark.parametrize("row", [SMALL, LARGE])
def test_what_is_around_an_image_is_in_none_of_its_views(row, root, cache):
    augment = Augmentation([row])
    canvases, *_ = kept(root, cache).train[Request(np.arange(9), KEY)]
    views = augment(canvases, KEY)
    bright = torch.full_like(canvases.pixels, 255)
    for pixels, image, (height, width) in zip(bright, *canvases, strict=True):
        pixels[:, :height, :width] = image[:, :height, :width]
    table, = augment.draw(canvases.sizes, KEY)
    alone = [augment.render(image[None, :, :height, :width], table[:, i:i + 1], canvases.sizes[i:i + 1], row)
             for i, (image, (height, width)) in enumerate(zip(*canvases, strict=True))]
    for v, (view, other) in enumerate(zip(views, augment(Canvases(bright, canvases.sizes), KEY), strict=True)):
        assert torch.equal(view.images, other.images)
        # of products of other sizes, the last bit may differ
        torch.testing.assert_close(torch.cat([one[v].images for one in alone]), view.images, rtol=0, atol=1e-5)
        assert torch.equal(torch.cat([one[v].boxes for one in alone]), view.boxes)


def test_images_that_are_not_reduced_give_the_views_that_files_give(root, cache):
    augment, order = Augmentation([SMALL, LARGE]), Request(np.array([4, 0, 7, 2]), KEY)
    files = ready(ImageFolder(str(root))).train
    files.augment = augment
    for ours, theirs in zip(augment(kept(root, cache).train[order][0], KEY), augment(files[order][0], KEY),
                            strict=True):
        assert torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.flipped, theirs.flipped)


@pytest.mark.parametrize("size", [8, 70])
def test_a_views_box_is_a_share_of_the_image_that_was_reduced(size, tmp_path, cache):
    ramp = np.linspace(0, 250, 600).round().astype(np.uint8)            # brighter to the right
    save(tmp_path / "wide" / "ramp.png", np.broadcast_to(ramp[None, :, None], (400, 600, 3)).copy())
    source = kept(tmp_path / "wide", cache, cache_size=40).train
    view, = Augmentation([ViewSpec(size=size)])(source[Request(np.zeros(50, int), KEY)][0], KEY)
    middle = (view.boxes[:, 0] + view.boxes[:, 2]) / 2
    torch.testing.assert_close(view.images.mean((1, 2, 3)) * 255, 250 * middle, rtol=0, atol=1.5)


@pytest.mark.parametrize("training", [False, True])
def test_workers_and_a_resume_change_no_batch(training, root, cache):
    source = kept(root, cache).train
    whole, *others = (list(Loader(source, 2, workers, training=training)) for workers in (0, 1, 2))
    assert isinstance(whole[0][0], Canvases if training else torch.Tensor)
    assert same(others, [whole, whole])
    loader = Loader(source, 2, 2, training=training)
    epoch = iter(loader)
    seen = [next(epoch) for _ in range(3)]
    resumed = Loader(kept(root, cache).train, 2, 1, training=training)
    resumed.load_state_dict(loader.state_dict())
    assert same(seen * training + list(resumed), whole)          # an evaluation starts again


@pytest.mark.parametrize("evaluation_size", [8, 30])
def test_evaluation_sees_what_it_would_see_of_files_of_the_reduced_images(evaluation_size, tmp_path, cache):
    for i in range(6):
        save(tmp_path / "pictures" / f"{i}.png", picture(40 + 3 * i, 64 - 4 * i, seed=i))
    data = kept(tmp_path / "pictures", cache, cache_size=20, evaluation_size=evaluation_size)
    for i in range(6):
        save(tmp_path / "reduced" / f"{i}.png", data.train.read(i).permute(1, 2, 0).numpy())
    files = ready(ImageFolder(str(tmp_path / "reduced"), evaluation_size=evaluation_size, workers=0))
    assert same(list(data.val_dataloader()[0]), list(files.val_dataloader()[0]))


def test_evaluation_sees_what_it_would_see_of_the_files_where_both_reduce_to_the_same_size(tmp_path, cache):
    for i in range(6):
        save(tmp_path / "pictures" / f"{i}.png", picture(40 + 3 * i, 64 - 4 * i, seed=i))
    data = kept(tmp_path / "pictures", cache, cache_size=32, evaluation_size=28)   # as with 256 and 224
    files = ready(ImageFolder(str(tmp_path / "pictures"), evaluation_size=28, workers=0))
    assert same(list(data.val_dataloader()[0]), list(files.val_dataloader()[0]))


# Files that cannot be read

@pytest.fixture
def holes(root):
    """Of the nine files, the third, the fourth and the last are no images."""
    for name in ("002.png", "003.jpg", "008.png"):
        (root / name).write_bytes(b"hello")
    return root


def test_unreadable_images_are_left_out_or_replaced_and_named_once(holes, cache):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = kept(holes, cache).train
        plain, training = Loader(source, 5), Loader(source, 9, training=True)
        assert indices(plain) == indices(plain) == [[0, 1, 4], [5, 6, 7]]
        assert len(said(caught)) == 3
        assert "008.png cannot be read as an image (cannot identify image file); remove it; it is" in said(caught)[-1]
        order, = training.plan()
        assert joined(indices(training)) == [{2: 4, 3: 4, 8: 0}.get(i, i) for i in order.places.tolist()]


@pytest.mark.parametrize("training", [False, True])
def test_strict_refuses_an_unreadable_image_by_name(training, holes, cache):
    with pytest.raises(ValueError, match=r"00[238]\.\w+ cannot be read as an image .*; remove it"):
        list(Loader(kept(holes, cache).train, 9, training=training, strict=True))


def test_a_folder_of_unreadable_images_alone_is_refused_in_a_sentence(root, cache):
    spoil(root)
    with pytest.raises(ValueError, match="none of the 9 images can be read"):
        list(Loader(kept(root, cache).train, 2, training=True))


# In Lightning's hands

class Look(pl.Callback):
    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_method_trains_from_canvases(workers, tmp_path, cache):
    for i, name in enumerate(("cat", "dog")):
        write_pictures(tmp_path / "pictures" / name, 6, first=10 * i)
    data = ImageFolder(str(tmp_path / "pictures"), batch_size=8, evaluation_size=16, workers=workers, cache=str(cache))
    look, method = Look(), simclr()
    running = trainer(tmp_path, look, max_epochs=1, limit_val_batches=1)
    running.fit(method, data)
    batch, = look.batches
    assert running.callback_metrics["loss"].isfinite()
    assert isinstance(data.train, Decoded)
    assert isinstance(data.test, Decoded)
    assert isinstance(batch.images, Canvases)
    assert isinstance(batch.images.sizes, np.ndarray)
    order, = Loader(data.train, 8, training=True).plan()
    assert same(batch.images, data.train[order][0])
    assert same(batch.views[0][:3], method.augment(batch.images, order.key)[0][:3])
