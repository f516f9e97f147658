"""Charts: what stands where, read back from the figures, and that the marks can be told apart."""

import itertools
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from ssl_zoo.evaluation import lowshot
from ssl_zoo.evaluation.charts import (
    COLOURS,
    LINES,
    MARKERS,
    SHADES,
    confusion_matrix,
    evenly,
    feature_map,
    heart,
    ink,
    learning_curves,
    mask_sheet,
    picture,
    principal,
    score_curves,
    short,
    similarity_histogram,
)
from ssl_zoo.evaluation.score import Score, number
from ssl_zoo.evaluation.training_curve import Course, training_curve


def curves(columns, title):
    return learning_curves(lowshot.cells(columns), title)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole_numbers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def names(count):
    return [f"class {i}" for i in range(count)]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []


def written(axes):
    return [text.get_text() for text in axes.texts]


def title(figure):
    return figure.get_suptitle()


@pytest.fixture
def without_sklearn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)


# What all have

SOME = {"lowshot/1/knn": Score(torch.tensor([0.2, 0.3]).double(), "draw"), "lowshot/10%/knn": number(0.5)}
DRAWN = {
    "map": lambda: feature_map(normal(8, 3), torch.arange(8) % 2, ["a", "b"], "x"),
    "few classes": lambda: confusion_matrix(whole_numbers(3, 9), whole_numbers(3, 9, seed=1), names(3), "x"),
    "many classes": lambda: confusion_matrix(whole_numbers(30, 99), whole_numbers(30, 99, seed=1), names(30), "x"),
    "curves": lambda: curves({"one": SOME, "two": SOME}, "x"),
    "histogram": lambda: similarity_histogram(torch.arange(9), torch.arange(9).flip(0), torch.linspace(-1, 1, 10), "x"),
    "scores": lambda: score_curves(np.arange(3) * 10, np.full((3, 2), 0.5), np.full((3, 2), 0.1), np.ones(3), "x"),
    "masks": lambda: mask_sheet(whole_numbers(256, 1, 3, 12, 16).byte(), whole_numbers(3, 1, 12, 16),
                                whole_numbers(3, 1, 12, 16, seed=1), names(3), "x")}


@pytest.mark.parametrize("chart", DRAWN)
def test_a_picture_has_200_pixels_an_inch_and_the_same_ones_in_another_thread(chart):
    figure = DRAWN[chart]()
    first = picture(figure)
    with ThreadPoolExecutor(2) as threads:
        others = list(threads.map(lambda _: picture(DRAWN[chart]()), range(2)))
    assert first.mode == "RGB"
    assert first.size == tuple(int(200 * side) for side in figure.get_size_inches())
    assert all(np.array_equal(first, other) for other in others)
    assert title(figure).startswith("x")


def test_a_name_is_shown_letter_by_letter_and_never_set_as_mathematics():
    class_names = ["$a_1$", "_hidden", "x" * 40]
    figure = feature_map(normal(9, 3), torch.arange(9) % 3, class_names, "$2 of $3")
    picture(figure)
    shown = [text.get_text().replace(r"\$", "$") for text in figure.legends[0].get_texts()]
    assert shown[:2] == class_names[:2]
    assert len(shown[2]) == 20
    assert shown[2] == "x" * 19 + "…"
    assert r"\$2 of \$3" in title(figure)


def test_a_class_without_a_name_goes_by_its_number():
    assert [short(["cat"], label) for label in (0, 7)] == ["cat", "7"]


def contrast(one, other):
    """WCAG 2, of two colours 0 to 1."""
    def luminance(colour):
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_what_is_written_on_any_colour_stands_out_from_it():
    for ground in [np.array(ground) for ground in itertools.product(np.linspace(0, 1, 6), repeat=3)] + list(SHADES):
        by = {colour: contrast(ground, to_rgb(colour)) for colour in ("black", "white")}
        assert by[ink(ground)] >= max(4.5, max(by.values()) - 0.2)


# Map of features

def drawn_classes(figure):
    """Places by class, the others first."""
    rest, *own = figure.axes[0].collections
    return rest.get_offsets(), [some.get_offsets() for some in own]


def blobs(count, classes=5, width=8, seed=0):
    labels = torch.arange(count) % classes
    return 4 * normal(classes, width, seed=99)[labels] + 0.3 * normal(count, width, seed=seed), labels


def pairwise(points):
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def test_pca_keeps_all_distances_of_features_on_a_plane():
    directions = torch.linalg.qr(normal(7, 2))[0]
    x = normal(20, 2) @ directions.T * torch.tensor([1.0]) + normal(7, seed=3)
    flat, share = principal(x)
    assert share == pytest.approx(1)
    assert np.allclose(pairwise(flat.numpy()), pairwise(x.double().numpy()), atol=1e-6)
    assert np.allclose(flat.mean(0), 0, atol=1e-6)
    assert flat[:, 0].std() >= flat[:, 1].std()


def test_the_share_of_pca_is_that_of_the_two_largest_squared_singular_values():
    x = normal(30, 6) * torch.tensor([1, 2, 3, 4, 5, 6])
    squares = torch.linalg.svdvals(x.double() - x.double().mean(0)).square()
    assert principal(x)[1] == pytest.approx((squares[:2].sum() / squares.sum()).item())


@pytest.mark.usefixtures("without_sklearn")
def test_without_sklearn_the_map_is_by_pca_and_says_which_share_it_shows():
    x, labels = blobs(60)
    figure = feature_map(x, labels, names(5), "an encoder")
    flat, share = principal(torch.nn.functional.normalize(x, dim=-1))
    assert title(figure) == f"an encoder\nPCA, {100 * share:.0f} % of the variance, 60 of 60 images"
    for label, places in enumerate(drawn_classes(figure)[1]):
        assert np.allclose(places, flat[labels == label], atol=1e-6)


@pytest.mark.usefixtures("without_sklearn")
def test_a_map_shows_equal_distances_as_equal_along_both_axes():
    figure = feature_map(normal(40, 3) * torch.tensor([9.0, 1, 0.1]), torch.arange(40) % 2, names(2), "")
    picture(figure)
    transform = figure.axes[0].transData.transform
    right, up = transform([[1, 0], [0, 1]]) - transform([0, 0])
    assert right[0] == pytest.approx(up[1], rel=1e-6)


@pytest.mark.usefixtures("without_sklearn")
def test_how_long_a_feature_is_changes_nothing():
    x, labels = blobs(30)
    maps = [drawn_classes(feature_map(x * lengths, labels, names(5), ""))[1]
            for lengths in (1, torch.linspace(0.1, 30, 30)[:, None])]
    assert np.allclose(*maps, atol=1e-5)


def test_tsne_puts_each_point_beside_one_of_its_class_and_twice_at_the_same_place():
    x, labels = blobs(60)
    both = [drawn_classes(feature_map(x, labels, names(5), "an encoder"))[1] for _ in range(2)]
    assert np.array_equal(*both)
    distances = pairwise(np.concatenate(both[0])) + 1e9 * np.eye(60)
    assert (distances.argmin(1) // 12 == np.arange(60) // 12).all()
    assert title(feature_map(x, labels, names(5), "an encoder")) == "an encoder\nt-SNE, perplexity 20, 60 of 60 images"


@pytest.mark.usefixtures("without_sklearn")
@pytest.mark.parametrize(("count", "shown"), [(1, 1), (2, 2), (1999, 1999), (2001, 2000), (9000, 2000)])
def test_a_map_has_at_most_2000_points(count, shown):
    figure = feature_map(normal(count, 4), torch.zeros(count).long(), ["only"], "")
    assert [len(places) for places in drawn_classes(figure)[1]] == [shown]
    assert f"{shown:,} of {count:,} images" in title(figure)


@pytest.mark.usefixtures("without_sklearn")
def test_a_map_of_a_choice_shows_the_same_ones_again():
    x = normal(2500, 4)
    assert np.array_equal(*(drawn_classes(feature_map(x, torch.zeros(2500).long(), ["only"], ""))[1] for _ in range(2)))


@pytest.mark.usefixtures("without_sklearn")
def test_the_points_of_a_map_are_spread_over_the_whole_part():
    x = torch.stack([torch.linspace(0, 1.5, 8000).sin(), torch.linspace(0, 1.5, 8000).cos()], 1)
    _, (places,) = drawn_classes(feature_map(x, torch.zeros(8000).long(), ["only"], ""))
    along = np.sort(places[:, 0])
    assert np.abs(along - np.sin(np.linspace(-0.75, 0.75, 2000))).max() < 0.05


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_a_map_of_few_equal_or_one_dimensional_features_has_a_place_for_each(count):
    for x in (normal(count, 1), torch.ones(count, 4)):
        figure = feature_map(x, torch.full((count,), -1), [], "")
        assert drawn_classes(figure)[0].shape == (count, 2)
        assert np.isfinite(drawn_classes(figure)[0]).all()
        assert "nan" not in title(figure)


def test_up_to_20_classes_have_a_colour_each_and_up_to_10_a_marker_each():
    x, labels = blobs(80, classes=20)
    figure = feature_map(x[:9], labels[:9], names(20), "")
    assert legend(figure) == names(9)
    figure = feature_map(x, labels, names(20), "")
    assert legend(figure) == names(20)
    marks = [(tuple(some.get_facecolors()[0]), some.get_paths()[0].vertices.tobytes())
             for some in figure.axes[0].collections[1:]]
    assert len({colour for colour, _ in marks}) == 20
    assert len({marker for _, marker in marks[:10]}) == len({marker for _, marker in marks[10:]}) == 10


def test_each_class_has_its_name_at_the_median_of_its_points():
    x, labels = blobs(60, classes=3)
    figure = feature_map(x, labels, ["cat", "dog", "$cow"], "")
    assert written(figure.axes[0]) == ["cat", "dog", r"\$cow"]
    for text, places in zip(figure.axes[0].texts, drawn_classes(figure)[1], strict=True):
        assert text.get_position() == pytest.approx(np.median(np.asarray(places), 0))


def test_a_name_that_would_cover_another_is_left_to_the_legend():
    figure = feature_map(normal(1, 8).expand(30, 8), torch.arange(30) % 3, ["cat", "dog", "cow"], "")
    assert written(figure.axes[0]) == ["cat"]
    assert legend(figure) == ["cat", "dog", "cow"]


@pytest.mark.usefixtures("without_sklearn")
@pytest.mark.parametrize("seed", range(3))
def test_in_the_final_picture_no_name_covers_another_and_each_left_out_would(seed):
    x, labels = normal(400, 3, seed=seed) + 2 * normal(20, 3, seed=9)[torch.arange(400) % 20], torch.arange(400) % 20
    figure = feature_map(x, labels, names(20), "")
    picture(figure)
    axes, canvas = figure.axes[0], figure.canvas
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert 3 < len(boxes) < 20
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes.values(), 2))
    for name, places in zip(names(20), drawn_classes(figure)[1], strict=True):
        if name not in boxes:
            text = axes.text(*np.median(np.asarray(places), 0), name, ha="center", va="center", size=9, weight="bold")
            assert any(text.get_window_extent(canvas.get_renderer()).overlaps(box) for box in boxes.values())


@pytest.mark.usefixtures("without_sklearn")
def test_a_long_name_at_the_edge_is_moved_into_the_frame():
    x = torch.tensor([[9.0, 1], [1, 9], [5, 6]]).repeat_interleave(6, 0)
    figure = feature_map(x, torch.arange(18) // 6, ["left " * 4, "right " * 4, "middle"], "")
    picture(figure)
    frame = figure.axes[0].get_window_extent()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 3
    assert sorted((box.x0 == pytest.approx(frame.x0), box.x1 == pytest.approx(frame.x1)) for box in boxes) == [
        (False, False), (False, True), (True, False)]


def test_a_name_that_would_hide_the_few_points_of_its_class_is_left_to_the_legend():
    x, labels = blobs(13, classes=3)                          # of class 0 there are 5, of the others 4
    figure = feature_map(x, labels, ["cat", "dog", "cow"], "")
    assert written(figure.axes[0]) == ["cat"]
    assert legend(figure) == ["cat", "dog", "cow"]


@pytest.mark.usefixtures("without_sklearn")
def test_a_class_of_one_image_among_thousands_has_its_point():
    labels = torch.ones(9000).long()
    labels[evenly_left_out(9000)] = 0
    figure = feature_map(normal(9000, 4), labels, ["rare", "common"], "")
    assert legend(figure) == ["rare", "common"]
    assert [len(places) for places in drawn_classes(figure)[1]] == [1, 1999]


def evenly_left_out(count):
    """A row that is not among the 2,000 of a map."""
    drawn = evenly(np.ones(count), np.array([1]))
    return int(np.setdiff1d(np.arange(count), drawn)[0])


@pytest.mark.usefixtures("without_sklearn")
@pytest.mark.parametrize("count", [1500, 50_000])
def test_of_a_thousand_classes_ten_from_the_first_to_the_last_are_coloured(count):
    labels = torch.arange(count) % 1000
    figure = feature_map(normal(count, 4), labels, names(1000), "")
    assert legend(figure) == [f"class {i}" for i in (0, 111, 222, 333, 444, 555, 666, 777, 888, 999)]
    assert "10 of 1,000 classes in colour" in title(figure)
    rest, own = drawn_classes(figure)
    assert [len(some) for some in own] == [int((labels == i).sum()) for i in range(0, 1000, 111)]
    assert len(rest) + sum(map(len, own)) == min(count, 2000)


@pytest.mark.usefixtures("without_sklearn")
def test_of_21_classes_half_of_the_points_are_those_of_the_coloured_ones():
    figure = feature_map(normal(21_000, 4), torch.arange(21_000) % 21, names(21), "")
    rest, own = drawn_classes(figure)
    assert (len(rest), sum(map(len, own))) == (1000, 1000)
    assert min(map(len, own)) > 60


def test_without_labels_all_points_have_one_colour_and_nothing_is_named():
    figure = feature_map(normal(30, 4), torch.full((30,), -1), [], "")
    assert len(figure.axes[0].collections) == 1
    assert not figure.legends
    assert not figure.axes[0].texts
    assert tuple(figure.axes[0].collections[0].get_facecolors()[0][:3]) == to_rgb(COLOURS[0])


def test_an_image_without_a_label_is_grey_among_the_others():
    labels = torch.tensor([0, -1, 1, -1, 1])
    rest, own = drawn_classes(feature_map(normal(5, 4), labels, names(2), ""))
    assert [len(rest), *map(len, own)] == [2, 1, 2]


def test_a_feature_that_is_not_finite_is_refused_with_its_count():
    x = normal(9, 4)
    x[3, 1], x[5] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="2 of 9 features are not finite"):
        feature_map(x, torch.zeros(9), ["a"], "")


def test_a_map_draws_nothing_from_the_run_s_random_numbers_and_leaves_its_features_as_they_were():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    x = normal(30, 4).requires_grad_()
    copy = x.detach().clone()
    feature_map(x, torch.arange(30) % 2, names(2), "")
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
    assert torch.equal(x, copy)
    assert x.grad is None


# Confusion

TRUTH, GIVEN = torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 2, 2, 2])


def cells(axes):
    return {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}


def test_a_cell_has_the_percent_of_its_row_given_to_its_column():
    figure = confusion_matrix(TRUTH, GIVEN, ["cat", "dog", "cow"], "linear_grid")
    axes = figure.axes[0]
    assert cells(axes) == {(0, 0): "75", (1, 0): "25", (2, 1): "100", (2, 2): "100"}          # (column, row)
    assert axes.get_images()[0].get_array().tolist() == [[75, 25, 0], [0, 0, 100], [0, 0, 100]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["cat", "dog", "cow"]
    assert axes.get_ylim() == (2.5, -0.5)                                                     # the first row on top
    assert title(figure) == "linear_grid\n57.1 % of 7 images right"


def test_every_matrix_has_one_scale_from_0_to_100():
    for given in (TRUTH, GIVEN, torch.arange(7) % 3):
        assert confusion_matrix(TRUTH * 0, given, names(3), "").axes[0].get_images()[0].get_clim() == (0, 100)


@pytest.mark.filterwarnings("error")
def test_a_class_without_an_image_has_an_empty_row_and_unknown_truth_is_left_out():
    figure = confusion_matrix(torch.tensor([0, 0, 2, -1]), torch.tensor([0, 2, 2, 1]), names(3), "")
    assert cells(figure.axes[0]) == {(0, 0): "50", (2, 0): "50", (2, 2): "100"}
    picture(figure)
    assert "of 3 images" in title(figure)


def test_the_numbers_stand_out_from_their_cells_from_0_to_100():
    truth = torch.arange(101).clamp_max(19).repeat(100)[:2000] % 20
    given = whole_numbers(20, 2000) * (whole_numbers(4, 2000, seed=1) == 0)
    axes = confusion_matrix(truth, given, names(20), "").axes[0]
    drawn, shares = axes.get_images()[0], axes.get_images()[0].get_array()
    assert len(axes.texts) > 60
    for text in axes.texts:
        column, row = map(int, text.get_position())
        assert contrast(drawn.to_rgba(shares)[row, column, :3], to_rgb(text.get_color())) > 4


@pytest.mark.parametrize("count", [1, 2, 20])
def test_up_to_20_classes_all_are_named_and_numbered(count):
    figure = confusion_matrix(torch.arange(count), torch.arange(count), names(count), "")
    assert cells(figure.axes[0]) == {(i, i): "100" for i in range(count)}
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == names(count)


@pytest.mark.parametrize("count", [21, 100, 1000])
def test_of_more_classes_names_are_thinned_out_and_each_stands_at_its_row(count):
    figure = confusion_matrix(torch.arange(count), torch.arange(count), names(count), "")
    axes = figure.axes[0]
    assert not axes.texts
    ticks = axes.get_yticklabels()
    assert 20 < len(ticks) <= 36
    assert [tick.get_text() for tick in ticks] == [f"class {int(place)}" for place in axes.get_yticks()]
    assert (axes.get_yticks()[0], axes.get_yticks()[-1]) == (0, count - 1)
    assert not figure.axes[1].patches                                                         # nothing is confused


def test_of_more_classes_the_20_most_frequent_confusions_are_listed():
    truth, given = whole_numbers(300, 5000), whole_numbers(300, 5000, seed=1)
    truth[:400], given[:400] = 255, 7
    truth[400:700], given[400:700] = 7, 255
    counts = {}
    for pair in zip(truth.tolist(), given.tolist(), strict=True):
        counts[pair] = counts.get(pair, 0) + (pair[0] != pair[1])
    axes = confusion_matrix(truth, given, names(300), "").axes[1]
    lengths = [bar.get_width() for bar in axes.patches]
    assert lengths == sorted(counts.values(), reverse=True)[:20]
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels[:2] == ["class 255 → class 7", "class 7 → class 255"]
    expected = 100 * counts[255, 7] / int((truth == 255).sum())
    assert axes.texts[0].get_text() == f"{expected:.0f} %"
    low, high = axes.get_ylim()
    assert low > high                                                                          # the first on top


def test_confusions_of_classes_whose_names_are_shortened_to_the_same_one_have_a_bar_each():
    alike = [f"a name of twenty letters and the number {i}" for i in range(30)]
    axes = confusion_matrix(torch.arange(30), (torch.arange(30) + 1) % 30, alike, "").axes[1]
    assert len({bar.get_y() for bar in axes.patches}) == len(axes.get_yticklabels()) == 20


@pytest.mark.parametrize("truth", [[0, 3], [3, 0]])
def test_a_label_beyond_the_names_has_a_row_and_a_column_of_its_own(truth):
    axes = confusion_matrix(torch.tensor(truth), torch.tensor([0, 0]), ["cat"], "").axes[0]
    assert cells(axes) == {(0, 0): "100", (0, 3): "100"}
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "1", "2", "3"]
    assert cells(confusion_matrix(torch.tensor([0, 0]), torch.tensor(truth), ["cat"], "").axes[0]) == {
        (0, 0): "50", (3, 0): "50"}


def test_labels_in_bytes_are_counted_as_others_are():
    truth, given = whole_numbers(20, 500), whole_numbers(20, 500, seed=1)
    figures = [confusion_matrix(truth.to(kind), given.to(kind), names(20), "") for kind in (torch.long, torch.uint8)]
    assert np.array_equal(*(figure.axes[0].get_images()[0].get_array() for figure in figures))


def test_no_image_with_a_known_class_makes_an_empty_matrix():
    figure = confusion_matrix(torch.tensor([-1]), torch.tensor([0]), ["cat", "dog"], "")
    assert cells(figure.axes[0]) == {}
    assert "0.0 % of 0 images" in title(figure)


# Learning curves

def draws(*accuracies):
    return Score(torch.tensor(accuracies, dtype=torch.float64), "draw")


SCORES = {"knn_dino": number(0.9), "lowshot/1/knn": draws(0.1, 0.3), "lowshot/10/knn": draws(0.4, 0.4),
          "lowshot/1/naive_bayes": draws(0.2, 0.2, 0.5), "lowshot/1%/knn": draws(0.5, 0.7)}


def curve(container):
    """x, y and the ends of the bars."""
    line, _, (bars,) = container
    return line.get_xdata(), line.get_ydata(), [(low, high) for (_, low), (_, high) in bars.get_segments()]


def test_a_curve_has_the_mean_and_the_deviation_of_its_draws_in_percent():
    figure = curves({"mine": SCORES}, "few labels")
    per_class, percent = figure.axes
    x, y, bars = curve(per_class.containers[0])
    assert x == pytest.approx([1, 10], rel=0.1)
    assert y == pytest.approx([20, 40])
    deviation = 100 * math.sqrt(0.02)
    assert bars[0] == pytest.approx((20 - deviation, 20 + deviation))
    assert bars[1] == pytest.approx((40, 40))
    assert curve(per_class.containers[1])[1] == pytest.approx([30])
    assert curve(percent.containers[0])[1] == pytest.approx([60])
    assert legend(figure) == ["knn", "naive_bayes"]
    assert (per_class.get_xlabel(), percent.get_xlabel()) == ("labels per class", "of all labels")
    assert "%" in per_class.get_ylabel()


def test_labels_per_class_have_a_logarithmic_axis_with_a_tick_for_each():
    axes = curves({"mine": SCORES}, "").axes
    assert [panel.get_xscale() for panel in axes] == ["log", "log"]
    assert [[tick.get_text() for tick in panel.get_xticklabels()] for panel in axes] == [["1", "10"], ["1 %"]]
    assert axes[0].get_xticks().tolist() == [1, 10]
    assert not len(axes[0].xaxis.get_minorticklocs())
    assert axes[0].get_ylim() == axes[1].get_ylim()


def test_points_are_joined_in_the_order_of_their_labels():
    scores = {f"lowshot/{n}/knn": number(n / 200) for n in (100, 2, 10)}
    x, y, _ = curve(curves({"mine": scores}, "").axes[0].containers[0])
    assert y == pytest.approx([1, 5, 50])
    assert x == pytest.approx([2, 10, 100])


def test_two_encoders_differ_by_colour_two_classifiers_by_the_line_and_every_point_by_its_marker():
    figure = curves({"mine": SCORES, "theirs": SCORES}, "")
    assert legend(figure) == ["mine: knn", "mine: naive_bayes", "theirs: knn", "theirs: naive_bayes"]
    lines = [container.lines[0] for container in figure.axes[0].containers]
    assert len({line.get_marker() for line in lines}) == 4
    mine, theirs = ({line.get_color() for line in pair} for pair in (lines[:2], lines[2:]))
    assert len(mine) == len(theirs) == 1
    assert mine != theirs
    assert [line.get_linestyle() for line in lines[:2]] == [line.get_linestyle() for line in lines[2:]]
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    shifts = [line.get_xdata()[0] for line in lines]
    assert len(set(shifts)) == 4                                      # bars side by side
    assert max(shifts) / min(shifts) < 1.2


def test_the_legend_shows_the_marks_that_are_drawn():
    figure = curves({"mine": SCORES, "theirs": {"lowshot/10%/logistic": draws(0.3, 0.4)}}, "")
    assert legend(figure) == ["mine: knn", "mine: naive_bayes", "theirs: logistic"]
    parts = figure.legends[0].findobj(Line2D)
    for panel in figure.axes:
        lines = [container.lines[0] for container in panel.containers]
        assert [(line.get_color(), line.get_marker()) for line in lines] == [
            (part.get_color(), part.get_marker()) for part in parts if part.get_marker() in MARKERS]
        assert [(line.get_color(), line.get_linestyle()) for line in lines] == [
            (part.get_color(), part.get_linestyle()) for part in parts if part.get_linestyle() in LINES]
    assert curve(figure.axes[1].containers[2])[1] == pytest.approx([35])


def test_one_panel_is_enough_where_one_kind_was_measured():
    figure = curves({"mine": {"lowshot/5/knn": number(0.5)}}, "")
    assert len(figure.axes) == 1
    assert curve(figure.axes[0].containers[0])[2] == [pytest.approx((50, 50))]


def test_scores_without_few_labels_are_refused():
    with pytest.raises(ValueError, match="measure lowshot first"):
        curves({"mine": {"knn_dino": number(0.5)}}, "")


@pytest.mark.parametrize(("name", "parts"), [("lowshot/5/naive_bayes", ("naive_bayes", 5, False)),
                                             ("lowshot/10%/knn", ("knn", 10, True)),
                                             ("lowshot/0.5%/knn", ("knn", 0.5, True))])
def test_a_score_s_name_is_read_into_labels_percent_and_classifier(name, parts):
    assert lowshot.cells({"mine": {name: number(0.5), "knn_dino": number(0.1)}})[0][:4] == ("mine", *parts)


# Similarities

def test_each_distribution_of_cosines_has_area_1_and_its_own_counts():
    positives, negatives = torch.tensor([0, 0, 1, 3]), torch.tensor([5, 10, 4, 1])
    edges = torch.tensor([-1, -0.5, 0, 0.75, 1])
    figure = similarity_histogram(positives, negatives, edges, "after 10 epochs")
    axes = figure.axes[0]
    drawn = {patch.get_label(): patch.get_data() for patch in axes.patches}
    assert set(drawn) == {"negatives, two images (20 pairs)", "positives, two views of an image (4 pairs)"}
    for name, counts in (("negatives", negatives), ("positives", positives)):
        (values, bounds, _), = [data for label, data in drawn.items() if label.startswith(name)]
        assert (values * np.diff(bounds)).sum() == pytest.approx(1)
        assert values == pytest.approx((counts / counts.sum() / edges.diff()).numpy())
    assert axes.get_xlim() == (-1, 1)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("cosine", "density")
    assert len({patch.get_facecolor() for patch in axes.patches}) == len({patch.get_hatch() for patch in axes.patches})


@pytest.mark.filterwarnings("error")
def test_no_pairs_at_all_make_a_flat_line_at_0():
    empty = torch.zeros(4).long()
    for patch in similarity_histogram(empty, empty, torch.linspace(-1, 1, 5), "").axes[0].patches:
        assert patch.get_data().values.tolist() == [0] * 4


# Masks

def sheet_of(truth, given, classes, size=(12, 24)):
    images = whole_numbers(256, len(truth), 3, *size).byte()
    return images, mask_sheet(images, truth, given, classes, "linear_dense")


def shown(axes):
    return np.asarray(axes.get_images()[0].get_array())


def test_image_truth_and_prediction_stand_in_this_order_with_the_colours_of_their_classes():
    truth, given = whole_numbers(3, 2, 12, 24), whole_numbers(3, 2, 12, 24, seed=1)
    images, figure = sheet_of(truth, given, names(3))
    rows = np.array(figure.axes).reshape(2, 3)
    assert [axes.get_title() for axes in rows[0]] == ["image", "truth", "prediction"]
    for row, image, true, guess in zip(rows, images, truth, given, strict=True):
        assert np.array_equal(shown(row[0]), image.permute(1, 2, 0))
        for axes, mask in zip(row[1:], (true, guess), strict=True):
            assert np.allclose(shown(axes), SHADES[mask])


def test_the_caption_is_the_mean_iou_of_that_image_alone():
    truth = torch.zeros(2, 12, 24).long()
    truth[0, :, 12:], truth[1, 0] = 1, 255
    given = torch.zeros(2, 12, 24).long()
    given[0, :, 18:], given[1, :, 6:] = 1, 2
    _, figure = sheet_of(truth, given, names(3))
    # first: class 0 has 12 of 18 columns, class 1 has 6 of 12; second: class 0 has 6 of 24, class 2 is nowhere true
    assert [axes.get_xlabel() for axes in figure.axes[2::3]] == ["mean IoU 58 %", "mean IoU 12 %"]


def test_the_legend_names_the_classes_that_are_there_and_what_is_ignored():
    truth, given = torch.full((1, 12, 24), 2), torch.full((1, 12, 24), 4)
    assert legend(sheet_of(truth, given, names(6))[1]) == ["2 class 2", "4 class 4"]
    truth[0, 0, 0] = 255
    figure = sheet_of(truth, given, names(6))[1]
    assert legend(figure) == ["2 class 2", "4 class 4", "ignored"]
    assert to_rgb(figure.legends[0].legend_handles[1].get_facecolor()) == pytest.approx(SHADES[4])


def test_ignored_pixels_are_striped_in_greys_that_no_class_has():
    truth = torch.full((1, 12, 24), 255)
    _, figure = sheet_of(truth, torch.zeros(1, 12, 24).long(), names(2))
    stripes = np.unique(shown(figure.axes[1]).reshape(-1, 3), axis=0)
    assert len(stripes) == 2
    assert (stripes == stripes[:, :1]).all()
    assert np.abs(stripes[:, None] - SHADES).max(-1).min() > 0.1
    assert figure.axes[2].get_xlabel() == "no pixel has a class"


@pytest.mark.parametrize("step", [1, 7])
def test_a_class_s_number_stands_in_its_area(step):
    mask = torch.zeros(20, 60).long()
    mask[5:15, 30:55], mask[1, 1] = 3, 4                              # a speck has no room for a number
    mask = mask.repeat_interleave(step, 0).repeat_interleave(step, 1)[None]
    _, figure = sheet_of(mask, mask, names(5), size=mask.shape[1:])
    for axes in figure.axes[1:]:
        assert sorted(written(axes)) == ["0", "3"]
        for text in axes.texts:
            x, y = map(int, text.get_position())
            assert mask[0, y, x] == int(text.get_text())


def test_a_heart_is_as_far_from_the_border_as_any_place():
    area = torch.zeros(9, 12, dtype=torch.bool)
    area[1:8, 2:9] = True
    assert heart(area) == [4, 5]
    area[4, 9:] = True
    assert heart(area) == [4, 5]
    assert heart(torch.ones(5, 5, dtype=torch.bool)) == [2, 2]        # the picture's border is one
    for thin in (area & ~area, torch.eye(9, dtype=torch.bool)):
        assert heart(thin) is None


def test_23_classes_have_23_colours_of_areas():
    assert len(np.unique(SHADES.round(3), axis=0)) == len(SHADES) == 23




def test_the_curve_of_a_run_has_a_panel_for_its_loss_its_accuracies_and_each_measure_of_health():
    course = Course([(5, 4.0), (10, 3.0)], {"knn_dino": [(10, 0.6), (0, 0.25)], "health/rankme": [(0, 9.0), (10, 20.0)],
                                            "health/uniformity": [(0, -1.0)]}, frozenset({"knn_dino"}),
                    {"knn_dino": 0.2})
    figure = training_curve(course, "a run")
    loss, accuracy, rank, rest = figure.axes
    assert title(figure) == "a run"
    assert [axes.get_ylabel() for axes in (loss, accuracy, rank)] == [
        "training loss", "accuracy, %", "effective rank, directions"]
    assert loss.lines[0].get_xydata().tolist() == [[5, 4], [10, 3]]
    assert accuracy.lines[0].get_xydata() == pytest.approx(np.array([[0, 25], [10, 60]]))      # by the step
    assert accuracy.lines[1].get_ydata() == pytest.approx([20, 20])
    assert rank.lines[0].get_xydata().tolist() == [[0, 9], [10, 20]]
    assert not rest.axison


def test_the_curve_of_a_run_without_labels_has_no_panel_of_accuracies_and_of_nothing_it_is_empty():
    figure = training_curve(Course([(1, 2.0)], {"health/feature_std": [(0, 0.5)]}, frozenset(), {}), "")
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "deviation of features, 1 is even"]
    assert picture(training_curve(Course([], {}, frozenset(), {}), "")).width > 100
