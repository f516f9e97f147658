"""The comparison of all methods: what it runs, and how its record becomes a table and pictures."""

import json
from pathlib import Path

import pytest

from ssl_zoo import methods
from ssl_zoo.cli.recipes import shipped

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def zoo(benchmarks):
    return benchmarks("zoo")


def one(seed, *accuracies, seconds=10.0, mib=100):
    points = [{"views": 1000 * place, "seconds": seconds * place, "knn_dino": value, "linear_cached": value + 0.1,
               "health/feature_std": 0.5, "health/rankme": 40.0} for place, value in enumerate(accuracies)]
    return {"seed": seed, "steps": 4, "views_of_an_image": 2, "peak_mib": mib, "points": points}


RUNS = {"near": [one(0, 0.25, 0.375), one(1, 0.27, 0.395)], "far": [one(0, 0.25, 0.5, mib=70)]}
FIGURES = {"views": 2048, "images": 10_000, "runs": RUNS}


def test_every_class_has_a_recipe_for_a_cpu_and_is_compared_once(zoo):
    names = zoo.one_of_each()
    classes = [line.split()[1] for name in names for line in shipped()[name].read_text().splitlines()
               if line.startswith("  class_path")]
    assert sorted(classes) == sorted(methods.__all__)


def test_the_table_has_the_best_first_and_the_untrained_encoder_last(zoo):
    said, _, head, line, *rows = zoo.table(FIGURES).splitlines()
    assert said == "After 2,048 views of 10,000 images; mean and deviation over seeds."
    assert head.endswith("| steps | knn_dino | linear_cached | health/feature_std | health/rankme | seconds | MiB |")
    assert rows == [
        "| far | 1 | 4 | 50.0% | 60.0% | 0.50 | 40 | 10 | 70 |",
        "| near | 2 | 4 | 38.5% ± 1.4% | 48.5% ± 1.4% | 0.50 ± 0.00 | 40 ± 0 | 10 ± 0 | 100 ± 0 |",
        "| untrained encoder | 2 | 0 | 26.0% ± 1.4% | 36.0% ± 1.4% | 0.50 ± 0.00 | 40 ± 0 |  |  |"]


def test_the_pictures_have_a_line_for_each_method(zoo):
    axes = zoo.picture(FIGURES, "views", "views").axes[0]
    assert [line.get_label() for line in axes.lines] == ["far", "near"]
    assert axes.lines[1].get_xydata().tolist() == [[0, pytest.approx(26)], [1000, pytest.approx(38.5)]]


@pytest.mark.parametrize("heights", [[1.0, 1.0, 1.0, 5.0], [9.0, 9.5, 10.0, 10.0], [0.0, 4.0, 4.1, 9.0]])
def test_names_keep_their_order_their_gap_and_the_limits(zoo, heights):
    found = zoo.spread_out(heights, 0.0, 10.0, 1.0)
    assert all(one + 1 <= other + 1e-9 for one, other in zip(found, found[1:], strict=False))
    assert found[0] >= 0
    assert found[-1] <= 10
    assert [abs(one - other) < 1e-9 for one, other in zip(found, heights, strict=True)].count(True) >= 1
    assert zoo.spread_out([1.0] * 40, 0.0, 10.0, 1.0)[-1] <= 10


def test_the_table_beside_the_record_is_the_records(zoo):
    record = ROOT / "benchmarks/results/zoo.json"
    if record.is_file():
        table = zoo.table(json.loads(record.read_text())["figures"])
        assert (record.parent / "zoo.md").read_text() == table
        assert "\n".join(table.splitlines()[4:]) in (ROOT / "docs/zoo.md").read_text()
