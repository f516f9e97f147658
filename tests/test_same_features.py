"""The same images give the same features in a run, to `ssl-zoo evaluate`, to `encode` and to an exported encoder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_zoo import load_encoder, save_encoder
from ssl_zoo.data import ArrayImages, ImageFolder
from ssl_zoo.data.sources import centre
from ssl_zoo.evaluation import Evaluation, Measured, Protocol, suite
from tests.conftest import simclr, trainer


class Kept(Protocol):
    """What linear_cached and every other protocol reads."""

    name, quantities, needs_labels = "kept", {}, False

    def measure(self, train, test, context):
        self.x = train.x
        return Measured({})


def folder(place):
    """Two classes of images of several sizes and shapes."""
    generator = np.random.default_rng(0)
    for i in range(20):
        (place / f"class{i % 2}").mkdir(exist_ok=True, parents=True)
        pixels = generator.integers(0, 255, (40 + 3 * i, 90 - 2 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"class{i % 2}" / f"{i:02}.png")
    return ImageFolder(str(place), evaluation_size=24, batch_size=4, workers=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_one_encoder_gives_each_image_the_same_features_everywhere(kind, arrays, tmp_path):
    def make():
        return ArrayImages(str(arrays), batch_size=8) if kind == "arrays" else folder(tmp_path / "images")

    data, method, in_run, outside = make(), simclr(), Kept(), Kept()
    trainer(tmp_path, Evaluation([in_run]), max_epochs=1).fit(method, datamodule=data)
    path = save_encoder(method.evaluated, tmp_path / "encoder")
    said = json.loads(path.with_suffix(".json").read_text())["preprocessing"]
    assert {name: said[name] for name in ("resize", "crop")} == data.train.preparation
    again = make()
    again.setup("fit")
    suite.evaluate({"it": load_encoder(path)}, again, tmp_path / "out", protocols=[outside])
    images = torch.stack([data.train.read(i) if kind == "arrays" else centre(data.train.read(i), 24)
                          for i in range(len(data.train))])
    with torch.no_grad():
        alone = load_encoder(path)(images)
        as_shares = load_encoder(path)(images / 255)
    assert in_run.x.std() > 1e-3
    for found in (outside.x, method.encode(images), alone, as_shares):
        assert torch.allclose(found, in_run.x, atol=1e-6)


def test_what_is_done_to_files_is_said_and_done(tmp_path):
    data = folder(tmp_path / "images")
    data.setup("fit")
    assert data.train.preparation == {"resize": "the short side to 27 pixels, bilinear, antialiased",
                                      "crop": "the middle 24 x 24 pixels"}
    for place in range(3):
        image = Image.fromarray(data.train.read(place).permute(1, 2, 0).numpy())
        scale = 27 / min(image.size)
        wide, tall = (int(side * scale) for side in image.size)
        image = image.resize((wide, tall), Image.Resampling.BILINEAR)
        left, top = round((wide - 24) / 2), round((tall - 24) / 2)
        expected = torch.from_numpy(np.array(image.crop((left, top, left + 24, top + 24)))).permute(2, 0, 1)
        assert (centre(data.train.read(place), 24).int() - expected.int()).abs().max() <= 1
