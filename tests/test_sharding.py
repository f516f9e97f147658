"""ssl-zoo shard: what it writes, how it goes on, and what it refuses."""

import gzip
import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_zoo.cli import run
from ssl_zoo.data import ImageFolder, ImageShards, sharding
from tests.test_data import picture, ready


class Killed(BaseException):
    """Ends a call wherever it is, as a signal does."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of two classes with a test part, in some formats."""
    monkeypatch.chdir(tmp_path)
    for part, count in (("train", 7), ("val", 3)):
        for kind in ("cat", "dog"):
            (tmp_path / "images" / part / kind).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(picture(30 + i, 40 - i, len(part) + 20 * i + 200 * (kind == "cat")))
                image.save(tmp_path / "images" / part / kind / f"a.{i} ü{('.png', '.JPG')[i % 2]}")
    return tmp_path / "images"


def shard(*arguments):
    run(["shard", *map(str, arguments), "--workers", "0"])


def contents(path):
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def states(folder):
    return {path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file()}


def test_shards_hold_the_files_as_they_are_with_their_labels(folder, capsys):
    shard("images", "out", "--megabytes", "0.004")
    assert sorted(path.name for path in Path("out").iterdir()) == ["train", "val"]
    index = json.loads(Path("out/train/index.json").read_text())
    assert (index["images"], index["classes"]) == (14, ["cat", "dog"])
    given = {path.read_bytes(): path.parent.name for path in (folder / "train").rglob("*.*")}
    found = {}
    for one in index["shards"]:
        members = contents(Path("out/train") / one["name"])
        images = [name for name in members if not name.endswith(".cls")]
        assert len(images) == one["images"]
        assert [int(members[f"{name.partition('.')[0]}.cls"]) for name in images] == one["labels"]
        assert sharding.checksum(Path("out/train") / one["name"]) == one["checksum"]
        found |= {members[name]: index["classes"][label] for name, label in zip(images, one["labels"], strict=True)}
    assert found == given
    assert len(index["shards"]) > 2
    assert f"out/train: 14 images in {len(index['shards'])} shards of 0.0 MB" in capsys.readouterr().out


def test_a_run_on_shards_has_the_parts_classes_and_images_of_the_folder(folder, tmp_path):
    shard("images", "out")
    data, files = ready(ImageShards("out", workers=0)), ready(ImageFolder(str(folder), workers=0))
    assert data.classes == files.classes
    for ours, theirs in ((data.train, files.train), (data.test, files.test)):
        assert sorted((ours.read(i).numpy().tobytes(), int(ours.labels[i])) for i in range(len(ours))) == sorted(
            (theirs.read(i).numpy().tobytes(), int(theirs.labels[i])) for i in range(len(theirs)))


def test_what_a_folder_holds_out_is_a_part_of_the_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in "ab":
        Path(f"images/{kind}").mkdir(parents=True)
        for i in range(10):
            Image.fromarray(picture(20, 20, i + 10 * (kind == "b"))).save(f"images/{kind}/{i}.png")
    shard("images", "out")
    files, data = ready(ImageFolder("images", workers=0)), ready(ImageShards("out", workers=0))
    assert {data.test.read(i).numpy().tobytes() for i in range(2)} == {
        files.test.read(i).numpy().tobytes() for i in range(2)}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")   # webdataset leaves a shard open
def test_webdataset_reads_the_shards_and_we_read_those_that_it_writes(folder):
    import webdataset
    shard("images", "out")
    pairs = list(webdataset.WebDataset("out/train/000000.tar", shardshuffle=False).decode("torchrgb").to_tuple(
        "jpg;png", "cls"))
    assert sorted(label for _, label in pairs) == [0] * 7 + [1] * 7
    data = ready(ImageShards("out", workers=0))
    assert all(torch.equal((image * 255).round().byte(), data.train.read(i)) for i, (image, _) in enumerate(pairs))
    with webdataset.ShardWriter("theirs-%03d.tar", maxcount=4, verbose=0) as writer:
        for i in range(10):
            writer.write({"__key__": f"sample{i:03}", "png": np.full((8, 9, 3), 20 * i, np.uint8), "cls": i % 2})
    theirs = ready(ImageShards("theirs-{000..002}.tar", workers=0, held_out=0.1))
    assert sorted(theirs.train.labels.tolist() + theirs.test.labels.tolist()) == [0] * 5 + [1] * 5
    whole = ready(ImageShards("theirs-{000..002}.tar", workers=0, labelled=False)).train
    assert [int(whole.read(i).unique()) for i in range(10)] == list(range(0, 200, 20))


def test_the_order_is_random_and_always_the_same(folder):
    shard("images", "one")
    shard("images", "two")
    assert states(Path("one")) == states(Path("two"))
    labels = json.loads(Path("one/train/index.json").read_text())["shards"][0]["labels"]
    assert labels not in (sorted(labels), sorted(labels, reverse=True))


def test_images_are_reduced_and_small_jpegs_left_as_they_are(folder):
    shard("images", "out", "--size", "32", "--quality", "95")
    members = {name: content for name, content in contents("out/train/000000.tar").items() if ".cls" not in name}
    sides = [min(Image.open(io.BytesIO(content)).size) for content in members.values()]
    assert all(name.endswith((".jpg", ".JPG")) for name in members)
    assert all(Image.open(io.BytesIO(content)).format == "JPEG" for content in members.values())
    assert sorted(sides) == sorted(2 * [min(32, 30 + i, 40 - i) for i in range(7)])
    given = {path.read_bytes() for path in (folder / "train").rglob("*.JPG")}
    kept = given & set(members.values())
    assert len(kept) == sum(min(Image.open(io.BytesIO(content)).size) <= 32 for content in given)


def test_an_unreadable_image_is_left_out_and_named(folder, capsys):
    (folder / "train/cat/broken.jpg").write_bytes(b"no image")
    shard("images", "out", "--size", "32")
    assert "left out: 1 image that could not be read: 1 broken; such as" in capsys.readouterr().out
    assert json.loads(Path("out/train/index.json").read_text())["images"] == 14
    assert "broken.jpg cannot be read" in ready(ImageShards("out", workers=0)).summary


@pytest.mark.parametrize("lines", [1, 2, 4])
@pytest.mark.parametrize("torn", [b"", b'{"name": "00000'])
def test_a_call_that_was_ended_is_gone_on_with(folder, lines, torn, monkeypatch):
    """Killed with so many lines of its journal written, perhaps in the middle of one."""
    options = ("--megabytes", "0.004")
    shard("images", "whole", *options)
    journal, wrote = [], sharding.flush

    def until(file):
        wrote(file)
        if Path(file.name).name == "index.partial" and len(Path(file.name).read_bytes().splitlines()) == lines:
            journal.append(Path(file.name).read_bytes())
            raise Killed

    monkeypatch.setattr(sharding, "flush", until)
    with pytest.raises(Killed):
        shard("images", "out", *options)
    monkeypatch.undo()
    monkeypatch.chdir(folder.parent)
    with open("out/train/index.partial", "ab") as file:
        file.write(torn)
    with pytest.raises(ValueError, match="are not all written: the same ssl-zoo shard command goes on"):
        ready(ImageShards("out/train", workers=0))
    before = {path: path.stat().st_mtime_ns for path in Path("out/train").glob("*.tar")}
    assert len(before) == lines - 1
    shard("images", "out", *options)
    assert states(Path("out")) == states(Path("whole"))
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())    # none is written again
    shard("images", "out", *options)                                                      # there is nothing left to do


def test_a_killed_process_is_gone_on_with(folder):
    shard("images", "whole", "--megabytes", "0.001")
    command = [sys.executable, "-m", "ssl_zoo", "shard", "images", "out", "--megabytes", "0.001", "--workers", "0"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not Path("out/train/000003.tar").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shard("images", "out", "--megabytes", "0.001")
    assert states(Path("out")) == states(Path("whole"))


def test_a_shard_that_was_taken_away_is_written_again(folder, monkeypatch):
    shard("images", "whole", "--megabytes", "0.004")
    monkeypatch.setattr(sharding, "close", lambda *arguments: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        shard("images", "out", "--megabytes", "0.004")
    monkeypatch.undo()
    monkeypatch.chdir(folder.parent)
    Path("out/train/000001.tar").unlink()
    shard("images", "out", "--megabytes", "0.004")
    assert states(Path("out")) == states(Path("whole"))


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["nowhere", "out"], "there is no folder nowhere of images to write as shards"),
    (["images", "images/out"], "images/out lies in images, whose images are written: name a folder beside it"),
    (["images", "file"], "file is a file: name a folder for the shards"),
    (["images", "full"], "full has x.txt in it: name a new folder for the shards"),
    (["images", "out", "--size", "0"], "--size is 1 or more, not 0"),
    (["images", "out", "--size", "32", "--quality", "100"], "--quality is 1 to 95, not 100"),
    (["images", "out", "--quality", "90"], "--quality is that of images reduced by --size"),
    (["images", "out", "--megabytes", "0"], "--megabytes is 0.001 or more, not 0.0"),
    (["images", "out", "--workers", "-1"], "--workers is 0 or more, not -1"),
    (["images", "out.json", "--size", "32"], "an index (.json) is of shards that exist"),
    (["images", "out.json"], "there are no shards (.tar, "),
    (["shards", "out"], "shards holds 1 shards already: ssl-zoo shard shards counts.json counts them"),
    (["shards", "there.json"], "there.json is there: name another file for the index"),
    (["empty", "out"], "no images"),
    (["images", "out", "--sise", "3"], "did you mean --size?"),
])
def test_what_is_wrong_is_said_in_one_sentence_and_nothing_is_written(folder, arguments, sentence):
    for name in ("full", "shards", "empty"):
        Path(name).mkdir()
    for name in ("file", "full/x.txt", "shards/a.tar", "there.json"):
        Path(name).touch()
    before = states(folder.parent)
    with pytest.raises(SystemExit) as ended:
        run(["shard", *arguments])
    assert sentence in str(ended.value)
    assert states(folder.parent) == before


def test_other_images_or_settings_are_refused(folder):
    shard("images", "out")
    before = states(Path("out"))
    for more, what in ((["--size", "32"], "settings"), ([], "images")):
        if not more:
            (folder / "train/cat/new.png").write_bytes((folder / "train/cat/a.0 ü.png").read_bytes())
        with pytest.raises(SystemExit, match=f"out/train has shards of other {what}.*: name another folder, or remove"):
            shard("images", "out", *more)
    assert states(Path("out")) == before


def test_images_of_which_none_can_be_read_make_no_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("images/a.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="none of the 1 images can be read, such as: images/a.jpg cannot be read"):
        shard("images", "out", "--size", "32")
    assert not list(Path("out").rglob("*.tar"))


def test_images_of_sixteen_bits_are_not_made_jpegs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Image.linear_gradient("L").convert("I;16").save("images/a.png")
    with pytest.raises(SystemExit, match="a.png has 16 bits, and a JPEG 8: leave --size out"):
        shard("images", "out", "--size", "32")
    shard("images", "out")
    assert ready(ImageShards("out", workers=0, levels="data")).train.samples(0).bits == 16


def test_a_full_disk_is_said_and_gone_on_from(folder, monkeypatch):
    added = sharding.add
    count = []

    def full(tar, name, content):
        count.append(name)
        if len(count) == 9:
            raise OSError(28, "No space left on device")
        added(tar, name, content)

    monkeypatch.setattr(sharding, "add", full)
    with pytest.raises(SystemExit, match=r"has \d whole shards, and the next cannot be written \(No space .*\): make"):
        shard("images", "out", "--megabytes", "0.004")
    assert not list(Path("out").rglob("*.half"))
    shard("images", "out", "--megabytes", "0.004")
    monkeypatch.undo()
    monkeypatch.chdir(folder.parent)
    shard("images", "whole", "--megabytes", "0.004")
    assert states(Path("out")) == states(Path("whole"))


def test_shards_of_others_are_counted_into_an_index(folder, capsys):
    shard("images", "out", "--megabytes", "0.004")
    shards = sorted(Path("out/train").glob("*.tar"))
    shard("out/train", "counts.json")
    shard(f"pipe:cat out/train/{{000000..{len(shards) - 1:06}}}.tar", "remote.json")
    assert f"counts.json: 14 images in {len(shards)} shards" in capsys.readouterr().out
    whole = ready(ImageShards("out", workers=0)).train
    for name in ("counts.json", "remote.json"):
        data = ready(ImageShards(name, test="out/val", workers=0))
        assert data.train.labels.tolist() == whole.labels.tolist()
        assert [shard.images for shard in data.train.shards] == [shard.images for shard in whole.shards]
        assert torch.equal(data.train.read(13), whole.read(13))
        assert len(data.test) == 6
    assert json.loads(Path("counts.json").read_text())["shards"][0]["name"] == "out/train/000000.tar"


def test_the_bytes_in_an_index_of_packed_shards_are_those_that_are_fetched(folder):
    shard("images", "out")
    packed = Path("a.tar.gz")
    packed.write_bytes(gzip.compress(Path("out/train/000000.tar").read_bytes()))
    for name in (f"pipe:cat {packed}", f"pipe:gunzip -c {packed}", str(packed), "out/train/000000.tar"):
        shard(name, "counts.json")
        one, = json.loads(Path("counts.json").read_text())["shards"]
        wanted = Path("out/train/000000.tar") if "gunzip" in name or "out" in name else packed
        assert one["bytes"] == wanted.stat().st_size
        train = ready(ImageShards("counts.json", test="out/val", workers=0)).train
        assert torch.equal(train.read(3), ready(ImageShards("out", workers=0)).train.read(3))
        Path("counts.json").unlink()
