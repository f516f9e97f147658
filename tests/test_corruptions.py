"""Corruptions by their mathematics: what severity 0 leaves, how much each distorts, and how accuracy is counted."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_zoo.data import ArrayImages
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation import corruptions as room
from ssl_zoo.evaluation import robustness, suite
from ssl_zoo.evaluation.corruptions import (
    KINDS,
    Draws,
    brightness,
    cells,
    contrast,
    corrupt,
    defocus_blur,
    disc,
    elastic_transform,
    fog,
    gaussian_noise,
    glass_blur,
    impulse_noise,
    motion_blur,
    moved,
    shot_noise,
    snow,
    trails,
    zoom_blur,
    zoomed,
)
from ssl_zoo.evaluation.protocol import Context
from ssl_zoo.evaluation.protocols import find
from tests.conftest import same

UNEVEN = ("elastic_transform", "fog")   # in the paper, too: severities 1 and 2 bend, 3 to 5 wrinkle; fog is as thick
EVERY = pytest.mark.parametrize("name", KINDS)


def draws(seed=0):
    return Draws(seed, torch.device("cpu"))


def gray(value, side=64, images=2):
    return torch.full((images, 3, side, side), value)


@pytest.fixture(scope="module")
def pictures():
    """One of the paper's 224 pixels with structure at every scale, as photographs have, in bytes."""
    plasma = draws().plasma(3, 224, 224, 0.5).view(1, 3, 224, 224)
    return (255 * plasma).round().to(torch.uint8)


@pytest.fixture(scope="module")
def corrupted(pictures):
    return {name: [corrupt(pictures, name, severity) for severity in range(6)] for name in KINDS}


# All of them

@EVERY
def test_severity_0_is_the_image_and_the_others_are_images_of_its_size(name, corrupted, pictures):
    assert torch.equal(corrupted[name][0], pictures)
    assert all(x.shape == pictures.shape and x.dtype == torch.uint8 for x in corrupted[name])


@EVERY
def test_distortion_rises_with_the_severity(name, corrupted, pictures):
    errors = [(x.float() - pictures.float()).square().mean().item() for x in corrupted[name]]
    assert errors[1] > 0
    if name not in UNEVEN:
        assert all(a < b for a, b in zip(errors, errors[1:], strict=False)), errors


@EVERY
def test_the_same_seed_draws_the_same_whatever_was_drawn_before(name, corrupted, pictures):
    state = torch.get_rng_state()
    again = corrupt(pictures, name, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again, corrupted[name][3])
    fixed = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert torch.equal(corrupt(pictures, name, 3, seed=1), again) == (name in fixed)


@EVERY
@pytest.mark.parametrize("shape", [(1, 1, 24, 24), (3, 5, 24, 40), (2, 3, 8, 8)])
def test_any_channels_and_sides_are_corrupted_unless_the_kind_says_otherwise(name, shape):
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    if shape[1] in (KINDS[name].channels or (shape[1],)):
        assert corrupt(images, name, 5).shape == shape
    else:
        assert name == "jpeg_compression"


@pytest.mark.parametrize(("name", "severity", "sentence"), [
    ("frost", 1, "there is no corruption frost; there are gaussian_noise, shot_noise"),
    ("fog", 6, "a severity is 0 to 5, not 6"), ("fog", -1, "not -1")])
def test_what_is_not_there_is_said_in_a_sentence(name, severity, sentence, pictures):
    with pytest.raises(ValueError, match=sentence):
        corrupt(pictures, name, severity)


def test_kinds_are_those_of_the_paper_without_frost():
    families = {family: [name for name, kind in KINDS.items() if kind.family == family]
                for family in ("noise", "blur", "weather", "digital")}
    assert [len(found) for found in families.values()] == [3, 4, 3, 4]
    assert "frost" not in families["weather"]
    assert all(len(kind.strengths) == 5 for kind in KINDS.values())


def test_the_page_has_the_strengths_of_the_code():
    text = (Path(__file__).parents[1] / "docs/corruptions.md").read_text()
    for name, kind in KINDS.items():
        rows = [", ".join(map(str, row)) if isinstance(row, tuple) else str(row) for row in kind.strengths]
        line, = (line for line in text.splitlines() if line.startswith(f"| `{kind.family}/{name}` |"))
        assert line.endswith(f"| {' | '.join(rows)} |")


# Noise

@pytest.mark.parametrize("severity", range(1, 6))
def test_gaussian_noise_has_the_deviation_of_its_severity(severity):
    c = KINDS["gaussian_noise"].strengths[severity - 1]
    noise = gaussian_noise(gray(0.5), draws(), c) - 0.5
    assert noise.std().item() == pytest.approx(c, rel=0.02)          # of 24,576 values: 0.45 % is one standard error
    assert abs(noise.mean()) < 4 * c / math.sqrt(noise.numel())


def test_all_severities_have_the_same_random_numbers():
    images = torch.full((2, 3, 16, 16), 128, dtype=torch.uint8)
    weak, strong = (corrupt(images, "gaussian_noise", severity).float() - 128 for severity in (1, 2))
    assert (strong * 0.08 / 0.12 - weak).abs().max() < 1                   # of rounding to bytes


@pytest.mark.parametrize("photons", [60, 3])
def test_shot_noise_has_the_images_mean_and_variance_by_its_photons(photons):
    found = shot_noise(gray(0.4), draws(), photons)
    assert found.mean().item() == pytest.approx(0.4, abs=4 * math.sqrt(0.4 / photons / found.numel()))
    assert found.var().item() == pytest.approx(0.4 / photons, rel=0.05)
    assert torch.equal((found * photons).round() / photons, found)


def test_impulse_noise_makes_half_of_its_share_black_and_half_white():
    found = impulse_noise(gray(0.5), draws(), 0.2)
    shares = [(found == value).float().mean().item() for value in (0, 1, 0.5)]
    assert shares == pytest.approx([0.1, 0.1, 0.8], abs=0.01)


# Blur

@pytest.mark.parametrize("radius", [0.4, 1.0, 3.0, 10.0])
def test_a_disc_has_its_moments(radius):
    weights, reach = disc(radius), math.ceil(radius)
    line = torch.arange(-reach, reach + 1.0)
    assert weights.sum().item() == pytest.approx(1)
    assert (weights.sum(0) @ line).item() == pytest.approx(0, abs=1e-5)
    between = (weights.sum(0) @ line.square()).item() - radius ** 2 / 4      # r^2 / 4 of the disc, and reading between
    assert 0.05 < between < 0.25                                             # pixels adds mean t (1 - t), at most 1/4


@pytest.mark.parametrize("angle", [0.0, 30.0, -90.0])
def test_a_trail_is_half_a_gaussian_along_its_angle(angle):
    kernel, = trails(torch.tensor([angle]).deg2rad(), 12.0, 4.0)
    reach = len(kernel) // 2
    places = torch.stack(torch.meshgrid(*[torch.arange(-reach, reach + 1.0)] * 2, indexing="ij"))
    middle = (places * kernel).sum((1, 2))
    far = torch.linspace(0, 12, 1001)
    weights = (-far.square() / 32).exp()
    length = (far * weights).sum() / weights.sum()
    radians = math.radians(angle)
    assert kernel.sum().item() == pytest.approx(1)
    assert middle.tolist() == pytest.approx([length.item() * math.sin(radians), length.item() * math.cos(radians)],
                                              abs=0.1)


@pytest.mark.parametrize("blur", [
    lambda x: defocus_blur(x, draws(), 10), lambda x: glass_blur(x, draws(), 1.5, 4, 2),
    lambda x: motion_blur(x, draws(), 20, 15), lambda x: zoom_blur(x, draws(), 1.31, 0.03)])
def test_a_blur_leaves_what_is_of_one_colour(blur):
    assert torch.allclose(blur(gray(0.3)), gray(0.3), atol=1e-5)


def test_lengths_are_in_proportion_to_the_side():
    line = torch.linspace(-1, 1, 224)
    large = torch.exp(-20 * (line[:, None].square() + line.square())).expand(1, 3, -1, -1)
    small = torch.nn.functional.avg_pool2d(large, 4)
    for blur in (lambda x: defocus_blur(x, draws(), 10), lambda x: zoom_blur(x, draws(), 1.31, 0.03)):
        change = (torch.nn.functional.avg_pool2d(blur(large) - large, 4), blur(small) - small)
        assert (change[0] - change[1]).abs().max() < 0.15 * change[0].abs().max()


def test_places_read_the_image_where_they_are_told():
    image = torch.rand(1, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    right = moved(image, torch.tensor([1.0, 0.0]).expand(1, 8, 9, 2))
    assert torch.allclose(right[..., :-1], image[..., 1:], atol=1e-5)
    below = moved(image, torch.tensor([0.0, 2.0]).expand(1, 8, 9, 2))
    assert torch.allclose(below[..., :-2, :], image[..., 2:, :], atol=1e-5)


def test_a_zoom_enlarges_the_middle():
    image = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    found = zoomed(image, 2.0)
    assert torch.allclose(found[0, 0, 0].diff(), torch.full((31,), 0.5 / 31), atol=1e-5)
    assert found.mean().item() == pytest.approx(0.5, abs=1e-5)
    assert torch.allclose(zoomed(image, 1.0), image, atol=1e-6)
    assert torch.allclose(zoom_blur(image, draws(), 1.1, 0.2), image, atol=1e-6)   # its only factor is 1


# Weather and digital

def test_brightness_raises_the_largest_channel_and_keeps_hue_and_saturation():
    image = torch.tensor([0.2, 0.4, 0.1]).view(1, 3, 1, 1)
    assert brightness(image, draws(), 0.2).flatten().tolist() == pytest.approx([0.3, 0.6, 0.15])
    assert brightness(image, draws(), 0.9).flatten().tolist() == pytest.approx([0.5, 1.0, 0.25])
    assert brightness(gray(0.0), draws(), 0.3).unique().tolist() == pytest.approx([0.3])


def test_contrast_scales_the_deviation_and_keeps_the_mean(pictures):
    x = pictures / 255
    found = contrast(x, draws(), 0.3)
    assert torch.allclose(found.mean((2, 3)), x.mean((2, 3)), atol=1e-5)
    assert torch.allclose(found.std((2, 3)), 0.3 * x.std((2, 3)), atol=1e-5)


def test_pixels_of_a_cell_become_their_mean_and_cells_are_as_many_as_they_should_be():
    matrix = cells(10, 4)
    assert torch.allclose(matrix @ matrix, matrix)                  # twice is once
    assert torch.linalg.matrix_rank(matrix) == 4
    image = torch.arange(16.0).view(1, 1, 4, 4)
    found = KINDS["pixelate"].change(image, draws(), 0.5)
    assert found[0, 0, :2, :2].unique().tolist() == [2.5]
    assert found.mean() == image.mean()


def test_fog_thickens_towards_its_plasma_and_keeps_the_brightest(pictures):
    x = pictures / 255
    found = fog(x, draws(), 1e6, 2)
    plasma = draws().plasma(1, 224, 224, 0.25)
    assert torch.allclose(found, plasma * x.amax((1, 2, 3), keepdim=True), atol=1e-4)


def test_snow_without_flakes_whitens_alone():
    found = snow(gray(0.2), draws(), -9.0, 0.1, 1, 0.5, 10, 4, 0.8)
    assert found.unique().tolist() == pytest.approx([0.8 * 0.2 + 0.2 * 0.8], abs=1e-5)


def test_an_elastic_transform_without_strength_is_none():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(elastic_transform(image, draws(), 0.0, 0.1, 0.0), image, atol=1e-4)


# The protocol

@pytest.fixture(scope="module")
def measured(arrays, tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = NarrowResNet(4, 2)
    before, folder = copy.deepcopy(encoder.state_dict()), tmp_path_factory.mktemp("corruptions")
    images = ArrayImages(str(arrays))
    images.setup("fit")
    column = suite.evaluate({"it": encoder}, images, folder, protocols=["corruptions", "linear_lbfgs"]).columns["it"]
    return column, folder, same(encoder.state_dict(), before), encoder.training


def test_scores_are_those_of_kinds_families_all_and_the_share_of_clean(measured):
    scores = measured[0].scores
    value = {name.removeprefix("corruptions/"): score.value for name, score in scores.items()}
    assert value["clean"] == value["linear_lbfgs"]
    for family in ("noise", "blur", "weather", "digital"):
        own = [value[f"{family}/{name}"] for name, kind in KINDS.items() if kind.family == family]
        assert value[family] == pytest.approx(np.mean(own))
    every = [value[f"{kind.family}/{name}"] for name, kind in KINDS.items()]
    assert value["mean"] == pytest.approx(np.mean(every))
    assert value["relative"] == pytest.approx(value["mean"] / value["clean"])
    assert all(len(score.units) == 24 for name, score in scores.items() if not name.endswith("relative"))


def test_the_report_has_accuracies_by_severity_that_give_the_scores_and_a_picture(measured):
    column, folder, same_weights, training = measured
    for name, accuracies in column.notes["corruptions"].items():
        assert len(accuracies) == 6
        assert accuracies[0] == column.scores["corruptions/clean"].value
        assert np.mean(accuracies[1:]) == pytest.approx(
            column.scores[f"corruptions/{KINDS[name].family}/{name}"].value)
    assert (folder / "corruptions.png").is_file()
    assert same_weights
    assert training


def test_the_kinds_that_images_of_other_channels_do_not_have_are_said():
    kinds = [name for name, kind in KINDS.items() if not robustness.takes(kind, 5)]
    assert kinds == ["jpeg_compression"]
    assert all(robustness.takes(kind, channels) for kind in KINDS.values() for channels in (1, 3))


def test_each_image_counts_once_whatever_the_order_of_the_batches(arrays, monkeypatch):
    class Colour(NarrowResNet):
        def forward(self, images):
            return self.normalize(images).mean((2, 3))

    encoder, images = Colour(4, 2), ArrayImages(str(arrays))
    encoder.dim = 3
    images.setup("fit")
    images.test.labels[:5] = (images.test.labels[:5] + 1) % 3              # or all would be right, in any order
    batches, seeds = [batch[:3] for batch in images.val_dataloader()[1]], []
    monkeypatch.setattr(room, "corrupt", lambda *rest, seed, real=corrupt: (
        seeds.append(seed), real(*rest, seed=seed))[1])
    train, test = (robustness.Features(encoder(part.images).detach(), part.labels, torch.arange(len(part.labels)))
                   for part in (images.train, images.test))
    halves = [tuple(column[rows] for column in batches[0]) for rows in (slice(12, 24), slice(0, 12))]
    found = [find("corruptions").measure(train, test, Context("it", encoder=encoder, tested=some)).scores
             for some in (batches, halves)]
    for name in ("corruptions/clean", "corruptions/digital/contrast", "corruptions/digital/jpeg_compression"):
        assert torch.equal(found[0][name].units, found[1][name].units), name
    assert found[0]["corruptions/clean"].units[:5].sum() == 0
    assert set(seeds[:70]) == {0}
    assert set(seeds[70:]) == {0, 12}                                      # every batch has random numbers of its own


def test_a_run_cannot_corrupt_and_says_how_it_is_done():
    with pytest.raises(ValueError, match="corruptions encodes corrupted images, for long: measure the exported"):
        find("corruptions").measure(None, None, Context(running=True))
