"""The curves of runs that are compared: accuracy against epochs and against seconds, each recipe in its own colour."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_zoo.evaluation.charts import COLOURS, LINES, MARKERS, blank, picture, plain
from ssl_zoo.evaluation.comparison import Run, arms
from ssl_zoo.evaluation.protocol import Picture

DARK = [colour for colour in COLOURS if colour != "#F0E442"]   # yellow lines are lost on white


class Axis(NamedTuple):
    label: str
    value: Callable[[Run, Mapping[str, Any]], float]   # of a point of a run's curve


EPOCHS = Axis("epochs", lambda run, point: point["images"] / max(1, run.curve.get("images_of_an_epoch") or 1))
WALL = Axis("seconds of training", lambda run, point: point["seconds"])
PROCESSOR = Axis("processor's seconds of training", lambda run, point: point["processor_seconds"])


def pictures(runs: Sequence[Run], scores: Mapping[str, bool], *, timed: bool) -> dict[str, Picture]:
    """The pictures by name, of those of these scores that were measured in the runs, too.

    Args:
        scores: and whether they are written in percent.
        timed: whether the runs' seconds stand side by side.
    """
    known = {name for run in runs for point in run.curve["points"] for name in point["scores"]}
    shown = {name: percent for name, percent in scores.items() if name in known}
    found: dict[str, Picture] = {"curves": lambda: picture(against_epochs(runs, shown))} if shown else {}
    if timed and (first := next((name for name, percent in shown.items() if percent), None)):
        found["seconds"] = lambda: picture(against_seconds(runs, first, percent=True))
    return found


def against_epochs(runs: Sequence[Run], scores: Mapping[str, bool]) -> Figure:
    """A panel for each score, in percent where it says so: every run a thin line, and the mean of its recipe's seeds a
    thick one."""
    return draw(runs, [(EPOCHS, score, percent) for score, percent in scores.items()],
                "What each evaluation found")


def against_seconds(runs: Sequence[Run], score: str, *, percent: bool) -> Figure:
    """The same for one score against the time that training took, by the clock and by the processor."""
    return draw(runs, [(WALL, score, percent), (PROCESSOR, score, percent)],
                "What training has bought for its time")


def draw(runs: Sequence[Run], panels: Sequence[tuple[Axis, str, bool]], title: str) -> Figure:
    names = arms(runs)
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = blank(1 + 4.6 * columns, 0.9 + 3.4 * lines + 0.22 * -(-len(names) // 2),
                   f"{title}\nthin lines are seeds, thick ones their mean")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, (axis, score, percent) in zip(grid, panels, strict=False):
        for number, name in enumerate(names):
            curves = [points(run, axis, score, 100 if percent else 1) for run in runs if run.arm == name]
            draw_arm(axes, [curve for curve in curves if curve.size], number, name)
        axes.set(xlabel=axis.label, ylabel=plain(score) + ", %" * percent)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
    for axes in grid[len(panels):]:
        axes.remove()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def points(run: Run, axis: Axis, score: str, scale: float) -> np.ndarray:
    """[n, 2]: where on the axis, and how much, at each evaluation that has this score."""
    found = [(axis.value(run, point), scale * point["scores"][score]) for point in run.curve.get("points", ())
             if point["scores"].get(score) is not None]
    return np.array(found).reshape(-1, 2)


def draw_arm(axes: Axes, curves: Sequence[np.ndarray], number: int, name: str) -> None:
    """The seeds of a recipe, and their mean where they have as many points."""
    look: dict[str, Any] = {"color": DARK[number % len(DARK)], "linestyle": LINES[number // len(DARK) % len(LINES)]}
    several = len(curves) > 1
    alike = several and len({len(curve) for curve in curves}) == 1
    for curve in curves:
        axes.plot(*curve.T, linewidth=0.8 if several else 2, alpha=0.6 if several else 1, **look,
                  marker=MARKERS[number % len(MARKERS)], markersize=3 if alike else 5)
    label = plain(name) + f" ({len(curves)} seed{'s' * several})"
    middle = np.mean(curves, 0) if alike else np.empty((0, 2))
    axes.plot(*middle.T, linewidth=2.2, marker=MARKERS[number % len(MARKERS)], markersize=6, label=label, **look)
