"""Scores as tables and files: what `ssl-zoo evaluate` prints and leaves in its folder, and what a run ends with."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from PIL import Image

import ssl_zoo
from ssl_zoo.evaluation.protocol import Picture, Protocol, Quantity, quantity
from ssl_zoo.evaluation.protocols import find, names
from ssl_zoo.evaluation.score import Interval, Score, difference, finite, number
from ssl_zoo.paths import plain_yaml

PIXELS, BEFORE = "raw pixels", "untrained encoder"   # the columns of a run's table that are not an epoch
LEGEND = ("Brackets hold the 95 % interval over test images or episodes; ± is the deviation over draws.\n"
          "A difference is taken image by image, draw by draw; * marks one whose 95 % interval excludes 0.\n")


class Column(NamedTuple):
    """What is known of one encoder."""

    about: dict[str, Any]           # its fingerprint and width, and how many images it was measured on
    scores: dict[str, Score]
    left_out: list[str]             # sentences: what could not be measured, and why
    pictures: dict[str, Picture]    # by name
    notes: dict[str, Any]           # what else the report says of a score


class Comparison(NamedTuple):
    """What an evaluation of one encoder or several found."""

    protocols: Sequence[Protocol]
    columns: dict[str, Column]      # by the encoder's name
    failed: dict[str, str]          # why the other encoders were not measured
    unwritten: str = ""             # why the report is not in its folder; empty where it is

    @property
    def scores(self) -> dict[str, dict[str, Score]]:
        return {name: column.scores for name, column in self.columns.items()}

    @property
    def left_out(self) -> list[str]:
        found = [f"{name}: {said}" for name, column in self.columns.items() for said in column.left_out]
        return found + [f"{name} was not measured: {said}" for name, said in self.failed.items()]


# What a number is

def explained(score: str, protocols: Sequence[Protocol]) -> tuple[str, Quantity]:
    """The key and the quantity of a score, by these protocols or else by any of the package's.

    The columns of a run may name protocols that its recipe no longer has. An unknown name stands for a plain number.
    """
    return (quantity(score, protocols) or quantity(score, map(find, names()))
            or (score, Quantity("", percent=False)))


def describe(scores: Sequence[str], protocols: Sequence[Protocol]) -> dict[str, str]:
    """The sentences on these scores, each once."""
    return {key: found.sentence for key, found in (explained(score, protocols) for score in scores)}


# Tables

def rows(scores: Mapping[str, Mapping[str, Score]], protocols: Sequence[Protocol],
         compare: bool = True) -> list[list[str]]:
    """The cells of a table: a line for each number, a column for each encoder, and its difference from the first one.

    A difference is marked with * where its 95 % interval, which is taken image by image, excludes 0.
    """
    encoders = list(scores)
    others = encoders[1:] if compare else []
    body = []
    for name in dict.fromkeys(name for found in scores.values() for name in found):
        percent = explained(name, protocols)[1].percent
        found = [scores[encoder].get(name) for encoder in encoders]
        apart = [delta(found[0], scores[other].get(name), percent) for other in others]
        body.append([name, *(cell(score, percent) for score in found), *apart])
    return [["", *encoders, *(f"{other} - {encoders[0]}" for other in others)], *body]


def shown(value: float, percent: bool) -> str:
    return f"{100 * value:.1f}" if percent else f"{value:.4g}"


def cell(score: Score | None, percent: bool) -> str:
    if score is None:
        return "-"
    spread = f" ± {shown(score.deviation, percent)}" if score.deviation is not None else ends(score.interval, percent)
    return shown(score.value, percent) + spread + " %" * percent


def ends(interval: Interval | None, percent: bool) -> str:
    return f" [{shown(interval.low, percent)}, {shown(interval.high, percent)}]" if interval else ""


def delta(first: Score | None, other: Score | None, percent: bool) -> str:
    if first is None or other is None:
        return "-"
    apart, interval = difference(other, first)
    sign = "+" if apart >= 0 else ""
    return sign + shown(apart, percent) + ends(interval, percent) + " *" * bool(interval and interval.excludes_zero)


def as_text(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
                     for row in table) + "\n"


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(table[0]) - 1), *lines[1:]]) + "\n"


def as_values(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    """For JSON."""
    return {name: {"value": finite(score.value), "interval": score.interval, "deviation": score.deviation,
                   "mean_over": score.of or None, "count": len(score.units) if score.of else None}
            for name, score in scores.items()}


def differences(scores: Mapping[str, Mapping[str, Score]]) -> list[dict[str, Any]]:
    """How far each encoder is above each one before it, for JSON."""
    found = []
    for one, other in combinations(scores, 2):
        for name in scores[one].keys() & scores[other].keys():
            apart, interval = difference(scores[other][name], scores[one][name])
            found.append({"score": name, "encoder": other, "over": one, "difference": finite(apart),
                          "interval": interval, "exceeds": interval.excludes_zero if interval else None})
    return sorted(found, key=lambda row: (row["over"], row["encoder"], row["score"]))


# Of an evaluation

def printed(found: Comparison) -> str:
    """What the command says: the table, how to read it, and what is not in it."""
    said = "".join(f"left out, {name}: {text}\n" for name, column in found.columns.items() for text in column.left_out)
    said += "".join(f"{name} was not measured: {text}\n" for name, text in found.failed.items())
    return f"{as_text(rows(found.scores, found.protocols))}\n{LEGEND}\n{said}"


def write(folder: Path, data: Mapping[str, Any], found: Comparison, pictures: Sequence[Path]) -> None:
    """Leave report.json, report.md and the pictures of all encoders together in `folder`.

    Args:
        data: what the images are.
        pictures: files that are there already, for the report to show.
    """
    pictures = [*pictures, *(save(folder, "", kind, draw()) for protocol in found.protocols
                             for kind, draw in protocol.compare(found.scores).items())]
    images = next(iter(found.columns.values())).about["images"]
    sentences = describe([name for column in found.columns.values() for name in column.scores], found.protocols)
    put(folder / "report.json", json.dumps({
        "data": {**data, "images": images},
        "encoders": {name: {**column.about, "scores": as_values(column.scores), "notes": column.notes}
                     for name, column in found.columns.items()},
        "differences": differences(found.scores), "left_out": found.left_out, "protocols": sentences,
        "versions": {"ssl_zoo": ssl_zoo.__version__, "torch": torch.__version__,
                     "torchvision": torchvision.__version__}}, indent=2) + "\n")
    put(folder / "report.md", "\n".join([
        f"# Evaluation on {' and '.join(f'{count:,} {which}' for which, count in images.items())} images\n",
        *(f"{line}\n" for line in data["understood"]),
        as_markdown(rows(found.scores, found.protocols)), LEGEND,
        *(["\n## Left out\n", *(f"- {said}" for said in found.left_out)] if found.left_out else []),
        "\n## Protocols\n", *(f"- `{name}`: {text}" for name, text in sentences.items()),
        "\n## Pictures\n", *(f"![{path.stem}]({path.name})" for path in pictures)]) + "\n")


def put(path: Path, text: str) -> None:
    """Write a file in one step: whoever finds it finds all of it."""
    half = path.with_suffix(".half")
    half.write_text(text)
    half.replace(path)


def save(folder: Path, encoder: str, kind: str, picture: Image.Image) -> Path:
    slug = re.sub(r"[^\w.-]+", "_", encoder)
    path = folder / (f"{slug}_{kind}.png" if slug else f"{kind}.png")
    picture.save(path)
    return path


# Of a run

def epoch(done: int) -> str:
    """The name of the column of the encoder after that many epochs."""
    return f"epoch {done}"


def whole_recipe(folder: Path, method: Any) -> Any:
    """The recipe that the command line left in a run's folder, or else the hyper-parameters that the method has."""
    config = folder / "config.yaml"
    return plain_yaml(config) if config.is_file() else dict(method.hparams)


def run_table(columns: Mapping[str, Mapping[str, float]], protocols: Sequence[Protocol]) -> str:
    """The pixels', the untrained and the last column, and below them which epoch was best."""
    chosen = {name: scores for name, scores in columns.items() if name in (PIXELS, BEFORE, list(columns)[-1])}
    return table(chosen, protocols) + highest(columns, protocols)


def table(columns: Mapping[str, Mapping[str, float]], protocols: Sequence[Protocol] = ()) -> str:
    """A line for each score, a column for each encoder."""
    if not any(columns.values()):
        return "no evaluation ran\n"
    scores = {name: {score: number(value) for score, value in found.items()} for name, found in columns.items()}
    return as_text(rows(scores, protocols, compare=False))


def highest(columns: Mapping[str, Mapping[str, float]], protocols: Sequence[Protocol]) -> str:
    """A line with each accuracy's best epoch; empty where there was only one to choose from."""
    epochs = {name: numbers for name, numbers in columns.items() if name not in (PIXELS, BEFORE)}
    accuracies = [name for name in dict.fromkeys(name for numbers in epochs.values() for name in numbers)
                  if explained(name, protocols)[1].percent]
    if len(epochs) < 2 or not accuracies:
        return ""
    found = []
    for name in accuracies:
        values = {column: numbers[name] for column, numbers in epochs.items() if name in numbers}
        best = max(values, key=values.__getitem__)
        found.append(f"{name} {shown(values[best], percent=True)} % ({best})")
    return f"\nhighest of {len(epochs)} evaluations, chosen by the test part and so no result: {', '.join(found)}\n"
