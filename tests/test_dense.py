"""The dense probe: IoU by hand, a convex problem solved, and a data set in VOC's layout."""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torchmetrics.classification import MulticlassJaccardIndex

from ssl_zoo.data import read_segmentation
from ssl_zoo.data.segmentation import described, splits
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation.dense import (
    channel_statistics,
    confusion,
    dense_linear,
    encode_maps,
    mean_iou,
    pixel_logits,
    train_dense_head,
)
from tests.conftest import same, state


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole_numbers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def holed(masks, share=0.2, seed=5):
    """The masks with this share of pixels to ignore."""
    holes = torch.rand(masks.shape, generator=torch.Generator().manual_seed(seed)) < share
    return masks.masked_fill(holes, 255)


def one_hot(masks, classes):
    return F.one_hot(masks.masked_fill(masks == 255, 0), classes).movedim(-1, 1).float()


# Confusion and IoU

def test_confusion_and_iou_are_those_worked_out_by_hand():
    truth = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]])
    predicted = torch.tensor([[0, 0, 1, 1], [1, 2, 0, 3]])
    counts = confusion(predicted, truth, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    iou = mean_iou(counts)
    assert iou.classes[:3].tolist() == pytest.approx([2 / 3, 2 / 4, 0])      # 2 is predicted and nowhere true
    assert math.isnan(iou.classes[3])                                         # 3 is neither: no part of the mean
    assert iou.mean == pytest.approx((2 / 3 + 1 / 2) / 3)


def test_a_class_that_is_true_and_never_predicted_counts_nothing():
    assert mean_iou(confusion(torch.zeros(4).long(), torch.tensor([0, 0, 0, 1]), 2)).mean == pytest.approx(0.75 / 2)


def test_confusions_of_batches_add_up():
    truth, predicted = holed(whole_numbers(5, 7, 6, 4)), whole_numbers(5, 7, 6, 4, seed=1)
    parts = [confusion(p, t, 5) for p, t in zip(predicted.split(2), truth.split(2), strict=True)]
    assert torch.equal(sum(parts), confusion(predicted, truth, 5))
    assert sum(parts).sum() == (truth != 255).sum()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("classes", [2, 5, 12, 250])                          # 250 * 250 is beyond uint8
def test_mean_iou_is_torchmetrics_jaccard_index(classes, dtype):
    occurring = max(2, classes // 2)                                          # the others are absent from the truth
    truth, predicted = holed(whole_numbers(occurring, 3, 20, 20)), whole_numbers(classes - 1, 3, 20, 20, seed=1)
    for average in ("macro", "none"):
        reference = MulticlassJaccardIndex(classes, average=average, ignore_index=255)(predicted, truth)
        iou = mean_iou(confusion(predicted.to(dtype), truth.to(dtype), classes))
        ours = torch.tensor(iou.mean) if average == "macro" else iou.classes.nan_to_num(0)
        assert torch.allclose(ours.float(), reference, atol=1e-6)


def test_iou_of_ignored_pixels_alone_is_not_a_number():
    assert math.isnan(mean_iou(confusion(torch.zeros(3).long(), torch.full((3,), 255), 2)).mean)


@pytest.mark.parametrize(("predicted", "truth"), [([3], [0]), ([0], [3]), ([-1], [0])])
def test_a_class_out_of_range_is_refused_and_not_counted_elsewhere(predicted, truth):
    with pytest.raises(ValueError, match="3 classes are 0 to 2"):
        confusion(torch.tensor(predicted), torch.tensor(truth), 3)


# The probe

def test_maps_that_are_the_masks_give_an_iou_of_one():
    masks = holed(whole_numbers(4, 12, 9, 7))
    iou = dense_linear(one_hot(masks, 4), masks, one_hot(masks, 4), masks, 4, batch=2)
    assert iou.mean == 1
    assert iou.classes.tolist() == [1] * 4


def test_coarse_maps_of_coarse_masks_are_enlarged_where_they_belong():
    coarse = torch.zeros(6, 4, 8).long()
    for i in range(6):
        coarse[i, :, i + 1:] = 1                                              # an edge that wanders from image to image
    masks = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert dense_linear(one_hot(coarse, 2), masks, one_hot(coarse, 2), masks, 2, batch=2).mean > 0.99
    wrong = masks.roll(8, 2)                                                  # a cell to the right
    assert dense_linear(one_hot(coarse, 2), masks, one_hot(coarse, 2), wrong, 2, batch=2).mean < 0.9


def test_maps_of_noise_give_chance():
    classes = 4
    masks, tested = whole_numbers(classes, 32, 8, 8), whole_numbers(classes, 32, 8, 8, seed=1)
    iou = dense_linear(normal(32, 5, 8, 8), masks, normal(32, 5, 8, 8, seed=1), tested, classes)
    by_chance = 1 / (2 * classes - 1)                                         # truth and prediction even and unrelated
    assert iou.mean < by_chance + 0.02


def test_the_head_solves_the_convex_problem():
    x, masks = normal(8, 3, 6, 6), whole_numbers(3, 8, 6, 6)
    x[:, 0] += masks                                                          # they overlap: there is a best head
    masks = holed(masks)
    head = train_dense_head(x, masks, 3, epochs=300, batch=8, lr=0.05, seed=0)
    rows, labels = x.movedim(1, -1)[masks != 255], masks[masks != 255]
    best = LogisticRegression(C=np.inf, tol=1e-8).fit(rows.numpy(), labels.numpy())
    ours = pixel_logits(head, x, masks).softmax(1).movedim(1, -1)[masks != 255].detach()
    assert torch.allclose(ours, torch.from_numpy(best.predict_proba(rows.numpy())).float(), atol=1e-3)


def task(seed=0):
    """Maps [8, 6, 4, 5] that say something about masks [8, 12, 15] and not everything."""
    coarse = whole_numbers(3, 8, 4, 5, seed=seed)
    maps = normal(8, 6, 4, 5, seed=seed) + 2 * F.pad(one_hot(coarse, 3), (0, 0, 0, 0, 0, 3))
    return maps, holed(coarse.repeat_interleave(3, 1).repeat_interleave(3, 2))


def trained(maps, masks, **changes):
    head = train_dense_head(maps, masks, 3, **{"epochs": 3, "batch": 3, "lr": 0.05, "seed": 0} | changes)
    return pixel_logits(head, maps, masks)


def test_the_scale_and_shift_of_a_channel_do_not_matter():
    maps, masks = task()
    scale, shift = torch.tensor([1e-4, 0.1, 1, 7, 1e3, 1e5])[:, None, None], normal(6, 1, 1)
    assert torch.allclose(trained(maps, masks), trained(scale * (maps + shift), masks), atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_channel_changes_nothing(value):
    maps, masks = task()
    more = torch.cat([maps, torch.full((8, 1, 4, 5), value)], 1)
    assert torch.allclose(trained(maps, masks), trained(more, masks), atol=1e-6)


def test_statistics_are_those_of_all_cells():
    maps = 3 + normal(70, 4, 3, 5)                                            # more than two pieces
    mean, std = channel_statistics(maps)
    assert torch.allclose(mean, maps.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(std, maps.std((0, 2, 3), correction=0), atol=1e-6)


def test_an_image_without_known_pixels_teaches_nothing():
    maps, masks = task()
    other = torch.cat([maps[:1].flip(-1), maps[1:]])                          # the same statistics
    assert not torch.allclose(trained(maps, masks), trained(other, masks), atol=1e-3)
    masks[0] = 255
    for batch in (1, 3):                                                      # alone in its batch, and in company
        assert torch.allclose(trained(maps, masks, batch=batch)[1:], trained(other, masks, batch=batch)[1:], atol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_another_order():
    maps, masks = task()
    assert torch.equal(trained(maps, masks), trained(maps, masks))
    assert not torch.equal(trained(maps, masks), trained(maps, masks, seed=1))


def test_the_probe_leaves_the_random_numbers_and_its_inputs_alone():
    maps, masks = task()
    before = torch.get_rng_state(), random.getstate()
    kept = maps.clone(), masks.clone()
    dense_linear(maps, masks, maps, masks, 3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert same(kept, (maps, masks))
    assert not maps.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_probe_learns_the_same_wherever_it_is_called(mode):
    maps, masks = task()
    expected = dense_linear(maps, masks, maps, masks, 3)
    with mode():
        got = dense_linear(maps.clone(), masks.clone(), maps, masks, 3)
    assert torch.equal(expected.classes, got.classes)
    assert expected.mean == got.mean > 0.4


def test_half_precision_maps_are_read_as_float32():
    maps, masks = task()
    maps = maps.half()
    assert torch.equal(trained(maps, masks), trained(maps.float(), masks))


@pytest.mark.parametrize(("maps", "masks", "message"), [
    (normal(2, 3, 4), torch.zeros(2, 4, 4).byte(), r"maps \[N, D, h, w\]"),
    (normal(2, 3, 4, 4), torch.zeros(3, 4, 4).byte(), "one mask for each map"),
    (normal(2, 3, 4, 4), torch.full((2, 4, 4), 255), "no pixel of the masks has a class"),
    (normal(2, 3, 4, 4), torch.full((2, 4, 4), 3), "3 classes are 0 to 2"),
    (normal(2, 3, 4, 4), torch.full((2, 4, 4), -1), "3 classes are 0 to 2"),
])
def test_maps_and_masks_that_do_not_fit_are_refused(maps, masks, message):
    good = normal(2, 3, 4, 4), torch.zeros(2, 4, 4).byte()
    for parts in ((maps, masks, *good), (*good, maps, masks)):
        with pytest.raises(ValueError, match=message):
            dense_linear(*parts, 3)


# Maps of an encoder

def test_maps_are_the_encoders_in_evaluation_mode_and_leave_it_as_it_was():
    encoder = NarrowResNet(4, 2)
    encoder.backbone.layer1.eval()                                            # a mixed state, which must come back
    images = whole_numbers(256, 5, 3, 24, 16).byte()
    before, modes = state(encoder), [module.training for module in encoder.modules()]
    with torch.autocast("cpu", torch.bfloat16):
        maps = encode_maps(encoder, images, batch=2)
    assert same(before, state(encoder))
    assert modes == [module.training for module in encoder.modules()]
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    with torch.no_grad():
        assert torch.allclose(maps, encoder.eval().maps(images), atol=1e-6)   # [5, 8, 6, 4]
    assert maps.shape == (5, 8, 6, 4)


# A folder in VOC's layout

def write_voc(root, masks, classes="0 sky\n1 road\n255 void\n", images=None, mode="P"):
    """Images whose red says which one they are, and palette masks whose colours are not their numbers."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, mask in masks.items():
        mask = np.asarray(mask, np.uint8)
        image = np.zeros((*mask.shape, 3), np.uint8) if images is None else images[name]
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        picture = Image.fromarray(mask)
        if mode == "P":
            picture.putpalette([value for i in range(256) for value in (255 - i, 7, i // 2)])
        picture.save(root / "SegmentationClass" / f"{name}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(masks) + "\n")
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    return root


MASKS = {"b": [[0, 1, 255], [1, 1, 0]], "a": [[0, 0, 0], [1, 255, 1]]}


@pytest.mark.parametrize(("listed", "test"), [(None, "val"), ("a\n", "test"), ("2008_000006\n", "val")])
def test_the_test_part_is_that_whose_masks_are_there(tmp_path, listed, test):
    """Pascal VOC lists a test part whose masks it keeps to itself."""
    root = write_voc(tmp_path / "voc", MASKS)
    if listed:
        (root / "ImageSets/Segmentation/test.txt").write_text(listed)
    assert splits(root) == ("train", test)


@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_folder_in_vocs_layout_is_read_in_the_order_of_its_list(tmp_path, mode):
    images = {name: np.full((2, 3, 3), (red, 0, 0), np.uint8) for name, red in (("b", 200), ("a", 100))}
    part = read_segmentation(write_voc(tmp_path / "voc", MASKS, images=images, mode=mode), "train")
    assert part.masks.tolist() == list(MASKS.values())
    assert part.masks.dtype == part.images.dtype == torch.uint8
    assert part.images.shape == (2, 3, 2, 3)
    assert part.images[:, 0, 0, 0].tolist() == pytest.approx([200, 100], abs=3)
    assert part.classes == ["sky", "road"]


def test_images_are_resized_with_antialias_and_masks_to_the_nearest_pixel(tmp_path):
    stripes = np.zeros((40, 60), np.uint8)
    stripes[:, ::2] = 1
    stripes[:, :30] = 255
    image = np.where(np.arange(60)[None, :, None] % 2, 255, 0) * np.ones((40, 1, 3))
    root = write_voc(tmp_path / "voc", {"a": stripes, "b": np.ones((20, 30))},
                     images={"a": image.astype(np.uint8), "b": np.zeros((20, 30, 3), np.uint8)})
    part = read_segmentation(root, "train", size=(10, 15))
    assert part.images.shape == (2, 3, 10, 15)
    assert part.masks.shape == (2, 10, 15)
    assert (part.images[0].float() - 127).abs().max() < 40                   # the mean of black and white
    assert set(part.masks[0].unique().tolist()) <= {0, 1, 255}
    assert (part.masks[0, :, :7] == 255).all()
    assert (part.masks[0, :, 8:] != 255).all()


def test_without_a_list_of_classes_they_are_pascal_vocs(tmp_path):
    part = read_segmentation(write_voc(tmp_path / "voc", {"a": [[20, 15]]}, classes=None), "train")
    assert (len(part.classes), part.classes[20], part.classes[15]) == (21, "tvmonitor", "person")


@pytest.mark.parametrize(("break_it", "message"), [
    (lambda root: root.rename(root.with_name("moved")), "no folder in VOC's layout at .*voc; give the one that holds"),
    (lambda root: (root / "ImageSets/Segmentation/train.txt").rename(root / "ImageSets/Segmentation/val.txt"),
     "no list of images at .*train.txt; the lists there are: val"),
    (lambda root: (root / "ImageSets/Segmentation/train.txt").write_text("\n"), "lists no images"),
    (lambda root: (root / "SegmentationClass/a.png").unlink(), "a is listed but there is no .*a.png"),
    (lambda root: (root / "JPEGImages/a.jpg").unlink(), "a is listed but there is no .*a.jpg"),
    (lambda root: Image.new("P", (2, 3)).save(root / "SegmentationClass/a.png"),
     r"a's image has \[2, 3\] pixels and its mask \[3, 2\]"),
    (lambda root: Image.new("RGB", (3, 2)).save(root / "SegmentationClass/a.png"), "a.png is a picture of mode RGB"),
    (lambda root: Image.new("L", (3, 2), 7).save(root / "SegmentationClass/a.png"),
     "a.png has pixels of class 7, and the classes are 0 to 1"),
    (lambda root: (root / "classes.txt").write_text("sky\nroad\n"), "classes.txt does not number its classes"),
    (lambda root: (root / "classes.txt").write_text("0 sky\n2 road\n"), "classes.txt does not number its classes"),
])
def test_a_broken_folder_is_named_with_the_way_out(tmp_path, break_it, message):
    break_it(root := write_voc(tmp_path / "voc", MASKS))
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        read_segmentation(root, "train")


@pytest.mark.parametrize("lines", ["b.jpg\na.JPG\n", "b 1\na -1\n",
                                   "/JPEGImages/b.jpg /SegmentationClass/b.png\nJPEGImages/a.jpg x\n"])
def test_a_list_may_name_files_and_have_more_columns_and_images_may_have_any_suffix(lines, tmp_path):
    root = write_voc(tmp_path / "voc", MASKS)
    (root / "ImageSets/Segmentation/train.txt").write_text(lines)
    Image.open(root / "JPEGImages/a.jpg").save(root / "JPEGImages/a.PNG", "PNG")
    (root / "JPEGImages/a.jpg").unlink()
    assert read_segmentation(root, "train").masks.tolist() == list(MASKS.values())


def test_a_folder_too_high_is_searched_for_the_only_one_in_vocs_layout(tmp_path):
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", MASKS)
    assert len(read_segmentation(tmp_path, "train").masks) == 2
    write_voc(tmp_path / "VOCdevkit" / "VOC2007", MASKS)
    with pytest.raises(ValueError, match="has 2 folders in VOC's layout, such as VOC2007: give one of them"):
        read_segmentation(tmp_path, "train")


def test_what_was_understood_of_images_with_masks_is_said_in_two_lines(tmp_path):
    root = write_voc(tmp_path, MASKS | {"c": [[0, 0, 0], [0, 0, 0]], "d": [[1, 1, 1], [1, 1, 1]]})
    for split, listed in (("train", "a\nb\nc\n"), ("val", "b\n"), ("trainval", "a\nb\n")):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(listed)
    parts = [read_segmentation(root, split) for split in ("train", "val")]
    assert described(root, ("train", "val"), *parts) == (
        f"{root}: 3 images with masks, 3 to train on (train) and 1 to test on (val); 1 image in both parts; 2 classes "
        "in 2 (road) to 3 (sky) training images\nleft out: the lists trainval; 1 image in neither list")


def test_images_of_different_sizes_need_a_size(tmp_path):
    root = write_voc(tmp_path / "voc", MASKS | {"c": [[0, 1]]})
    with pytest.raises(ValueError, match=r"c has \[1, 2\] pixels and b has \[2, 3\]: give a size"):
        read_segmentation(root, "train")
    assert read_segmentation(root, "train", size=(4, 4)).masks.shape == (3, 4, 4)
