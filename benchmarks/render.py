"""Write the measured numbers into the headings of the recipes, from the records in results/: none is typed.

    python benchmarks/render.py            rewrite the `# Expected:` of every recipe that has a record
    python benchmarks/render.py --check    only name the recipes whose heading and record differ; status 1 if any do
"""

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_zoo.cli.recipes import heading, shipped

RESULTS = Path(__file__).parent / "results"
PROTOCOLS = ("knn_instdisc", "linear_cached")


def figures(record: str) -> Any:
    return json.loads((RESULTS / f"{record}.json").read_text())["figures"]


def expected() -> dict[str, str]:
    """By recipe what its record says, the number for the list of recipes first, up to a semicolon."""
    methods, learning = figures("methods"), figures("learning")
    after = f"after {{}} steps on {methods['images']:,} of the images"
    said = {f"cifar10/{name}_cpu": sentence({protocol: one[protocol] for protocol in PROTOCOLS}, methods["seeds"],
                                            after.format(one["steps"])) for name, one in methods["methods"].items()}
    runs = learning["runs"]
    said[learning["recipe"]] = sentence(
        {protocol: {"trained": [list(run.values())[-1][protocol] for run in runs],
                    "untrained": [run["untrained encoder"][protocol] for run in runs]} for protocol in PROTOCOLS},
        [run["seed"] for run in runs], f"after all {runs[0]['steps']} steps")
    return said | {"quickstart": quickstart(figures("quickstart")["table"])}


def sentence(found: dict[str, dict[str, list[float]]], seeds: Sequence[int], after: str) -> str:
    """Mean and range over the seeds of each protocol, with the mean of the untrained encoder."""
    clauses = []
    for protocol, values in found.items():
        trained, runs = values["trained"], len(values["trained"])
        spread = f" ({100 * min(trained):.1f} to {100 * max(trained):.1f})" * (runs > 1)
        clauses.append(f"{protocol} {percent(mean(trained))}{spread}; untrained {percent(mean(values['untrained']))}")
    *others, last = map(str, seeds[:runs])
    which = f"Mean and range of seeds {', '.join(others)} and {last}" if others else f"Seed {last}"
    return f"{'. '.join(clauses)}. {which}, {after}"


def quickstart(table: Sequence[str]) -> str:
    """The columns of the table that the run prints."""
    rows = dict(line.split(maxsplit=1) for line in table)
    clauses = []
    for protocol in ("knn_dino", "linear_cached"):
        pixels, untrained, trained = re.findall(r"[\d.]+ %", rows[protocol])
        clauses.append(f"{protocol} {trained}; untrained {untrained}, raw pixels {pixels}")
    return f"{'. '.join(clauses)}. Seed 0"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def rewritten(text: str, said: str) -> str:
    """A recipe with this expectation in its heading."""
    lines = textwrap.wrap(f"# Expected: {said}", 120, subsequent_indent="#   ", break_on_hyphens=False)
    return re.sub(r"(?m)^# Expected: .*\n(#   .*\n)*", lambda _: "\n".join(lines) + "\n", text, count=1)


if __name__ == "__main__":
    recipes = shipped()
    stale = [name for name, said in expected().items() if heading(recipes[name])["Expected"] != said]
    if "--check" not in sys.argv:
        for name in stale:
            recipes[name].write_text(rewritten(recipes[name].read_text(), expected()[name]))
    elif stale:
        sys.exit(f"heading and record differ in {', '.join(stale)}: python benchmarks/render.py")
