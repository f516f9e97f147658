"""How a run went, in one picture: its loss, its accuracies and the health of its features, by the step."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_zoo.evaluation.charts import COLOURS, LINES, MARKERS, blank, plain
from ssl_zoo.evaluation.protocol import Protocol, quantity

FEW = 30     # points, up to which each has a marker
HEALTH = {"health/rankme": "effective rank, directions", "health/feature_std": "deviation of features, 1 is even"}


class Course(NamedTuple):
    """What was measured of a run."""

    losses: Sequence[tuple[int, float]]              # step and loss
    scores: Mapping[str, Sequence[tuple[int, float]]]   # by name: step and value; step 0 is the untrained encoder
    shares: frozenset[str]                           # names of the scores that are shown in percent
    pixels: Mapping[str, float]                      # of raw pixels, by the same names


def course(losses: Sequence[tuple[int, float]], points: Iterable[tuple[int, Mapping[str, float | None]]],
           protocols: Sequence[Protocol], pixels: Mapping[str, float]) -> Course:
    """Put what each evaluation found, a step with its scores, in the order of the scores' names."""
    scores: dict[str, list[tuple[int, float]]] = {}
    for step, found in points:
        for name, value in found.items():
            if value is not None:                   # finite
                scores.setdefault(name, []).append((step, value))
    shares = frozenset(name for name in scores if (known := quantity(name, protocols)) and known[1].percent)
    return Course(losses, scores, shares, pixels)


def training_curve(course: Course, title: str) -> Figure:
    """Draw a panel for the loss, one for the accuracies, and one for each measure of health that there is.

    Args:
        course: of which every panel that has nothing to show is left out.
        title: whose run it is.
    """
    accuracies = [name for name in course.scores if name in course.shares and "/" not in name]
    health = [name for name in HEALTH if name in course.scores]
    count = bool(course.losses) + bool(accuracies) + len(health)
    wide = 1 if count < 2 else 2
    tall = max(1, -(-count // wide))
    figure = blank(1 + 4.2 * wide, 0.8 + 2.9 * tall, title)
    panels = iter(figure.subplots(tall, wide, squeeze=False).flat)
    if course.losses:
        draw(axes := next(panels), "loss", course.losses, 0)
        axes.set(ylabel="training loss")
    if accuracies:
        draw_accuracies(next(panels), course, accuracies)
    for name in health:
        draw(axes := next(panels), name, course.scores[name], 2)
        axes.set(ylabel=HEALTH[name], ylim=(0, None))
    for axes in panels:
        axes.set_axis_off()
    return figure


def draw_accuracies(axes: Axes, course: Course, names: Sequence[str]) -> None:
    """A line for each name, and where raw pixels were measured their level as dots in the same colour."""
    for place, name in enumerate(names):
        draw(axes, name, [(step, 100 * value) for step, value in course.scores[name]], place)
        if name in course.pixels:
            axes.axhline(100 * course.pixels[name], color=COLOURS[place % len(COLOURS)], linestyle=":", linewidth=1,
                         label=plain(f"{name}, raw pixels"))
    axes.set(ylabel="accuracy, %", xlabel="step; 0 is the untrained encoder")
    axes.legend(frameon=False, fontsize=7)


def draw(axes: Axes, name: str, points: Sequence[tuple[int, float]], place: int) -> None:
    steps, values = zip(*sorted(points), strict=True)
    axes.plot(steps, values, label=plain(name), color=COLOURS[place % len(COLOURS)],
              linestyle=LINES[place % 2], marker=MARKERS[place % len(MARKERS)] if len(points) <= FEW else None,
              markersize=4)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
