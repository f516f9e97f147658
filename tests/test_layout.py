"""Folders as people have them: which images train, which test, what the classes are, and what is left out."""

import os
from collections import Counter

import pytest

from ssl_zoo.data.labels import Row, read_rows
from ssl_zoo.data.layout import split_name, understand

SUFFIXES = {".jpg", ".png"}


@pytest.fixture
def tree(tmp_path):
    """Empty files by a list of paths; `cat/3` stands for three images in cat, and a path with a suffix for itself."""
    root = tmp_path / "set"

    def grow(paths):
        for path in paths.split():
            folder, _, count = path.rpartition("/")
            names = [f"{i}.jpg" for i in range(int(count))] if count.isdigit() else [count]
            for name in names:
                (root / folder).mkdir(parents=True, exist_ok=True)
                (root / folder / name).touch()
        return root
    return grow


def read(root, *args, **options):
    """How many images of each class train and test, the name of the test part, and all that was said."""
    found = understand(root, SUFFIXES, *args, **options)
    test = None if found.test is None else dict(Counter(found.test.classes))
    return dict(Counter(found.train.classes)), test, found.test_name, found.notes, found.left_out


def parts(root, *args, **options):
    return read(root, *args, **options)[:2]


# Parts

@pytest.mark.parametrize(("train", "test"), [
    ("train", "val"), ("train", "valid"), ("train", "validation"), ("train", "test"), ("Train", "Test"),
    ("TRAIN", "VAL"), ("training", "validation"), ("Training", "Testing"), ("train2017", "val2017"), ("train", "dev"),
    ("train_images", "test_images"), ("trainset", "testset"), ("Train-Set", "Valid-Set"), ("trainval", "test"),
    ("ILSVRC2012_img_train", "ILSVRC2012_img_val"), ("cifar10_train", "cifar10_test"), ("images_train", "images_val"),
    ("train", "holdout"), ("trn", "tst"), ("TrainImages", "EvalImages"),
])
@pytest.mark.parametrize("beside", ["", "docs/2", "masks/3 readme.png"])
def test_parts_are_found_by_any_usual_name_in_any_case_and_whatever_stands_beside_them(train, test, beside, tree):
    root = tree(f"{train}/cat/3 {train}/dog/2 {test}/cat/1 {test}/dog/2 {beside}")
    assert parts(root) == ({"cat": 3, "dog": 2}, {"cat": 1, "dog": 2})


@pytest.mark.parametrize("name", ["trainer", "latest", "valley", "contest", "training dogs", "bus", "evals",
                                  "train test", "attestation", "2017"])
def test_names_that_only_look_like_a_parts_are_no_parts(name):
    word, rest = split_name(name)
    assert not word or rest


def test_what_stands_beside_the_parts_is_left_out_by_name_with_its_count(tree):
    root = tree("train/cat/3 train/dog/2 val/cat/1 test/dog/4 docs/2 masks/cat/5 cover.jpg more.jpg notes.txt")
    train, test, name, _, left_out = read(root)
    assert (train, test, name) == ({"cat": 3, "dog": 2}, {"cat": 1}, "val")
    assert left_out == ["docs (2 images)", "masks (5 images)", "2 images beside test and train and val",
                        "test (4 images, as val is the test part)", "files of other kinds: 1 .txt"]


@pytest.mark.parametrize(("paths", "train"), [
    ("train/3 val/2", {None: 3}),                                # the report: two classes, train and val
    ("Train/3 Test/2", {None: 3}),
    ("train2017/3 val2017/2 annotations/a.json", {None: 3}),
    ("images/train/3 images/val/2 labels/train/a.txt labels/val/a.txt", {None: 3}),
    ("images/3 test/2", {None: 3}),
    ("train/3 unlabeled/2", {None: 3}),
    ("train/3 docs/2", {None: 3}),
    ("train/cat/3 train/dog/2 other/4", {"cat": 3, "dog": 2}),
    ("cat/train/3 cat/test/2 dog/train/4 dog/test/1", {"cat": 3, "dog": 4}),
    ("cats_train/3 cats_test/2 dogs_train/4 dogs_test/1", {"cats": 3, "dogs": 4}),
    ("bottle/train/good/3 bottle/test/broken/2 bottle/ground_truth/broken/2 nut/train/good/4 nut/test/bent/1",
     {"bottle": 3, "nut": 4}),
])
def test_a_split_never_becomes_two_classes(paths, train, tree):
    assert parts(tree(paths))[0] == train


def test_parts_inside_each_class_test_the_same_classes(tree):
    root = tree("cat/Train/3 cat/val/2 dog/train/4 dog/Val/1")
    assert parts(root) == ({"cat": 3, "dog": 4}, {"cat": 2, "dog": 1})


@pytest.mark.parametrize(("paths", "classes", "said"), [
    ("bus/2 car/3 train/2", {"bus": 2, "car": 3, "train": 2}, "train"),
    ("control/3 test/2", {"control": 3, "test": 2}, "test"),
    ("valid/2 invalid/3", {"valid": 2, "invalid": 3}, "valid"),
])
def test_a_class_may_have_the_name_of_a_part_and_it_is_said(paths, classes, said, tree):
    train, test, _, notes, _ = read(tree(paths))
    assert (train, test) == (classes, None)
    assert notes == [f"{said} counts as a class, like the folders beside it"]


def test_class_folders_beside_a_test_part_are_the_training_part(tree):
    assert parts(tree("cat/3 dog/4 test/cat/1 test/dog/2 docs/3")) == ({"cat": 3, "dog": 4}, {"cat": 1, "dog": 2})


@pytest.mark.parametrize(("paths", "sentence"), [
    ("val/2 test/3", "set has parts to test on, test and val, and none to train on: give one of them as --data.root"),
    ("train2014/2 train2017/2 val2017/3", "set has 2 parts to train on, train2014 and train2017: give one of them"),
    ("train/cat/2 Train/cat/2", "set has 2 parts to train on, Train and train"),
])
def test_parts_to_choose_from_are_refused_by_name(paths, sentence, tree):
    with pytest.raises(ValueError, match=sentence):
        read(tree(paths))


def test_the_first_part_with_classes_is_tested_on(tree):
    train, test, name, _, left_out = read(tree("train/cat/2 train/dog/2 val/5 test/cat/3"))
    assert (test, name, left_out) == ({"cat": 3}, "test", ["val (5 images, without labels)"])


def test_parts_with_different_classes_are_tested_where_they_meet(tree):
    train, test, _, _, left_out = read(tree("train/cat/2 train/dog/3 val/cat/2 val/eel/3 val/fox/1 val/x.jpg"))
    assert (train, test) == ({"cat": 2, "dog": 3}, {"cat": 2})
    assert left_out == ["1 image of val without a class",
                        "4 images of val, of classes that the training part does not have (eel, fox)"]


def test_a_test_part_of_other_classes_alone_leaves_the_training_part_to_be_held_out_from(tree):
    train, test, _, _, left_out = read(tree("train/cat/2 train/dog/3 test/eel/2 test/fox/2"))
    assert (train, test) == ({"cat": 2, "dog": 3}, None)
    assert left_out == ["test (4 images, of classes that the training part does not have: eel, fox)"]


def test_tiny_imagenets_validation_part_is_named_as_left_out(tree):
    train, test, _, notes, left_out = read(tree("train/n01440764/images/3 train/n01443537/images/3 val/images/4"))
    assert (train, test) == ({"n01440764": 3, "n01443537": 3}, None)
    assert left_out == ["val (4 images, of classes that the training part does not have: images)"]
    assert notes == ["folders inside a class folder (images) belong to that class"]


# Levels

@pytest.mark.parametrize(("paths", "inside"), [
    ("dataset/cat/3 dataset/dog/2", "dataset"),
    ("a/b/c/cat/3 a/b/c/dog/2", "a/b/c"),
    ("images/cat/3 images/dog/2 masks/cat/3 masks/dog/2", "images"),
    ("cat/3 dog/2", ""),
])
def test_classes_one_level_too_deep_are_found_and_where_is_said(paths, inside, tree):
    root = tree(paths)
    assert parts(root) == ({"cat": 3, "dog": 2}, None)
    assert understand(root, SUFFIXES).root == root / inside


def test_parts_one_level_too_deep_and_classes_deeper_than_parts_are_found(tree):
    root = tree("set/train/images/cat/3 set/train/images/dog/2 set/val/images/cat/1 set/val/images/dog/2")
    assert parts(root) == ({"cat": 3, "dog": 2}, {"cat": 1, "dog": 2})


def test_a_segmentation_sets_masks_are_no_images_of_it(tree):
    train, test, _, _, left_out = read(tree("JPEGImages/4 SegmentationClass/3 SegmentationObject/2 Annotations/a.xml"))
    assert (train, test) == ({None: 4}, None)
    assert left_out[:2] == ["SegmentationClass (3 images)", "SegmentationObject (2 images)"]


@pytest.mark.parametrize("paths", [
    "p1/benign/3 p1/malignant/2 p2/benign/1 p3/malignant/4",                  # patient
    "8863/0/3 8863/1/2 8864/0/1 8864/1/1 8865/1/3",                           # patient, and classes that are numbers
    "photo/dog/3 photo/cat/2 sketch/dog/1 sketch/cat/2",                      # style
    "2021-01-01/fox/3 2021-01-01/deer/2 2021-01-02/fox/2 2021-01-02/deer/1",  # date
    "train/north/fox/1 train/north/deer/2 train/south/fox/2 train/south/deer/1 val/north/fox/3 val/north/deer/2",
])
def test_classes_that_repeat_in_every_folder_of_the_first_level_are_the_classes_and_it_is_said(paths, tree):
    train, test, _, (note,), _ = read(tree(paths))
    assert set(train) in ({"benign", "malignant"}, {"0", "1"}, {"dog", "cat"}, {"fox", "deer"})
    assert "the classes are the folders of the second level, which repeat in those of the first (" in note
    assert note.endswith("labelled: true takes the first")
    assert test is None or test == {"fox": 3, "deer": 2}
    assert set(parts(tree(paths), labelled=True)[0]) != set(train)


@pytest.mark.parametrize(("paths", "classes"), [
    ("north/2021-01/3 north/2021-02/2 south/2021-01/4 south/2021-02/1", {"north": 5, "south": 5}),   # site/date
    ("dance/v01/2 dance/v02/2 run/v01/1 run/v02/2 run/v03/1", {"dance": 4, "run": 4}),               # class/video
    ("animal/dog/3 animal/cat/2 vehicle/bus/1 vehicle/car/3", {"animal": 5, "vehicle": 4}),          # kinds of kinds
    ("cat/images/3 cat/masks/3 dog/images/2 dog/masks/2", {"cat": 6, "dog": 4}),
    ("cat/brown/3 dog/2", {"cat": 3, "dog": 2}),
])
def test_folders_below_a_class_belong_to_it(paths, classes, tree):
    train, _, _, (note,), _ = read(tree(paths))
    assert train == classes
    assert note.startswith("folders inside a class folder (")


# Labels

@pytest.mark.parametrize("stray", ["x.jpg", "x.jpg y.jpg z.jpg"])
def test_pictures_beside_the_class_folders_train_without_a_class(stray, tree):
    assert parts(tree(f"cat/3 dog/2 {stray}"))[0] == {"cat": 3, "dog": 2, None: stray.count("jpg")}


@pytest.mark.parametrize("paths", ["3", "only/3", "x.jpg only/2", "a/3", "cat/1 cat/deep/2"])
def test_without_two_folders_there_are_no_classes(paths, tree):
    assert list(parts(tree(paths))[0]) == [None]
    with pytest.raises(ValueError, match="labelled is true, and .*set.* has no two folders of images to be its c"):
        read(tree(paths), labelled=True)


def test_labelled_false_takes_no_folder_for_a_class_and_says_nothing_of_them(tree):
    train, test, _, notes, left_out = read(tree("train/cat/3 train/dog/2 val/cat/1"), labelled=False)
    assert (train, test, notes, left_out) == ({None: 5}, None, [], ["val (1 image, without labels)"])


def test_labelled_true_takes_folders_that_are_no_classes_elsewhere(tree):
    assert parts(tree("images/3 masks/2")) == ({None: 3}, None)
    assert parts(tree("images/3 masks/2"), labelled=True) == ({"images": 3, "masks": 2}, None)


def rows(*pairs):
    return [Row(*pair.split("=")) for pair in pairs]


def test_a_file_of_labels_decides_in_place_of_the_folders(tree):
    root = tree("site1/0.jpg site1/1.jpg site2/2.jpg site2/3.jpg")
    train, _, _, notes, left_out = read(root, labels=rows("site1/0.jpg=fox", "site2/2.jpg=deer", "site9/7.jpg=fox"))
    assert (train, notes) == ({"fox": 1, "deer": 1, None: 2}, [])
    assert left_out == ["1 row of labels for images that are not there (site9/7.jpg)"]


@pytest.mark.parametrize("name", ["a/b/0.jpg", "./a/b/0.jpg", "b/0.jpg", "0.jpg", "0", "a/b/0", "a\\b\\0.jpg",
                                  "/data/set/a/b/0.jpg"])
def test_a_row_names_its_image_by_any_end_of_its_path_or_from_a_folder_further_out(name, tree):
    assert parts(tree("a/b/0.jpg a/b/1.jpg x.jpg"), labels=rows(f"{name}=fox"))[0] == {"fox": 1, None: 2}


@pytest.mark.parametrize(("given", "sentence"), [
    (["0.jpg=fox"], "names 0.jpg, which may be a/0.jpg or b/0.jpg: write its whole path"),
    (["a/0.jpg=fox", "a/0.jpg=deer"], "gives a/0.jpg two classes, fox and deer, and an image has one"),
    (["c/0.jpg=fox", "z=deer"], "no line .* names an image that is there: the first names c/0.jpg, and there is a/0.j"),
])
def test_rows_that_cannot_be_followed_are_refused_with_what_they_say(given, sentence, tree):
    with pytest.raises(ValueError, match=sentence):
        read(tree("a/0.jpg b/0.jpg"), labels=rows(*given))


def test_a_file_of_labels_labels_both_parts(tree):
    labels = rows("train/0.jpg=fox", "train/1.jpg=deer", "val/0.jpg=fox", "val/1.jpg=elk")
    train, test, name, _, left_out = read(tree("train/3 val/3"), labels=labels)
    assert (train, test, name) == ({"fox": 1, "deer": 1, None: 1}, {"fox": 1}, "val")
    assert left_out == ["1 image of val without a class",
                        "1 image of val, of classes that the training part does not have (elk)"]


def test_a_column_of_a_file_of_labels_names_the_parts_in_place_of_the_folders(tree, tmp_path):
    root = tree("train/0.jpg train/1.jpg train/2.jpg val/3.jpg val/4.jpg val/5.jpg")
    (tmp_path / "labels.csv").write_text("file,label,split\n0,fox,Train\n1,deer,training\n2,fox,test\n3,deer,train\n"
                                         "4,fox,\n5,,train\n")
    train, test, name, _, left_out = read(root, labels=read_rows(tmp_path / "labels.csv"))
    assert (train, test, name) == ({"fox": 1, "deer": 2, None: 1}, {"fox": 1}, "test")
    assert left_out == ["1 image to which the labels give no part"]


def test_a_column_that_names_no_parts_is_said_to_be_of_no_use_and_test_parts_alone_are_refused(tree):
    root = tree("0.jpg 1.jpg")
    train, _, _, notes, _ = read(root, labels=[Row("0", "fox", "fold1"), Row("1", "deer", "fold2")])
    assert train == {"fox": 1, "deer": 1}
    assert notes == ["the labels' column of parts is not used, as fold1, fold2 name none"]
    with pytest.raises(ValueError, match="the file of labels has images of test, val and none of train: call the part"):
        read(root, labels=[Row("0", "fox", "val"), Row("1", "deer", "test")])


@pytest.mark.parametrize("text", [
    "path,label\na.jpg,fox\nb.jpg,deer\n", "a.jpg,fox\nb.jpg,deer",
    "\ufefflabel;image;weight\nfox;a.jpg;3\ndeer;b.jpg;4\n",
    "a.jpg\tfox\t0\t0\nb.jpg\tdeer\t1\t1\n", "a.jpg fox\n\nb.jpg deer\n", "id,breed\na.jpg,fox\nb.jpg,deer\nc.jpg,\n",
    "filename,what\na.jpg,fox\nb.jpg,deer\n", '"path","label"\n"a.jpg","fox"\n"b.jpg","deer"\n',
])
def test_files_of_labels_are_read_as_people_write_them(text, tmp_path):
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    assert read_rows(tmp_path / "labels.csv") == rows("a.jpg=fox", "b.jpg=deer")


@pytest.mark.parametrize(("content", "sentence"), [
    (b"", "labels.csv is empty: write a line for each image"),
    (b"a.jpg,\xfcx\n", "labels.csv is not text in UTF-8"),
    (b"image,MEL,NV\na.jpg,0,1\n", "has the columns image, mel, nv, of which none is called label: rename the one"),
    (b"label,x,y\n0,1,2\n", "has the columns label, x, y, of which none is called path: rename the one"),
    (b"a.jpg,fox\nb.jpg\n", r"line 2 of .*labels.csv is 'b.jpg': it needs a path and a label"),
])
def test_files_that_hold_no_labels_are_refused_with_the_way_out(content, sentence, tmp_path):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_rows(tmp_path / "labels.csv")


def test_a_file_of_labels_that_is_not_there_is_refused_with_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no file of labels at {tmp_path}/labels.csv; give another --dat"):
        read_rows(tmp_path / "labels.csv")


# Files and links

def test_hidden_and_system_folders_and_files_are_no_classes_and_no_images(tree):
    root = tree("cat/3 dog/2 .ipynb_checkpoints/2 cat/.ipynb_checkpoints/0.jpg __MACOSX/cat/3 cat/._0.jpg .x.jpg "
                "@eaDir/1 Thumbs.db .DS_Store cat/notes.txt dog/scan.heic dog/b.heic LICENSE")
    train, _, _, notes, left_out = read(root)
    assert (train, notes) == ({"cat": 3, "dog": 2}, [])
    hidden, others = left_out
    assert hidden.startswith("hidden or of the system: ")
    assert hidden.endswith(" and 3 more")                                     # six of them with an image's name
    assert others == "files of other kinds: 2 .heic, 1 .txt, 1 LICENSE"


def test_folders_without_an_image_are_named_the_outermost_alone(tree):
    root = tree("train/cat/2 train/dog/2 val/cat/1 labels/train/a.txt labels/val/b.txt runs/version_0/config.yaml")
    for name in ("train/eel", "val/dog/deep"):
        (root / name).mkdir(parents=True)
    train, test, _, _, left_out = read(root)
    assert (train, test) == ({"cat": 2, "dog": 2}, {"cat": 1})
    assert left_out == ["pictures of runs: runs/version_0", "folders without images: labels, train/eel, val/dog",
                        "files of other kinds: 2 .txt"]


def test_a_root_may_be_hidden_itself(tree):
    root = tree("cat/3 dog/2")
    root = root.rename(root.parent / ".cache")
    assert parts(root)[0] == {"cat": 3, "dog": 2}


def test_pictures_of_runs_started_in_the_folder_are_none_of_its_images(tree):
    root = tree("3 runs/folder/simclr/version_0/views.png runs/folder/simclr/version_0/config.yaml "
                "evaluation/version_12/map.png evaluation/version_12/report.json albums/version_2/1")
    train, _, _, _, left_out = read(root)
    assert train == {None: 4}                                                 # version_2 is the user's
    assert left_out == ["pictures of runs: evaluation/version_12, runs/folder/simclr/version_0"]


def test_links_to_folders_are_followed_once_and_loops_end(tree, tmp_path):
    root = tree("real/cat/2")
    (tmp_path / "store" / "dogs").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "store" / "dogs" / f"{i}.jpg").touch()
    (root / "real" / "dog").symlink_to(tmp_path / "store" / "dogs")
    (root / "real" / "ape").symlink_to(root / "real" / "cat")                 # sorted before the folder itself
    (root / "real" / "cat" / "loop").symlink_to(root)
    (root / "real" / "lost").symlink_to(tmp_path / "gone")
    (root / "real" / "cat" / "z.jpg").symlink_to(tmp_path / "store" / "dogs" / "0.jpg")
    train, _, _, _, left_out = read(root)
    assert train == {"cat": 3, "dog": 3}
    assert left_out == ["links to folders that count elsewhere: real/ape, real/cat/loop",
                        "links that lead nowhere: real/lost"]


def test_an_image_that_links_bring_into_both_parts_is_said(tree):
    root = tree("all/3 train/cat/1 train/dog/1 val/cat/1 val/dog/1")
    for i, places in enumerate((["train/cat/a.jpg", "val/cat/b.jpg"], ["train/dog/a.jpg"], ["val/dog/b.jpg"])):
        for place in places:
            (root / place).symlink_to(root / "all" / f"{i}.jpg")
    train, test, _, notes, left_out = read(root)
    assert (train, test) == ({"cat": 2, "dog": 2}, {"cat": 2, "dog": 2})
    assert (notes, left_out) == (["1 image in both parts, by links"], ["all (3 images)"])


def test_a_root_may_be_a_link(tree, tmp_path):
    (tmp_path / "link").symlink_to(tree("cat/3 dog/2"))
    assert parts(tmp_path / "link")[0] == {"cat": 3, "dog": 2}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every folder")
def test_a_folder_that_may_not_be_opened_is_named(tree):
    root = tree("cat/3 dog/2 eel/2")
    (root / "eel").chmod(0)
    try:
        train, _, _, _, left_out = read(root)
    finally:
        (root / "eel").chmod(0o700)
    assert train == {"cat": 3, "dog": 2}
    assert left_out == ["folders that may not be opened: eel"]


def test_images_come_in_the_order_of_their_paths(tree):
    root = tree("b/2.jpg b/10.jpg a-b/1.jpg a/1.jpg a/B.png c.jpg")
    found = understand(root, SUFFIXES, labelled=False)
    assert found.train.paths == sorted(found.train.paths)


@pytest.mark.parametrize("paths", ["a.txt", "cat/a.txt dog/b.txt .x.jpg"])
def test_a_folder_without_images_is_refused_with_what_is_there(paths, tree):
    with pytest.raises(ValueError, match=r"no images in .*set: looked for \.jpg, \.png in it and below; .*files of"):
        read(tree(paths))
