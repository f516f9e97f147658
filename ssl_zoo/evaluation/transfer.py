"""Encoders measured on several data sets: a report for each, and one table with a column for each."""

from collections.abc import Mapping
from pathlib import Path
from re import sub
from typing import TYPE_CHECKING, Any, NamedTuple

from ssl_zoo.encoders import Encoder
from ssl_zoo.evaluation import suite
from ssl_zoo.evaluation.report import SHOWN, Comparison, as_markdown, as_text, cell, explained, legend
from ssl_zoo.files import free, put

if TYPE_CHECKING:
    from ssl_zoo.data.images import Images


class Transfer(NamedTuple):
    """What was found on each data set."""

    measured: dict[str, Comparison]   # by the data set's name
    folders: dict[str, Path]          # of their reports
    failed: dict[str, str]            # why the other data sets were not measured

    @property
    def unwritten(self) -> str:
        return "; ".join(found.unwritten for found in self.measured.values() if found.unwritten)


def transfer(encoders: Mapping[str, Encoder], sets: Mapping[str, "Images"], folder: Path, *,
             failed: Mapping[str, str] | None = None, dense: Path | None = None, everything: bool = False,
             **options: Any) -> Transfer:
    """Measure encoders on each data set as `suite.evaluate` does; one that fails leaves the others their results.

    Each data set's report goes into a folder of its own in `folder`, and report.md beside them has the common table. It
    is written after each data set, so that nothing is lost if a later one fails.

    Args:
        encoders: by the name that each has in the reports.
        sets: by their names, set up.
        failed: data sets that could not be set up, and why.
        dense: folder in Pascal VOC's layout, measured once, with the first data set.
        everything: whether the common table has all scores, and not only those that matter most.
        options: of `suite.evaluate`.
    """
    found = Transfer({}, {}, dict(failed or {}))
    for name, data in sets.items():
        own = free(folder / sub(r"[^\w.-]+", "_", name))
        try:
            found.measured[name] = suite.evaluate(encoders, data, own, dense=None if found.measured else dense,
                                                  **options)
        except (ValueError, OSError, ImportError, RuntimeError) as error:   # about this data set
            found.failed[name] = str(error)
            continue
        found.folders[name] = own
        try:
            put(folder / "report.md", as_page(found, everything))
        except OSError as error:
            found.measured[name] = found.measured[name]._replace(unwritten=(
                f"the report could not be written to {folder} ({error}): make room there; a second call reuses the "
                "features that are there"))
    if not found.measured:
        raise ValueError("; ".join(f"{name} was not measured: {said}" for name, said in found.failed.items()))
    return found


def rows(found: Transfer, everything: bool) -> list[list[str]]:
    """The cells of a table: a line for each score of each encoder, a column for each data set."""
    samples = {name: one.samples for name, one in found.measured.items()}
    encoders = list(dict.fromkeys(encoder for columns in samples.values() for encoder in columns))
    protocols = next(iter(found.measured.values())).protocols
    every = list(dict.fromkeys(score for columns in samples.values() for scores in columns.values()
                               for score in scores))
    body = []
    for score in every if everything else [score for score in SHOWN if score in every] or every:
        percent = explained(score, protocols)[1].percent
        for encoder in encoders:
            columns = [one.get(encoder, {}) for one in samples.values()]
            cells = [cell(own.get(score, ()), percent, max(map(len, own.values()), default=0)) for own in columns]
            if set(cells) != {"-"}:
                body.append([score if len(encoders) == 1 else f"{score}, {encoder}", *cells])
    return [["", *samples], *body]


def remarks(found: Transfer) -> list[str]:
    """The verdicts, and what was left out, by data set."""
    said = []
    for name, one in found.measured.items():
        said += [f"{name}: {encoder}: {verdict.word}; {verdict.reason}" for encoder, verdict in one.verdicts.items()]
        said += [f"{name}: left out, {text}" for text in one.left_out]
    return [*said, *(f"{name} was not measured: {text}" for name, text in found.failed.items())]


def how_to_read(found: Transfer) -> str:
    columns = next(iter(found.measured.values())).samples
    return legend({"": {score: samples for scores in columns.values() for score, samples in scores.items()}})


def printed(found: Transfer, everything: bool = False) -> str:
    """What the command says."""
    return f"{as_text(rows(found, everything))}\n{how_to_read(found)}\n" + "".join(
        f"{text}\n" for text in remarks(found))


def as_page(found: Transfer, everything: bool) -> str:
    """The common report.md."""
    return "\n".join([
        f"# Evaluation on {len(found.measured)} data sets\n", as_markdown(rows(found, everything)), how_to_read(found),
        *(f"- {text}" for text in remarks(found)), "\n## Each data set\n",
        *(f"- [{name}]({folder.name}/report.md)" for name, folder in found.folders.items())]) + "\n"
