"""What a row of views may say, and the papers' rows."""

import pytest

from ssl_zoo.views import Augmentation
from ssl_zoo.views.specs import PRESETS, ViewSpec


@pytest.mark.parametrize(("spec", "kernel"), [
    (ViewSpec(size=32), 3), (ViewSpec(size=8), 1), (ViewSpec(size=96), 9), (ViewSpec(size=224), 13),
    (ViewSpec(size=224, sigma=(0.1, 5.0)), 23), (ViewSpec(size=224, kernel=23), 23),
])
def test_the_blur_is_a_tenth_of_the_side_but_no_wider_than_three_sigma(spec, kernel):
    assert spec.blur_kernel == kernel


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"size": 0}, "a view's size must be at least 1, not 0"),
    ({"size": 32.0}, "a view's size must be a whole number, not 32.0"),
    ({"count": 0}, "a view's count must be at least 1, not 0"),
    ({"count": 1.5}, "a view's count must be a whole number, not 1.5"),
    ({"interpolation": "nearest"}, "a view's interpolation must be one of bilinear, bicubic, not nearest"),
    ({"flip": 1.5}, "a view's flip must be between 0 and 1, not 1.5"),
    ({"vertical_flip": -0.5}, "a view's vertical_flip must be between 0 and 1, not -0.5"),
    ({"overlap": 1.01}, "a view's overlap must be between 0 and 1, not 1.01"),
    ({"jitter": -0.1}, "a view's jitter must be between 0 and 1, not -0.1"),
    ({"gray": 2}, "a view's gray must be between 0 and 1, not 2"),
    ({"blur": -1}, "a view's blur must be between 0 and 1, not -1"),
    ({"solarize": float("nan")}, "a view's solarize must be between 0 and 1, not nan"),
    ({"threshold": 128}, "a view's threshold must be between 0 and 1, not 128"),
    ({"brightness": -1}, "a view's brightness must be at least 0, not -1"),
    ({"contrast": -1}, "a view's contrast must be at least 0, not -1"),
    ({"saturation": -1}, "a view's saturation must be at least 0, not -1"),
    ({"strength": -1}, "a view's strength must be at least 0, not -1"),
    ({"hue": -0.1}, "a view's hue must be at least 0, not -0.1"),
    ({"hue": 0.3, "strength": 2}, "a view's hue must be at most half a turn with strength 2, not 0.3"),
    ({"scale": (0.0, 1.0)}, r"a view's scale must be two rising shares .* not \(0.0, 1.0\)"),
    ({"scale": (0.8, 0.2)}, r"a view's scale must be two rising shares .* not \(0.8, 0.2\)"),
    ({"scale": (0.5, 1.1)}, r"a view's scale must be two rising shares .* not \(0.5, 1.1\)"),
    ({"ratio": (2, 1)}, r"a view's ratio must be two rising numbers above 0, not \(2, 1\)"),
    ({"sigma": (0, 2)}, r"a view's sigma must be two rising numbers of pixels above 0, not \(0, 2\)"),
    ({"kernel": 4}, "a view's kernel must be an odd number of pixels that the view can hold, not 4"),
    ({"kernel": 65}, "a view's kernel must be an odd number of pixels that the view can hold, not 65"),
    ({"kernel": -1}, "a view's kernel must be an odd number of pixels that the view can hold, not -1"),
    *(({"clean": True, name: 0.5}, f"a view's {name} must be 0 where it is clean, not 0.5")
      for name in ("overlap", "vertical_flip", "jitter", "gray", "blur", "solarize")),
])
def test_a_spec_names_its_wrong_value_and_the_rule(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ViewSpec(**{"size": 32, **arguments})


def test_the_widest_values_that_are_allowed_are_allowed():
    ViewSpec(size=32, overlap=1, flip=1, vertical_flip=1, jitter=1, gray=1, blur=1, solarize=1, threshold=1, hue=0.5,
             scale=(1, 1), ratio=(1, 1), sigma=(1, 1), kernel=63)
    ViewSpec(size=1, clean=True, scale=(0.1, 1), sigma=(0.1, 9))


# The papers' rows; expectations are copied from the papers' texts, not from the presets

@pytest.mark.parametrize(("name", "sizes", "scales"), [
    ("simclr", [224] * 2, [(0.08, 1)] * 2),
    ("simclr_32", [32] * 2, [(0.08, 1)] * 2),
    ("moco_v2", [224] * 2, [(0.2, 1)] * 2),
    ("byol", [224] * 2, [(0.08, 1)] * 2),
    ("byol_32", [32] * 2, [(0.08, 1)] * 2),
    ("pixpro", [224] * 2, [(0.08, 1)] * 2),
    ("swav", [224] * 2 + [96] * 6, [(0.14, 1)] * 2 + [(0.05, 0.14)] * 6),
])
def test_a_paper_s_views_have_its_number_sizes_and_scales(name, sizes, scales):
    specs = [spec for spec in PRESETS[name] for _ in range(spec.count)]
    assert [spec.size for spec in specs] == sizes
    assert [spec.scale for spec in specs] == scales


@pytest.mark.parametrize(("name", "ranges"), [
    ("simclr", (0.8, 0.8, 0.8, 0.2)), ("simclr_32", (0.4, 0.4, 0.4, 0.1)), ("moco_v2", (0.4, 0.4, 0.4, 0.1)),
    ("swav", (0.8, 0.8, 0.8, 0.2)), ("byol", (0.4, 0.4, 0.2, 0.1)), ("pixpro", (0.4, 0.4, 0.2, 0.1)),
])
def test_a_paper_s_views_are_coloured_as_it_says(name, ranges):
    for spec in PRESETS[name]:
        amounts = (spec.brightness, spec.contrast, spec.saturation, spec.hue)
        assert [amount * spec.strength for amount in amounts] == pytest.approx(ranges)
        assert (spec.jitter, spec.gray, spec.flip) == (0.8, 0.2, 0.5)


@pytest.mark.parametrize(("name", "blurs", "solarized"), [
    ("byol", [1.0, 0.1], [0.0, 0.2]), ("pixpro", [1.0, 0.1], [0.0, 0.2]), ("byol_32", [0.0, 0.0], [0.0, 0.2]),
    ("simclr", [0.5], [0.0]), ("simclr_32", [0.0], [0.0]), ("moco_v2", [0.5], [0.0]),
])
def test_a_paper_s_views_are_blurred_and_solarised_as_it_says(name, blurs, solarized):
    assert [spec.blur for spec in PRESETS[name]] == blurs
    assert [spec.solarize for spec in PRESETS[name]] == solarized


def test_rows_of_multi_crop_say_which_are_global_and_which_local():
    for name in ("swav", "swav_32"):
        assert [spec.role for spec in PRESETS[name]] == ["global", "local"]


def test_rows_for_small_images_and_no_others_are_small_and_without_blur():
    for name, specs in PRESETS.items():
        assert all(spec.size <= 32 and not spec.blur for spec in specs) == name.endswith("_32")


@pytest.mark.parametrize("name", PRESETS)
def test_an_augmentation_of_a_paper_s_name_has_its_rows(name):
    assert Augmentation(name).views == PRESETS[name]
    assert Augmentation(name).count == sum(spec.count for spec in PRESETS[name])


def test_an_unknown_paper_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="there are no views named dino; there are simclr, simclr_32, moco_v2, "):
        Augmentation("dino")


def test_the_backend_that_files_of_before_name_is_accepted_and_the_other_one_refused():
    assert Augmentation("simclr", backend="batched").views == PRESETS["simclr"]
    with pytest.raises(ValueError, match="there is no backend torchvision: ssl_zoo draws all views itself, so leave"):
        Augmentation("simclr", backend="torchvision")


# What a method may require of its rows

def rows(*counts, roles=("", "", "")):
    return Augmentation([ViewSpec(16, count, role) for count, role in zip(counts, roles, strict=False)])


@pytest.mark.parametrize(("counts", "roles", "needs", "places"), [
    ((2,), ("",), {}, [0, 1]),
    ((1, 1), ("global", "local"), {}, [0, 1]),                        # who names no role takes any
    ((1,), ("",), {"count": 1}, [0]),
    ((3,), ("",), {"or_more": True}, [0, 1, 2]),
    ((2,), ("",), {"role": "global"}, [0, 1]),                        # two without roles are both global
    ((2, 6), ("global", "local"), {"role": "global"}, [0, 1]),
    ((3, 1), ("local", "global"), {"role": "global"}, [3]),
    ((1, 1), ("local", "global"), {"role": "global"}, [1]),
])
def test_required_views_are_found_by_their_number_and_role(counts, roles, needs, places):
    assert rows(*counts, roles=roles).require_views("Align", **needs) == places


@pytest.mark.parametrize(("counts", "roles", "needs", "sentence"), [
    ((3,), ("",), {}, "Align learns from 2 views of each image, and this recipe draws 3: make the counts of its view "
                      "rows add up to 2$"),
    ((2,), ("",), {"count": 1}, "Align learns from 1 view of each image, and this recipe draws 2: .* add up to 1$"),
    ((1,), ("",), {"or_more": True, "verb": "compares"}, "Align compares 2 views .* draws 1: .* add up to 2 or more$"),
    ((8,), ("",), {"role": "global"}, "draws 8: make the counts of its view rows add up to 2, or give the large ones "
                                      "role: global, which then learn with every other view$"),
    ((1,), ("global",), {"role": "global"}, "Align learns from 2 views of each image, and this recipe draws 1"),
    ((1, 1), ("local", "local"), {"role": "global"}, "the views of the role global and none of these 2 has it: give it "
                                                     "to their row, or leave roles out$"),
])
def test_rows_without_the_required_views_are_refused_with_the_way_out(counts, roles, needs, sentence):
    with pytest.raises(ValueError, match=sentence):
        rows(*counts, roles=roles).require_views("Align", **needs)
