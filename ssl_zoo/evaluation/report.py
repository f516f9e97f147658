"""Scores as tables and files: what `ssl-zoo evaluate` prints and leaves in its folder, and what a run ends with."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ssl_zoo.evaluation import seeds
from ssl_zoo.evaluation.protocol import Picture, Protocol, Quantity, quantity
from ssl_zoo.evaluation.protocols import find, names
from ssl_zoo.evaluation.score import Interval, Score, finite, number
from ssl_zoo.evaluation.seeds import Samples, mean
from ssl_zoo.evaluation.seeds import deviation as over_seeds
from ssl_zoo.evaluation.verdict import Verdict, judge, of_guessing, verdict
from ssl_zoo.files import put
from ssl_zoo.paths import plain_yaml

FORMAT = 2   # of report.json; the first had no such field, and versions in place of provenance
PIXELS, BEFORE = "raw pixels", "untrained encoder"   # the columns of a run's table that are not an epoch
LINES = ("knn_dino", "linear_cached", "retrieval/map", "health/rankme", "health/feature_std", "linear_dense")
SHOWN = (*LINES[:2], *(f"balanced_accuracy/{name}" for name in LINES[:2]), *LINES[2:])   # unless protocols were named


class Column(NamedTuple):
    """What is known of one encoder."""

    about: dict[str, Any]           # its fingerprint and width, and how many images it was measured on
    scores: dict[str, Score]
    left_out: list[str]             # sentences: what could not be measured, and why
    pictures: dict[str, Picture]    # by name
    notes: dict[str, Any]           # what else the report says of a score
    guess: Score | None = None      # the accuracy of always guessing the test part's commonest class


class Comparison(NamedTuple):
    """What an evaluation of one encoder or several found."""

    protocols: Sequence[Protocol]
    columns: dict[str, Column]      # by the encoder's name
    failed: dict[str, str]          # why the other encoders were not measured
    unwritten: str = ""             # why the report is not in its folder; empty where it is
    seeds: Mapping[str, Sequence[str]] = {}   # encoders that are seeds of one recipe, by a name for all of them
    untrained: Sequence[str] = ()   # names of encoders that have learnt nothing
    said: Sequence[str] = ()        # sentences on encoders that are not seeds of one recipe, and seem to be

    @property
    def scores(self) -> dict[str, dict[str, Score]]:
        return {name: column.scores for name, column in self.columns.items()}

    @property
    def samples(self) -> dict[str, dict[str, Samples]]:
        """As the table has them: seeds of one recipe together, in the place of the first of them."""
        labels: dict[str, str] = {}
        for label, members in self.seeds.items():
            there = [name for name in members if name in self.columns]
            if len(there) > 1:
                missing = f", {len(members) - len(there)} not measured" * (len(members) > len(there))
                labels |= dict.fromkeys(there, label + missing)
        found: dict[str, dict[str, Samples]] = {}
        for name, column in self.columns.items():
            together = found.setdefault(labels.get(name, name), {})
            for score, value in column.scores.items():
                together[score] = (*together.get(score, ()), value)
        return found

    @property
    def left_out(self) -> list[str]:
        found = [f"{name}: {said}" for name, column in self.columns.items() for said in column.left_out]
        return [*found, *(f"{name} was not measured: {said}" for name, said in self.failed.items()), *self.said]

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Of each column but the untrained ones, against the first of these, or else against guessing."""
        samples, found = self.samples, {}
        untrained = next((name for name in self.untrained if name in samples), None)
        guess = next((column.guess for column in self.columns.values()), None)
        for name, scores in samples.items():
            if name not in self.untrained:
                found[name] = (verdict(scores, samples[untrained], untrained) if untrained else
                               verdict(scores, of_guessing(scores, guess), "guessing the commonest class"))
        return found


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


def sentences(scores: Iterable[str], protocols: Sequence[Protocol] = ()) -> dict[str, str]:
    """The sentence on each of these scores, as far as there is one."""
    found = {score: explained(score, protocols)[1].sentence for score in scores}
    return {score: sentence for score, sentence in found.items() if sentence}


# Tables

def rows(columns: Mapping[str, Mapping[str, Samples]], protocols: Sequence[Protocol], *, compare: bool = True,
         only: Sequence[str] = ()) -> list[list[str]]:
    """The cells of a table: a line for each number, a column for each encoder, and its difference from the first one.

    A difference is marked with * where its 95 % interval, over images and over seeds if there are several, excludes 0.

    Args:
        columns: the scores of an encoder, or of several seeds, by its name and theirs.
        only: the scores to show, if there are any of them, in this order; all where left out.
    """
    encoders = list(columns)
    others = encoders[1:] if compare else []
    every = list(dict.fromkeys(name for found in columns.values() for name in found))
    body = []
    for name in [name for name in only if name in every] or every:
        percent = explained(name, protocols)[1].percent
        found = [columns[encoder].get(name, ()) for encoder in encoders]
        apart = [delta(found[0], columns[other].get(name, ()), percent) for other in others]
        cells = [cell(samples, percent, max(map(len, columns[encoder].values()), default=0))
                 for encoder, samples in zip(encoders, found, strict=True)]
        body.append([name, *cells, *apart])
    return [["", *encoders, *(f"{other} - {encoders[0]}" for other in others)], *body]


def shown(value: float, percent: bool) -> str:
    return f"{100 * value:.1f}" if percent else f"{value:.4g}"


def cell(samples: Samples, percent: bool, seeds: int = 1) -> str:
    """What was measured; of fewer than all `seeds` it says so."""
    if not samples:
        return "-"
    score = samples[0] if len(samples) == 1 else number(mean(samples).value)
    deviates = over_seeds(samples) if len(samples) > 1 else score.deviation
    spread = f" ± {shown(deviates, percent)}" if deviates is not None else ends(score.interval, percent)
    fewer = f" ({len(samples)} of {seeds} seeds)" * (len(samples) < seeds)
    return shown(score.value, percent) + spread + " %" * percent + fewer


def ends(interval: Interval | None, percent: bool) -> str:
    return f" [{shown(interval.low, percent)}, {shown(interval.high, percent)}]" if interval else ""


def delta(first: Samples, other: Samples, percent: bool) -> str:
    if not first or not other:
        return "-"
    apart = seeds.compare(other, first)
    sign = "+" if apart.value >= 0 else ""
    return sign + shown(apart.value, percent) + ends(apart.interval, percent) + " *" * bool(apart.exceeds)


def legend(columns: Mapping[str, Mapping[str, Samples]]) -> str:
    """How to read the cells of these columns."""
    several = any(len(samples) > 1 for scores in columns.values() for samples in scores.values())
    said = ("Brackets hold the 95 % interval over test images or episodes; ± is the deviation over draws"
            + ",\nand over seeds where a column has several" * several + ".\n")
    if len(columns) == 1:
        return said
    said += f"Differences are from {next(iter(columns))}, image by image or draw by draw, with their 95 %\ninterval"
    if not several:
        return said + (", and * marks one that excludes 0.\nA * speaks for these files alone: other seeds of their "
                       "recipes may differ by as much.\n")
    return said + (" over images or over seeds (Welch's), whichever reaches further; * marks one that excludes 0.\n"
                   "A single file is taken to scatter as the seeds that it is compared with; a * between two single "
                   "files speaks for\nthese files alone.\n")


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


def differences(columns: Mapping[str, Mapping[str, Samples]]) -> list[dict[str, Any]]:
    """How far each column is above each one before it, for JSON."""
    found = []
    for one, other in combinations(columns, 2):
        for name in columns[one].keys() & columns[other].keys():
            apart = seeds.compare(columns[other][name], columns[one][name])
            found.append({"score": name, "encoder": other, "over": one, "difference": finite(apart.value),
                          "interval": apart.interval, "exceeds": apart.exceeds})
    return sorted(found, key=lambda row: (row["over"], row["encoder"], row["score"]))


def singly(columns: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, Samples]]:
    """Every file by itself."""
    return {name: {score: (found,) for score, found in scores.items()} for name, scores in columns.items()}


# Of an evaluation

def printed(found: Comparison, everything: bool = False) -> str:
    """What the command says: the lines that matter, how to read them, the verdicts, and what was not measured.

    Args:
        everything: all lines, as whoever names protocols wants them.
    """
    said = "".join(f"{name}: {one.word}; {one.reason}\n" for name, one in found.verdicts.items())
    said += "".join(f"left out, {name}: {text}\n" for name, column in found.columns.items() for text in column.left_out)
    said += "".join(f"{name} was not measured: {text}\n" for name, text in found.failed.items())
    said += "".join(f"{text}\n" for text in found.said)
    table = as_text(rows(found.samples, found.protocols, only=() if everything else SHOWN))
    return f"{table}\n{legend(found.samples)}\n{said}"


def write(folder: Path, data: Mapping[str, Any], found: Comparison, pictures: Sequence[Path],
          provenance: Mapping[str, Any]) -> None:
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
        "format": FORMAT, "kind": "evaluation", "provenance": provenance,
        "data": {**data, "images": images},
        "encoders": {name: {**column.about, "scores": as_values(column.scores), "notes": column.notes}
                     for name, column in found.columns.items()},
        "differences": differences(singly(found.scores)), **of_seeds(found),
        "verdicts": {name: one._asdict() for name, one in found.verdicts.items()},
        "left_out": found.left_out, "protocols": sentences}, indent=2) + "\n")
    each = found.samples.keys() != found.columns.keys()
    put(folder / "report.md", "\n".join([
        f"# Evaluation on {' and '.join(f'{count:,} {which}' for which, count in images.items())} images\n",
        *(f"{line}\n" for line in data["understood"]),
        *(f"- {name}: {one.word}; {one.reason}" for name, one in found.verdicts.items()), "",
        as_markdown(rows(found.samples, found.protocols)), legend(found.samples),
        *(["\n## Each file\n", as_markdown(rows(singly(found.scores), found.protocols)),
           legend(singly(found.scores))] if each else []),
        *(["\n## Left out\n", *(f"- {said}" for said in found.left_out)] if found.left_out else []),
        "\n## Protocols\n", *(f"- `{name}`: {text}" for name, text in sentences.items()),
        "\n## Pictures\n", *(f"![{path.stem}]({path.name})" for path in pictures)]) + "\n")


def of_seeds(found: Comparison) -> dict[str, Any]:
    """Of columns that are several seeds: their names, means and differences, for JSON; nothing where there is none."""
    if found.samples.keys() == found.columns.keys():
        return {}
    values = {name: {score: {"value": finite(mean(samples).value), "deviation": finite(over_seeds(samples)),
                             "seeds": len(samples)} for score, samples in scores.items()}
              for name, scores in found.samples.items() if name not in found.columns}
    return {"seeds": {"encoders": dict(found.seeds), "scores": values, "differences": differences(found.samples)}}


def save(folder: Path, encoder: str, kind: str, picture: Image.Image) -> Path:
    slug = re.sub(r"[^\w.-]+", "_", encoder)
    path = folder / (f"{slug}_{kind}.png" if slug else f"{kind}.png")
    picture.save(path)
    return path


# Of a run

def epoch(done: int) -> str:
    """The name of the column of the encoder after that many epochs."""
    return f"epoch {done}"


def step(done: int) -> str:
    """The name of the column of the encoder after that many steps, within an epoch."""
    return f"step {done}"


def metrics(columns: Mapping[str, Mapping[str, float]], epochs: int, steps: int) -> Mapping[str, float]:
    """What was measured after so many steps, at an epoch's end or within one; nothing of any other moment."""
    return columns.get(step(steps)) or columns.get(epoch(epochs), {})


def whole_recipe(folder: Path, method: Any) -> Any:
    """The recipe that the command line left in a run's folder, or else the method's class and hyper-parameters."""
    config, kind = folder / "config.yaml", type(method)
    return plain_yaml(config) if config.is_file() else {
        "model": {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(method.hparams)}}


def run_table(columns: Mapping[str, Mapping[str, float]], protocols: Sequence[Protocol], only: Sequence[str] = ()
              ) -> str:
    """The pixels', the untrained and the last column, and below them which epoch was best."""
    chosen = {name: scores for name, scores in columns.items() if name in (PIXELS, BEFORE, list(columns)[-1])}
    seen = [score for score in only if any(score in scores for scores in columns.values())]
    of_these = {name: {score: value for score, value in scores.items() if score in seen or not seen}
                for name, scores in columns.items()}
    return table(chosen, protocols, only) + highest(of_these, protocols)


def table(columns: Mapping[str, Mapping[str, float]], protocols: Sequence[Protocol] = (), only: Sequence[str] = ()
          ) -> str:
    """A line for each score, a column for each encoder."""
    if not any(columns.values()):
        return "no evaluation ran\n"
    scores = {name: {score: number(value) for score, value in found.items()} for name, found in columns.items()}
    return as_text(rows(singly(scores), protocols, compare=False, only=only))


def run_verdict(columns: Mapping[str, Mapping[str, float]], last: Mapping[str, Score],
                before: Mapping[str, Score]) -> str:
    """Of a run's last evaluation against the untrained encoder; it says where raw pixels have more."""
    found, name = of_last(last, before), judge(last)
    if name is not None and (of_pixels := columns.get(PIXELS, {}).get(name, 0.0)) > last[name].value:
        return f"{found}; raw pixels have {shown(of_pixels, percent=True)} %"
    return str(found)


def of_last(last: Mapping[str, Score], before: Mapping[str, Score]) -> Verdict:
    one, other = singly({"last": last, BEFORE: before}).values()
    return verdict(one, other, f"the {BEFORE}", learnt=True)


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
