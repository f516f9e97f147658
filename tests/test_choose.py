"""A folder and nothing else: what is chosen for which images and machine, and that it runs and can be run again."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ssl_zoo.cli import run
from ssl_zoo.cli.choose import Folder, Machine, batch_size, choose, count_epochs, recipe_of, resize, with_recipe
from ssl_zoo.cli.messages import quiet

CPU = Machine("", 0, False, 2)
T4, H200 = Machine("T4", 15, False, 8), Machine("H200", 139, True, 64)


def chosen(folder, machine, method="SimCLR"):
    recipe, why = choose(recipe_of(method)[1], folder, machine)
    return recipe["model"]["init_args"], recipe["data"]["init_args"], recipe["trainer"], why


def test_photographs_on_a_cpu_get_the_small_encoder_small_views_and_a_cache():
    model, data, trainer, why = chosen(Folder("shop/photos", 1000, 3000), CPU)
    assert model["encoder"]["class_path"] == "NarrowResNet"
    assert [row["size"] for row in model["augment"]["views"]] == [64]
    assert (data["root"], data["batch_size"], data["evaluation_size"], data["workers"]) == ("shop/photos", 64, 64, 2)
    assert (data["cache"], data["cache_size"]) == ("cache/photos", 128)
    assert (trainer["max_epochs"], trainer.get("precision")) == (100, None)
    assert set(why) == {"image size", "encoder", "batch", "epochs", "workers", "precision", "cache"}


def test_many_photographs_on_a_large_gpu_get_large_views_and_batches_and_bfloat16():
    model, data, trainer, why = chosen(Folder("photos", 40_000, 500), H200)
    assert model["encoder"] == {"class_path": "ResNet", "init_args": {"depth": 18}}
    assert (model["augment"]["views"][0]["size"], data["batch_size"], data["workers"]) == (224, 256, 16)
    base = recipe_of("SimCLR")[1]                # AdamW's rate grows with the root of the batch
    usual = base["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    growth = (256 / base["data"]["init_args"]["batch_size"]) ** 0.5
    assert model["optimizer"]["init_args"]["lr"] == pytest.approx(growth * usual, rel=0.02)
    assert (trainer["precision"], trainer["max_epochs"]) == ("bf16-mixed", 125)
    assert "cache" not in data


def test_small_images_are_not_enlarged_and_an_older_gpu_stays_in_float32():
    model, data, trainer, _ = chosen(Folder("icons", 6000, 40), T4)
    assert (model["augment"]["views"][0]["size"], data["batch_size"]) == (32, 64)
    assert model["encoder"]["init_args"]["small_images"] is True
    assert "precision" not in trainer


def test_a_method_with_a_queue_keeps_the_batch_that_its_queue_is_made_for():
    model, data, _, _ = chosen(Folder("photos", 40_000, 500), H200, "MoCo")
    assert data["batch_size"] == 64
    assert model["queue"] % 64 == 0


@pytest.mark.parametrize("images", [2, 5, 10, 63, 64, 255, 256, 511, 512, 5000, 10 ** 6])
def test_a_batch_is_a_power_of_two_of_which_an_epoch_has_two_or_more_where_it_can(images):
    for machine in (CPU, T4, H200):
        batch, _ = batch_size(images, machine, False)
        assert batch & (batch - 1) == 0
        assert 2 <= batch <= max(2, images // 2)
        assert batch <= max(32, images / 8)


@pytest.mark.parametrize("fixed", [False, True])
def test_the_reason_of_a_batch_holds_for_every_number_of_images(fixed):
    bounds = {"between a quarter and half": (4, 2), "between a sixteenth and half": (16, 2),
              "at most an eighth": (math.inf, 8), "at most a nineteenth": (math.inf, 19)}
    for images in (*range(2, 600), *range(4990, 5010), 10 ** 6):
        for machine in (CPU, T4, Machine("T4", 16, False, 8), H200):
            batch, why = batch_size(images, machine, fixed)
            assert why.startswith(f"{batch}: ")
            assert f" of {images:,} training images" in why
            if images < 4:
                assert (batch, why[3:]) == (2, f"the fewest that can be compared, of {images} training images")
                continue
            (fewest, most), = [limits for words, limits in bounds.items() if f" {words} of" in why]
            assert images / fewest <= batch <= images / most


def test_epochs_show_as_many_images_within_limits():
    assert [count_epochs(n, gpu=False) for n in (10, 1000, 5000, 10 ** 6)] == [200, 100, 20, 10]
    assert [count_epochs(n, gpu=True) for n in (10, 50_000, 10 ** 7)] == [400, 100, 50]


def test_views_keep_their_proportions_in_steps_of_16_pixels():
    rows = [{"size": 224}, {"size": 160}, {"size": 96}]
    resize(rows, 64)
    assert [row["size"] for row in rows] == [64, 48, 32]


@pytest.mark.parametrize("word", ["MoCoV3", "moco_v3", "mocov3", "MoCo-v3"])
def test_a_method_is_found_by_the_name_of_its_class_or_of_its_recipe(word):
    assert recipe_of(word)[0] == "moco_v3"


@pytest.fixture
def images(tmp_path, monkeypatch):
    """24 photographs of noise in two classes."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "my_images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "my_images" / name / f"{i}.png")
    quiet()
    return tmp_path


SMALL = ["--trainer.accelerator", "cpu", "--data.workers", "0", "--trainer.max_epochs", "1"]


def test_a_folder_alone_is_a_run_whose_recipe_can_be_edited_and_run_again(images, capsys):
    run(["fit", "my_images", *SMALL, "--model.temperature", "0.3"])
    printed = capsys.readouterr().out
    assert printed.startswith("my_images.yaml: the recipe folder/simclr for these images and this machine; edit it")
    assert "  batch: 8: between a quarter and half of 22 training images" in printed
    saved = yaml.safe_load(Path("runs/my_images/version_0/config.yaml").read_text())
    assert saved["model"]["init_args"]["temperature"] == 0.3           # an option on top
    assert saved["data"]["init_args"]["batch_size"] == 8
    written = Path("my_images.yaml")
    assert "# epochs: 1, in which 22 images are seen" in written.read_text()
    assert "  epochs: 1, as you ask\n  workers: 0, as you ask\n" in printed
    written.write_text(written.read_text().replace("batch_size: 8", "batch_size: 4"))
    run(["fit", "--config", "my_images.yaml", *SMALL])                 # edited, and not replaced by the next:
    assert yaml.safe_load(Path("runs/my_images/version_1/config.yaml").read_text())["data"]["init_args"][
        "batch_size"] == 4
    capsys.readouterr()
    for _ in range(2):
        assert with_recipe(["my_images", *SMALL]) == ["--config", "my_images-1.yaml", *SMALL]
    assert "batch_size: 4" in written.read_text()
    capsys.readouterr()
    assert with_recipe(["my_images", "--quiet", *SMALL])[-len(SMALL) - 1] == "--quiet"
    assert capsys.readouterr().out == ""


def test_what_depends_on_epochs_and_batch_follows_those_that_are_asked_for(images):
    with_recipe(["my_images", "--trainer.max_epochs", "3", "--data.batch_size=16"])
    asked = yaml.safe_load(Path("my_images.yaml").read_text())
    assert asked["trainer"]["max_epochs"] == 3
    assert asked["trainer"]["check_val_every_n_epoch"] == asked["checkpoints"]["every_n_epochs"] == 1
    assert asked["data"]["init_args"]["batch_size"] == 16


@pytest.mark.parametrize("words", [["--trainer.max_epochs=-1"], ["--trainer.max_epochs", "0"], ["--data.batch_size=x"]])
def test_a_number_that_cannot_be_chosen_by_is_left_to_the_run(images, words):
    with_recipe(["my_images", *words])
    asked = yaml.safe_load(Path("my_images.yaml").read_text())
    assert (asked["trainer"]["max_epochs"], asked["data"]["init_args"]["batch_size"]) == (200, 8)


@pytest.mark.parametrize("method", ["MoCo", "SwAV", "PixPro", "OBoW", "SogCLR", "MoCHi"])
def test_what_is_chosen_for_other_methods_trains(images, method):
    run(["fit", "my_images", "--method", method, *SMALL, "--trainer.fast_dev_run", "1"])
    recipe = yaml.safe_load(next(images.glob("my_images_*.yaml")).read_text())
    assert recipe["model"]["class_path"] == method
    assert recipe["model"]["init_args"].get("images", 22) == 22


@pytest.mark.parametrize(("arguments", "said"), [
    (["nowhere"], "there is no folder nowhere of images: give one, or a recipe with --config"),
    (["cifar10/simclr"], "cifar10/simclr is a recipe, and no folder of images: ssl-zoo fit --config cifar10/simclr"),
    (["empty"], "no images in "), (["one"], "one has 1 image to train on, and an encoder learns from comparing them"),
    (["my_images", "--method", "MoCoo"], "there is no recipe for folders of the method MoCoo; did you mean MoCo?"),
    (["my_images", "--method"], "--method needs a value"),
    (["my_images", "--method", "MoCo", "--method", "SwAV"], "--method is given twice"),
    (["my_images", "--metod=MoCo"], "there is no option --metod; did you mean --method?"),
    (["my_images", "--metod", "MoCo"], "there is no option --metod; did you mean --method?"),
    (["--method", "MoCo"], "--method goes with a folder of images, which comes first"),
    (["my_images", "--config", "quickstart"], "my_images gets a recipe of its own, and --config names another")])
def test_what_cannot_be_is_said_in_one_sentence_and_leaves_nothing(images, arguments, said):
    (images / "empty").mkdir()
    (images / "one").mkdir()
    (images / "my_images" / "cat" / "0.png").rename(images / "one" / "0.png")
    with pytest.raises(SystemExit) as refused:
        run(["fit", *arguments])
    assert said in refused.value.code
    assert not list(images.glob("*.yaml"))
