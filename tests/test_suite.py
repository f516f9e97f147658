"""The evaluation suite: what it measures of whom, what it leaves out and says, and what it takes from its cache."""

import json
import math
import re
import warnings

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file

from ssl_zoo.cli import run
from ssl_zoo.cli.evaluate import name_of
from ssl_zoo.data import ArrayImages, ImageFolder
from ssl_zoo.encoders import Encoder, NarrowResNet
from ssl_zoo.evaluation import report, suite
from ssl_zoo.evaluation.protocol import Protocol
from ssl_zoo.evaluation.protocols import find, names
from ssl_zoo.evaluation.score import Score, number
from ssl_zoo.export import save_encoder
from ssl_zoo.paths import own_data

QUICK = [name for name in names() if find(name).quick and find(name).unasked]
PROTOCOLS = list(map(find, names()))


def encoder(seed=0, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NarrowResNet(4, 2, **changes).eval()


def ready(images):
    images.setup("fit")
    return images


@pytest.fixture(scope="module")
def measured(arrays, tmp_path_factory):
    """Two encoders on the same images, by all that reads features."""
    folder = tmp_path_factory.mktemp("evaluation")
    found = suite.evaluate({"first": encoder(), "second": encoder(1)}, ready(ArrayImages(str(arrays), batch_size=8)),
                           folder, protocols=QUICK).columns
    return found, folder


def test_every_protocol_gives_its_numbers_and_every_number_has_its_protocol(measured):
    found, folder = measured
    scores = found["first"].scores
    for start in ("knn_instdisc", "knn_dino_10", "linear_grid", "logistic", "naive_bayes", "nearest_class_mean",
                  "lowshot/2/knn", "lowshot/5/logistic", "lowshot/10%/naive_bayes", "retrieval/map", "health/rankme",
                  "health/tolerance", "health/alignment", "health/positive_mean"):
        assert start in scores
    assert report.describe(list(scores), PROTOCOLS).keys() >= {"knn_dino", "lowshot/", "health/negative"}
    written = json.loads((folder / "report.json").read_text())
    assert written["encoders"]["first"]["scores"]["linear_grid"]["value"] == scores["linear_grid"].value
    assert written["encoders"]["first"]["scores"]["linear_grid"]["count"] == 24


def test_classes_by_colour_are_learnt(measured):
    scores = measured[0]["first"].scores
    assert scores["linear_grid"].value == scores["logistic"].value == 1
    assert scores["knn_dino_10"].value > 0.9


def test_a_difference_of_two_encoders_is_in_the_report_with_whether_it_exceeds_its_interval(measured):
    found, folder = measured
    rows = {row["score"]: row for row in json.loads((folder / "report.json").read_text())["differences"]}
    assert {(row["over"], row["encoder"]) for row in rows.values()} == {("first", "second")}
    one, other = (found[name].scores["retrieval/map"] for name in ("first", "second"))
    assert rows["retrieval/map"]["difference"] == pytest.approx(other.value - one.value)
    low, high = rows["retrieval/map"]["interval"]
    assert low < other.value - one.value < high
    assert rows["retrieval/map"]["exceeds"] == (low > 0 or high < 0)
    assert rows["health/rankme"]["exceeds"] is None


def test_the_report_shows_all_pictures_and_says_what_was_left_out(measured):
    folder = measured[1]
    text = (folder / "report.md").read_text()
    for name in ("first_confusion", "second_neighbours", "first_feature_map", "second_similarities", "learning_curves"):
        assert f"({name}.png)" in text
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 100
    assert "fewshot" in text.partition("## Left out")[2].partition("## Protocols")[0]   # three classes are not five
    assert "knn_instdisc has 60 neighbours" in text


def test_a_second_evaluation_reads_the_features_and_finds_the_same(measured, arrays, monkeypatch):
    found, folder = measured
    monkeypatch.setattr(suite, "extract", lambda *_: pytest.fail("the features were taken again"))
    again = suite.evaluate({"first": encoder()}, ready(ArrayImages(str(arrays), batch_size=8)), folder,
                           protocols=QUICK).columns
    for name, score in found["first"].scores.items():
        assert torch.equal(again["first"].scores[name].units.nan_to_num(-1), score.units.nan_to_num(-1)), name


@pytest.mark.parametrize("change", ["weights", "images", "half"])
def test_features_of_other_weights_or_images_are_never_reused(arrays, tmp_path, change):
    def features(subject, path, **options):
        suite.evaluate({"it": subject}, ready(ArrayImages(str(path))), tmp_path / "out", protocols=["health"],
                       **options)
        return {file.name for file in (tmp_path / "out" / "features").iterdir()}

    first = features(encoder(), arrays)
    other = tmp_path / "other.npz"
    with np.load(arrays) as content:
        np.savez(other, **{name: values + (name == "train_images") * (change == "images")
                           for name, values in content.items()})
    second = features(encoder(change == "weights"), other, half=change == "half")
    assert len(first) == 4
    assert len(second - first) == (3 if change == "images" else 4)   # the test part's own did not change


def test_views_are_taken_for_health_alone(arrays, tmp_path):
    suite.evaluate({"it": encoder()}, ready(ArrayImages(str(arrays))), tmp_path, protocols=["knn", "logistic"])
    assert sorted("plain" in file.name for file in (tmp_path / "features").iterdir()) == [True, True]


def test_half_precision_keeps_half_the_bytes_and_nearly_the_numbers(measured, arrays, tmp_path):
    found = suite.evaluate({"first": encoder()}, ready(ArrayImages(str(arrays))), tmp_path, protocols=QUICK,
                           half=True).columns
    kept = load_file(next((tmp_path / "features").glob("*plain*")))
    assert kept["x"].dtype == torch.float16
    for name in ("knn_dino", "linear_grid", "health/rankme"):
        assert found["first"].scores[name].value == pytest.approx(measured[0]["first"].scores[name].value, abs=0.02)


def test_images_without_labels_have_their_health_measured_and_nothing_else(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(12):
        Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"images/{i}.png")
    images = ready(ImageFolder(str(tmp_path / "images"), evaluation_size=32, workers=0))
    found = suite.evaluate({"it": encoder()}, images, tmp_path / "out", protocols=QUICK).columns["it"]
    assert found.scores
    assert all(name.startswith("health/") for name in found.scores)
    assert found.left_out[0].startswith("fewshot, knn, linear_cached, linear_grid, logistic, lowshot, naive_bayes")
    assert "accuracy needs labels" in found.left_out[0]


def folder_of(path, **classes):
    generator = np.random.default_rng(0)
    for name, count in classes.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path / name / f"{i}.png")
    return ready(ImageFolder(str(path), evaluation_size=32, workers=0, held_out=0.3))


def test_one_class_alone_has_no_accuracy_and_the_class_is_named(arrays, tmp_path):
    images = ready(ArrayImages(str(arrays)))
    images.train.labels[:] = 1
    found = suite.evaluate({"it": encoder()}, images, tmp_path, protocols=QUICK).columns["it"]
    assert all(name.startswith("health/") for name in found.scores)
    assert "accuracy needs two classes: all 60 training images are of class 1" in found.left_out[0]


def test_few_images_leave_cells_out_by_name_and_measure_the_rest(tmp_path):
    found = suite.evaluate({"it": encoder()}, folder_of(tmp_path / "images", cat=9, dog=4), tmp_path / "out",
                           protocols=QUICK).columns["it"]
    assert found.scores.keys() >= {"knn_instdisc", "linear_grid", "lowshot/1/knn", "health/rankme"}
    said = "\n".join(found.left_out)
    assert "100" in said
    assert "dog" in said


class Broken(NarrowResNet):
    """Overflows on two images."""

    def forward(self, images):
        features = super().forward(images)
        return torch.where(features.new_tensor([i == 3 for i in range(len(images))])[:, None] > 0, torch.nan, features)


def test_an_encoder_with_features_that_are_not_finite_is_named_with_the_image_and_the_others_are_measured(arrays,
                                                                                                          tmp_path):
    images = ready(ArrayImages(str(arrays)))
    known = suite.evaluate({"broken": Broken(4, 2), "sound": encoder()}, images, tmp_path, protocols=["knn"])
    assert known.columns.keys() == {"sound"}
    sentence = "the features of 1 of 60 images are not finite, such as those of image 3 of the training part"
    assert known.failed["broken"].startswith(sentence)
    assert f"broken was not measured: {sentence}" in (tmp_path / "report.md").read_text()
    with pytest.raises(ValueError, match="not finite"):
        suite.evaluate({"broken": Broken(4, 2)}, images, tmp_path, protocols=["knn"])


class Failing(Protocol):
    name, quantities = "failing", {}

    def measure(self, train, test, context):
        raise ValueError("too few of something")


def test_a_protocol_that_fails_leaves_the_others_their_numbers(arrays, tmp_path):
    found = suite.evaluate({"it": encoder()}, ready(ArrayImages(str(arrays))), tmp_path,
                           protocols=["knn", Failing(), "logistic"]).columns["it"]
    assert found.scores.keys() >= {"knn_dino", "logistic"}
    assert "failing: too few of something" in found.left_out


def test_a_dense_folder_that_is_none_is_refused_before_anything_is_measured(arrays, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        suite.evaluate({"it": encoder()}, ready(ArrayImages(str(arrays))), tmp_path / "out", protocols=["logistic"],
                       dense=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written_leaves_the_numbers(arrays, tmp_path):
    (tmp_path / "report.json").mkdir()
    known = suite.evaluate({"it": encoder()}, ready(ArrayImages(str(arrays), batch_size=8)), tmp_path,
                           protocols=["logistic"])
    assert "logistic" in known.columns["it"].scores
    assert known.unwritten.startswith(f"the report could not be written to {tmp_path}")
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize("place", ["out", "out/version_0"])
def test_a_file_in_place_of_the_folder_is_refused_before_anything_is_measured(arrays, tmp_path, place):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match="the report goes into a folder, and .*out is a file: name another"):
        suite.evaluate({}, ready(ArrayImages(str(arrays))), tmp_path / place, protocols=["logistic"])


def test_an_encoder_for_images_of_another_size_says_so_and_the_others_are_measured(arrays, tmp_path):
    class Large(NarrowResNet):
        def forward(self, images):
            assert images.shape[-1] == 224, "images of 224 pixels alone"
            return super().forward(images)

    known = suite.evaluate({"large": Large(4, 2), "it": encoder()}, ready(ArrayImages(str(arrays))), tmp_path,
                           protocols=["logistic"])
    assert known.columns.keys() == {"it"}
    assert "does not take images of 16 pixels (images of 224 pixels alone" in known.failed["large"]


@pytest.mark.parametrize("damaged", [["train/a/0.png"], ["test/b/1.png", "test/b/2.png"]])
def test_images_that_cannot_be_read_are_counted_and_named_at_every_call(tmp_path, damaged):
    folder_of(tmp_path / "images/train", a=8, b=8)
    folder_of(tmp_path / "images/test", a=8, b=8)
    for name in damaged:
        (tmp_path / "images" / name).write_bytes(b"no image")
    for _ in range(2):
        images = ready(ImageFolder(str(tmp_path / "images"), evaluation_size=32, workers=0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = suite.evaluate({"it": encoder()}, images, tmp_path / "out", protocols=["knn"]).columns["it"]
        which = "training" if "train" in damaged[0] else "test"
        assert found.about["images"] == {"training": 16, "test": 16} | {which: 16 - len(damaged)}
        said = f"{len(damaged)} of 16 {which} images, which could not be read, such as "
        assert [sentence for sentence in found.left_out if sentence.startswith(said)]
        assert damaged[0] in "".join(found.left_out)
        assert f"{16 - len(damaged)} {which}" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.filterwarnings("ignore:.*cannot be read as an image")
def test_a_part_of_which_nothing_can_be_read_is_refused_in_a_sentence(tmp_path):
    folder_of(tmp_path / "images/train", a=4, b=4)
    folder_of(tmp_path / "images/test", a=4, b=4)
    for file in (tmp_path / "images/test").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of the 8 images can be read"):
        ready(ImageFolder(str(tmp_path / "images"), evaluation_size=32, workers=0))


def test_queries_without_an_answer_are_left_out_aloud(arrays, tmp_path):
    images = ready(ArrayImages(str(arrays)))
    images.test.labels[:5] = 3
    images.classes.append("new")
    found = suite.evaluate({"it": encoder()}, images, tmp_path, protocols=["retrieval"]).columns["it"]
    assert len(found.scores["retrieval/map"].units) == 19
    assert "retrieval: 5 of 24 queries, of whose class the training part has no image" in found.left_out


def test_the_report_tells_by_what_the_grid_chose(measured):
    notes = json.loads((measured[1] / "report.json").read_text())["encoders"]["first"]["notes"]["linear_grid"]
    best = min(notes["held_out"], key=lambda cell: math.inf if cell["cross_entropy"] is None else cell["cross_entropy"])
    assert {name: best[name] for name in notes["chosen"]} == notes["chosen"]


def test_protocols_on_images_say_how_many_epochs_they_had(arrays, tmp_path):
    subject = encoder()
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    found = suite.evaluate({"it": subject}, ready(ArrayImages(str(arrays), batch_size=8)), tmp_path,
                           protocols=["linear_simclr", "finetune_simclr"], epochs=1).columns["it"]
    assert found.scores.keys() == {"linear_simclr_1_epochs", "finetune_simclr_1_epochs"}
    assert all(torch.equal(value, before[name]) for name, value in subject.state_dict().items())


def test_feature_maps_are_probed_where_a_folder_of_masks_is_given(arrays, tmp_path):
    generator = np.random.default_rng(0)
    root = tmp_path / "voc"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("0 dark\n1 bright\n")
    for i in range(6):
        mask = np.zeros((48, 64), np.uint8)
        mask[:, 16 * (i % 3):16 * (i % 3) + 32] = 1
        image = mask[..., None] * 150 + generator.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(image.astype(np.uint8)).save(root / f"JPEGImages/{i}.jpg")
        Image.fromarray(mask).save(root / f"SegmentationClass/{i}.png")
    for split, listed in (("train", "0\n1\n2\n"), ("val", "3\n4\n5\n")):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(listed)
    found = suite.evaluate({"it": encoder()}, ready(ArrayImages(str(arrays))), tmp_path / "out", protocols=["health"],
                           dense=root).columns["it"]
    classes = [found.scores[f"linear_dense/{name}"].value for name in ("dark", "bright")]
    assert found.scores["linear_dense"].value == pytest.approx(np.mean(classes))
    assert min(classes) > 0.6
    for mask in (root / "SegmentationClass").iterdir():
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(mask)
    known = suite.evaluate({"it": encoder()}, ready(ArrayImages(str(arrays))), tmp_path / "out", protocols=["health"],
                           dense=root).columns["it"]
    assert "linear_dense" not in known.scores
    assert "linear_dense: no pixel of the masks has a class" in "".join(known.left_out)
    assert found.notes["linear_dense"]["size"] == (224, 288)
    assert (tmp_path / "out" / "masks.png").is_file()


# Tables

def units(*values):
    return Score(torch.tensor(values, dtype=torch.float64), "image")


def test_a_table_marks_the_differences_that_exceed_their_interval():
    scores = {"a": {"knn_dino": units(*[0, 1] * 50), "health/rankme": number(3.14159)},
              "b": {"knn_dino": units(*[1, 1] * 50), "linear_grid": units(1, 0)}}
    table = report.rows(report.singly(scores), PROTOCOLS)
    assert table[0] == ["", "a", "b", "b - a"]
    assert table[1] == ["knn_dino", "50.0 [40.4, 59.6] %", "100.0 [96.3, 100.0] %", "+50.0 [38.9, 59.1] *"]
    assert table[2] == ["health/rankme", "3.142", "-", "-"]
    assert table[3][1] == "-"
    assert report.rows(report.singly({"a": scores["a"], "same": scores["a"]}), PROTOCOLS)[1][3] == "+0.0 [-2.7, 2.7]"
    draws = {"a": {"lowshot/1/knn": Score(torch.tensor([0.1, 0.2, 0.3]), "draw")}}
    assert report.rows(report.singly(draws), PROTOCOLS)[1] == ["lowshot/1/knn", "20.0 ± 10.0 %"]


def test_text_and_markdown_hold_the_same_cells():
    table = report.rows(report.singly({"a": {"knn_dino": units(1, 0)}, "b": {"knn_dino": units(1, 1)}}), PROTOCOLS)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.as_markdown(table).splitlines()]
    assert lines[:1] + lines[2:] == table
    assert len({len(line) for line in report.as_text(table).splitlines()}) == 1


def comparison(shares, **known):
    """A comparison of encoders with so many of 100 images right, and the feature_std of each."""
    columns = {name: report.Column({"images": {"training": 9, "test": 100}}, {
        "knn_dino": units(*[1] * right, *[0] * (100 - right)), "knn_dino_10": units(0, 1), "health/feature_std": number(
            spread)}, [], {}, {}, units(*[1] * 20, *[0] * 80)) for name, (right, spread) in shares.items()}
    return report.Comparison(PROTOCOLS, columns, {}, **known)


def test_seeds_share_a_column_and_a_star_between_recipes_exceeds_their_spread_too():
    found = comparison({"x/0": (70, 0.5), "y/0": (80, 0.5), "x/1": (90, 0.5), "y/1": (81, 0.7)},
                       seeds={"x (2 seeds)": ["x/0", "x/1"], "y (2 seeds)": ["y/0", "y/1"]})
    table = report.rows(found.samples, PROTOCOLS)
    assert table[0] == ["", "x (2 seeds)", "y (2 seeds)", "y (2 seeds) - x (2 seeds)"]
    assert table[1][:3] == ["knn_dino", "80.0 ± 14.1 %", "80.5 ± 0.7 %"]
    assert "*" not in table[1][3]
    assert "over seeds where a column has several" in report.legend(found.samples)
    assert "* " in report.rows(report.singly(found.scores), PROTOCOLS)[1][5] + " "       # of two files it would be


def test_of_seeds_that_were_not_measured_the_column_and_the_cell_say_so():
    found = comparison({"x/0": (70, 0.5), "x/1": (90, 0.5)}, seeds={"x (3 seeds)": ["x/0", "x/1", "x/2"]})
    del found.columns["x/1"].scores["knn_dino"]
    table = report.rows(found.samples, PROTOCOLS)
    assert table[0][1] == "x (3 seeds), 1 not measured"
    assert table[1][1] == "70.0 [60.4, 78.1] % (1 of 2 seeds)"
    one = comparison({"x/0": (70, 0.5)}, seeds={"x (3 seeds)": ["x/0", "x/1", "x/2"]})
    assert list(one.samples) == ["x/0"]


def test_the_legend_names_the_baseline_and_what_a_star_of_two_files_says():
    said = report.legend(comparison({"a": (70, 0.5), "b": (80, 0.5)}).samples)
    assert "Differences are from a," in said
    assert "speaks for these files alone" in said
    assert "Differences" not in report.legend(comparison({"a": (70, 0.5)}).samples)


def test_verdicts_are_against_an_untrained_encoder_that_is_given_or_against_guessing():
    found = comparison({"a": (70, 0.5), "b": (24, 0.5), "c": (70, 0.01)})
    assert {name: one.word for name, one in found.verdicts.items()} == {"a": "above", "b": "level", "c": "collapsed"}
    assert "guessing the commonest class, 20.0 %" in found.verdicts["a"].reason
    found = comparison({"a": (70, 0.5), "resnet18, untrained": (69, 0.5)}, untrained=["resnet18, untrained"])
    assert {name: one.word for name, one in found.verdicts.items()} == {"a": "level"}
    assert "points from resnet18, untrained, 69.0 %" in found.verdicts["a"].reason


def test_the_screen_has_the_lines_that_matter_or_those_of_the_protocols_that_were_named():
    found = comparison({"a": (70, 0.5)})._replace(said=["b is no seed"])
    lines = [line.split()[0] for line in report.printed(found).splitlines() if line]
    assert lines == ["a", "knn_dino", "health/feature_std", "Brackets", "a:", "b"]
    assert "knn_dino_10 " in report.printed(found, everything=True)


# The command

@pytest.fixture
def exported(tmp_path):
    def export(name, seed, recipe=None):
        for file in tmp_path.glob(f"{name}.*"):
            file.unlink()
        return str(save_encoder(encoder(seed), tmp_path / name, recipe=recipe))
    return export


def test_versions_of_one_recipe_are_measured_as_its_seeds_and_the_reports_have_every_file(exported, arrays, tmp_path,
                                                                                          capsys):
    recipes = [{"seed_everything": seed, "model": {"temperature": 0.2}} for seed in range(2)]
    files = [exported(f"runs/x/version_{seed}/encoder", seed, recipe) for seed, recipe in enumerate(recipes)]
    other = exported("runs/x/version_2/encoder", 2, {"seed_everything": 0, "model": {"temperature": 0.5}})
    run(["evaluate", *files, other, "--data", "ArrayImages", "--data.path", str(arrays), "--output",
         str(tmp_path / "out"), "--protocols", "nearest_class_mean", "health"])
    printed = capsys.readouterr().out
    assert re.split("  +", printed.splitlines()[0])[1:] == ["x (2 seeds)", "x/version_2", "x/version_2 - x (2 seeds)"]
    assert "x/version_2 and x/version_0 are not seeds of one recipe: they differ in model.temperature" in printed
    assert re.search(r"nearest_class_mean +\d+\.\d ± \d+\.\d %  +\d+\.\d \[", printed)
    assert re.search(r"^x \(2 seeds\): (above|level|below); nearest_class_mean .* points from guessing", printed, re.M)
    folder = tmp_path / "out" / "version_0"
    left = json.loads((folder / "report.json").read_text())
    assert left["encoders"].keys() == {"x/version_0", "x/version_1", "x/version_2"}
    assert left["seeds"]["encoders"] == {"x (2 seeds)": ["x/version_0", "x/version_1"]}
    values = [left["encoders"][f"x/version_{n}"]["scores"]["nearest_class_mean"]["value"] for n in (0, 1)]
    assert left["seeds"]["scores"]["x (2 seeds)"]["nearest_class_mean"]["value"] == pytest.approx(np.mean(values))
    assert {row["encoder"] for row in left["seeds"]["differences"]} == {"x/version_2"}
    text = (folder / "report.md").read_text()
    assert "x/version_1" in text.partition("## Each file")[2].splitlines()[2]
    assert "not seeds of one recipe" in text.partition("## Left out")[2]


def test_the_command_measures_two_encoders_and_prints_one_table(exported, arrays, tmp_path, capsys):
    run(["evaluate", exported("one", 0), exported("two", 1), "--data", "ArrayImages", "--data.path", str(arrays),
         "--output", str(tmp_path / "out"), "--protocols", "knn", "logistic"])
    printed = capsys.readouterr().out
    assert "one" in printed.splitlines()[0]
    assert "two - " in printed.splitlines()[0]
    assert "logistic" in printed
    assert "* marks one that excludes 0" in printed
    assert str(tmp_path / "out" / "version_0" / "report.md") in printed
    before = (tmp_path / "out" / "version_0" / "report.json").read_text()
    run(["evaluate", exported("one", 0), "--data", "ArrayImages", "--data.path", str(arrays),
         "--output", str(tmp_path / "out"), "--protocols", "logistic"])
    assert str(tmp_path / "out" / "version_1" / "report.md") in capsys.readouterr().out
    assert (tmp_path / "out" / "version_0" / "report.json").read_text() == before


def test_options_of_no_data_set_are_refused_with_the_way_out(exported, capsys):
    with pytest.raises(SystemExit) as error:
        run(["evaluate", exported("one", 0), "--data.root", "my_images"])
    assert "name it, as in --data ImageFolder --data.root my_images" in str(error.value)


def test_without_data_an_encoder_is_measured_on_the_images_of_its_own_run(exported, arrays, tmp_path, capsys):
    recipe = {"data": {"class_path": "ssl_zoo.data.ArrayImages", "init_args": {"path": str(arrays)}}}
    run(["evaluate", exported("one", 0, recipe), "--output", str(tmp_path / "out"), "--protocols", "knn"])
    assert "knn_dino" in capsys.readouterr().out
    with pytest.raises(ValueError, match="one.safetensors does not say on which images to evaluate it: name them"):
        own_data(exported("one", 0))


def test_a_model_of_torchvision_is_measured_by_its_name(arrays, tmp_path, capsys):
    run(["evaluate", "mobilenet_v3_small", "--data", "ArrayImages", "--data.path", str(arrays), "--output",
         str(tmp_path), "--protocols", "nearest_class_mean"])
    assert "mobilenet_v3_small" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "sentence"), [
    (["resnet51"], "there is no encoder resnet51: give an exported"),
    (["nowhere/encoder.safetensors"], "there is no encoder nowhere/encoder.safetensors; a run leaves one"),
    (["resnet18", "--device", "cuda:7"], "there is no cuda:7 on this machine: leave --device out"),
    (["nowhere/last.ckpt"], "no checkpoint at nowhere/last.ckpt"),
    (["resnet18=nowhere.pth"], "no weights at nowhere.pth"),
    (["resnet18", "--protocols", "knm"], "knm"),
])
def test_an_encoder_or_a_protocol_that_is_not_there_is_named_in_a_sentence(given, sentence, arrays):
    with pytest.raises(SystemExit) as error:
        run(["evaluate", *given, "--data", "ArrayImages", "--data.path", str(arrays)])
    assert sentence in str(error.value)
    assert "Traceback" not in str(error.value)


def test_encoders_are_called_by_their_runs_as_far_as_that_tells_them_apart():
    both = ["runs/a/version_0/encoder.safetensors", "runs/b/version_0/checkpoints/last.ckpt"]
    assert [name_of(one, both) for one in both] == ["a/version_0", "b/version_0"]
    twice = ["x/version_0/encoder.safetensors", "y/../x/version_0/encoder.safetensors"]
    assert name_of(twice[0], twice) == twice[0]
    assert name_of("resnet50=weights/resnet50.pth", both) == "resnet50"
    assert name_of("resnet50", both) == "resnet50, untrained"
    assert name_of("encoder.safetensors", both) == "encoder.safetensors"
    assert name_of("checkpoints/last.ckpt", both) == "checkpoints/last.ckpt"


def test_an_equals_sign_in_a_path_is_no_weights(exported, tmp_path, monkeypatch):
    from ssl_zoo.checkpoints import read_encoder
    monkeypatch.chdir(tmp_path)
    path = exported("lr=0.1/encoder", 0).removeprefix(f"{tmp_path}/")
    assert path == "lr=0.1/encoder.safetensors"
    assert name_of(path, [path]) == "lr=0.1"
    assert torch.equal(read_encoder(path).backbone.conv1.weight, encoder().backbone.conv1.weight)


def test_a_model_starts_from_safetensors_too(tmp_path):
    from ssl_zoo.checkpoints import read_encoder
    weights = torchvision.models.resnet18().state_dict()
    save_file(weights, tmp_path / "resnet18.safetensors")
    encoder = read_encoder(f"resnet18={tmp_path / 'resnet18.safetensors'}")
    assert torch.equal(encoder.backbone.conv1.weight, weights["conv1.weight"])


def test_every_name_finds_its_encoder():
    from ssl_zoo.checkpoints import read_encoder
    assert type(read_encoder("resnet18")).__name__ == "ResNet"
    assert type(read_encoder("mobilenet_v3_small")).__name__ == "Torchvision"
    assert issubclass(type(read_encoder("resnet18")), Encoder)
    pytest.importorskip("timm")
    assert type(read_encoder("timm/resnet18")).__name__ == "Timm"
    assert type(read_encoder("test_resnet")).__name__ == "Timm"
