"""Features of any images, in memory and in files: the numbers of the encoder itself, under the right names."""

import csv
import os

import numpy as np
import pytest
import torch
from PIL import Image

import ssl_zoo
from ssl_zoo import features
from ssl_zoo.cli import run
from ssl_zoo.data import read_images
from ssl_zoo.encoders import NarrowResNet, Torchvision
from ssl_zoo.export import save_encoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = NarrowResNet(4, 2).eval()
    encoder.preprocessing = {"size": 16}
    return encoder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Nine images of noise in two folders below my_images, and the current folder beside it."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for i in range(9):
        place = tmp_path / "my_images" / ("cat" if i < 5 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return tmp_path


NAMES = [f"my_images/{'cat' if i < 5 else 'dog'}/{i}.png" for i in range(9)]


def expected(encoder, names=NAMES):
    with torch.no_grad():
        return encoder(read_images(names, encoder, 16))


def load(path):
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as found:
            return found["names"].tolist(), torch.from_numpy(found["features"])
    if path.suffix == ".csv":
        _, *rows = csv.reader(path.read_text().splitlines())
        return [row[0] for row in rows], torch.tensor([[float(value) for value in row[1:]] for row in rows])
    table = pytest.importorskip("pyarrow.parquet").read_table(path)
    return table["name"].to_pylist(), torch.tensor(table["features"].to_pylist())


@pytest.mark.parametrize("images", ["my_images", "my_images/**/*.png", "list.txt", NAMES])
def test_images_by_folder_pattern_list_and_paths_have_the_features_of_the_encoder(folder, encoder, images):
    (folder / "list.txt").write_text("\n".join(NAMES))
    found = ssl_zoo.embed(encoder, images, workers=0)
    assert found.names == NAMES
    torch.testing.assert_close(found.features, expected(encoder))


def test_a_list_may_lie_beside_its_images(folder, encoder):
    (folder / "my_images/list.txt").write_text("dog/7.png\ncat/1.png\n")
    found = ssl_zoo.embed(encoder, "my_images/list.txt", workers=0)
    assert found.names == ["my_images/dog/7.png", "my_images/cat/1.png"]


def test_shards_give_the_features_of_their_members(folder, encoder):
    run(["shard", "my_images", "my_shards", "--workers", "0", "--labelled", "false"])
    found = ssl_zoo.embed(encoder, "my_shards", workers=0)
    places = [int(name[-5]) for name in found.names]   # my_shards/train/000000.tar/000000000-cat_4.png
    assert all("my_shards/train/000000.tar/" in name for name in found.names)
    assert sorted(places) == list(range(9))
    torch.testing.assert_close(found.features, expected(encoder)[places])


def test_a_folder_of_images_with_an_archive_beside_them_is_one_of_images(folder, encoder):
    (folder / "my_images/backup.tar").write_bytes(b"anything")
    assert ssl_zoo.embed(encoder, "my_images", workers=0).names == NAMES


@pytest.mark.parametrize("ending", [".parquet", ".npz", ".csv"])
def test_a_file_gives_back_names_and_features_exactly(folder, encoder, ending, capsys):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    save_encoder(encoder, folder / "encoder.safetensors")
    run(["embed", "encoder.safetensors", "my_images", "--output", f"out{ending}", "--size", "16", "--workers", "0"])
    assert f"out{ending}: 8 features of each of 9 images\n" == capsys.readouterr().out
    names, x = load(folder / f"out{ending}")
    assert names == NAMES
    assert torch.equal(x, ssl_zoo.embed(encoder, "my_images", workers=0).features)
    assert not list(folder.glob("*.parts"))


@pytest.mark.parametrize("ending", [".parquet", ".npz"])
def test_maps_stand_beside_the_features_in_a_file_and_in_memory(folder, encoder, ending, capsys, monkeypatch):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(features, "BATCH", 4)                              # pieces of 4, 4 and 1 image
    save_encoder(encoder, folder / "encoder.safetensors")
    output = folder / f"out{ending}"
    run(["embed", "encoder.safetensors", "my_images", "--output", output.name, "--maps", "--size", "16", "--workers",
         "0"])
    assert f"out{ending}: 8 features and a map of 8 x 4 x 4 of each of 9 images\n" == capsys.readouterr().out
    names, x = load(output)
    if ending == ".npz":
        maps = torch.from_numpy(np.load(output)["maps"])
    else:
        column = pytest.importorskip("pyarrow.parquet").read_table(output)["maps"]
        maps = torch.tensor(column.combine_chunks().to_numpy_ndarray())
    with torch.no_grad():
        torch.testing.assert_close(maps, encoder.maps(read_images(NAMES, encoder, 16)))
    assert names == NAMES
    torch.testing.assert_close(x, expected(encoder))
    found = ssl_zoo.embed(encoder, "my_images", workers=0, maps=True)
    assert torch.equal(found.maps, maps)
    assert torch.equal(found.features, x)


class Largest(NarrowResNet):
    def forward(self, images):
        return self.maps(images).amax((2, 3))


@pytest.mark.parametrize(("kind", "passes"), [(NarrowResNet, 1), (Largest, 2)])
def test_maps_cost_a_second_pass_only_where_the_features_are_not_their_mean(kind, passes, monkeypatch):
    torch.manual_seed(0)
    encoder, images, calls = kind(4, 2).eval(), torch.rand(3, 3, 16, 16), []
    expected = torch.cat([encoder(images), encoder.maps(images).flatten(1)], 1)
    real = encoder.stage_maps
    monkeypatch.setattr(encoder, "stage_maps", lambda given: calls.append(1) or real(given))
    assert torch.equal(features.WithMaps(encoder)(images), expected)
    assert len(calls) == passes


def test_maps_that_there_are_not_are_refused_before_anything_is_encoded(folder, encoder):
    with pytest.raises(ValueError, match="a table of text holds no maps: write a .npz or .parquet in place of out.csv"):
        features.embed_to_file(encoder, "my_images", "out.csv", workers=0, maps=True)
    torch.manual_seed(0)
    other = Torchvision("shufflenet_v2_x0_5")
    with pytest.raises(ValueError, match="does not know where torchvision's shufflenet_v2_x0_5 has its feature maps"):
        features.embed_to_file(other, "my_images", "out.npz", size=32, workers=0, maps=True)
    assert not list(folder.glob("out*"))


def test_parts_with_maps_and_without_are_not_mixed(folder, encoder, monkeypatch):
    monkeypatch.setattr(features, "WRITERS", {".npz": lambda *arguments: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        features.embed_to_file(encoder, "my_images", "out.npz", workers=0)
    with pytest.raises(ValueError, match="holds features of another encoder, or of other images"):
        features.embed_to_file(encoder, "my_images", "out.npz", workers=0, maps=True)


def test_a_call_that_was_ended_goes_on_and_takes_nothing_twice(folder, encoder, monkeypatch):
    monkeypatch.setattr(features, "BATCH", 2)
    monkeypatch.setattr(features, "PIECE", 2)   # pieces of 4, 4 and 1 image
    seen = []

    def dying(self, images):
        if len(seen) == 2 and not seen.count("died"):
            seen.append("died")
            raise KeyboardInterrupt
        if len(images) and images.any():        # not the zeros with which the size is tried
            seen.append(len(images))
        return NarrowResNet.forward(self, images)

    broken = type("Dying", (NarrowResNet,), {"forward": dying})(4, 2)
    broken.load_state_dict(encoder.state_dict())
    broken.preprocessing = {"size": 16}
    with pytest.raises(KeyboardInterrupt):
        features.embed_to_file(broken, "my_images", "out.npz", workers=0)
    assert not os.path.exists("out.npz")
    features.embed_to_file(broken, "my_images", "out.npz", workers=0)
    assert seen == [2, 2, "died", 2, 2, 1]
    names, x = load(folder / "out.npz")
    assert names == NAMES
    torch.testing.assert_close(x, expected(encoder))


def test_ctrl_c_says_that_the_same_command_goes_on(folder, encoder, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    save_encoder(encoder, folder / "encoder.safetensors")
    monkeypatch.setattr(features, "encoded", interrupted)
    with pytest.raises(SystemExit) as ended:
        run(["embed", "encoder.safetensors", "my_images", "--output", "out.npz", "--size", "16", "--workers", "0"])
    assert ended.value.code == 130
    assert "ended: the same command goes on with out.npz.parts" in capsys.readouterr().err


def test_parts_of_another_encoder_are_not_mixed_in(folder, encoder):
    features.take(encoder, features.images_in("my_images", encoder), folder / "out.npz.parts", 0)
    other = NarrowResNet(4, 2)
    with pytest.raises(ValueError, match=r"out.npz.parts holds features of another encoder, or of other images"):
        features.embed_to_file(other, "my_images", "out.npz", size=16, workers=0)


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_an_image_that_cannot_be_read_is_left_out_and_counted(folder, encoder):
    (folder / "my_images/cat/3.png").write_bytes(b"no image")
    written = features.embed_to_file(encoder, "my_images", "out.npz", workers=0)
    assert (written.images, written.given) == (8, 9)
    names, x = load(folder / "out.npz")
    assert names == [name for name in NAMES if name != "my_images/cat/3.png"]
    torch.testing.assert_close(x, expected(encoder, names))


@pytest.mark.filterwarnings("ignore:.*it is skipped")
def test_where_no_image_can_be_read_nothing_is_left(folder, encoder):
    (folder / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        features.embed_to_file(encoder, "bad.png", "out.npz", workers=0)
    assert not list(folder.glob("out*"))


@pytest.mark.parametrize(("images", "output", "said"), [
    ("nowhere", "out.npz", "there are no images at nowhere: give a folder"),
    ("empty", "out.npz", "there are no images in empty, nor below it"),
    ("my_images/*.jpg", "out.npz", "no image has a path like my_images"),
    ("wrong.txt", "out.npz", "1 of 2 images are not there, such as my_images/cat/77.png"),
    ("my_images", "there.npz", "there.npz is there already, and nothing is replaced"),
    ("my_images", "out.pt", "features are written as .parquet, .npz, .csv, and not as out.pt")])
def test_what_cannot_be_is_said_in_one_sentence(folder, encoder, images, output, said):
    (folder / "empty").mkdir()
    (folder / "there.npz").write_text("mine")
    (folder / "wrong.txt").write_text("my_images/cat/1.png\nmy_images/cat/77.png\n")
    save_encoder(encoder, folder / "encoder.safetensors")
    with pytest.raises(SystemExit) as refused:
        run(["embed", "encoder.safetensors", images, "--output", output, "--size", "16", "--workers", "0"])
    assert said in refused.value.code
    assert (folder / "there.npz").read_text() == "mine"


def test_a_parquet_file_without_pyarrow_is_refused_before_anything_is_encoded(folder, encoder, monkeypatch):
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="a .parquet file needs pyarrow: pip install pyarrow, or write a .npz or .csv"):
        features.embed_to_file(encoder, "my_images", "out.parquet", workers=0)


def test_where_memory_ends_the_way_out_is_one_that_the_command_has(folder, encoder, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(features, "extract", full)
    with pytest.raises(ValueError, match="256 images of this size do not fit into the memory of cpu: give a smaller"):
        features.embed(encoder, "my_images", workers=0)


def test_an_encoder_that_does_not_know_its_size_asks_for_it(folder):
    with pytest.raises(ValueError, match="does not know the size of its images: give --size"):
        ssl_zoo.embed(NarrowResNet(4, 2), "my_images")
