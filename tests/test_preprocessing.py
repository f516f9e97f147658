"""The same files give the same features in a run, in an evaluation, and to whoever loads the encoder."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssl_zoo import load_encoder, save_encoder
from ssl_zoo.checkpoints import load_method
from ssl_zoo.data import ArrayImages, ImageFolder, read_images
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation.suite import evaluate
from tests.conftest import trainer
from tests.test_channels import folder_of_bands, plain_simclr
from tests.test_data import ready

MIDDLE = Path(__file__).parent / "golden/middle.ckpt"
SEEN = {"levels": [200.0, 1700.0], "background": "#0080ff", "size": 16}


@pytest.fixture
def root(tmp_path):
    return folder_of_bands(tmp_path / "data", 5)


def described(encoder, **seen):
    encoder.preprocessing = seen
    return encoder.eval()


@pytest.mark.filterwarnings("ignore")
def test_a_run_an_evaluation_and_a_stranger_get_the_same_features(root, tmp_path):
    data = ImageFolder(root, batch_size=6, evaluation_size=16, channels=5, levels="data", workers=0, held_out=0.5)
    method = plain_simclr(5)
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(method, data)
    images, labels, places, _ = next(iter(data.val_dataloader()[1]))
    features = method.encode(images)
    loaded = load_encoder(save_encoder(method.evaluated, tmp_path / "encoder", size=16))
    assert torch.equal(loaded(read_images([data.test.names[i] for i in places.tolist()], loaded)), features)
    other = ready(ImageFolder(root, evaluation_size=16, workers=0, held_out=0.5, channels=5, levels=(0, 65535)))
    evaluate({"it": loaded}, other, tmp_path / "report", protocols=["health"], features=tmp_path / "features")
    taken = [load_file(path)["x"] for path in (tmp_path / "features").iterdir()]
    assert any(torch.equal(one, features) for one in taken)


def test_an_evaluation_reads_the_images_for_each_encoder_as_its_own_were(root, tmp_path):
    weights = NarrowResNet(4, 2, channels=5)
    encoders = {name: described(copy.deepcopy(weights), **seen) for name, seen in (
        ("bright", {"levels": [200, 900]}), ("dark", {"levels": [200, 6000]}), ("unknown", {}))}
    alone = {name: evaluate({name: encoder}, images(root), tmp_path / name, protocols=["health"]).scores[name]
             for name, encoder in encoders.items()}
    both = evaluate(encoders, images(root), tmp_path / "all", protocols=["health"])
    for name in encoders:
        assert {score: value.value for score, value in both.scores[name].items()} == {
            score: value.value for score, value in alone[name].items()}
    assert len({str(both.scores[name]["health/uniformity"].value) for name in encoders}) == 3
    assert any("health/alignment, positive and negative: " in said and "red, green and blue" in said
               for said in both.left_out)


def images(root):
    return ready(ImageFolder(root, evaluation_size=16, workers=0, channels=5, levels=(0, 4000)))


def test_an_encoders_levels_are_known_before_a_file_is_judged(tmp_path):
    pixels = np.random.default_rng(0).uniform(-1000, 3000, (6, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "a.npz", train_images=pixels)
    data = ArrayImages(str(tmp_path / "a.npz"))
    assert data.read_as({"levels": [-1000, 3000]})
    assert len(ready(data).train.images.unique()) > 200


def test_the_description_says_how_files_became_images(tmp_path):
    path = save_encoder(described(NarrowResNet(4, 2, channels=4), **SEEN), tmp_path / "encoder", size=16)
    said = json.loads(path.with_suffix(".json").read_text())["preprocessing"]
    assert {name: said[name] for name in ("channels", *SEEN)} == {"channels": 4, **SEEN}
    assert load_encoder(path).preprocessing == SEEN


def test_a_checkpoint_says_how_files_became_images(tmp_path):
    content = torch.load(MIDDLE, weights_only=False)
    assert load_method(MIDDLE).evaluated.preprocessing == {}              # of before it did
    content["ImageFolder"] = {"preprocessing": {"channels": 3, "levels": [200.0, 1700.0], "background": "white"}}
    torch.save(content, tmp_path / "new.ckpt")
    assert load_method(tmp_path / "new.ckpt").evaluated.preprocessing == {"levels": [200.0, 1700.0],
                                                                          "background": "white"}


@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_only_with_images_that_are_read_as_before(root, tmp_path):
    def data(**options):
        return ImageFolder(root, batch_size=6, evaluation_size=16, channels=5, workers=0, **options)
    first = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    first.fit(plain_simclr(5), data(levels=(200, 1700)))
    first.save_checkpoint(tmp_path / "one.ckpt")
    assert torch.load(tmp_path / "one.ckpt", weights_only=False)["ImageFolder"]["preprocessing"]["channels"] == 5
    trainer(tmp_path, limit_val_batches=0).fit(plain_simclr(5), data(levels=(200, 1700)),
                                               ckpt_path=tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match=r"the checkpoint's images had levels \[200, 1700\], and these have "
                                         r"\[200, 1600\]: go on with --data.levels \[200, 1700\]"):
        trainer(tmp_path, limit_val_batches=0).fit(plain_simclr(5), data(levels=(200, 1600)),
                                                   ckpt_path=tmp_path / "one.ckpt")


@pytest.mark.parametrize(("seen", "sentence"), [
    ({"levels": "bright"}, "levels must be two rising numbers, .* not bright"),
    ({"levels": [1, 2, 3]}, r"levels must be two rising numbers, .* not \[1, 2, 3\]"),
    ({"levels": [None, 2]}, "levels must be two rising numbers"),
    ({"levels": {"low": 1}}, "levels must be two rising numbers"),
    ({"background": 7}, "background must be a colour such as white, .* not 7"),
])
def test_a_description_that_says_nothing_of_use_is_refused(seen, sentence, tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=sentence):
        ready(ArrayImages(str(tmp_path / "a.npz"))).read_as(seen)


def test_an_encoder_that_knows_no_size_asks_for_one_and_a_broken_file_is_named(root, tmp_path):
    encoder = described(NarrowResNet(4, 2, channels=5), levels=[200, 1700])
    name = next(Path(root).rglob("*.tif"))
    with pytest.raises(ValueError, match="does not know the size of its images: give size"):
        read_images([name], encoder)
    assert read_images([name, name], encoder, 16).shape == (2, 5, 16, 16)
    (tmp_path / "no.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match="no.png cannot be read as an image"):
        read_images([tmp_path / "no.png"], encoder, 16)
