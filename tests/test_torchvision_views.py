"""torchvision's transforms and our pipeline draw from one distribution; and the habits of a draw hold for both."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as torchvision
from scipy import stats

from ssl_zoo.views import Augmentation, Canvases, Key
from ssl_zoo.views.crops import cell_centres
from ssl_zoo.views.operations import OPERATIONS, flat
from ssl_zoo.views.specs import ViewSpec
from tests.torchvision_views import Twin

KEY = Key(seed=7, epoch=3, batch=11, rank=1)
CHANCE = 1e-4                                    # a draw that is right fails with this probability; the seeds are fixed
LEVEL = 1 / 255
SPEC = ViewSpec(size=16, count=100, flip=0.4, vertical_flip=0.3, jitter=0.8, gray=0.2, blur=0.5, kernel=5, solarize=0.2)
LIVELY = {"vertical_flip": 0.5, "jitter": 0.8, "gray": 0.3, "blur": 0.5, "solarize": 0.3}


def pictures(count, rows, columns, seed=0):
    """Bytes [count, 3, rows, columns] with slow colours and finer ones on them, some of them cut off at the ends."""
    generator = torch.Generator().manual_seed(seed)
    slow, fine = (F.interpolate(torch.rand(count, 3, cells, cells, generator=generator), (rows, columns),
                                mode="bicubic") for cells in (4, 16))
    return (255 * (0.5 + 1.2 * (slow - 0.5) + 0.36 * (fine - 0.5)).clamp(0, 1)).to(torch.uint8)


def twin(*specs):
    return Twin(specs)


def same(views, others):
    return all(torch.equal(view.images, other.images) and torch.equal(view.boxes, other.boxes)
               and torch.equal(view.flipped, other.flipped) for view, other in zip(views, others, strict=True))


# One distribution

@pytest.fixture(scope="module")
def drawn():
    """10,000 views by each as images [N, 3, 16, 16], boxes [N, 4], flipped [N, 2]: ours, then theirs."""
    images = pictures(100, 40, 48)
    views = [kind([SPEC])(images, KEY) for kind in (Augmentation, Twin)]
    return [[torch.cat(column) for column in list(zip(*some, strict=True))[:3]] for some in views]


def test_both_have_the_same_mean_and_standard_deviation_of_each_channel(drawn):
    ours, theirs = (images for images, _, _ in drawn)
    # the standard error of a difference of means is 0.8 levels; bytes are cut off after each change, about one level
    assert (ours.mean((0, 2, 3)) - theirs.mean((0, 2, 3))).abs().max() < 3 * LEVEL
    assert (ours.std((2, 3)).mean(0) - theirs.std((2, 3)).mean(0)).abs().max() < 1 * LEVEL
    for channel in range(3):
        for statistic in (lambda view: view.mean((2, 3)), lambda view: view.std((2, 3))):
            assert stats.ks_2samp(statistic(ours)[:, channel], statistic(theirs)[:, channel]).pvalue > CHANCE


def test_both_have_the_same_colours(drawn):
    ours, theirs = (torch.stack([torch.histc(images[:, channel].clamp(0, 1), 16, 0, 1) for channel in range(3)])
                    for images, _, _ in drawn)
    assert ours.sum() == theirs.sum() == 3 * 10000 * 16 * 16
    assert (ours - theirs).abs().max() < 0.006 * 10000 * 16 * 16          # of all pixels; a bin has 0.06 on average
    strength, other = ((images.amax(1) - images.amin(1)).mean((1, 2)) for images, _, _ in drawn)
    assert stats.ks_2samp(strength, other).pvalue > CHANCE
    for gray in (((images.amax(1) - images.amin(1)).amax((1, 2)) < 1.5 * LEVEL for images, _, _ in drawn)):
        assert stats.binomtest(int(gray.sum()), len(gray), 0.2).pvalue > CHANCE


def test_both_have_the_same_share_of_smooth_views(drawn):
    rough, other = ((images.diff(dim=3).abs().mean((1, 2, 3)) / images.std((1, 2, 3)).clamp_min(LEVEL)
                     for images, _, _ in drawn))
    assert stats.ks_2samp(rough, other).pvalue > CHANCE


def test_both_crop_the_same_boxes(drawn):
    ours, theirs = (boxes.double() for _, boxes, _ in drawn)
    for mine, other in zip((*ours.T, *(ours[:, 2:] - ours[:, :2]).T, (ours[:, 2:] - ours[:, :2]).prod(1)),
                           (*theirs.T, *(theirs[:, 2:] - theirs[:, :2]).T, (theirs[:, 2:] - theirs[:, :2]).prod(1)),
                           strict=True):
        assert stats.ks_2samp(mine, other).pvalue > CHANCE


def test_both_flip_as_often_as_the_row_says(drawn):
    for _, _, flipped in drawn:
        for axis, rate in enumerate((0.4, 0.3)):
            assert stats.binomtest(int(flipped[:, axis].sum()), len(flipped), rate).pvalue > CHANCE


# Where a view comes from

@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_view_shows_the_places_that_its_box_and_flips_say(interpolation):
    size, shapes = 21, [(41, 200), (250, 91), (17, 23), (120, 121)]
    images = [torch.stack([torch.arange(columns).expand(rows, -1), torch.arange(rows)[:, None].expand(-1, columns),
                           torch.zeros(rows, columns)]).to(torch.uint8) for rows, columns in shapes]
    augmentation = twin(ViewSpec(size=size, count=10, vertical_flip=0.5, interpolation=interpolation))
    kinds = set()
    for view in augmentation(augmentation.cut(images, KEY), KEY):
        kinds |= {tuple(flips) for flips in view.flipped.tolist()}
        centres = cell_centres(view.boxes, view.flipped, size, size)
        for i, (rows, columns) in enumerate(shapes):
            wide, high = ((view.boxes[i, 2:] - view.boxes[i, :2]) * torch.tensor([columns, rows]) / size).tolist()
            x, y = (centres[i] * torch.tensor([columns, rows]) - 0.5).unbind(-1)      # a byte holds its pixel's index
            assert (255 * view.images[i, 0] - x).abs().max() < 0.5 * max(1, wide) + 1
            assert (255 * view.images[i, 1] - y).abs().max() < 0.5 * max(1, high) + 1
    assert len(kinds) == 4


def test_a_clean_view_is_torchvision_s_resize_of_the_square_in_the_middle_by_both():
    images, spec = pictures(3, 40, 61), ViewSpec(size=16, clean=True, count=2, flip=0.5)
    expected = torchvision.resize(images[:, :, :, 10:50], [16, 16], antialias=True) / 255
    for kind in Augmentation, Twin:
        for view in kind([spec])(images, KEY):
            assert (view.images - expected).abs().max() < 1.01 * LEVEL
            assert torch.allclose(view.boxes, torch.tensor([10 / 61, 0, 50 / 61, 1]).expand(3, -1))
            assert not view.flipped.any()


@pytest.mark.parametrize("first", [{}, {"clean": True}])
def test_crops_overlap_with_the_first_view_of_their_image_as_much_as_their_row_asks(first):
    images, bound = pictures(30, 40, 60), ViewSpec(size=8, count=3, scale=(0.05, 0.5), overlap=0.6)
    crops = twin(ViewSpec(size=8, count=2, **first), bound).cut(list(images), KEY)
    start = crops.tables[0]["crop"][0]
    shares = []
    for table in crops.tables:
        for row in table["crop"]:
            sides = np.minimum(row[:, :2] + row[:, 2:], start[:, :2] + start[:, 2:]) - np.maximum(row[:, :2],
                                                                                                  start[:, :2])
            shares.append(sides.clip(0).prod(1) / row[:, 2:].prod(1))
    assert (np.stack(shares[2:]) >= 0.6).all()
    assert first or (shares[1] < 0.6).any()                       # the first row asks for nothing
    assert len(np.unique(crops.tables[1]["crop"], axis=0)) > 1


def test_where_nothing_overlaps_the_crop_is_the_first_view_s():
    rows = ViewSpec(size=8, scale=(0.01, 0.02)), ViewSpec(size=8, scale=(0.9, 1), overlap=0.5)
    first, second = twin(*rows).cut(list(pictures(10, 40, 40)), KEY).tables
    assert np.array_equal(first["crop"], second["crop"])


def test_a_table_says_that_no_colour_is_left_to_change():
    for table in twin(ViewSpec(size=8, count=3, **LIVELY)).cut(list(pictures(20, 20, 20)), KEY).tables:
        assert not any(flat(table[operation.name]).any() for operation in OPERATIONS)


# What comes out

def test_each_change_with_certainty_and_no_range_is_torchvision_s_own():
    images, still = pictures(3, 16, 16), {"size": 16, "scale": (1, 1), "ratio": (1, 1), "flip": 0.0}
    amounts = {"jitter": 1, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    for changes, expected in (
            ({"flip": 1.0}, torchvision.horizontal_flip(images)),
            ({"vertical_flip": 1.0}, torchvision.vertical_flip(images)),
            ({"flip": 1.0, "vertical_flip": 1.0}, images.flip(-1, -2)),
            ({"gray": 1.0}, torchvision.rgb_to_grayscale(images, 3)),
            ({"blur": 1.0, "kernel": 5, "sigma": (1.3, 1.3)}, torchvision.gaussian_blur(images, [5, 5], [1.3, 1.3])),
            ({"solarize": 1.0, "threshold": 100 / 255}, torchvision.solarize(images, 100)),
            (amounts, images)):
        view, = twin(ViewSpec(**{**still, **changes}))(images, KEY)
        assert torch.equal(view.images, expected / 255)


@pytest.mark.parametrize(("name", "most"), [("brightness", 1.5), ("contrast", 1.5), ("saturation", 1.5), ("hue", 0.1)])
def test_strength_multiplies_each_range_of_the_jitter(name, most):
    """Flat red: a pixel tells the factor that was drawn."""
    ranges = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, name: 1.0 if name != "hue" else 0.2}
    images = torch.tensor([100, 20, 20], dtype=torch.uint8).view(1, 3, 1, 1).repeat(300, 1, 4, 4)
    view, = twin(ViewSpec(size=4, jitter=1, strength=0.5, flip=0, **ranges))(images, KEY)
    red, green, blue = (255 * view.images[:, :, 0, 0]).unbind(1)
    gray = 0.2989 * 100 + 0.701 * 20
    blend = (red - gray) / (100 - gray)
    factor = {"brightness": red / 100, "contrast": blend, "saturation": blend, "hue": (green - blue) / 80 / 6}[name]
    assert factor.max() < most + 0.03
    assert factor.max() > most - 0.05 * (1 if name != "hue" else 0.2)
    assert factor.min() == pytest.approx(-most if name == "hue" else 1 - 0.5, abs=0.05)


def test_views_have_the_dtype_layout_count_and_role_that_ours_have():
    rows = ViewSpec(size=12, count=2, role="global", **LIVELY), ViewSpec(size=7, role="local")
    images = pictures(4, 20, 26)
    ours, theirs = (kind(rows, dtype="bfloat16", channels_last=True)(images, KEY) for kind in (Augmentation, Twin))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.role == other.role
        for a, b in zip(mine[:3], other[:3], strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


# What decides a draw

def test_the_same_key_gives_the_same_bits_and_another_key_others():
    augmentation, images = twin(ViewSpec(size=8, count=2, **LIVELY), ViewSpec(size=6, **LIVELY)), pictures(6, 20, 26)
    views = augmentation(images, KEY)
    assert same(views, augmentation(images, KEY))
    for part in Key._fields:
        others = augmentation(images, KEY._replace(**{part: 99}))
        assert all((view.boxes != other.boxes).any(1).all() for view, other in zip(views, others, strict=True))
    assert len(torch.unique(torch.cat([view.boxes for view in views]), dim=0)) == 18


def test_an_image_does_not_change_the_views_of_another():
    augmentation, images = twin(ViewSpec(size=8, count=3, **LIVELY)), pictures(6, 20, 26)
    other = images.clone()
    other[3] = 255 - other[3] // 2
    resized = [*images[:3], images[3, :, :9, :11], *images[4:]]
    views = augmentation(images, KEY)
    for changed in augmentation(other, KEY), augmentation(augmentation.cut(resized, KEY), KEY):
        for view, others in zip(views, changed, strict=True):
            rest = [0, 1, 2, 4, 5]
            assert torch.equal(view.images[rest], others.images[rest])
            assert not torch.equal(view.images[3], others.images[3])


def test_drawing_neither_changes_nor_reads_the_global_random_states():
    def states():
        kind, words, *rest = np.random.get_state()    # noqa: NPY002
        return torch.get_rng_state().tolist(), kind, words.tolist(), rest, random.getstate()

    augmentation, images = twin(ViewSpec(size=8, count=2, **LIVELY)), pictures(4, 20, 20)
    before = states()
    first = augmentation(images, KEY)
    assert states() == before
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert same(first, augmentation(images, KEY))


def test_a_worker_cuts_what_is_drawn_in_place():
    augmentation, images = twin(ViewSpec(size=8, count=2, **LIVELY), ViewSpec(size=6)), pictures(4, 20, 26)
    assert same(augmentation(images, KEY), augmentation(augmentation.cut(list(images), KEY), KEY))


def test_an_image_on_a_canvas_has_the_views_that_it_has_alone():
    augmentation, images = twin(ViewSpec(size=8, count=2, **LIVELY)), pictures(3, 20, 26)
    sizes = np.array([[20, 26], [9, 13], [17, 5]])
    alone = [image[:, :rows, :columns] for image, (rows, columns) in zip(images, sizes, strict=True)]
    assert same(augmentation(Canvases(images, sizes), KEY), augmentation(augmentation.cut(alone, KEY), KEY))


def test_an_image_of_one_channel_is_three_equal_ones():
    augmentation, images = twin(ViewSpec(size=8, count=2, **LIVELY)), pictures(4, 20, 26)[:, :1]
    assert same(augmentation(images, KEY), augmentation(images.repeat(1, 3, 1, 1), KEY))
