"""Charts of an evaluation. Each function returns a Figure, and `picture` makes an image of it; neither needs a display.

The colours are Okabe and Ito's, which the colour-blind tell apart. What a colour says, a marker, a line style, a hatch
or a number says too, so that nothing is lost in grey.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator
from matplotlib.transforms import BboxBase
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ssl_zoo.evaluation.dense import IGNORE, confusion, mean_iou
from ssl_zoo.evaluation.lowshot import FewLabels

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
BRIGHT = np.array([to_rgb(colour) for colour in COLOURS])
SHADES = np.concatenate([BRIGHT, 0.55 * BRIGHT[:-1], 0.45 * BRIGHT + 0.55])      # [23, 3]: and darker, and paler
MARKERS = "os^DvXP*<>"
LINES = ("-", "--", ":", "-.", (0, (7, 2, 1, 2, 1, 2)), (0, (1, 4)))
REST = "#BBBBBB"                            # what has no class, or none that is shown
POINTS = 2000                               # of a map of features
CLASSES = 20                                # with a colour, a name and numbers each; of more, a choice


def picture(figure: Figure) -> Image.Image:
    """The chart as an image, 200 pixels an inch."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def blank(width: float, height: float, title: str) -> Figure:
    """An empty figure with a title, `width` x `height` inches."""
    figure = Figure((width, height), dpi=200, layout="constrained")
    figure.suptitle(plain(title), fontsize=11)
    return figure


def plain(text: str) -> str:
    return text.replace("$", r"\$")         # dollars would set what is between them as mathematics


def short(classes: Sequence[str], label: int) -> str:
    name = classes[label] if label < len(classes) else str(label)
    return plain(name if len(name) <= 20 else name[:19] + "…")


def ink(ground: np.ndarray) -> str:
    """Black or white, whichever stands out more from the colour `ground` [3], 0 to 1, by WCAG's contrast."""
    linear = np.where(ground <= 0.04045, ground / 12.92, ((ground + 0.055) / 1.055) ** 2.4)
    return "black" if linear @ [0.2126, 0.7152, 0.0722] > 0.179 else "white"


# Map of features

def feature_map(x: Tensor, labels: Tensor, classes: Sequence[str], title: str) -> Figure:
    """Draw at most 2,000 unit features as points, with those of similar images close together.

    The points are placed by t-SNE if scikit-learn is installed, else by PCA. Of more than 20 classes, ten that are
    spread evenly over the list are coloured, and get up to half of the points.

    Args:
        x: [N, D].
        labels: [N], -1 where unknown.
        classes: names by label.
        title: whose features they are.
    """
    numbers = labels.cpu().numpy()
    present = np.unique(numbers[numbers >= 0])
    shown = present if len(present) <= CLASSES else present[np.linspace(0, len(present) - 1, 10).round().astype(int)]
    rows = evenly(numbers, shown)
    points, how = flatten(x.detach()[torch.from_numpy(rows).to(x.device)].float().cpu())
    title += f"\n{how}, {len(rows):,} of {len(x):,} images"
    if len(shown) < len(present):
        title += f", {len(shown)} of {len(present):,} classes in colour"
    figure = blank(8, 6.5, title)
    scatter(figure, points, numbers[rows], {label: short(classes, label) for label in shown})
    return figure


def scatter(figure: Figure, points: np.ndarray, labels: np.ndarray, names: dict[int, str]) -> None:
    """Draw points [N, 2] by class; those of classes without a name share one colour."""
    axes = figure.add_subplot(aspect="equal", adjustable="datalim", xticks=[], yticks=[])
    rest = points[~np.isin(labels, list(names))]
    axes.scatter(rest[:, 0], rest[:, 1], s=12, color=REST if names else COLOURS[0], linewidths=0)
    if not names:
        return
    own = [points[labels == label] for label in names]
    drawn = [axes.scatter(some[:, 0], some[:, 1], s=22, color=SHADES[i], marker=MARKERS[i % len(MARKERS)],
                          linewidths=0.3, edgecolors="#333333") for i, some in enumerate(own)]
    figure.legend(drawn, list(names.values()), loc="outside right center", markerscale=1.6, frameon=False)
    figure.draw_without_rendering()          # how large names are is known once the layout is
    write_names(axes, [(name, np.median(some, 0)) for name, some in zip(names.values(), own, strict=True)
                       if len(some) >= 5])   # a name would hide fewer


def evenly(labels: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Draw the rows of a map, always the same ones; up to half are of the classes shown, if there are others.

    Of each class shown there are ten, or all: a rare one would be lost among thousands.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    coloured, others = order[np.isin(labels[order], shown)], order[~np.isin(labels[order], shown)]
    few, half = [coloured[labels[coloured] == label][:10] for label in shown], POINTS // 2
    drawn = dict.fromkeys(np.concatenate([*few, coloured[:half], others, coloured[half:]]).tolist())   # in this order
    return np.sort(np.array([*drawn][:POINTS]))


def flatten(x: Tensor) -> tuple[np.ndarray, str]:
    """Places [N, 2] of features [N, D], and how they were found."""
    if not x.isfinite().all():
        raise ValueError(f"{int((~x.isfinite()).any(1).sum())} of {len(x)} features are not finite and have no place "
                         "in a map: leave them out")
    x = F.normalize(x, dim=-1)
    flat, share = principal(x)
    by_pca = f"PCA, {100 * share:.0f} % of the variance"
    try:
        from sklearn.manifold import TSNE  # type: ignore[import-untyped]
    except ImportError:
        return flat.numpy(), by_pca
    if len(x) < 10:                         # too few to have neighbourhoods
        return flat.numpy(), by_pca
    perplexity = min(30, len(x) // 3)
    start = 1e-4 * flat / flat[:, 0].std().clamp_min(1e-12)
    tsne = TSNE(perplexity=perplexity, init=start.float().numpy(), max_iter=500)
    return tsne.fit_transform(x.numpy()), f"t-SNE, perplexity {perplexity}"


def principal(x: Tensor) -> tuple[Tensor, float]:
    """Coordinates [N, 2] along the two directions of greatest variance, float64, and their share of it."""
    x = x.double() - x.double().mean(0)
    variances, directions = torch.linalg.eigh(x.T @ x)                       # rising
    flat = x @ directions[:, -2:].flip(1)
    return F.pad(flat, (0, 2 - flat.shape[1])), (variances[-2:].sum() / variances.sum().clamp_min(1e-12)).item()


def write_names(axes: Axes, names: Sequence[tuple[str, np.ndarray]]) -> None:
    """Write each name at its place, moved inside the frame; leave out names that would cover an earlier one."""
    frame, boxes = axes.get_window_extent(), list[BboxBase]()
    for name, (x, y) in names:
        text = axes.text(x, y, name, ha="center", va="center", fontsize=9, weight="bold", in_layout=False,
                         path_effects=[withStroke(linewidth=3, foreground="white")])
        box = text.get_window_extent()
        shift = np.clip(0, frame.x0 - box.x0, frame.x1 - box.x1)             # pixels
        text.set_x(x + shift * np.ptp(axes.get_xlim()) / frame.width)
        box = box.translated(shift, 0)
        if any(box.overlaps(other) for other in boxes):
            text.remove()
        else:
            boxes.append(box)


# Confusion

def confusion_matrix(truth: Tensor, predictions: Tensor, classes: Sequence[str], title: str) -> Figure:
    """How many percent of each true class (row) were given each class (column).

    Beyond 20 classes the cells have no numbers, and the most frequent confusions are listed beside them.

    Args:
        truth: [N], those below 0 are left out.
        predictions: [N].
        classes: names by label.
        title: whose predictions they are.
    """
    counts = count(truth, predictions, len(classes))
    names = [short(classes, label) for label in range(len(counts))]
    with np.errstate(invalid="ignore"):
        shares = 100 * counts / counts.sum(1, keepdims=True)                 # NaN without an image of the class
    title += f"\n{100 * np.trace(counts) / max(counts.sum(), 1):.1f} % of {counts.sum():,} images right"
    if len(names) <= CLASSES:
        side = 3 + 0.42 * len(names)
        figure = blank(side + 0.5, side, title)
        axes = figure.add_subplot()
        write_shares(axes, counts, shares)
    else:
        figure = blank(13, 7.5, title)
        axes, list_axes = figure.subplots(1, 2, width_ratios=(3, 1))
        list_confusions(list_axes, counts, shares, names)
    shown = np.unique(np.linspace(0, len(names) - 1, min(len(names), 34)).round().astype(int))
    axes.set_xticks(shown, [names[label] for label in shown], rotation=90, fontsize=8)
    axes.set_yticks(shown, [names[label] for label in shown], fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    drawn = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(drawn, ax=axes, label="% of the true class", shrink=0.8)
    return figure


def count(truth: Tensor, predictions: Tensor, classes: int) -> np.ndarray:
    """How many images of each true class (row) were given each class (column): [C, C], for all names and labels."""
    truth, predictions = truth.long().cpu(), predictions.long().cpu()
    classes = 1 + max([classes - 1, *truth.tolist(), *predictions.tolist()])
    return multiclass_confusion_matrix(predictions, truth, classes, ignore_index=-1, validate_args=False).numpy()


def write_shares(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    for row, column in np.argwhere(counts):
        share = shares[row, column]
        ground = np.array(colormaps["cividis"](share / 100)[:3])
        axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=8, color=ink(ground))


def list_confusions(axes: Axes, counts: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> None:
    """Draw the 20 most frequent confusions as bars, the most frequent on top."""
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:20]
    pairs = [divmod(int(place), len(counts)) for place in order if wrong.flat[place]]
    bars = axes.barh(range(len(pairs)), [wrong[pair] for pair in pairs], color=COLOURS[0])
    axes.set_yticks(range(len(pairs)), [f"{names[true]} → {names[given]}" for true, given in pairs])
    axes.bar_label(bars, [f"{shares[pair]:.0f} %" for pair in pairs], padding=2, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.2, y=0.01)
    axes.set(xlabel="images\n(% of the true class)")
    axes.set_title("true → predicted", fontsize=10)


# Learning curves

def learning_curves(cells: Sequence[FewLabels], title: str) -> Figure:
    """Accuracy by labels per class, and beside it by percent of all labels: mean and deviation over the draws.

    Args:
        cells: at least one measurement from few labels, of one encoder or several.
        title: of the chart.
    """
    if not cells:
        raise ValueError("there are no accuracies from few labels to draw: measure lowshot first")
    curves = list(dict.fromkeys(cell[:2] for cell in cells))
    encoders, classifiers = (list(dict.fromkeys(column)) for column in zip(*curves, strict=True))
    looks = {curve: {"color": COLOURS[encoders.index(curve[0]) % len(COLOURS)],        # also of a point alone
                     "marker": MARKERS[i % len(MARKERS)],
                     "linestyle": LINES[classifiers.index(curve[1]) % len(LINES)]} for i, curve in enumerate(curves)}
    names = [plain(classifier if len(encoders) == 1 else f"{encoder}: {classifier}") for encoder, classifier in curves]
    kinds = sorted({cell.percent for cell in cells})
    wide = min(len(encoders), 3)            # columns of the legend
    figure = blank(6 + 2 * len(kinds), 4.5 + 0.25 * math.ceil(len(curves) / wide), title)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False, width_ratios=[
        len({cell.labels for cell in cells if cell.percent == kind}) + 1 for kind in kinds])[0]
    for axes, kind in zip(panels, kinds, strict=True):
        draw_curves(axes, [cell for cell in cells if cell.percent == kind], looks)
    drawn = any(cell.score.of == "draw" for cell in cells)
    panels[0].set_ylabel("accuracy, %" + "; bars: deviation over the draws" * drawn)
    figure.legend(panels[0].containers, names, loc="outside lower center", ncols=wide, handlelength=4, frameon=False)
    return figure


def draw_curves(axes: Axes, cells: Sequence[FewLabels], looks: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Draw a curve, which may be empty, for each encoder and classifier; the cells are all in percent, or none is."""
    for i, (curve, look) in enumerate(looks.items()):
        own = sorted(cell for cell in cells if cell[:2] == curve)
        apart = 1.2 ** ((i + 0.5) / len(looks) - 0.5)                        # or the bars would hide each other
        axes.errorbar([apart * cell.labels for cell in own], [100 * cell.score.value for cell in own],
                      [100 * (cell.score.deviation or 0) for cell in own], capsize=2, markersize=6, **look)
    percent, ticks = cells[0].percent, sorted({cell.labels for cell in cells})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{n:g} %" if percent else f"{n:g}" for n in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("of all labels" if percent else "labels per class")
    axes.grid(alpha=0.3)


# Similarities

def similarity_histogram(positives: Tensor, negatives: Tensor, edges: Tensor, title: str) -> Figure:
    """How the cosines of positives and of negatives are distributed, as densities.

    Args:
        positives: counts [B], of two views of an image.
        negatives: counts [B], of two images.
        edges: [B + 1] of the bins.
        title: whose cosines they are.
    """
    figure = blank(7, 4.2, title)
    axes = figure.add_subplot(xlim=(edges[0].item(), edges[-1].item()), xlabel="cosine", ylabel="density")
    for counts, name, colour, hatch in ((negatives, "negatives, two images", COLOURS[1], ""),
                                        (positives, "positives, two views of an image", COLOURS[0], "////")):
        density = counts.double() / counts.sum().clamp_min(1) / edges.double().diff()
        axes.stairs(density.cpu().numpy(), edges.cpu().numpy(), fill=True, color=colour, alpha=0.6, hatch=hatch,
                    label=f"{name} ({int(counts.sum()):,} pairs)")
    axes.legend(frameon=False)
    return figure


def score_curves(steps: np.ndarray, positive: np.ndarray, negative: np.ndarray, hardest: np.ndarray,
                 title: str) -> Figure:
    """How the cosines of positives and of negatives move while training: their means, and beside them their variances.

    As in fig. 2 to 4 of "Improving Contrastive Learning by Visualizing Feature Transformation", arXiv:2108.02982.

    Args:
        steps: at which they were recorded, [S].
        positive: mean and variance [S, 2].
        negative: mean and variance [S, 2].
        hardest: the mean over images of the hardest negative [S].
        title: whose cosines they are.
    """
    figure = blank(10, 4.2, title)
    means, variances = figure.subplots(1, 2)
    markers = {"marker": "o", "markersize": 3} if len(steps) < 30 else {}
    for (mean, variance), name, colour, line in ((positive.T, "positives", COLOURS[0], LINES[0]),
                                                 (negative.T, "negatives", COLOURS[1], LINES[1])):
        means.plot(steps, mean, label=name, color=colour, linestyle=line, **markers)
        means.fill_between(steps, mean - np.sqrt(variance), mean + np.sqrt(variance), color=colour, alpha=0.2, lw=0)
        variances.plot(steps, variance, label=name, color=colour, linestyle=line, **markers)
    means.plot(steps, hardest, label="hardest negative", color=COLOURS[5], linestyle=LINES[3], **markers)
    means.set(xlabel="step", ylabel="cosine: mean, and deviation")
    variances.set(xlabel="step", ylabel="variance", ylim=(0, None))
    for axes in (means, variances):
        axes.grid(alpha=0.3)
    means.legend(frameon=False)
    return figure


# Masks

def mask_sheet(images: Tensor, truth: Tensor, predictions: Tensor, classes: Sequence[str], title: str) -> Figure:
    """Each image, its mask and the predicted one, with the mean IoU over the classes of that image.

    Args:
        images: [N, 3, H, W] uint8.
        truth: [N, H, W], places in `classes` or 255, which is striped.
        predictions: [N, H, W].
        classes: names.
        title: whose predictions they are.
    """
    images, truth, predictions = images.cpu(), truth.cpu(), predictions.cpu()
    height, width = truth.shape[1:]
    figure = blank(9, 1.5 + len(images) * (3 * height / width + 0.3), title)
    grid = figure.subplots(len(images), 3, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for axes, heading in zip(grid[0], ("image", "truth", "prediction"), strict=True):
        axes.set_title(heading, fontsize=10)
    for row, image, true, given in zip(grid, images, truth, predictions, strict=True):
        row[0].imshow(image.permute(1, 2, 0).numpy())
        draw_mask(row[1], true)
        draw_mask(row[2], given)
        iou = mean_iou(confusion(given, true, len(classes))).mean
        row[2].set_xlabel("no pixel has a class" if (true == IGNORE).all() else f"mean IoU {100 * iou:.0f} %")
    present = [label for label in torch.cat([truth, predictions]).unique().tolist() if label != IGNORE]
    handles = [Patch(facecolor=SHADES[label % len(SHADES)], label=f"{label} {short(classes, label)}")
               for label in present]
    if (truth == IGNORE).any():
        handles.append(Patch(facecolor="white", edgecolor=REST, hatch="////", label="ignored"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def draw_mask(axes: Axes, mask: Tensor) -> None:
    """Draw classes as colours, pixels without a class as stripes, and its number in the middle of each area."""
    height, width = mask.shape
    step = max(1, width // 60)                                               # a digit is about three steps high
    stripes = (np.arange(height)[:, None] + np.arange(width)) // step % 2
    stripes = np.stack([1 - 0.25 * stripes] * 3, -1)
    axes.imshow(np.where((mask == IGNORE)[..., None], stripes, SHADES[mask.long() % len(SHADES)]))
    for label in mask.unique().tolist():
        place = heart(mask[step // 2::step, step // 2::step] == label)
        if label != IGNORE and place is not None:
            y, x = (step // 2 + step * cell for cell in place)
            axes.text(x, y, str(label), ha="center", va="center", fontsize=7, color=ink(SHADES[label % len(SHADES)]))


def heart(area: Tensor) -> list[int] | None:
    """Row and column of a place deep inside `area` [H, W] bool; None if not even a square of 3 x 3 fits in."""
    inside, places = area[None].float(), None
    while (inside := 1 - F.max_pool2d(F.pad(1 - inside, (1, 1, 1, 1), value=1.0), 3, 1)).any():   # less a cell
        places = inside[0].nonzero()                                                              # [M, 2]
    return None if places is None else places[len(places) // 2].tolist()
