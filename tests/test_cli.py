"""The command line as its users meet it: real processes, real files, one sentence for bad input."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ssl_zoo import load_encoder
from ssl_zoo.cli import run
from ssl_zoo.cli.evaluate import split_options
from ssl_zoo.cli.messages import expected, parse_error, way_out
from ssl_zoo.cli.preview import RECIPES
from ssl_zoo.pictures import GAP
from ssl_zoo.views.preview import LINE, MATCHED, SIDE
from ssl_zoo.views.specs import PRESETS
from tests.conftest import same

ROOT = Path(__file__).parents[1]


def fit(recipe, *options):
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(["fit", "--config", "recipe.yaml", *options])
    return sorted(Path("runs/recipe").glob("version_*"))[-1]


def keep(recipe, **checkpoints):
    recipe["trainer"].setdefault("callbacks", []).append({"class_path": "ModelCheckpoint", "init_args": checkpoints})


def refusal(recipe, *options):
    """What a refused run says: one sentence, without a traceback, and a status that is not 0."""
    with pytest.raises(SystemExit) as refused:
        fit(recipe, *options)
    assert isinstance(refused.value.code, str)   # sys.exit prints a string and ends with status 1
    said = refused.value.code.splitlines()
    assert len([line for line in said if "SSL_ZOO_DEBUG" not in line]) == 1, said
    return said[0]


def test_a_run_leaves_checkpoint_encoder_pictures_report_and_logs(recipe, capsys):
    folder = fit(recipe)
    printed = capsys.readouterr().out
    for name in ("checkpoints/last.ckpt", "encoder.safetensors", "encoder.json", "views.png", "neighbours.png",
                 "report.txt", "config.yaml"):
        assert (folder / name).stat().st_size, name
    for word in ("raw pixels", "untrained encoder", "epoch 2", "knn_dino", "linear_cached", "health/rankme",
                 str(folder / "encoder.safetensors"), str(folder / "views.png"), "highest of 2 evaluations"):
        assert word in printed, word
    with Image.open(folder / "neighbours.png") as picture:
        assert picture.width > 800


def test_tensorboard_holds_loss_rate_similarities_speed_and_accuracies(recipe):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(fit(recipe)))
    events.Reload()
    scalars, images = set(events.Tags()["scalars"]), set(events.Tags()["images"])
    assert {"loss", "similarity/positive", "similarity/negative", "images_per_second", "knn_instdisc",
            "linear_cached", "health/rankme"} <= scalars
    assert any(name.startswith("lr-") for name in scalars)
    assert {"views", "neighbours"} <= images


def test_export_gives_back_the_encoder_of_the_checkpoint(recipe, capsys):
    folder = fit(recipe)
    run(["export", str(folder / "checkpoints/last.ckpt"), "--output", "here/encoder.safetensors"])
    assert "here/encoder.safetensors" in capsys.readouterr().out
    exported, left = load_encoder("here/encoder"), load_encoder(folder / "encoder")
    said, left_said = (json.loads((place / "encoder.json").read_text()) for place in (Path("here"), folder))
    assert said["recipe"]["data"]["init_args"]["batch_size"] == 8
    assert said["metrics"].keys() == left_said["metrics"].keys() > {"knn_instdisc", "linear_cached"}
    assert said["metrics"] == pytest.approx(left_said["metrics"])
    trained = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert same(dict(exported.state_dict()), dict(left.state_dict()))
    assert same(dict(exported.state_dict()), {name.removeprefix("encoder."): value for name, value in trained.items()
                                              if name.startswith("encoder.")})


def test_validate_measures_what_the_run_measured(recipe, capsys):
    folder = fit(recipe)
    reported = re.search(r"knn_dino.* ([\d.]+) %\n", capsys.readouterr().out)[1]
    run(["validate", "--config", str(folder / "config.yaml"), "--ckpt_path", str(folder / "checkpoints/last.ckpt")])
    validated = re.search(r"knn_dino\D+([\d.]+)", capsys.readouterr().out)[1]
    assert float(validated) == pytest.approx(float(reported) / 100, abs=5e-4)


def test_the_last_epoch_is_evaluated_whatever_the_rhythm(recipe, capsys):
    recipe["trainer"]["check_val_every_n_epoch"] = 10
    folder = fit(recipe)
    printed = capsys.readouterr().out
    assert "epoch 2" in printed
    assert "not evaluated" not in printed
    assert "knn_dino" in json.loads((folder / "encoder.json").read_text())["metrics"]


def test_an_epoch_that_was_not_evaluated_is_said_with_the_command_that_does(recipe, capsys):
    recipe["trainer"] |= {"check_val_every_n_epoch": 10, "max_steps": 1}
    folder = fit(recipe)
    printed = capsys.readouterr().out
    assert f"epoch 1 was not evaluated: ssl-zoo evaluate {folder / 'encoder.safetensors'}" in printed


def test_a_second_run_in_the_same_folder_is_a_new_version(recipe):
    first = fit(recipe)
    kept = {file: file.stat().st_mtime_ns for file in first.rglob("*") if file.is_file()}
    second = fit(recipe)
    assert (first.name, second.name) == ("version_0", "version_1")
    assert kept == {file: file.stat().st_mtime_ns for file in first.rglob("*") if file.is_file()}


def test_a_command_line_run_resumes_bit_for_bit_in_a_new_process(recipe):
    whole = fit(recipe, "--trainer.max_epochs", "3")
    keep(recipe, save_top_k=-1, every_n_epochs=1)
    fit(recipe, "--trainer.max_epochs", "3")
    half = next(Path("runs/recipe/version_1/checkpoints").glob("epoch=1-*.ckpt"))
    subprocess.run([sys.executable, "-m", "ssl_zoo", "fit", "--config", "recipe.yaml", "--trainer.max_epochs", "3",
                    "--ckpt_path", str(half)], check=True, capture_output=True)
    states = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
              for folder in (whole, Path("runs/recipe/version_2"))]
    assert same(*states)


def test_two_processes_evaluate_as_one(recipe):
    columns = []
    for devices in ("1", "2"):
        options = ["--trainer.devices", devices, "--trainer.strategy", "ddp", "--data.batch_size", "8"]
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        subprocess.run([sys.executable, "-m", "ssl_zoo", "fit", "--config", "recipe.yaml", *options], check=True,
                       capture_output=True, timeout=1800)
        report = sorted(Path("runs/recipe").glob("version_*"))[-1] / "report.txt"
        heading, *lines = report.read_text().splitlines()
        place = heading.index("untrained encoder")   # columns are right-aligned
        columns.append([line[place:place + len("untrained encoder")] for line in lines[:lines.index("")]])
    assert columns[0] == columns[1]
    assert len(columns[0]) == 6


@pytest.mark.parametrize(("option", "value", "said"), [
    ("--data.path", "nowhere.npz", "no file of images at nowhere.npz"),
    ("--data.batch_size", "61", "a batch of 61 is larger than the data set of 60 images"),
    ("--data.batch_size", "0", "a batch has at least 1 image, not 0"),
    ("--data.batch_size", "many", "batch_size: Expected a <class 'int'>. Got value: many"),
    ("--model.temperatur", "0.1", "Option 'temperatur' is not accepted; did you mean temperature?"),
    ("--model.temperature", "-1", "a temperature must be above 0, not -1"),
    ("--model", "SimCRL", "there is no class SimCRL; did you mean SimCLR?"),
    ("--trainer.accelerator", "gpu", "this machine has none; run with --trainer.accelerator cpu"),
    ("--ckpt_path", "nowhere.ckpt", "nowhere.ckpt"),
    ("--trainer.logger.save_dir", "/proc/nowhere", "cannot be written"),
    ("--trainer.devices", "null", "--trainer cannot be made of its options: `devices` selected with `CPUAccelerator`"),
    ("--trainer.devices", "0", "is not a valid input using cpu accelerator: give --trainer.devices a number from 1"),
    ("--trainer.accumulate_grad_batches", "0", "--trainer.accumulate_grad_batches counts from 1, and is 0"),
    ("--trainer.limit_train_batches", "0.01", "You requested to check 0.01 of the `train_dataloader` but 0.01 * 7 < 1"),
    ("--data.train_images", "-1", "train_images is at least 1 image, not -1; null uses all"),
    ("--data.batch_size", "1", "BatchNorm needs at least 2 images in a batch, and here it meets 1"),
    ("--model.projector", "[0]", "a head has the width of its input and 1 or more others, and got [8, 0]"),
    ("--model.projector", "16", "model > SimCLR > projector: Expected a <class 'collections.abc.Sequence'>. Got value"),
])
def test_bad_input_gets_one_sentence_and_leaves_nothing(recipe, option, value, said):
    if option == "--trainer.accelerator" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert said in refusal(recipe, option, value)
    assert os.listdir() == ["recipe.yaml"]


@pytest.mark.parametrize(("part", "given", "said"), [
    ("optimizer", {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": None}},
     "the optimizer cannot be made ('<' not supported between instances of 'NoneType' and 'float'): give its options"),
    ("schedule", None, "a class of the recipe has null where its options belong"),
])
def test_null_in_a_recipe_gets_one_sentence(recipe, part, given, said):
    recipe["model"]["init_args"][part] = given
    assert said in refusal(recipe)


OWN = """
import torch
from ssl_zoo.heads import mlp
from ssl_zoo.method import Method

class Align(Method):
    def __init__(self, width: int = 16, **kwargs):
        {init}
        self.projector = mlp({dim}, 16, width)

    def training_loss(self, batch):
        z1, z2 = (self.projector(self.encoder(view.images)) for view in batch.views)
        {loss}
"""


@pytest.mark.parametrize(("name", "change", "said"), [
    ("own_width", {"dim": 512}, "mat1 and mat2 shapes cannot be multiplied (8x8 and 512x16): of each image the encoder "
     "gives 8 features, self.encoder.dim (Align.training_loss, line 12 of own_width.py: z1, z2 = (self.projector("),
    ("own_name", {"loss": "return F.mse_loss(z1, z2)"}, "NameError: name 'F' is not defined (Align.training_loss, "
     "line 13 of own_name.py: return F.mse_loss(z1, z2))"),
    ("own_return", {"loss": "loss = z1.mean()"}, "Align.training_loss must return one number with a gradient, not "
     "nothing: end it with return loss (line 11 of own_return.py)"),
    ("own_super", {"init": "pass"}, "Align does not hand its option encoder on to its base: let __init__ take **kwargs "
     "and call super().__init__(**kwargs) (line 6 of own_super.py)"),
    ("own_order", {"init": "self.head = torch.nn.Linear(8, 8); super().__init__(**kwargs)"}, "Align: cannot assign "
     "module before Module.__init__() call (Align.__init__, line 8 of own_order.py: self.head = torch.nn.Linear(8, 8)"),
    ("own_place", {"loss": "loss = (z := z1.exp()).sum(); z += 1; return loss"}, "the backward pass needs a tensor "
     "that was changed after the loss had read it: give the loss a copy, .clone() or Queue.snapshot()"),
])
def test_a_mistake_in_ones_own_method_gets_its_line_and_leaves_nothing(recipe, monkeypatch, name, change, said):
    monkeypatch.syspath_prepend(os.getcwd())
    code = {"init": "super().__init__(**kwargs)", "dim": 8, "loss": "return (z1 - z2).square().mean()"} | change
    Path(f"{name}.py").write_text(OWN.format(**code))
    recipe["model"]["class_path"] = f"{name}.Align"
    del recipe["model"]["init_args"]["projector"], recipe["model"]["init_args"]["temperature"]
    assert said in refusal(recipe)
    assert not Path("runs").exists()


def test_what_a_run_has_learnt_stays_when_it_fails_later(recipe):
    recipe["trainer"]["callbacks"] = [{"class_path": "EarlyStopping", "init_args": {"monitor": "knnn"}}]
    assert "Early stopping conditioned on metric `knnn` which is not available" in refusal(recipe)
    assert Path("runs/recipe/version_0/config.yaml").exists()


def test_a_failed_start_leaves_what_was_there_before_it_alone(recipe):
    Path("mine").mkdir()
    refusal(recipe, "--data.batch_size", "1", "--trainer.logger.save_dir", "mine")
    assert list(Path("mine").iterdir()) == []
    refusal(recipe, "--data.batch_size", "1", "--trainer.logger", "false", "--trainer.default_root_dir", "mine")
    assert {path.name for path in Path("mine").iterdir()} == {"config.yaml", "curve.json", "neighbours.png",
                                                            "provenance.json", "views.png"}
    first = fit(recipe)
    refusal(recipe, "--data.batch_size", "1")
    assert [path.name for path in Path("runs/recipe").iterdir()] == [first.name]
    assert (first / "encoder.safetensors").exists()


def test_without_logger_checkpoints_and_bar_a_run_has_its_folder(recipe, capsys):
    recipe["trainer"]["callbacks"] = [{"class_path": "LearningRateMonitor"}, {"class_path": "ModelCheckpoint"}]
    options = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--trainer.enable_progress_bar",
               "false"]
    for number in (0, 1):
        folder = fit(recipe, *options)
        assert folder == Path(f"runs/recipe/version_{number}")
        assert {path.name for path in folder.iterdir()} == {
            "config.yaml", "curve.json", "encoder.json", "encoder.safetensors", "encoder.safetensors.md",
            "neighbours.png", "provenance.json",
            "report.json", "report.txt", "training_curve.png", "views.png"}
    assert "epoch 2" in capsys.readouterr().out
    assert {path.name for path in Path().iterdir()} == {"runs", "recipe.yaml"}


@pytest.mark.parametrize(("row", "said"), [
    ({"size": 16, "count": 8}, "SimCLR learns from 2 views of each image, and this recipe draws 8"),
    ({"size": 16, "count": 2, "scael": [0.1, 1]}, "Option 'scael' is not accepted; did you mean scale?"),
    ({"size": 16, "count": 2, "scale": [0.0, 1.0]}, "a view's scale must be"),
    ({"size": "large", "count": 2}, "size: Expected a <class 'int'>. Got value: large"),
])
def test_a_bad_row_of_views_gets_one_sentence(recipe, row, said):
    recipe["model"]["init_args"]["augment"]["views"] = [row]
    assert said in refusal(recipe)


def test_named_views_are_spelt_out_in_the_printed_and_in_the_saved_configuration(recipe, capsys):
    recipe["model"]["init_args"]["augment"]["views"] = "byol_32"
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(SystemExit):
        run(["fit", "--config", "recipe.yaml", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    rows = printed["model"]["init_args"]["augment"]["init_args"]["views"]
    assert [(row["size"], row["blur"], row["solarize"]) for row in rows] == [(32, 0.0, 0.0), (32, 0.0, 0.2)]
    assert rows == [yaml.safe_load(json.dumps(asdict(row))) for row in PRESETS["byol_32"]]
    saved = yaml.safe_load((fit(recipe) / "config.yaml").read_text())
    assert saved["model"]["init_args"]["augment"] == printed["model"]["init_args"]["augment"]


def test_views_of_an_unknown_name_get_the_names_that_there_are(recipe):
    assert re.search("views: expected one of 'simclr', 'simclr_32', .*'pixpro_32', not simclr_33$",
                     refusal(recipe, "--model.augment.views", "simclr_33"))


def test_preview_draws_sources_views_and_matches_of_a_recipe(recipe, capsys):
    recipe["model"]["init_args"]["augment"]["views"] = "byol_32"
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(["preview", "--config", "recipe.yaml", "--images", "2", "--output", "pictures/look.png"])
    assert capsys.readouterr().out.split() == ["pictures/look.png", "pictures/look_matches.png"]
    with Image.open("pictures/look.png") as sheet, Image.open("pictures/look_matches.png") as matches:
        width, height = view_sheet_size(images=2, views=2)
        assert sheet.height == height
        assert sheet.width > width        # as wide as its heading
        assert matches.width > 2 * MATCHED


def view_sheet_size(images, views):
    return GAP + (1 + views) * (SIDE + 2 * GAP), LINE + images * (SIDE + 2 * GAP + LINE)


def test_preview_of_no_image_and_of_an_unreadable_folder_gets_one_sentence(recipe):
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    for options, said in ((["--images", "0"], "a preview is of at least 1 image, not 0"),
                          (["--data.path", "nowhere.npz"], "no file of images at nowhere.npz")):
        with pytest.raises(SystemExit, match=said):
            run(["preview", "--config", "recipe.yaml", *options])


def test_a_misspelt_trainer_option_gets_a_hint(recipe):
    assert "did you mean max_epochs?" in refusal(recipe, "--trainer.max_epohcs", "3")
    recipe["trainer"]["max_epohcs"] = 3
    assert "did you mean max_epochs?" in refusal(recipe)


def test_a_recipe_that_is_not_there_gets_one_sentence(recipe):
    assert "nowhere.yaml" in refusal(recipe, "--config", "nowhere.yaml")


def test_a_checkpoint_of_another_architecture_gets_one_sentence(recipe):
    checkpoint = fit(recipe) / "checkpoints/last.ckpt"
    said = refusal(recipe, "--model.encoder.width", "8", "--ckpt_path", str(checkpoint))
    assert "is of another architecture" in said


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(recipe):
    keep(recipe, every_n_train_steps=2)
    recipe["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}
    said = refusal(recipe)
    step = re.search(r"the loss is not finite at step (\d+)", said)[1]
    good = re.search(r"the last good checkpoint is (\S+)", said)[1]
    saved = torch.load(good, weights_only=True)
    assert saved["global_step"] < int(step)


def test_a_flat_folder_trains_and_says_that_accuracy_needs_labels(recipe, capsys):
    Path("flat").mkdir()
    for i in range(20):
        Image.new("RGB", (30 + i, 40), (12 * i, 80, 255 - 12 * i)).save(f"flat/{i}.png")
    recipe["data"] = {"class_path": "ImageFolder",
                      "init_args": {"root": "flat", "batch_size": 8, "evaluation_size": 32, "workers": 0}}
    with pytest.warns(UserWarning, match="knn, linear_cached: accuracy needs labels"):
        fit(recipe)
    printed = capsys.readouterr().out
    assert "health/rankme" in printed
    assert not re.search(r"^\s*knn", printed, re.MULTILINE)


LIGHT = """
import resource, sys
sys.argv = ["ssl-zoo", *{arguments!r}]
from ssl_zoo.__main__ import main
try:
    main()
finally:
    heavy = sorted({{"torch", "pytorch_lightning", "jsonargparse", "numpy", "yaml"}} & sys.modules.keys())
    print("\\nheavy:", *heavy)
"""


def said_lightly(arguments, folder):
    """What a command says, without having imported anything heavy; its status, and seconds of CPU."""
    before = os.times()
    process = subprocess.run([sys.executable, "-c", LIGHT.format(arguments=arguments)], capture_output=True, text=True,
                             cwd=folder)
    after = os.times()
    assert process.stdout.endswith("heavy:\n"), process.stdout + process.stderr
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return process.stdout + process.stderr, process.returncode, seconds


@pytest.mark.parametrize(("arguments", "said"), [
    (["--help"], "ssl-zoo fit --config"), (["--version"], "ssl_zoo 0."),
    (["evaluate", "--help"], "--protocols NAME"), (["export", "--help"], "--trust CLASS"),
    (["preview", "--help"], "those of ssl-zoo fit"), (["recipes", "--help"], "List the recipes"),
    (["embed", "--help"], "--output OUTPUT"), (["similar", "--help"], "--among IMAGES"),
    (["duplicates", "--help"], "--threshold THRESHOLD"),
    (["recipes", "quickstart"], "Expected"),
])
def test_help_imports_nothing_heavy(arguments, said, tmp_path):
    printed, status, _ = said_lightly(arguments, tmp_path)
    assert said in printed
    assert status == 0


@pytest.mark.parametrize(("arguments", "said"), [
    (["evalaute", "x.ckpt"], "there is no command evalaute; did you mean evaluate?"),
    (["evaluate", "resnet18", "--outptu", "x"], "ssl-zoo evaluate has no option --outptu; did you mean --output?"),
    (["evaluate", "resnet18", "--dta", "ImageFolder"], "has no option --dta; did you mean --data?"),
    (["evaluate"], "the following arguments are required: ENCODER"),
    (["evaluate", "resnet18", "--epochs", "many"], "--epochs: invalid int value: 'many'"),
    (["evaluate", "resnet18", "--protocols", "knnn"], "there is no protocol knnn; did you mean knn?"),
    (["evaluate", "nowhere/encoder.safetensors"], "there is no encoder nowhere/encoder.safetensors"),
    (["evaluate", "nowhere/last.ckpt"], "no checkpoint at nowhere/last.ckpt"),
    (["evaluate", "nowhere/encoder"], "there is no encoder nowhere/encoder: give"),
    (["evaluate", __file__], f"there is no encoder {__file__}: give"),
    (["evaluate", "resnet18=nowhere.pth"], "no weights at nowhere.pth"),
    (["evaluate", "resnet18"], "resnet18 does not say on which images to evaluate it: name them"),
    (["evaluate", "resnet18", "--data.root", "x"], "--data. options are those of a data set: name it"),
    (["evaluate", "resnet18", "--dense", "nowhere"], "there is no folder nowhere for --dense"),
    (["export", "x.ckpt", "--outptu", "y"], "ssl-zoo export has no option --outptu; did you mean --output?"),
    (["export", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    (["preview", "--imgaes", "3"], "ssl-zoo preview has no option --imgaes; did you mean --images?"),
    (["preview", "--modle", "SimCLR"], "ssl-zoo preview has no option --modle; did you mean --model?"),
    (["preview", "--images", "0"], "a preview is of at least 1 image, not 0"),
    (["recipes", "--filtre"], "ssl-zoo recipes has no option --filtre"),
    (["check", "SimCLR", "--checks", "gradient"], "there is no check gradient; did you mean gradients?"),
    (["fit", "--config", "cifar10/simlcr"], "there is no recipe cifar10/simlcr; did you mean cifar10/simclr?"),
    (["fit", "nowhere", "--method", "MoCo"], "there is no folder nowhere of images: give one, or a recipe"),
    (["embed", "nowhere/encoder.safetensors", "x", "--output", "y.npz"], "there is no encoder nowhere/encoder"),
    (["embed", "resnet18", "x"], "the following arguments are required: --output"),
    (["similar", "resnet18", "x", "--amnog", "y"], "ssl-zoo similar has no option --amnog; did you mean --among?"),
    (["duplicates", "resnet18", "x", "--threshold", "0"], "--threshold is a cosine above 0 and at most 1, not 0"),
    (["fit", "--ckpt_path", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    (["validate", "--ckpt_path=nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
])
def test_wrong_names_and_paths_get_one_sentence_before_torch_is_loaded(arguments, said, tmp_path):
    printed, status, _ = said_lightly(arguments, tmp_path)
    assert f"ssl-zoo: {said}" in printed or said in printed
    assert "Traceback" not in printed
    assert status == 1


def test_a_command_answers_in_a_fraction_of_the_time_that_torch_takes_to_import(tmp_path):
    before = os.times()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    after = os.times()
    torch_alone = after.children_user + after.children_system - before.children_user - before.children_system
    assert said_lightly(["evaluate", "--help"], tmp_path)[2] < torch_alone / 3


def test_options_of_a_data_set_are_told_apart_from_those_of_evaluate():
    words = "one --data ImageFolder --half --data.root=x two --data.size 32 --output y --data.cache"
    assert split_options(words.split()) == (["one", "--half", "two", "--output", "y"],
                                    ["--data", "ImageFolder", "--data.root=x", "--data.size", "32", "--data.cache"])
    assert split_options(["--data.seed", "-1", "one"]) == (["one"], ["--data.seed", "-1"])


def test_every_option_of_a_recipe_is_one_of_preview(capsys):
    with pytest.raises(SystemExit):
        run(["fit", "--help"])
    named = set(re.findall(r"--\w[\w.]*", capsys.readouterr().out)) - {"--help", "--ckpt_path",
                                                                                          "--weights_only", "--resume"}
    assert {"--config", "--model", "--trainer.max_epochs"} <= named
    assert [name for name in named if not name.startswith(RECIPES)] == []


@pytest.mark.parametrize(("arguments", "said"), [
    (["fit", "--help"], "--trainer.max_epochs"),
    (["fit", "--model.help", "SimCLR"], "divides the cosine similarities"),
    (["evaluate", "--data.help", "ImageFolder"], "--data.root"),
    (["fit", "--model.help", "SimCLR"], "draws the views of each training batch"),   # of the base class
    (["fit", "--config", str(ROOT / "recipes/cifar10/simclr.yaml"), "--print_config"], "small_images: true"),
])
def test_help_and_configuration_are_printed(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    assert ended.value.code == 0
    assert said in capsys.readouterr().out


def test_numbers_of_another_epoch_are_not_exported_with_the_encoder(recipe):
    folder = fit(recipe, "--trainer.max_epochs", "4", "--trainer.max_steps", "21",      # 3 epochs
                 "--trainer.check_val_every_n_epoch", "2")
    run(["export", str(folder / "checkpoints/last.ckpt")])
    for path in (folder / "encoder.json", folder / "checkpoints/last.json"):
        said = json.loads(path.read_text())
        assert said["metrics"] == {}
        assert said["preprocessing"]["size"] == 16


def test_export_needs_no_file_that_the_run_started_from(recipe):
    folder = fit(recipe)
    run(["export", str(folder / "checkpoints/last.ckpt"), "--output", "start"])
    again = fit(recipe, "--model.encoder.weights", "start.safetensors")
    Path("start.safetensors").unlink()
    run(["export", str(again / "checkpoints/last.ckpt")])
    assert load_encoder(again / "checkpoints/last").dim == 8


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all"])
@pytest.mark.parametrize("command", [["export"], ["fit", "--config", "recipe.yaml", "--ckpt_path"]])
def test_a_broken_checkpoint_gets_one_sentence(recipe, command, content):
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    Path("broken.ckpt").write_bytes(content)
    with pytest.raises(SystemExit, match=r"broken\.ckpt is no checkpoint, or was cut short"):
        run([*command, "broken.ckpt"])


def test_export_of_no_checkpoint_gets_one_sentence():
    with pytest.raises(SystemExit, match="no checkpoint at nowhere.ckpt"):
        run(["export", "nowhere.ckpt"])


def test_a_full_device_is_said_with_what_helps():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8")
    assert expected(error)
    assert way_out(error) == "CUDA out of memory: lower --data.batch_size, or add --trainer.precision bf16-mixed"


def test_a_full_host_is_said_likewise():
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
                         "you tried to allocate 40000000000000 bytes. Error code 12 (Cannot allocate memory)")
    assert expected(error)
    assert way_out(error) == "the CPU is out of memory: lower --data.batch_size, or add --trainer.precision bf16-mixed"


def test_parse_error_of_an_unknown_form_is_kept():
    assert parse_error("something else entirely") == "something else entirely"
