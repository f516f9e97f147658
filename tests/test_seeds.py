"""Seeds of one recipe: which encoders are, and when two recipes differ by more than their seeds do."""

import math
from pathlib import Path

import pytest
import torch
from scipy import stats

from ssl_zoo.evaluation.score import Score, difference, number
from ssl_zoo.evaluation.seeds import Difference, Origin, compare, deviation, groups, mean, welch


def recipe(seed, **changes):
    return {"seed_everything": seed, "ckpt_path": None,
            "trainer": {"max_epochs": 30, "logger": {"init_args": {"save_dir": f"runs{seed}"}}, "callbacks": [
                {"class_path": "Progress"}, {"class_path": "Speed", "init_args": {"every": 5}}]},
            "model": {"temperature": 0.2} | changes, "data": {"root": "images"}}


def runs(**recipes):
    return {name: Origin(Path(f"runs/x/{name}/encoder.safetensors"), one) for name, one in recipes.items()}


def test_versions_of_one_folder_whose_recipes_differ_in_seed_and_output_alone_are_seeds():
    origins = runs(version_0=recipe(0), version_1=recipe(1), version_7=recipe(2))
    origins["other"] = Origin(Path("runs/y/version_0/encoder.safetensors"), recipe(3))
    origins["model"] = Origin(Path("resnet18"), None)
    assert groups(origins) == ({"x (3 seeds)": ["version_0", "version_1", "version_7"]}, [])


def test_other_recipes_of_the_folder_are_groups_of_their_own_and_what_differs_is_said():
    origins = runs(version_0=recipe(0), version_1=recipe(0, temperature=0.5), version_2=recipe(1),
                   version_3=recipe(1, temperature=0.5), version_4=recipe(0, temperature=0.7, width=8))
    found, said = groups(origins)
    assert found == {"version_0 and others (2 seeds)": ["version_0", "version_2"],
                     "version_1 and others (2 seeds)": ["version_1", "version_3"]}
    assert said == ["version_1 and version_0 are not seeds of one recipe: they differ in model.temperature (0.5 and "
                    "0.2)", "version_4 and version_0 are not seeds of one recipe: they differ in model.temperature "
                    "(0.7 and 0.2), model.width (8 and None)"]


def test_two_alone_that_differ_are_no_group():
    found, said = groups(runs(version_0=recipe(0), version_1=recipe(1, a=1, b=1, c=1, d=1)))
    assert found == {}
    assert said[0].endswith("model.a (1 and None), model.b (1 and None), model.c (1 and None) and 1 more")


def test_a_callback_or_a_data_set_that_differs_makes_another_recipe():
    other, elsewhere = recipe(1), recipe(2)
    other["trainer"]["callbacks"][1]["init_args"]["every"] = 6
    elsewhere["data"]["root"] = "others"
    assert groups(runs(version_0=recipe(0), version_1=other, version_2=elsewhere))[0] == {}


def test_one_seed_twice_is_one_seed_and_an_unknown_one_none():
    found, said = groups(runs(version_0=recipe(0), version_1=recipe(0), version_2=recipe(1), version_3=recipe(None),
                              version_4=None))
    assert found == {"x (2 seeds)": ["version_0", "version_2"]}
    assert said == ["version_1 has seed 0, as version_0 has, and counts for no other seed",
                    *(f"version_{n} is taken for no seed of a recipe: it does not say which recipe and seed made it"
                      for n in (3, 4))]


def test_checkpoints_of_other_epochs_are_not_seeds_of_each_other():
    files = {f"{version} {file}": Origin(Path(f"runs/x/version_{version}/{file}"), recipe(version))
             for version in (0, 1) for file in ("checkpoints/last.ckpt", "checkpoints/epoch=9.ckpt")}
    assert [sorted(members) for members in groups(files)[0].values()] == [
        ["0 checkpoints/last.ckpt", "1 checkpoints/last.ckpt"],
        ["0 checkpoints/epoch=9.ckpt", "1 checkpoints/epoch=9.ckpt"]]


# Scores

def images(*right):
    return Score(torch.tensor(right, dtype=torch.float64), "image")


def shares(*values, count=1000):
    return tuple(images(*[1.0] * round(value * count), *[0.0] * (count - round(value * count))) for value in values)


def test_the_mean_over_seeds_is_that_of_each_image():
    assert mean((images(1, 0, 1), images(1, 1, 0))).units.tolist() == [1, 0.5, 0.5]
    one = images(1, 0, 1)
    assert mean((one,)) is one
    assert mean((images(1, 0), images(1, 1, 1))).value == 0.75
    assert mean((number(3.0), number(5.0))).value == 4
    assert deviation((number(3.0), number(5.0))) == pytest.approx(math.sqrt(2))
    assert deviation((number(3.0),)) is None


@pytest.mark.parametrize(("one", "other"), [([0.9, 0.92, 0.91], [0.88, 0.9]), ([1.0, 3.0], [7.0, 7.5, 7.0, 7.0])])
def test_the_interval_over_seeds_is_welchs(one, other):
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert welch(one, other) == pytest.approx((expected.low, expected.high))


def test_a_single_seed_scatters_as_the_seeds_of_the_other_side():
    half = stats.t.ppf(0.975, 2) * 0.01 * math.sqrt(1 + 1 / 3)
    assert welch([0.95], [0.9, 0.91, 0.92]) == pytest.approx((0.04 - half, 0.04 + half))
    assert welch([0.9, 0.91, 0.92], [0.95]) == pytest.approx((-0.04 - half, -0.04 + half))
    assert welch([1.0], [2.0]) is None
    assert welch([1.0, math.nan], [2.0]) is None


def test_a_difference_counts_only_where_it_exceeds_the_seeds_and_the_images():
    """The images alone tell one file of each apart, and the seeds of the second do not."""
    calm, wild = shares(0.900, 0.901, 0.902), shares(0.910, 0.880, 0.950)
    assert compare(wild[2:], calm[:1]).exceeds
    apart = compare(wild, calm)
    assert apart.images.excludes_zero
    assert not apart.seeds.excludes_zero
    assert not apart.exceeds
    assert apart.interval == apart.seeds
    assert compare(shares(0.95, 0.951, 0.952), calm).exceeds


def test_few_images_are_no_difference_whatever_the_seeds_say():
    apart = compare(shares(1, 1, 1, count=3), shares(0, 0, 0, count=3))
    assert apart.seeds.excludes_zero
    assert not apart.exceeds


def test_single_files_are_compared_by_their_images_alone_and_plain_numbers_by_their_seeds():
    one, other = images(1, 1, 0, 1), images(0, 1, 0, 1)
    assert compare((one,), (other,)) == Difference(*difference(one, other), None)
    assert compare((number(3.0),), (number(2.0),)).exceeds is None
    assert compare((number(3.0), number(3.1)), (number(2.0), number(2.1))).exceeds
