"""Shards: each image once in an epoch whatever the numbers of processes, workers and shards, and the same batches as
from files; and what people's shards look like."""

import io
import itertools
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_zoo.data.fetching import Scratch
from ssl_zoo.data.orders import Blocks
from ssl_zoo.data.shard_index import Shard
from ssl_zoo.data.sources import Files, Loader, Request
from ssl_zoo.data.streams import Shards
from ssl_zoo.data.tars import Torn, members, pictures
from ssl_zoo.views import Key
from tests.test_data import AUGMENTATION, SEED, indices, joined, picture, same, write_pictures


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(SEED))


def jpeg(i, kind="JPEG"):
    file = io.BytesIO()
    Image.fromarray(picture(14 + i % 5, 19 - i % 7, i)).save(file, kind, quality=95)
    return file.getvalue()


def write_shard(path, members, **options):
    """A tar file of (name, content) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(numbers, labelled=True):
    return [pair for i in numbers for pair in ((f"{i:05}.jpg", jpeg(i)), *([(f"{i:05}.cls", str(i % 3).encode())]
                                                                          if labelled else []))]


def write_shards(folder, counts, labelled=True):
    """Shards of so many images, numbered through."""
    ends = np.cumsum(counts).tolist()
    return [write_shard(folder / f"{number:03}.tar", samples(range(end - count, end), labelled))
            for number, (count, end) in enumerate(zip(counts, ends, strict=True))]


def source_of(folder, counts, block=2):
    write_shards(folder, counts)
    shards = [Shard(str(folder / f"{number:03}.tar"), count) for number, count in enumerate(counts)]
    labels = torch.arange(sum(counts)) % 3
    return Shards(shards, labels, 12, block, Scratch())


# Who reads what

COUNTS = [[1], [7], [3, 4], [5, 1, 1, 9, 2], [1] * 11, [40, 3, 3, 30]]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("block", [1, 2, 16])
def test_every_image_is_in_the_share_of_one_process_and_shares_are_equal_to_one_image(counts, processes, block):
    for epoch in range(5):
        shares = [Blocks(np.array(counts), block).share(SEED, epoch, rank, processes) for rank in range(processes)]
        assert sorted(np.concatenate(shares).tolist()) == list(range(sum(counts)))
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_shares_hold_for_random_numbers_of_shards_of_random_sizes():
    generator = np.random.default_rng(0)
    for _ in range(300):
        counts = generator.integers(0, generator.integers(2, 40), generator.integers(1, 30))
        processes, block = int(generator.integers(1, 20)), int(generator.integers(1, 8))
        if counts.sum() < processes:
            continue
        shares = [Blocks(counts, block).share(1, 2, rank, processes) for rank in range(processes)]
        assert sorted(np.concatenate(shares).tolist()) == list(range(counts.sum()))
        assert len({len(share) // 3 for share in shares}) <= 2
        assert min(map(len, shares)) >= counts.sum() // processes   # enough for as many batches as all others have


def test_a_share_depends_on_seed_epoch_and_process_and_on_nothing_else():
    order = Blocks(np.array([9, 8, 7, 6]), 2)
    shares = {(s, e, r): order.share(s, e, r, 2).tolist() for s, e, r in itertools.product(range(2), repeat=3)}
    assert len({tuple(share) for share in shares.values()}) == len(shares)
    assert shares == {key: Blocks(np.array([9, 8, 7, 6]), 2).share(*key, 2).tolist() for key in shares}


def test_a_process_reads_its_shards_in_blocks():
    counts = np.full(12, 5)
    share = Blocks(counts, 3).share(0, 0, 0, 1)
    shards = (share // 5).reshape(4, 15)                     # four blocks of three shards
    assert [len(set(block.tolist())) for block in shards] == [3] * 4
    assert not any((np.diff(block) >= 0).all() for block in shards)     # each is shuffled


@pytest.mark.parametrize(("counts", "processes", "workers"), list(itertools.product(
    ([2, 9, 1], [3] * 5), (1, 2, 3), (0, 2))))
def test_an_epoch_shows_every_image_once_whatever_the_processes_and_workers(counts, processes, workers, tmp_path,
                                                                           process):
    """Fewer shards than workers and processes included; at most one batch of all processes waits for another epoch."""
    source = source_of(tmp_path, counts)
    seen = []
    for rank in range(processes):
        process(rank, processes)
        loader = Loader(source, 1, workers, training=True)
        seen.append(joined(indices(loader)))
        assert len(seen[-1]) == len(loader)
    assert len({len(one) for one in seen}) == 1                                   # nobody waits for a batch that is not
    assert len(set(joined(seen))) == len(joined(seen)) == sum(counts) - sum(counts) % processes


def test_the_number_of_workers_changes_no_batch(tmp_path):
    source = source_of(tmp_path, [5, 4, 6])
    source.augment = AUGMENTATION
    batches = [list(Loader(source, 4, workers, training=True)) for workers in (0, 1, 2)]
    assert same(batches[0], batches[1])
    assert same(batches[0], batches[2])


def test_an_evaluation_sees_every_image_once_on_all_processes_together(tmp_path, process):
    source = source_of(tmp_path, [5, 1, 7])
    for processes in (1, 2, 3):
        seen = []
        for rank in range(processes):
            process(rank, processes)
            loader = Loader(source, 3)
            seen.append(joined(indices(loader)))
            assert len(loader) == len(list(loader))
        assert joined(seen) == list(range(13))                                    # neighbours stay together


def test_a_loader_goes_on_with_the_next_batch(tmp_path, process):
    source = source_of(tmp_path, [5, 4, 6, 9])
    source.augment = AUGMENTATION
    process(1, 2)
    loader = Loader(source, 3, training=True)
    loader.set_epoch(4)
    whole = list(loader)
    for done in range(len(whole) + 1):
        resumed = Loader(source, 3, training=True)
        resumed.load_state_dict({"epoch": 4, "shown": 6 * done, "images": 24})
        assert same(list(resumed), whole[done:])


def test_other_batches_go_on_after_the_images_that_a_process_has_shown(tmp_path, process):
    source = source_of(tmp_path, [5, 4, 6, 9])
    for rank in range(2):
        process(rank, 2)
        whole = joined(indices(Loader(source, 3, training=True)))
        resumed = Loader(source, 2, training=True)
        resumed.load_state_dict({"epoch": 0, "shown": 12, "images": 24})
        assert joined(indices(resumed)) == whole[6:]


# The same images, tables, boxes and keys as files

def test_a_batch_is_that_of_the_same_images_in_files(tmp_path):
    write_pictures(tmp_path / "files", 9, (".jpg", ".png"))
    paths = sorted((tmp_path / "files").iterdir())
    write_shard(tmp_path / "a.tar", [(path.name, path.read_bytes()) for path in paths[:4]])
    write_shard(tmp_path / "b.tar", [(path.name, path.read_bytes()) for path in paths[4:]])
    shards = Shards([Shard(str(tmp_path / "a.tar"), 4), Shard(str(tmp_path / "b.tar"), 5)], None, 12, 2, Scratch())
    files = Files(None, [str(path) for path in paths], torch.full((9,), -1), 12)
    for places, key in (([3, 8, 0, 5], Key(SEED, 1, 2, 0)), ([0, 1, 2, 4, 7], None)):
        for source in (shards, files):
            source.augment = AUGMENTATION
        assert same(shards[Request(np.array(places), key)], files[Request(np.array(places), key)])


@pytest.mark.parametrize("kind", [".tif", ".png", ".jp2"])
def test_images_of_sixteen_bits_are_read_as_from_files(kind, tmp_path):
    import imagecodecs
    import tifffile
    pixels = np.random.default_rng(0).integers(0, 2 ** 16, (20, 24)).astype(np.uint16)
    path = tmp_path / f"a{kind}"
    if kind == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        path.write_bytes((imagecodecs.png_encode if kind == ".png" else imagecodecs.jpeg2k_encode)(pixels))
    write_shard(tmp_path / "a.tar", [(path.name, path.read_bytes())])
    shards = Shards([Shard(str(tmp_path / "a.tar"), 1)], None, 12, 2, Scratch())
    assert torch.equal(shards.read(0), Files(None, [str(path)], torch.tensor([-1]), 12).read(0))
    assert shards.samples(0).bits == 16


def test_a_subset_has_its_own_labels_names_and_blocks(tmp_path):
    source = source_of(tmp_path, [3, 4, 5])
    part = source.subset(np.array([1, 2, 7, 11])).subset(np.array([0, 2, 3]))
    assert part.labels.tolist() == [1, 1, 2]
    assert [name.rpartition("/")[2] for name in part.names] == ["000.tar, image 1", "002.tar, image 0",
                                                                "002.tar, image 4"]
    assert part.order.counts.tolist() == [1, 0, 2]
    assert sorted(joined(indices(Loader(part, 1, training=True)))) == [0, 1, 2]
    assert torch.equal(part.read(1), source.read(7))
    assert part.fingerprint() != source.fingerprint() == source.decoded_by(source.decoder).fingerprint()
    before = source.fingerprint()
    write_shards(tmp_path, [3, 4, 6])
    assert source.fingerprint() != before


# What is in people's shards

def test_an_image_is_any_picture_and_its_label_has_its_key(tmp_path):
    """Wherever the label stands; what is hidden or WebDataset's own is no sample."""
    path = write_shard(tmp_path / "a.tar", [
        ("b/2.cls", b"7"), ("b/1.JPG", b"one"), ("b/1.txt", b"a caption"), ("b/2.png", b"two"), ("b/1.cls", b" 3\n"),
        ("./b/3.webp", b"three"), ("b/.4.jpg", b"no"), ("__meta__.json", b"{}"), ("README", b"words"),
        ("b/5.cls", b"1")])
    found = pictures(path)
    assert [(one.name, one.size) for one in found.members] == [("b/1.JPG", 3), ("b/2.png", 3), ("./b/3.webp", 5)]
    assert (found.labels, found.torn) == (["3", "7", ""], "")
    assert found.others == {".txt": 1, "README": 1}
    assert found.left_out == ["2 samples without an image (README, b/5)"]
    for member, content in zip(found.members, (b"one", b"two", b"three"), strict=True):
        assert path.read_bytes()[member.offset:member.offset + member.size] == content


@pytest.mark.parametrize("options", [{"format": tarfile.USTAR_FORMAT}, {"format": tarfile.GNU_FORMAT},
                                     {"format": tarfile.PAX_FORMAT}])
@pytest.mark.parametrize("length", [10, 99, 100, 101, 140, 230])
def test_members_are_those_that_tarfile_finds(options, length, tmp_path):
    name = ("dé" + "x" * 8 + "/") * (length // 11) + "y" * (length % 11 + 1)
    path = write_shard(tmp_path / "a.tar", [(f"{name}{i}.jpg", b"z" * size) for i, size in enumerate(
        (0, 1, 511, 512, 513, 2000))], **options)
    with tarfile.open(path) as tar:
        wanted = [(info.name, info.offset_data, info.size) for info in tar]
    assert [tuple(member) for member in pictures(path).members] == wanted


def test_a_label_may_be_a_field_of_the_json(tmp_path):
    said = [{"caption": "x", "label": 4}, {"cls": "cat"}, {}, [1]]
    path = write_shard(tmp_path / "a.tar", [pair for i, one in enumerate(said) for pair in (
        (f"{i}.jpg", b""), (f"{i}.json", json.dumps(one).encode()))])
    assert pictures(path).labels == ["4", "cat", "", ""]
    write_shard(path, [("0.jpg", b""), ("0.json", b'{"caption": "only"}')])
    assert pictures(path).labels == [""]


def test_two_members_of_one_name_count_once(tmp_path):
    """In webdataset the epoch ends there: duplicate file name in tar file."""
    path = write_shard(tmp_path / "a.tar", [("1.jpg", b"first"), ("1.cls", b"1"), ("1.jpg", b"2nd"), ("1.cls", b"2")])
    found = pictures(path)
    assert ([member.size for member in found.members], found.labels) == ([5], ["1"])
    assert found.left_out == ["1 sample with the name of another one (1.jpg)"]


def test_two_pictures_of_one_key_need_a_word(tmp_path):
    path = write_shard(tmp_path / "a.tar", [("1.jpg", b"photo"), ("1.depth.png", b"depth"), ("1.cls", b"2")])
    with pytest.raises(ValueError, match=r"two pictures of the key 1, jpg and depth.png: say which .*image: jpg"):
        pictures(path)
    assert [member.name for member in pictures(path, "depth.png").members] == ["1.depth.png"]
    assert pictures(path, "jpg").labels == ["2"]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.77, 0.93])
def test_of_a_torn_shard_the_images_before_the_end_are_found(share, tmp_path):
    path = write_shard(tmp_path / "a.tar", samples(range(9), labelled=False))
    whole, content = pictures(path), path.read_bytes()
    data = whole.members[-1].offset + whole.members[-1].size      # padding of whole blocks follows
    path.write_bytes(content[:int(share * data)])
    found = pictures(path)
    complete = [member for member in whole.members if member.offset + member.size <= share * data]
    assert found.members == complete
    assert found.torn


def test_a_shard_that_was_not_closed_says_so(tmp_path):
    """As of a ShardWriter without close(), whose samples lack their last files."""
    path = write_shard(tmp_path / "a.tar", samples(range(3)))
    path.write_bytes(path.read_bytes().rstrip(b"\0"))
    last = pictures(path)
    path.write_bytes(path.read_bytes() + b"\0" * (-path.stat().st_size % 512))
    found = pictures(path)
    assert (len(last.members), len(found.members)) == (3, 3)
    assert found.torn == "without the two empty blocks that end a tar file: whoever wrote it did not close it"
    path.write_bytes(path.read_bytes() + b"download complete" * 100)                # of s3cmd, without -q
    assert pictures(path).torn.startswith("at byte ")


def test_a_damaged_header_ends_a_shard(tmp_path):
    """tarfile ends there without a word, as if the shard did."""
    path = write_shard(tmp_path / "a.tar", samples(range(4), labelled=False))
    damaged = pictures(path).members[2].offset - 512
    content = bytearray(path.read_bytes())
    content[damaged + 3] ^= 4                     # of its name
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 2
    found = pictures(path)
    assert (len(found.members), found.torn) == (2, f"at byte {damaged:,}, where a header should be")


@pytest.mark.parametrize(("records", "names", "torn"), [
    (b"12 path=a.b\n", ["a.b"], False), (b"9 mtime=\n12 path=a.b\n", ["a.b"], False),
    (b"9 mtime=\n" + b"\0" * 20, ["short.jpg"], False),
    (b"0 path=a.b\n", [], True), (b"x path=a.b\n", [], True), (b"-3 path=a.b\n", [], True),
    (b"99 path=a.b\n", [], True), (b"9" * 5000, [], True), (b"no record", [], True),
], ids=range(9))
def test_a_damaged_extended_header_ends_a_shard(records, names, torn, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        extended = tarfile.TarInfo("extended")
        extended.type, extended.size = tarfile.XHDTYPE, len(records)
        tar.fileobj.write(extended.tobuf(tarfile.USTAR_FORMAT))
        tar.fileobj.write(records + b"\0" * (-len(records) % 512))
        tar.addfile(tarfile.TarInfo("short.jpg"))
    with open(tmp_path / "a.tar", "rb") as file:
        if not torn:
            assert [member.name for member in members(file.fileno())] == names
        else:
            with pytest.raises(Torn, match="inside an extended header, at b'"):
                list(members(file.fileno()))


def test_a_member_of_less_than_nothing_ends_a_shard(tmp_path):
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[148:156] = b"-0000001000\0", b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + b"\0" * 1024)
    assert pictures(tmp_path / "a.tar").torn.startswith("at its start")


def test_what_is_no_tar_file_says_how_it_begins(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"<!DOCTYPE html><html>" * 100)
    assert pictures(tmp_path / "a.tar").torn == (
        "at its start, b'<!DOCTYPE html><', which is not that of an uncompressed tar file")
