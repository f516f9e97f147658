"""Recipes side by side: which may stand there, one table, and tests that are paired over seeds."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from ssl_zoo.evaluation import comparison as side
from ssl_zoo.evaluation import comparison_charts as charts
from ssl_zoo.evaluation.report import Column, Comparison
from ssl_zoo.evaluation.score import Score, number

ORIGIN = {"ssl_zoo": {"version": "0.1.0", "commit": "a" * 40, "clean": True}, "packages": {"torch": "2.15.0"},
          "machine": {"cpu": "x", "cores": 2, "gpu": None},
          "data": {"class": "ImageFolder", "root": "/photos", "train": {"images": 60, "fingerprint": "ab"},
                   "test": {"images": 24, "fingerprint": "cd"}}}
CURVE = {"images_of_an_epoch": 60, "images": 120, "seconds": 200.0, "processor_seconds": 30.5, "points": [
    {"step": 0, "images": 0, "seconds": 0.0, "processor_seconds": 0.0, "scores": {"knn_dino": 0.25}},
    {"step": 2, "images": 120, "seconds": 200.0, "processor_seconds": 30.5, "scores": {"knn_dino": 0.5}}]}


def made(arm, seed=0, origin=None, curve=None, config=None):
    return side.Run(arm, seed, Path(arm), Path(arm) / "encoder.safetensors", config or {},
                    ORIGIN | (origin or {}), CURVE if curve is None else curve)


def right(*shares):
    """Scores of eight images, of which these shares are right."""
    return [Score((torch.arange(8) < 8 * share).double(), "image") for share in shares]


def measured(values):
    """By the names of runs their knn_dino."""
    return Comparison([], {name: Column({}, {"knn_dino": score}, [], {}, {}) for name, score in values.items()}, {})


# Tests

def test_a_paired_test_is_the_one_sample_test_of_the_differences():
    one, other = [0.5, 0.7, 0.6], [0.4, 0.65, 0.45]
    found = side.paired("knn", "a", "b", [0, 1, 2], one, other)
    apart = np.array(one) - other
    t = apart.mean() / (apart.std(ddof=1) / math.sqrt(3))
    assert found.p == pytest.approx(2 * stats.t.sf(t, 2))
    # of two degrees of freedom the distribution has a closed form
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t ** 2))
    half = 4.302652729911275 * apart.std(ddof=1) / math.sqrt(3)
    assert tuple(found.interval) == pytest.approx((apart.mean() - half, apart.mean() + half))


def test_seeds_are_paired_by_their_number_and_others_do_not_count():
    runs = [made("a", 0), made("a", 1), made("a", 2), made("b", 1), made("b", 2), made("b", 5)]
    scores = {run.name: {"knn": value} for run, value in zip(runs, right(0, 0.25, 0.5, 0.5, 1, 0), strict=True)}
    found, = side.paired_tests(runs, scores, ["knn"])
    assert found.seeds == [1, 2]
    assert found.difference == pytest.approx((0.25 + 0.5) / 2)


def test_differences_that_do_not_vary_have_no_p_and_no_interval():
    for one, other in (([0.5, 0.5], [0.25, 0.25]), ([0.5], [0.25]), ([0.5, 0.7], [0.5, 0.7])):
        found = side.paired("knn", "a", "b", [0], one, other)
        assert (found.p, found.interval) == (None, None)


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    tests = [side.Test("knn", "a", "b", [0, 1], 0.1, None, p, None) for p in (0.04, 0.01, 0.03, None)]
    assert [test.corrected for test in side.holm(tests)] == [pytest.approx(0.06), pytest.approx(0.03),
                                                             pytest.approx(0.06), None]


def test_the_words_say_what_three_seeds_can_show():
    said = side.what_p_means([3, 4])
    assert "3 seeds, 2 degrees of freedom" in said
    assert "more than 2.5 times" in said           # 4.303 / sqrt(3)
    assert "not go below 0.25" in said             # two of eight patterns of signs
    assert "for the 2 tests" in said
    assert "1 degree of" in side.what_p_means([2])
    assert "there is no test" in side.what_p_means([1])
    assert "no seed in common" in side.what_p_means([])


# The table

def test_the_table_has_mean_and_deviation_over_seeds_seconds_and_the_untrained_encoder_once():
    runs = [made("a", 0), made("a", 1), made("b", 0)]
    found = side.side_by_side(runs, measured(dict(zip([run.name for run in runs], right(0.5, 1, 0.25), strict=True))),
                              asked=2)
    assert found.table == [
        ["", "seeds", "knn_dino", "seconds", "processor's seconds"],
        ["a", "2", "75.0 ± 35.4 %", "200 ± 0", "30.5 ± 0.0"],
        ["b", "1 of 2", "25.0 [7.1, 59.1] %", "200", "30.5"],
        ["a, untrained", "2", "25.0 ± 0.0 %", "-", "-"],
        ["b, untrained", "1 of 2", "25.0 %", "-", "-"]]
    assert found.tested[1][:2] == ["b - a", "knn_dino"]
    runs = [made("a"), made("b")]
    values = measured({run.name: score for run, score in zip(runs, right(0.5, 1), strict=True)})
    assert side.side_by_side(runs, values, asked=1).table[-1][:3] == ["untrained", "1", "25.0 %"]


def test_without_labels_health_stands_side_by_side_and_nothing_is_tested():
    runs = [made("a", curve={}), made("b", curve={})]
    health = Comparison([], {run.name: Column({}, {"health/rankme": number(9.5)}, [], {}, {}) for run in runs}, {})
    found = side.side_by_side(runs, health, asked=1)
    assert found.table[1] == ["a", "1", "9.5"]
    assert (found.tests, found.meaning) == ([], "No accuracy was measured, and nothing is tested.")


def test_latex_is_escaped_and_has_a_cell_for_each_column():
    lines = side.as_latex([["", "knn_dino", "a & b"], ["x{1}", "75.0 ± 35.4 %", "-"]]).splitlines()
    assert lines[1] == r"\begin{tabular}{lrr}"
    assert lines[3] == r" & knn\_dino & a \& b \\"
    assert lines[5] == r"x\{1\} & 75.0 $\pm$ 35.4 \% & - \\"


# What may not stand side by side

OTHER = ORIGIN["data"] | {"train": {"images": 50, "fingerprint": "ef"}, "root": "/others"}


@pytest.mark.parametrize(("other", "said"), [
    (made("b", origin={"data": OTHER}), "a, seed 0 and b, seed 0 have other training images (60 and 50; /photos and "
                                        "/others)"),
    (made("b", origin={"data": ORIGIN["data"] | {"test": {"images": 24, "fingerprint": "00"}}}),
     "other test images (24 each, with fingerprints cd and 00"),
    (made("b", origin={"data": ORIGIN["data"] | {"test": None}}), "other test images (24 and no; "),
    (made("b", origin={"ssl_zoo": {"version": "0.2.0"}}), "a, seed 0 was trained by ssl_zoo 0.1.0, and b, seed 0 by "
                                                          "0.2.0"),
    (made("b", config={"data": {"init_args": {"evaluation_size": 64}}}), "--set data.evaluation_size"),
])
def test_what_is_not_comparable_is_refused_with_both_values_and_a_way_out(other, said):
    side.require_comparable([made("a"), made("c"), made("a", 1)])
    with pytest.raises(ValueError, match=re.escape(said)):
        side.require_comparable([made("a"), other])


def test_a_run_of_an_earlier_version_is_compared_as_far_as_it_is_known():
    old = side.Run("old", 0, Path(), Path(), {}, {}, {})
    side.require_comparable([made("a"), old])
    found = side.side_by_side([made("a"), old], measured({"a, seed 0": right(0.5)[0], "old, seed 0": right(1)[0]}), 1)
    assert (found.timed, found.curved) == (False, False)
    assert [row[0] for row in found.table] == ["", "a", "old"]
    assert found.table[0] == ["", "seeds", "knn_dino"]
    assert any("old, seed 0 has recorded no seconds" in one for one in found.said)


def test_what_a_reader_should_know_is_said():
    dirty = {"ssl_zoo": {"version": "0.1.0", "commit": "b" * 40, "clean": False}, "packages": {"torch": "2.11.0"},
             "machine": {"cpu": "y", "cores": 2, "gpu": None}}
    said = side.remarks([made("a"), made("b", origin=dirty, curve=CURVE | {"images": 60})])
    assert said == ["the runs were made by 2 states of the code: aaaaaaaaaa, bbbbbbbbbb with changed files",
                    "the runs were made with torch 2.11.0 and 2.15.0",
                    "the runs saw different numbers of images: a 120, b 60"]
    assert "different machines" in side.seconds_comparable([made("a"), made("b", origin=dirty)])
    assert side.remarks([made("a"), made("b")]) == []
    assert side.seconds_comparable([made("a"), made("b")]) == ""
    one, other = ({"evaluation": {"protocols": [name]}} for name in ("knn", "health"))
    assert "they differ in evaluation.protocols.0 (knn and health)" in side.curves_comparable(
        [made("a", config=one), made("b", config=other)])


# Pictures

def test_the_pictures_have_a_line_for_each_run_and_a_thick_one_for_the_mean():
    shorter = CURVE | {"points": CURVE["points"][:1]}
    runs = [made("a", 0), made("a", 1), made("b", 0), made("b", 1, curve=shorter)]
    figure = charts.against_epochs(runs, {"knn_dino": True})
    axes, = figure.axes
    lines = [line for line in axes.get_lines() if len(line.get_xdata())]
    assert len(lines) == 4 + 1                 # b's seeds have not as many points: no mean
    assert lines[2].get_ydata().tolist() == [25, 50]
    assert lines[2].get_xdata().tolist() == [0, 2]      # epochs
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epochs", "knn_dino, %")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a (2 seeds)", "b (2 seeds)"]
    wall, processor = charts.against_seconds(runs, "knn_dino", percent=True).axes
    assert wall.get_lines()[0].get_xdata().tolist() == [0, 200]
    assert processor.get_lines()[0].get_xdata().tolist() == [0, 30.5]
    assert charts.pictures(runs, {"knn_dino": True, "linear_cached": True}, timed=False).keys() == {"curves"}
    assert charts.pictures(runs, {"knn_dino": True}, timed=True).keys() == {"curves", "seconds"}
