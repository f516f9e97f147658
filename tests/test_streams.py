"""Data modules over shards and tables: what a folder of shards means, what is fetched, and runs on them."""

import fcntl
import functools
import io
import json
import os
import shutil
import signal
import sys
import threading
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from ssl_zoo.data import ImageShards, fetching
from ssl_zoo.data.fetching import Scratch
from ssl_zoo.data.shard_index import Shard
from ssl_zoo.data.sources import Loader, Request
from ssl_zoo.data.streams import Ahead, Shards
from ssl_zoo.data.tars import pictures
from tests.conftest import same as same_tensors
from tests.conftest import simclr, state, trainer
from tests.test_data import SEED, indices, joined, ready, same
from tests.test_shards import jpeg, samples, write_shard, write_shards


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(SEED))
    monkeypatch.setattr(fetching, "PAUSES", (0, 0))


def said(data):
    return data.summary.splitlines()


# What a folder of shards means

def test_folders_train_and_val_are_the_two_parts(tmp_path):
    write_shards(tmp_path / "train", [5, 4])
    write_shards(tmp_path / "val", [3])
    data = ready(ImageShards(str(tmp_path), batch_size=2, workers=0))
    assert (len(data.train), len(data.test), data.classes) == (9, 3, ["0", "1", "2"])
    assert data.train.labels.tolist() == [0, 1, 2] * 3
    assert said(data) == [f"{tmp_path}: 12 images, 9 to train on and 3 to test on (val); 3 classes of 3 training "
                          "images each; 2 shards", "left out: nothing"]


def test_names_of_shards_say_their_parts_too(tmp_path):
    for path in write_shards(tmp_path, [4, 4, 2]):
        path.rename(tmp_path / f"birds-{'validation' if path.stem == '002' else 'train'}-{path.stem}.tar")
    data = ready(ImageShards(str(tmp_path), workers=0))
    assert (len(data.train), len(data.test)) == (8, 2)


def test_without_a_test_part_a_share_of_each_class_is_held_out_and_without_labels_nothing(tmp_path):
    write_shards(tmp_path / "a", [20, 13])
    data = ready(ImageShards(str(tmp_path / "a"), workers=0))
    assert (len(data.train), len(data.test)) == (30, 3)
    assert "3 to test on (held out, 10 % of each class)" in said(data)[0]
    assert set(data.train.chosen) | set(data.test.chosen) == set(range(33))
    write_shards(tmp_path / "b", [20, 13], labelled=False)
    data = ready(ImageShards(str(tmp_path / "b"), workers=0))
    assert (len(data.train), data.test, data.labelled) == (33, None, False)
    assert ready(ImageShards(str(tmp_path / "a"), workers=0, labelled=False)).test is None


def test_images_without_a_label_among_others_train_and_are_not_evaluated(tmp_path):
    write_shard(tmp_path / "train/0.tar", [*samples(range(6)), *samples(range(6, 9), labelled=False)])
    write_shard(tmp_path / "val/0.tar", [*samples(range(9, 12)), *samples(range(12, 13), labelled=False)])
    data = ready(ImageShards(str(tmp_path), workers=0))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2, -1, -1, -1]
    assert len(data.test) == 3
    assert "3 images without a class, only to train on" in said(data)[0]
    assert said(data)[1] == "left out: 1 test image without a label"
    assert [len(loader.source) for loader in data.val_dataloader()] == [6, 3]


def test_empty_shards_other_files_and_torn_ends_are_named(tmp_path):
    write_shards(tmp_path, [4, 5], labelled=False)
    write_shard(tmp_path / "002.tar", [])
    write_shard(tmp_path / "003.tar", [*samples([20], labelled=False), ("x.txt", b"words")])
    (tmp_path / "001.tar").write_bytes((tmp_path / "001.tar").read_bytes()[:2500])
    data = ready(ImageShards(str(tmp_path), workers=0))
    assert len(data.train) == 4 + len(Shards([Shard(str(tmp_path / "001.tar"), 9)], None, 8, 1, Scratch()).table(0)) + 1
    assert said(data)[1].startswith(f"left out: of {tmp_path}/003.tar 1 sample without an image (x); the rest of "
                                    f"{tmp_path}/001.tar after ")
    assert f"shards without images: {tmp_path}/002.tar; files of other kinds: 1 .txt" in said(data)[1]
    with pytest.raises(ValueError, match=r"the rest of .*001.tar after .* ends inside 0000\d.jpg, .*: write or copy"):
        ready(ImageShards(str(tmp_path), workers=0, strict=True))


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda folder: None, "there are no shards in .*, nor in folders train and val below it"),
    (lambda folder: write_shard(folder / "a.tar", [("1.txt", b"x")]), "are no images in .*of other kinds: 1 .txt"),
    (lambda folder: (folder / "a.tar").write_bytes(b"<html>" * 200), "are no images in .*the rest of .*at its start"),
    (lambda folder: write_shards(folder / "val", [3]), "are of val and none of train: name those to train on"),
    (lambda folder: (folder / "index.json").write_text("[]"), "index.json is no index of shards, which has the number"),
    (lambda folder: (folder / "index.json").write_text('{"a.tar": 3}'), "a.tar is not there, and .*.json lists it"),
    (lambda folder: (folder / "index.partial").touch(), "are not all written: the same ssl-zoo shard command goes on"),
], ids=range(7))
def test_what_is_wrong_is_said_in_one_sentence(make, sentence, tmp_path):
    (tmp_path / "shards").mkdir()
    make(tmp_path / "shards")
    with pytest.raises((ValueError, OSError), match=sentence):
        ready(ImageShards(str(tmp_path / "shards"), workers=0))


def test_an_index_of_others_is_read(tmp_path):
    """sizes.json, as img2dataset's and OpenCLIP's sets have it, and webdataset's own; the shards are not opened."""
    write_shards(tmp_path, [4, 5])
    for said in ({"000.tar": 4, "001.tar": 5}, {"shardlist": [{"url": "000.tar", "nsamples": 4},
                                                              {"url": str(tmp_path / "001.tar"), "nsamples": 5}]}):
        (tmp_path / "sizes.json").write_text(json.dumps(said))
        for root in (tmp_path, tmp_path / "sizes.json"):
            data = ready(ImageShards(str(root), batch_size=3, workers=0))
            assert (len(data.train), data.labelled) == (9, False)
            assert sorted(joined(indices(Loader(data.train, 3, training=True)))) == list(range(9))


@pytest.mark.parametrize(("sizes", "sentence"), [
    ({"000.tar": 3}, "has 4 images, and 3 by its index: count them again"),
    ({"000.tar": 5}, "has 4 images, and 5 by its index: count them again"),
])
def test_an_index_that_is_that_of_other_shards_stops_the_run(sizes, sentence, tmp_path):
    write_shards(tmp_path, [4])
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    data = ImageShards(str(tmp_path), batch_size=1, workers=0)
    with pytest.raises(OSError, match=sentence):
        list(Loader(ready(data).train, 1, training=True))


def test_a_shard_that_lost_its_end_after_it_was_counted_is_named_once_and_the_others_are_read(tmp_path):
    write_shards(tmp_path, [6, 6])
    (tmp_path / "sizes.json").write_text('{"000.tar": 6, "001.tar": 6}')
    (tmp_path / "001.tar").write_bytes((tmp_path / "001.tar").read_bytes()[:5000])
    data = ready(ImageShards(str(tmp_path), workers=0))
    left = len(data.train.table(1))
    assert 0 < left < 6
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = joined(indices(Loader(data.train, 2, 2, training=True)))
    torn = [str(one.message) for one in caught if "by its index" in str(one.message)]
    assert len(torn) == 1
    assert torn[0].startswith(f"{tmp_path}/001.tar has {left} images, and 6 by its index: it ends ")
    assert (len(seen), set(seen)) == (12, set(range(6 + left)))      # others in place of those that are missing
    with pytest.raises(ValueError, match="or set strict to false to skip"):
        list(Loader(data.train, 2, training=True, strict=True))


def test_what_a_torn_shard_lacks_is_told_at_the_first_missing_place_of_a_subset(tmp_path):
    first, second = write_shards(tmp_path, [6, 6])
    second.write_bytes(second.read_bytes()[:5000])
    left = len(pictures(second).members)
    assert 0 < left < 4
    for chosen in ([3, 6, 6 + left, 10, 11], [5, 11], list(range(12))):
        whole = Shards([Shard(str(first), 6), Shard(str(second), 6)], None, 8, 1, Scratch())
        part, unread = whole.subset(np.array(chosen)), {}
        assert part.first_readable([len(chosen) - 1, 0], unread)[0] == 0
        assert list(unread) == [next(i for i, one in enumerate(chosen) if one >= 6 + left)]


def test_an_unreadable_image_is_named_with_its_shard_and_replaced_by_the_next(tmp_path):
    write_shard(tmp_path / "a.tar", [*samples(range(3), labelled=False), ("broken.jpg", b"no picture"),
                                     *samples(range(4, 6), labelled=False)])
    data = ready(ImageShards(str(tmp_path), workers=0))
    with pytest.warns(UserWarning, match=r"a.tar/broken.jpg cannot be read as an image"):
        seen = joined(indices(Loader(data.train, 3, training=True)))
    assert sorted(seen) == [0, 1, 2, 4, 4, 5]
    assert joined(indices(Loader(data.train, 3))) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_images_of_other_modes_become_rgb(mode, tmp_path):
    from PIL import Image
    file = io.BytesIO()
    image = Image.linear_gradient("L").convert("I;16") if mode == "I;16" else (
        Image.new("RGB", (9, 8), (200, 100, 50)).convert(mode))
    image.save(file, "TIFF" if mode == "CMYK" else "PNG")
    write_shard(tmp_path / "a.tar", [("1.png" if mode != "CMYK" else "1.tif", file.getvalue())])
    data = ready(ImageShards(str(tmp_path), workers=0, levels="data"))
    assert data.train.read(0).shape == ((3, 256, 256) if mode == "I;16" else (3, 8, 9))


# Shards that are fetched

@pytest.fixture
def address(tmp_path):
    """A server of the folder `tmp_path / "served"`, and what it was asked for."""
    (tmp_path / "served").mkdir()
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, form, *arguments):
            asked.append(arguments[0].split()[1])

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path / "served"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def index(folder, counts, labelled=True):
    write_shards(folder, counts, labelled)
    (folder / "sizes.json").write_text(json.dumps({f"{i:03}.tar": count for i, count in enumerate(counts)}))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset opens http by curl")
def test_shards_at_an_address_are_the_local_ones(tmp_path, address, workers):
    url, asked = address
    index(tmp_path / "served", [4, 5, 3], labelled=False)
    local = ready(ImageShards(str(tmp_path / "served"), workers=0, block=2))
    remote = ready(ImageShards(f"{url}/sizes.json", workers=workers, block=2))
    for epoch in range(2):
        loaders = [Loader(data.train, 3, workers, training=True) for data in (local, remote)]
        for loader in loaders:
            loader.set_epoch(epoch)
        assert same(*(list(loader) for loader in loaders))
    assert asked.count("/001.tar") <= 3      # at most once to look whether it can be read, and once in each epoch


def test_a_command_fetches_shards_and_braces_stand_for_many(tmp_path):
    index(tmp_path / "served", [4, 5, 3])
    counts = {f"pipe:cat {tmp_path}/served/{i:03}.tar": count for i, count in enumerate((4, 5, 3))}
    (tmp_path / "counts.json").write_text(json.dumps(counts))
    data = ready(ImageShards(str(tmp_path / "counts.json"), workers=0))
    assert sorted(joined(indices(Loader(data.train, 4, training=True)))) == list(range(12))
    local = ready(ImageShards(f"{tmp_path}/served/{{000..002}}.tar", workers=0, labelled=False))
    assert len(local.train) == 12
    with pytest.raises(ValueError, match=r"the images of 3 shards such as pipe:cat .*000.tar must be counted once"):
        ready(ImageShards(f"pipe:cat {tmp_path}/served/{{000..002}}.tar", workers=0))


@pytest.mark.parametrize("kind", [".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"])
def test_packed_shards_are_unpacked(kind, tmp_path):
    import tarfile
    mode = {"gz": "gz", "tgz": "gz", "bz2": "bz2", "xz": "xz"}[kind.rpartition(".")[2]]
    with tarfile.open(tmp_path / f"a{kind}", f"w:{mode}") as tar:
        for name, content in samples(range(4)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = ready(ImageShards(str(tmp_path), batch_size=2, workers=0, held_out=0.5))
    assert data.train.labels.tolist() == [0, 1, 2, 0]
    write_shard(tmp_path / "b/0.tar", samples(range(4)))
    assert torch.equal(data.train.read(2), ready(ImageShards(str(tmp_path / "b"), labelled=False)).train.read(2))


@pytest.mark.parametrize(("command", "reason"), [
    ("false", "its command ended with status 1"),
    ("head -c 3000 {} && exit 7", "its command ended with status 7"),
    ("head -c 3000 {}", "it has 3,000 bytes, and [0-9,]+ by its index"),
])
def test_a_shard_that_cannot_be_fetched_stops_the_run_after_three_tries(command, reason, tmp_path):
    path, = write_shards(tmp_path, [4])
    shard = Shard("pipe:" + command.format(path), 4, path.stat().st_size)
    source = Shards([shard], None, 8, 1, Scratch())
    with pytest.raises(OSError, match=rf"could not be fetched, 3 times in a row \({reason}\): go on from the last"):
        list(Loader(source, 2, training=True))
    for thread in threading.enumerate():
        if thread.name == "shards ahead":
            thread.join()     # it may be at its last try
    assert not list(source.scratch.folder.glob("*.half"))


def test_a_checksum_is_compared(tmp_path):
    path, = write_shards(tmp_path, [4])
    source = Shards([Shard(f"pipe:cat {path}", 4, None, 1234)], None, 8, 1, Scratch())
    with pytest.raises(OSError, match="its checksum is not that of its index"):
        list(Loader(source, 2, training=True))


def test_a_worker_that_is_forked_while_a_shard_is_fetched_keeps_nobody_waiting(tmp_path, monkeypatch):
    path, = write_shards(tmp_path, [4])
    scratch, shard, fetch, workers = Scratch(), Shard(f"pipe:cat {path}", 4), fetching.fetch, []

    def forked(shard, path):
        workers.append(os.fork())
        if not workers[-1]:
            signal.pause()
        return fetch(shard, path)

    monkeypatch.setattr(fetching, "fetch", forked)
    try:
        local = scratch.local(shard)
        with open(local.with_suffix(".lock"), "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)      # raises BlockingIOError while the worker has it
    finally:
        os.kill(workers[0], signal.SIGKILL)
        os.waitpid(workers[0], 0)


def test_an_address_that_nobody_opens_names_the_way_out(tmp_path):
    source = Shards([Shard("s3://bucket/000.tar", 4)], None, 8, 1, Scratch())
    with pytest.raises(OSError, match="webdataset opens no s3: addresses .*'pipe:aws s3 cp"):
        list(Loader(source, 2, training=True))


def test_without_webdataset_an_address_names_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    source = Shards([Shard("https://host/000.tar", 4)], None, 8, 1, Scratch())
    with pytest.raises(ImportError, match=r"pip install ssl_zoo\[shards\]"):
        list(Loader(source, 2, training=True))


def test_two_blocks_at_most_are_on_the_disk_and_nothing_stays(tmp_path):
    index(tmp_path / "served", [3] * 12)
    scratch, most = Scratch(), 0
    shards = [Shard(f"pipe:cat {tmp_path}/served/{i:03}.tar", 3) for i in range(12)]
    loader = Loader(Shards(shards, None, 8, 2, scratch), 3, training=True)
    for _ in loader:
        most = max(most, len(list(scratch.folder.glob("*.tar"))))
    assert 1 <= most <= 6
    assert not list(scratch.folder.glob("*.tar"))
    folder = scratch.folder
    scratch.end()
    assert not folder.exists()


def test_a_plan_that_ends_leaves_another_its_shards_and_none_stays_after_the_last(tmp_path):
    write_shards(tmp_path, [3] * 4)
    source = Shards([Shard(f"pipe:cat {tmp_path}/{i:03}.tar", 3) for i in range(4)], None, 8, 2, Scratch())
    training, evaluation = (Ahead(source, [Request(np.arange(places), None)]) for places in (6, 9))
    for plan in (training, evaluation):
        plan.start()
        plan.join()
    source.scratch.local(source.shards[3])      # by a worker, which shows its images for those that are torn off
    evaluation.stop()
    assert {path.name for path in source.scratch.folder.glob("*.tar")} == {
        source.scratch.path(shard, ".tar").name for shard in source.shards[:2]}
    training.stop()
    assert not list(source.scratch.folder.glob("*.tar"))


@pytest.mark.parametrize("known", [True, False])
def test_a_shard_that_is_removed_before_it_is_opened_is_fetched_again(known, tmp_path, monkeypatch):
    path, = write_shards(tmp_path, [3])
    source = Shards([Shard(f"pipe:cat {path}", 3)], None, 8, 1, Scratch())
    wanted = source.read(1)
    if not known:
        source = Shards(source.shards, None, 8, 1, Scratch())
    local, removed = source.scratch.local, []

    def late(shard):
        path = local(shard)
        if not removed:
            path.unlink()
            removed.append(path)
        return path

    monkeypatch.setattr(source.scratch, "local", late)
    assert torch.equal(source.read(1), wanted)
    assert removed


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_another_uses_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    used, new, left = Scratch(), tmp_path / f"{fetching.PREFIX}new", tmp_path / f"{fetching.PREFIX}left"
    for folder in (new, left):
        folder.mkdir()
        (folder / "lock").touch()
        (folder / "0.tar").touch()
    for folder in (used.folder, left):
        os.utime(folder / "lock", (0, 0))
    Scratch()
    assert used.folder.exists()
    assert new.exists()               # whose process is about to lock it
    assert not left.exists()


# Runs

class Watch(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(batch.index.tolist())


class Stop(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "stopped.ckpt")
            trainer.should_stop = True


def shards(tmp_path, **options):
    return ImageShards(str(tmp_path / "shards"), **{"batch_size": 4, "workers": 0, "evaluation_size": 16} | options)


@pytest.mark.parametrize("step", [2, 5])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, step):
    write_shards(tmp_path / "shards", [5, 9, 4], labelled=False)
    whole, first, second = Watch(), Watch(), Watch()
    method = simclr()
    trainer(tmp_path, whole).fit(method, datamodule=shards(tmp_path))
    trainer(tmp_path, first, Stop(step)).fit(simclr(), datamodule=shards(tmp_path))
    resumed = simclr()
    trainer(tmp_path, second).fit(resumed, datamodule=shards(tmp_path), ckpt_path=tmp_path / "stopped.ckpt")
    assert first.seen + second.seen == whole.seen
    assert len(whole.seen) == 8
    assert same_tensors(state(method), state(resumed))


def test_an_evaluation_pair_may_be_a_folder_or_shards_of_their_own(tmp_path):
    write_shards(tmp_path / "shards", [5, 9, 4], labelled=False)
    write_shards(tmp_path / "pair/train", [6])
    write_shards(tmp_path / "pair/val", [3])
    for name in ("train", "val"):
        for kind in ("a", "b"):
            (tmp_path / "folder" / name / kind).mkdir(parents=True)
            for i in range(3):
                (tmp_path / "folder" / name / kind / f"{i}.jpg").write_bytes(jpeg(i))
    for pair, classes in (("pair", ["0", "1", "2"]), ("folder", ["a", "b"])):
        data = shards(tmp_path, evaluation=str(tmp_path / pair))
        run = trainer(tmp_path, max_epochs=1)
        run.fit(simclr(), datamodule=data)
        assert (data.classes, data.labelled, len(data.train)) == (classes, True, 18)
        assert [len(loader.source) for loader in data.val_dataloader()] == [6, 3 if pair == "pair" else 6]


def test_an_order_of_ones_own_goes_before_the_blocks(tmp_path):
    write_shards(tmp_path / "shards", [5, 9], labelled=False)
    data, seen = shards(tmp_path), Watch()
    data.order = lambda seed, epoch, images: np.arange(images)[::-1]
    trainer(tmp_path, seen, max_epochs=1).fit(simclr(), datamodule=data)
    assert seen.seen == [[13, 12, 11, 10], [9, 8, 7, 6], [5, 4, 3, 2]]


def train(rank, folder, same_shards):
    """Two epochs on one of two processes, which may have shards of their own."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0",
                      PL_GLOBAL_SEED=str(SEED))
    data = ImageShards(f"{folder}/{0 if same_shards else rank}", batch_size=2, workers=0)
    method, watch = simclr(), Watch()
    try:
        trainer(folder, watch, strategy="ddp", devices=2).fit(method, datamodule=data)
    except ValueError as error:
        return str(error)
    return watch.seen


def test_two_processes_with_uneven_shards_have_equally_many_batches(tmp_path, two_processes):
    """Nobody waits at the end of an epoch: of one large and two small shards each reads half the images."""
    write_shards(tmp_path / "0", [11, 2, 3], labelled=False)
    seen = two_processes(train, str(tmp_path), True)
    assert [len(batches) for batches in seen] == [8, 8]
    for epoch in range(2):
        assert sorted(joined(joined(batches[4 * epoch:4 * epoch + 4] for batches in seen))) == list(range(16))


def test_processes_that_see_other_shards_are_refused(tmp_path, two_processes):
    write_shards(tmp_path / "0", [5, 5], labelled=False)
    write_shards(tmp_path / "1", [5, 4], labelled=False)
    for sentence in two_processes(train, str(tmp_path), False):
        assert "process 0 sees 10 images in its shards, and process 1 has 9 or other shards: give every" in sentence
