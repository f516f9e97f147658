"""Labels as people bring them, and the two lines that say what a data module has understood."""

import os
import re

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from ssl_zoo.cli.evaluate import chosen_images
from ssl_zoo.data import ArrayImages, ImageFolder, TorchvisionImages
from ssl_zoo.data.labels import as_places, class_order, testable
from ssl_zoo.data.summary import Understood, summary
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation import suite
from ssl_zoo.evaluation.callback import Evaluation
from tests.conftest import simclr, trainer
from tests.test_data import Watch, ready

testable.__test__ = False   # pytest would take it for a test

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3)).astype(np.uint8)


def places(train, test=None, names=()):
    found = as_places({"train_labels": np.array(train), "test_labels": None if test is None else np.array(test)}, names)
    return [None if part is None else part.tolist() for part in found.parts], found.classes, found.notes


# Arrays of labels

@pytest.mark.parametrize(("labels", "expected", "classes"), [
    ([2, 0, 1, 0], [2, 0, 1, 0], ["0", "1", "2"]),
    ([2, 10, 1, 2], [1, 2, 0, 1], ["1", "2", "10"]),             # from 1, with a gap: no class without an image
    ([5, -1, 7, -2], [0, -1, 1, -1], ["5", "7"]),
    ([True, False], [1, 0], ["0", "1"]),
    ([1.0, 0.0, float("nan")], [1, 0, -1], ["0", "1"]),
    ([[2], [0]], [1, 0], ["0", "2"]),
    (["dog", "ape", "", "dog"], [1, 0, -1, 1], ["ape", "dog"]),
    (["10", "9", "10"], [1, 0, 1], ["9", "10"]),
    (np.array([3, None, 1], object), [1, -1, 0], ["1", "3"]),    # as CLEVR's test part has none
    ([b"dog", b"ape"], [1, 0], ["ape", "dog"]),
    ([[0, 0, 1], [1, 0, 0]], [1, 0], ["0", "2"]),                # one-hot
    ([[False, True], [True, False]], [1, 0], ["0", "1"]),
])
def test_labels_of_any_kind_are_places_among_the_classes(labels, expected, classes):
    assert places(labels) == ([expected, None], classes, [])


def test_both_parts_have_one_list_of_classes():
    assert places(["dog", "ape"], ["bee", "dog"]) == ([[2, 0], [1, 2]], ["ape", "bee", "dog"], [])


@pytest.mark.parametrize(("labels", "expected"), [([2, 0], [2, 0]), (["cat", "ape"], [2, 0]), ([[0, 0, 1]], [2])])
def test_with_names_numbers_are_places_and_words_are_found(labels, expected):
    assert places(labels, names=["ape", "bee", "cat"]) == ([expected, None], ["ape", "bee", "cat"], [])


def test_names_that_are_numbers_do_not_move_numbers():
    assert places([1, 2], names=["1", "2", "3"])[0][0] == [1, 2]
    assert places(["1", "2"], names=["1", "2", "3"])[0][0] == [0, 1]


@pytest.mark.parametrize(("labels", "said"), [([3, 0], "3"), (["dog", "ape"], "dog")])
def test_a_label_without_a_name_is_refused_with_it(labels, said):
    with pytest.raises(ValueError, match=f"there is a label {said}, and the 3 classes are ape, bee, cat: name every"):
        places(labels, names=["ape", "bee", "cat"])


@pytest.mark.parametrize(("labels", "sentence"), [
    ([[1, 0, 1], [0, 0, 1]], r"train_labels \[2, 3\] give an image several classes or numbers, and accuracy needs one"),
    ([[0, 0, 0], [0, 0, 1]], r"train_labels \[2, 3\] give an image several"),
    ([[0.2, 0.8], [1.0, 0.0]], r"train_labels \[2, 2\] give an image several"),
    ([["a", "b"], ["a", "c"]], r"train_labels \[2, 2\] give an image several"),
    (np.zeros((2, 4, 4), int), r"train_labels \[2, 4, 4\] give an image several"),
    ([0.5, 1.0], "train_labels are not whole numbers, such as 0.5, and accuracy needs classes: training goes on"),
])
def test_labels_that_are_no_class_of_an_image_train_without_and_are_said(labels, sentence, tmp_path, capsys):
    np.savez(tmp_path / "images.npz", train_images=PIXELS[:2], train_labels=labels, test_images=PIXELS[2:4],
             test_labels=labels)
    data = ArrayImages(str(tmp_path / "images.npz"), batch_size=2)
    running = trainer(tmp_path, max_epochs=1)
    running.fit(Watch(), data)
    assert running.global_step == 1
    assert (data.train.labels.tolist(), data.test, data.classes, data.labelled) == ([-1, -1], None, [], False)
    said = capsys.readouterr().err
    assert re.search(sentence, said)
    assert "left out: 2 test images without a label" in said


def test_labels_that_are_pickled_objects_are_refused_and_not_run(tmp_path):
    np.savez(tmp_path / "images.npz", train_images=PIXELS, train_labels=np.array(["a", None, 3, "b", "c"], object))
    with pytest.raises(ValueError, match=r"train_labels of .*images.npz are Python objects: save them as numbers"):
        ready(ArrayImages(str(tmp_path / "images.npz")))


def test_names_of_classes_are_in_alphabetical_order_and_numbers_by_their_value():
    assert class_order({"b", "a", "10"}) == ["10", "a", "b"]
    assert class_order({"10", "9", "100"}) == ["9", "10", "100"]


# What can be tested on

@pytest.mark.parametrize(("train", "test", "kept", "left_out"), [
    ([0, 1], [1, 0, 1], [0, 1, 2], []),
    ([0, 1], [1, -1, 2, 0], [0, 3], ["1 test image without a label",
                                     "1 test image of classes that the training part does not have"]),
    ([0, -1], [-1, -1], [], ["2 test images without a label"]),
    ([-1], [0], [], ["1 test image of classes that the training part does not have"]),
])
def test_test_images_that_nothing_can_know_are_left_out(train, test, kept, left_out):
    places, said = testable(np.array(train), np.array(test))
    assert (places.tolist(), said) == (kept, left_out)


def arrays(folder, train, test=None):
    parts = {"train_labels": np.array(train), "train_images": np.resize(PIXELS, (len(train), 6, 8, 3))}
    if test is not None:
        parts |= {"test_labels": np.array(test), "test_images": np.resize(PIXELS, (len(test), 6, 8, 3))}
    np.savez(folder / "images.npz", **parts)
    return ready(ArrayImages(str(folder / "images.npz")))


def test_images_without_a_label_train_and_are_not_evaluated(tmp_path):
    data = arrays(tmp_path, ["ape", "", "bee", "", "ape"], ["bee", "cat", "ape", ""])
    assert data.classes == ["ape", "bee", "cat"]
    assert data.labelled
    assert data.train.labels.tolist() == [0, -1, 1, -1, 0]
    assert [loader.source.labels.tolist() for loader in data.val_dataloader()] == [[0, 1, 0], [1, 0]]
    assert len(data.plain().source) == 5


def test_without_any_label_evaluation_sees_the_training_part_alone(tmp_path):
    data = arrays(tmp_path, [-1, -1, -1], [0, 1])
    assert (data.labelled, data.test) == (False, None)
    assert [len(loader.source) for loader in data.val_dataloader()] == [3]


# What is said

WHERE = Understood("my_images")


@pytest.mark.parametrize(("understood", "train", "test", "classes", "of", "said"), [
    (WHERE, [-1] * 1200, None, [], 0, "my_images: 1,200 images, 1,200 to train on; no labels\nleft out: nothing"),
    (WHERE, [0, 0, 0, 1, 2, 2], [1, 0], ["ape", "bee", "cat"], 6,
     "my_images: 8 images, 6 to train on and 2 to test on; 3 classes of 1 (bee) to 3 (ape) training images\n"
     "left out: nothing"),
    (WHERE._replace(test="val", left_out=["docs (2 images)", "links that lead nowhere: a"]), [0, 1, 1, 0], [0],
     ["ape", "bee"], 0, "my_images: 5 images, 4 to train on and 1 to test on (val); 2 classes of 2 training images "
     "each\nleft out: docs (2 images); links that lead nowhere: a"),
    (WHERE._replace(notes=["train counts as a class"]), [0, 2, -1], None, ["ape", "bee", "cat", "dog"], 10,
     "my_images: 3 images, 3 to train on of 10; 2 classes of 1 training image each; no training images of bee, dog; 1 "
     "image without a class, only to train on; train counts as a class\nleft out: nothing"),
])
def test_two_lines_say_images_parts_classes_and_what_was_left_out(understood, train, test, classes, of, said):
    assert summary(understood, np.array(train), None if test is None else np.array(test), classes, of) == said


def test_names_that_are_no_text_can_be_written():
    name = os.fsdecode(b"caf\xe9")
    first, _ = summary(Understood(name), np.array([0, 1, 1]), None, [name, "bar"]).encode().splitlines()
    assert first == rb"caf\udce9: 3 images, 3 to train on; 2 classes of 1 (caf\udce9) to 2 (bar) training images"


def folder(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(root / name / f"{i}.png")
    return root


def test_a_data_module_says_it_once_and_a_quiet_one_never(tmp_path, capsys):
    root = folder(tmp_path / "set", ape=4, bee=2)
    data = ready(ImageFolder(str(root), held_out=0.25))
    data.setup("fit")
    assert capsys.readouterr().err == (
        f"{root}: 6 images, 4 to train on and 2 to test on (held out, 25 % of each class); 2 classes of 1 (bee) to 3 "
        "(ape) training images\nleft out: nothing\n")
    data.read()                                                       # again, as for another encoder's levels
    assert capsys.readouterr().err == ""
    data = ImageFolder(str(root))
    data.said = True
    ready(data)
    assert capsys.readouterr().err == ""


# Folders with labels

def test_a_class_of_one_image_trains_and_is_not_tested(tmp_path, capsys):
    data = ready(ImageFolder(str(folder(tmp_path / "set", ape=4, bee=1, cat=2, dog=1))))
    assert data.classes == ["ape", "bee", "cat", "dog"]
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 0, 0, 1, 2, 3], [0, 2])
    assert "2 classes of one image, which trains and is not tested on (bee, dog)" in capsys.readouterr().err


def test_where_every_class_has_one_image_all_train_and_none_is_tested(tmp_path):
    data = ready(ImageFolder(str(folder(tmp_path / "set", ape=1, bee=1))))
    assert (data.train.labels.tolist(), data.test) == ([0, 1], None)
    assert [len(loader.source) for loader in data.val_dataloader()] == [2]


def test_stray_pictures_train_and_are_neither_held_out_nor_evaluated(tmp_path):
    root = folder(tmp_path / "set", ape=10, bee=10)
    for i in range(10):
        Image.new("RGB", (8, 8)).save(root / f"cover{i}.png")
    data = ready(ImageFolder(str(root)))
    assert sorted(data.train.labels.tolist()) == [-1] * 10 + [0] * 9 + [1] * 9
    assert data.test.labels.tolist() == [0, 1]
    assert [len(loader.source) for loader in data.val_dataloader()] == [18, 2]


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_a_file_of_labels_is_found_in_the_current_folder_or_beside_the_images(where, tmp_path, monkeypatch, capsys):
    root = folder(tmp_path / "set", one=3, two=3)
    rows = [f"{name}/{i}.png,{10 - i}" for name in ("one", "two") for i in range(3)]
    ((root if where == "inside" else tmp_path) / "labels.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    data = ready(ImageFolder("set", labels="labels.csv", held_out=0.5))
    assert data.classes == ["8", "9", "10"]
    assert capsys.readouterr().err.endswith("left out: nothing\n")
    for part in (data.train, data.test):
        assert [data.classes[label] for label in part.labels] == [str(10 - int(name[-5])) for name in part.names]


def test_labels_and_no_labels_contradict_each_other():
    with pytest.raises(ValueError, match="labelled is false, and labels names x.csv: leave one of the two out"):
        ImageFolder("anywhere", labelled=False, labels="x.csv")


def test_labelled_is_one_of_three_words():
    with pytest.raises(ValueError, match="labelled is auto, true or false, not maybe"):
        ImageFolder("anywhere", labelled="maybe")


def test_a_root_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    folder(tmp_path / "set", ape=2, bee=2)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ready(ImageFolder("~/set")).classes == ["ape", "bee"]


def test_labels_are_long_integers_whatever_they_were(tmp_path):
    assert arrays(tmp_path, np.array([1, 0], np.uint8)).train.labels.dtype == torch.long


@pytest.mark.parametrize(("word", "classes"), [("auto", ["bad", "good"]), ("true", ["one", "two"]), ("false", [])])
def test_the_command_line_says_whether_folders_are_classes(word, classes, tmp_path):
    for place in ("one/good", "one/bad", "two/good", "two/bad"):
        folder(tmp_path / "set" / place.split("/")[0], **{place.split("/")[1]: 2})
    options = ["--data", "ImageFolder", "--data.root", str(tmp_path / "set"), "--data.labelled", word]
    assert ready(chosen_images(options)).classes == classes


def test_a_run_and_an_evaluation_measure_the_images_that_have_a_label(tmp_path):
    labels = np.where(np.arange(40) % 5 == 0, -1, np.arange(40) % 2)
    data = arrays(tmp_path, labels, np.arange(10) % 3)
    recorded = Evaluation(protocols=["knn", "health"])
    trainer(tmp_path, recorded).validate(simclr(), data, verbose=False)
    assert recorded.latest.keys() == {"knn_instdisc", "knn_dino", "health/feature_std", "health/rankme",
                                      "health/uniformity"}
    found = suite.evaluate({"it": NarrowResNet(4, 2)}, data, tmp_path / "out", protocols=["knn"])
    assert found.columns["it"].about["images"] == {"training": 32, "test": 7}
    assert all(line in (tmp_path / "out" / "report.md").read_text() for line in data.summary.splitlines())
    views, _ = suite.Source(data, data.val_dataloader(), tmp_path, half=False).batches(None)
    assert (views.source.labels >= 0).all()


# torchvision's sets

class Samples:
    """Kept as GTSRB and Imagenette keep theirs."""

    def __init__(self, root, split="train"):
        self._samples = [("a.png", 1), ("b.png", 0)] if split == "train" else [("c.png", 1), ("d.png", None)]

    def __len__(self):
        return len(self._samples)


class Attributes(Samples):
    """Kept as CelebA keeps its."""

    def __init__(self, root, split="train"):
        super().__init__(root, split)
        del self._samples
        self.attr = torch.tensor([[1, 0, 1], [0, 1, 1]])

    def __len__(self):
        return 2


@pytest.mark.parametrize(("kind", "train", "test", "said"), [
    (Samples, [1, 0], [1], "left out: 1 test image without a label"),
    (Attributes, [-1, -1], None, "labels to train on [2, 3] give an image several classes"),
])
def test_sets_with_samples_have_labels_and_those_with_attributes_train_without(kind, train, test, said, monkeypatch,
                                                                                capsys):
    monkeypatch.setattr(torchvision.datasets, kind.__name__, kind, raising=False)
    data = TorchvisionImages(kind.__name__)
    data.read()
    assert data.train.labels.tolist() == train
    assert (data.test and data.test.labels.tolist()) == test
    assert said in capsys.readouterr().err
