"""Near images and near duplicates: the groups of a graph that is built as a whole, and files that are found again."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ssl_zoo import alike
from ssl_zoo.cli import run
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.export import save_encoder


def by_hand(x, threshold):
    """The groups by spreading from each row to all that are near enough, until nothing is new."""
    near = F.normalize(x.double(), dim=1) @ F.normalize(x.double(), dim=1).T >= threshold
    found, open_ = [], set(range(len(x)))
    while open_:
        group = {min(open_)}
        while (more := {j for i in group for j in near[i].nonzero()[:, 0].tolist()} - group):
            group |= more
        open_ -= group
        found += [sorted(group)] if len(group) > 1 else []
    return found


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.97])
def test_groups_are_the_chains_of_near_pairs_whatever_the_tiles(threshold, monkeypatch):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    want = by_hand(x, threshold)
    assert want
    for size in ((512, 512), (7, 4), (1, 1)):
        monkeypatch.setattr(alike, "tile", lambda device, size=size: size)
        assert sorted(group.tolist() for group in alike.groups(x, threshold)) == want


def test_copies_are_a_group_at_a_threshold_of_one_and_others_are_not():
    x = torch.randn(5, 512, generator=torch.Generator().manual_seed(0))
    assert [group.tolist() for group in alike.groups(torch.cat([x, 3 * x[1:2], x[3:4]]), 1.0)] == [[1, 5], [3, 6]]


def test_a_chain_is_one_group_though_its_ends_are_far_apart():
    angles = torch.arange(0, 91, 10) * torch.pi / 180
    x = torch.stack([angles.cos(), angles.sin()], 1)
    assert [group.tolist() for group in alike.groups(x, 0.98)] == [list(range(10))]
    assert alike.groups(x, 0.99) == []   # cos 10 degrees is 0.985


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six images of noise, a copy of the third in another folder, and an encoder."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for i in range(6):
        (tmp_path / "my_images").mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(f"my_images/{i}.png")
    (tmp_path / "my_images/copies").mkdir()
    Image.open("my_images/2.png").save("my_images/copies/again.bmp")
    torch.manual_seed(0)
    save_encoder(NarrowResNet(4, 2), tmp_path / "encoder.safetensors")
    return tmp_path


SMALL = ["--size", "16", "--workers", "0"]


def test_a_copy_is_the_nearest_and_a_file_is_not_its_own_neighbour(folder, capsys):
    run(["similar", "encoder.safetensors", "my_images/2.png", "--among", "my_images", "--count", "3", *SMALL])
    query, first, *others, picture = capsys.readouterr().out.splitlines()
    assert (query, first) == ("my_images/2.png", "  1.0000  my_images/copies/again.bmp")
    assert len(others) == 2
    assert "my_images/2.png" not in "".join(others)
    with Image.open(picture) as drawn:
        assert drawn.height == 6 + 22 + 118   # one row under the heading


def test_nearest_images_are_in_the_order_of_their_cosines(folder):
    encoder = NarrowResNet(4, 2).eval()
    found, _, _ = alike.similar(encoder, "my_images/*.png", "my_images", count=4, size=16, workers=0)
    assert len(found) == 6
    for one in found:
        cosines = [match.cosine for match in one.found]
        assert len(cosines) == 4
        assert cosines == sorted(cosines, reverse=True)


def test_duplicates_are_listed_with_the_threshold_and_drawn_and_nothing_is_replaced(folder, capsys):
    for name in ("duplicates.png", "duplicates-1.png"):
        run(["duplicates", "encoder.safetensors", "my_images", "--threshold", "1", *SMALL])
        lines = capsys.readouterr().out.splitlines()
        assert lines[:3] == ["group 1, 2 images", "  1.0000  my_images/2.png", "  1.0000  my_images/copies/again.bmp"]
        assert lines[3].startswith("2 of 7 images are in 1 group, by a cosine of 1 or more (--threshold); an image's")
        assert lines[4] == name
        assert (folder / name).is_file()


def test_the_features_are_taken_once(folder, capsys, monkeypatch):
    run(["duplicates", "encoder.safetensors", "my_images", *SMALL])
    first = capsys.readouterr().out
    monkeypatch.setattr("ssl_zoo.features.encoded", None)   # would be called
    run(["duplicates", "encoder.safetensors", "my_images", *SMALL])
    assert capsys.readouterr().out.splitlines()[:-1] == first.splitlines()[:-1]


@pytest.mark.parametrize(("arguments", "said"), [
    (["duplicates", "encoder.safetensors", "my_images", "--threshold", "1.5"], "above 0 and at most 1, not 1.5"),
    (["duplicates", "encoder.safetensors", "my_images/2.png"], "one image alone has no duplicates"),
    (["similar", "encoder.safetensors", "my_images", "--among", "nowhere"], "there are no images at nowhere"),
    (["similar", "encoder.safetensors", "my_images", "--among", "my_images", "--count", "0"], "--count is 1 or more")])
def test_what_cannot_be_is_said_in_one_sentence(folder, arguments, said):
    with pytest.raises(SystemExit) as refused:
        run([*arguments, *SMALL])
    assert said in refused.value.code
