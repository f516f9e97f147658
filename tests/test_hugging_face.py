"""Parquet files and data sets of Hugging Face's library as they lie on a disk."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ssl_zoo.data import HuggingFaceImages
from ssl_zoo.data.sources import Files, Loader, Request
from ssl_zoo.views import Key
from tests.conftest import simclr, trainer
from tests.test_data import AUGMENTATION, SEED, indices, joined, ready, same
from tests.test_shards import jpeg


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    import datasets
    monkeypatch.setenv("PL_GLOBAL_SEED", str(SEED))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def parquet(path, images, labels=None, **columns):
    """Parquet as the library writes it, or with other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = pa.array([None if image is None else {"bytes": image, "path": f"{i}.jpg"}
                        for i, image in enumerate(images)], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = {"image": structs} | ({} if labels is None else {"label": labels}) | columns
    pq.write_table(pa.table(table), path)


def saved(folder, count, **parts):
    import datasets
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    made = {name: datasets.Dataset.from_dict(
        {"image": [{"bytes": jpeg(i), "path": None} for i in range(rows)], "label": [i % 2 for i in range(rows)]},
        features=features) for name, rows in ({"train": count} | parts).items()}
    datasets.DatasetDict(made).save_to_disk(folder)
    return folder


def test_parquet_files_are_parts_by_their_names(tmp_path):
    """As the hub lays them out, data/train-00000-of-00002.parquet, and as folders train and val."""
    for names in (["data/train-00000-of-00002", "data/train-00001-of-00002", "data/validation-00000-of-00001"],
                  ["train/0", "train/1", "val/0"]):
        folder = tmp_path / names[0].partition("/")[0]
        for i, name in enumerate(names):
            parquet(folder / f"{name}.parquet", [jpeg(3 * i + k) for k in range(3)], [0, 1, 2])
        data = ready(HuggingFaceImages(str(folder), batch_size=2, workers=0))
        assert (len(data.train), len(data.test), data.classes) == (6, 3, ["0", "1", "2"])
        assert data.summary.startswith(f"{folder}: 9 images, 6 to train on and 3 to test on (val")


def test_a_saved_set_has_its_classes_and_its_splits(tmp_path):
    data = ready(HuggingFaceImages(str(saved(tmp_path / "set", 8, validation=4, test=2)), workers=0))
    assert (data.classes, len(data.train), len(data.test)) == (["cat", "dog"], 8, 4)
    assert data.summary.splitlines()[1] == "left out: test (2 images)"
    alone = ready(HuggingFaceImages(str(tmp_path / "set/train"), workers=0, held_out=0.25))
    assert (len(alone.train), len(alone.test)) == (6, 2)


def test_a_batch_is_that_of_the_same_images_in_files(tmp_path):
    (tmp_path / "files").mkdir()
    for i in range(7):
        (tmp_path / f"files/{i}.jpg").write_bytes(jpeg(i))
    parquet(tmp_path / "a.parquet", [jpeg(i) for i in range(7)])
    files = Files(None, [str(tmp_path / f"files/{i}.jpg") for i in range(7)], torch.full((7,), -1), 12)
    rows = ready(HuggingFaceImages(str(tmp_path / "a.parquet"), workers=0, evaluation_size=12)).train
    for places, key in (([3, 6, 0, 5], Key(SEED, 1, 2, 0)), ([0, 1, 2, 4], None)):
        for source in (rows, files):
            source.augment = AUGMENTATION
        assert same(rows[Request(np.array(places), key)], files[Request(np.array(places), key)])
    loaders = [Loader(rows, 3, workers, training=True) for workers in (0, 2)]
    assert same(*(list(loader) for loader in loaders))
    part = rows.subset(np.array([1, 3, 6])).subset(np.array([0, 2]))
    assert torch.equal(part.read(1), files.read(6))
    assert part.names[1].endswith(", row 6")


@pytest.mark.parametrize("columns", [{"img": "bytes"}, {"picture": "bytes", "mask": "bytes"}, {"large": "large"}])
def test_columns_of_bytes_are_images_too(columns, tmp_path):
    kind = pa.large_binary() if "large" in columns else pa.binary()
    pq.write_table(pa.table({name: pa.array([jpeg(i) for i in range(3)], kind) for name in columns} | {
        "caption": ["a", "b", "c"]}), tmp_path / "a.parquet")
    data = ready(HuggingFaceImages(str(tmp_path), workers=0))
    assert len(data.train) == 3
    assert f"images in the column {next(iter(columns))}" in data.summary


def test_rows_without_an_image_or_a_label_are_left_out_where_they_matter(tmp_path):
    parquet(tmp_path / "train.parquet", [jpeg(0), None, b"no image", jpeg(3)], ["a", "b", None, "a"])
    parquet(tmp_path / "val.parquet", [jpeg(4), jpeg(5)], ["b", None])
    data = ready(HuggingFaceImages(str(tmp_path), workers=0))
    assert (data.classes, data.train.labels.tolist(), len(data.test)) == (["a", "b"], [0, 1, -1, 0], 1)
    with pytest.warns(UserWarning, match="row . cannot be read as an image|row 2 .2.jpg. cannot be read") as caught:
        assert joined(indices(Loader(data.train, 4))) == [0, 3]
    assert len(caught) == 2


@pytest.mark.parametrize(("make", "options", "sentence"), [
    (lambda folder: None, {"root": "nowhere"}, "there is no .*nowhere; give another --data.root"),
    (lambda folder: None, {}, "there are no .parquet files in .*, nor a data set that save_to_disk wrote"),
    (lambda folder: (folder / "a.parquet").write_bytes(b"PAR1 torn"), {}, "a.parquet is not a Parquet file, or not a"),
    (lambda folder: (folder / "a.parquet").write_bytes(b""), {}, "a.parquet is not a Parquet file, or not a whole"),
    (lambda folder: pq.write_table(pa.table({"a": [1], "b": ["x"]}), folder / "a.parquet"), {},
     "none of the columns a, b holds images for certain: say which with --data.image"),
    (lambda folder: parquet(folder / "a.parquet", [jpeg(0)]), {"image": "img"}, "no column img; there are image"),
    (lambda folder: parquet(folder / "a.parquet", [jpeg(0)]), {"label": "y"}, "no column y; there are image"),
    (lambda folder: parquet(folder / "val.parquet", [jpeg(0)]), {}, "has the splits val.* and none called train"),
    (lambda folder: [parquet(folder / "a.parquet", [jpeg(0)]),
                     pq.write_table(pa.table({"x": [1]}), folder / "b.parquet")], {},
     "the Parquet files in .* cannot be read together"),
], ids=range(9))
def test_what_is_wrong_is_said_in_one_sentence(make, options, sentence, tmp_path):
    (tmp_path / "set").mkdir()
    make(tmp_path / "set")
    with pytest.raises((ValueError, OSError), match=sentence):
        ready(HuggingFaceImages(**{"root": str(tmp_path / "set"), "workers": 0} | options))


def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "datasets", None)
    parquet(tmp_path / "a.parquet", [jpeg(0)])
    with pytest.raises(ImportError, match=r"pip install ssl_zoo\[datasets\]"):
        ready(HuggingFaceImages(str(tmp_path), workers=0))


def test_images_of_sixteen_bits_have_levels(tmp_path):
    file = io.BytesIO()
    Image.linear_gradient("L").convert("I;16").save(file, "PNG")
    parquet(tmp_path / "a.parquet", [file.getvalue()])
    data = ready(HuggingFaceImages(str(tmp_path), workers=0, levels="data"))
    assert data.decoder.levels == (0.0, 255.0)
    assert data.train.read(0).amax() == 255


def test_a_run_trains_on_a_table(tmp_path):
    saved(tmp_path / "set", 8, validation=4)
    method = simclr()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(method, datamodule=HuggingFaceImages(str(tmp_path / "set"), batch_size=4, workers=0, evaluation_size=16))
    assert run.global_step == 2
    assert run.callback_metrics["loss"].isfinite()


def test_the_fingerprint_follows_the_files(tmp_path):
    saved(tmp_path / "set", 4)
    data = HuggingFaceImages(str(tmp_path / "set"), workers=0)
    before = ready(data).train.fingerprint()
    assert ready(HuggingFaceImages(str(tmp_path / "set"), workers=0)).train.fingerprint() == before
    for path in (tmp_path / "set").rglob("*.arrow"):
        os.utime(path, (0, 0))
    assert ready(HuggingFaceImages(str(tmp_path / "set"), workers=0)).train.fingerprint() != before
