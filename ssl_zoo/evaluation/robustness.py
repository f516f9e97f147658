"""How much accuracy survives ImageNet-C's corruptions: a linear layer that has seen clean features alone."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from ssl_zoo.encoders import Encoder, evaluation_mode
from ssl_zoo.evaluation.charts import COLOURS, LINES, MARKERS, blank, picture
from ssl_zoo.evaluation.classifiers import Linear
from ssl_zoo.evaluation.features import Features, require_finite
from ssl_zoo.evaluation.protocol import Context, Measured
from ssl_zoo.evaluation.protocols.linear_lbfgs import descended
from ssl_zoo.evaluation.score import Score, number


def robustness(name: str, train: Features, test: Features, context: Context) -> Measured:
    """Accuracies of the clean and the corrupted test images, by kind, family and over all, and their ratio.

    Args:
        name: of the protocol.
        train, test: clean features of both parts.
    """
    encoder = context.encoder
    if encoder is None:
        raise ValueError(f"{name} encodes corrupted images, for long: measure the exported encoder with ssl-zoo "
                         "evaluate")
    found: Any = import_module("ssl_zoo.evaluation.corruptions")
    require_finite(train.x, "training")
    require_finite(test.x, "test")
    classes = int(torch.maximum(train.labels.max(), test.labels.max())) + 1
    head = descended(train.x, train.labels, classes)
    clean = (head.predict(test.x) == test.labels).double().cpu()
    families = {kind: one.family for kind, one in found.KINDS.items() if takes(one, encoder.channels)}
    left_out = [f"{name}: {kind} is of images with {' or '.join(map(str, one.channels))} channels, and these have "
                f"{encoder.channels}" for kind, one in found.KINDS.items() if kind not in families]
    right = corrupted(name, encoder, head, context, len(test.x), list(families), found)
    accuracies = {kind: [clean.mean().item(), *told.mean(1).tolist()] for kind, told in right.items()}   # severity 0..5
    return Measured(scores(name, clean, right, families),
                    {name: lambda: picture(chart(accuracies, families, f"{context.name}: accuracy by severity"))},
                    {name: accuracies}, left_out)


def takes(kind: Any, channels: int) -> bool:
    """Whether a kind of corruption is one of images with so many channels."""
    return not kind.channels or channels in kind.channels


def corrupted(name: str, encoder: Encoder, head: Linear, context: Context, images: int, kinds: Sequence[str],
              found: Any) -> dict[str, Tensor]:
    """Whether each test image [N] is told right, at each severity, in the order of the places: [5, N] by kind."""
    device, rows, places = encoder.mean.device, dict[str, list[Tensor]](), list[Tensor]()
    total = images * len(kinds) * found.SEVERITIES
    tqdm.write(f"{context.name}: {name} encodes {images:,} test images in {len(kinds)} kinds of corruption at "
               f"{found.SEVERITIES} severities, {total:,} in all", file=sys.stderr)
    with (evaluation_mode(encoder),
          tqdm(total=total, desc=f"{context.name}: {name}", unit="image", file=sys.stderr, disable=None) as bar):
        for batch, labels, some, *_ in context.tested:
            if not len(batch):
                continue
            batch, labels = batch.to(device), labels.to(device)
            places.append(some.cpu())
            for kind in kinds:
                told = []
                for severity in range(1, found.SEVERITIES + 1):
                    x = encoder(found.corrupt(batch, kind, severity, seed=int(some[0])))
                    require_finite(x, names=[f"test image {place} with {kind}" for place in some.tolist()])
                    told.append(head.predict(x.float()) == labels)
                    bar.update(len(batch))
                rows.setdefault(kind, []).append(torch.stack(told).double().cpu())
    order = torch.cat(places).argsort()
    return {kind: torch.cat(told, 1)[:, order] for kind, told in rows.items()}


def scores(name: str, clean: Tensor, right: Mapping[str, Tensor], families: Mapping[str, str]) -> dict[str, Score]:
    """Every score is a mean over the test images, each of which counts its mean over severities and kinds.

    Args:
        clean: whether each test image is told right [N].
        right: the same by kind and severity [5, N].
        families: of the kinds.
    """
    means = {kind: told.mean(0) for kind, told in right.items()}                          # [N]
    overall = torch.stack(list(means.values())).mean(0)
    found = {f"{name}/clean": Score(clean, "image"), f"{name}/mean": Score(overall, "image")}
    if clean.any():
        found[f"{name}/relative"] = number((overall.mean() / clean.mean()).item())
    for family in dict.fromkeys(families.values()):
        own = {kind: told for kind, told in means.items() if families[kind] == family}
        found[f"{name}/{family}"] = Score(torch.stack(list(own.values())).mean(0), "image")
        found |= {f"{name}/{family}/{kind}": Score(told, "image") for kind, told in own.items()}
    return found


def chart(accuracies: Mapping[str, Sequence[float]], families: Mapping[str, str], title: str) -> Figure:
    """A panel for each family, a curve for each kind over the severities, of which 0 is clean."""
    names = list(dict.fromkeys(families.values()))
    figure = blank(2.6 * len(names), 4.4, title)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, family in zip(panels, names, strict=True):
        kinds = [kind for kind in accuracies if families[kind] == family]
        for i, kind in enumerate(kinds):
            axes.plot([100 * value for value in accuracies[kind]], color=COLOURS[i], marker=MARKERS[i],
                      linestyle=LINES[i], markersize=4, label=kind)
        axes.set_title(family, fontsize=10)
        axes.set_xlabel("severity (0: clean)")
        axes.set_xticks(range(len(accuracies[kinds[0]])))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    panels[0].set_ylabel("accuracy, %")
    return figure
