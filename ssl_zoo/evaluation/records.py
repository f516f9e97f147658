"""What report.json holds, of a run, a validation and an evaluation alike, and how one is read that is there already.

Its JSON schema is report.schema.json, beside this file.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ssl_zoo.evaluation.protocol import Protocol
from ssl_zoo.evaluation.report import FORMAT, as_values, describe
from ssl_zoo.evaluation.score import Score, number
from ssl_zoo.evaluation.verdict import Verdict
from ssl_zoo.paths import mapping, plain_json


def schema() -> dict[str, Any]:
    """The JSON schema of report.json."""
    return json.loads(resources.files("ssl_zoo.evaluation").joinpath("report.schema.json").read_text(encoding="utf-8"))


def of_run(kind: Literal["run", "validation"], data: Any, columns: Mapping[str, Mapping[str, float]],
           last: Mapping[str, Score], protocols: Sequence[Protocol], verdict: Verdict | None,
           provenance: Mapping[str, Any] | None) -> str:
    """The report.json of a run or of a validation.

    Args:
        data: its data module.
        columns: the scores by what was measured: raw pixels, the untrained encoder, and it after some epochs.
        last: those of the last column, with their intervals.
        verdict: of the last column.
        provenance: as the run has recorded it.
    """
    name = list(columns)[-1] if columns else ""
    scores = {column: {score: number(value) for score, value in found.items()} for column, found in columns.items()}
    scores |= {name: dict(last)} if last else {}
    images = {which: len(part) for which, part in (("training", getattr(data, "train", None)),
                                                   ("test", getattr(data, "test", None))) if part is not None}
    left_out = getattr(getattr(data, "left_out", None), "sentences", ())
    return json.dumps({
        "format": FORMAT, "kind": kind, "provenance": provenance,
        "data": {"class": type(data).__name__, "classes": list(getattr(data, "classes", ())), "images": images,
                 "understood": getattr(data, "summary", "").splitlines()},
        "encoders": {column: {"scores": as_values(found)} for column, found in scores.items()},
        "verdicts": {name: verdict._asdict()} if verdict else {},
        "left_out": list(left_out), "protocols": describe([score for found in scores.values() for score in found],
                                                          protocols)}, indent=2) + "\n"


def read(path: Path) -> dict[str, Any]:
    """A report.json, one of an earlier version of ssl_zoo with what this version adds: nothing that it did not record.

    Raises:
        ValueError: it is not a report of ssl_zoo, or is one of a later version.
    """
    found = plain_json(path)
    known = found.get("format", 1)
    if not isinstance(known, int) or not isinstance(found.get("encoders"), dict):
        raise ValueError(f"{path} is no report of ssl_zoo: give a report.json that a run or an evaluation has left")
    if known > FORMAT:
        raise ValueError(f"{path} is of format {known}, and this version of ssl_zoo reads up to {FORMAT}: install a "
                         "newer one")
    if known == 1:
        versions = mapping(found, "versions")
        packages = {name: version for name, version in versions.items() if name != "ssl_zoo"}
        found = {name: value for name, value in found.items() if name != "versions"} | {
            "format": FORMAT, "kind": "evaluation", "provenance": {
                "format": 1, "date": None, "command": None, "seed": None, "resumed": None,
                "ssl_zoo": {"version": versions.get("ssl_zoo"), "commit": None, "clean": None},
                "working_folder": None, "packages": packages, "machine": None, "data": None}}
    return {"verdicts": {}, "left_out": [], "protocols": {}} | found
