"""Write measured numbers into recipes' headings, the README and docs/, from the records in results/: none is typed.

    python benchmarks/render.py            rewrite each recipe's `# Expected:`, what the quickstart prints, methods'
                                           gains, what runs survive, and single figures in sentences
    python benchmarks/render.py --check    only name the files that differ from their records; status 1 if any do
"""

import ast
import json
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssl_zoo.cli.recipes import heading, shipped

RESULTS, ROOT = Path(__file__).parent / "results", Path(__file__).parents[1]
PROTOCOLS = ("knn_instdisc", "linear_cached")
METHODS = r"\| (?:method|take) \|.* \| kNN \|"              # heads of tables
RACE = r"\| track \| entry \|.* \| seconds \|.*\|"
PEERS = r"\| views \| pipeline \|.*\|"
FAST = r"\| setting \| NarrowResNet \| ResNet-18 \|"
ZOO = r"\| method \| seeds \| steps \|.*\|"
LOSSES = r"\| loss \| size \|.*\|"
DENSE = r"\| encoder \| mean IoU, % \|.*\|"
SMALL = r"\| method \| batch of 32, % \| batch of 256, % \|.*\|"
LOADED = r"\| images \| from \|.*\|"
SURVIVED = r"\| what happened \| survived \| steps done twice: mean, most \|"


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


def page(text: str) -> str:
    """A page of the README or docs/ with the records' figures: what the quickstart prints, each method's gain, what
    checkpoints cost, what runs survive, the speed record, and how fast images are read, as far as it has them.

    Without the quickstart's line on the highest epochs, which are no result.
    """
    quick = figures("quickstart")
    shown = [f"    {line}\n" for line in quick["table"] if not line.startswith("highest")]
    text = re.sub(r"(?m)(prints what it found and where it is:|The run ends with)\n\n(    .*\n)+",
                  lambda found: f"{found[1]}\n\n{''.join(shown)}", text)
    share = percent(quick["knn of a texture histogram"])
    text = re.sub(r"photograph of [\d.]+ % of", f"photograph of {share} of", text)
    seconds = quick["processor's seconds"]
    text = re.sub(r"took \d+ seconds of a processor", f"took {seconds} seconds of a processor", text)
    share = figures("checkpoints")["a run"]["share"]
    text = re.sub(r"which takes [\d.]+ % of", f"which takes {percent(share)} of", text)
    rates = [f"{one['images_per_core_second']:.0f} {where}" for one, where in zip(
        map(figures("streams")["sources"].get, ("folder", "shards", "Parquet")),
        ("images a second from a folder", "from shards", "from Parquet"), strict=True)]
    text = re.sub(r"One core hands out .*?:", f"One core hands out {rates[0]}, {rates[1]} and {rates[2]}:", text)
    text = re.sub(r"views come [\d.]+( times\s.*?\()[\d.]+( with blur, )[\d.]+( and )[\d.]+(.*?) and [\d.]+( times)",
                  drawn, text, flags=re.DOTALL)
    found = gains()
    text = with_rows(text, METHODS, lambda rows: [f"{row.rpartition(' | ')[0]} | {gain(row, found)} |" for row in rows])
    text = with_rows(text, SURVIVED, lambda rows: survived(figures("survive")["trials"]))
    text = with_rows(text, FAST, lambda rows: faster(figures("fast")))
    text = with_rows(text, LOADED, lambda rows: loaded(figures("decoding")["loaders"]))
    text = with_rows(text, RACE, lambda rows: race(figures("speedrun")))
    text = with_rows(text, PEERS, lambda rows: (RESULTS / "peers.md").read_text().splitlines()[4:])
    text = with_rows(text, ZOO, lambda rows: (RESULTS / "zoo.md").read_text().splitlines()[4:])
    text = with_rows(text, LOSSES, lambda rows: compared(figures("losses")))
    text = with_rows(text, DENSE, lambda rows: by_maps(figures("dense")))
    text = with_rows(text, SMALL, lambda rows: by_batch(figures("small_batches")["runs"]))
    return re.sub(r"(?s)(?<=\n## Rules\n\n).*?(?=\n## )", lambda _: rules(), text)


def drawn(sentence: re.Match[str]) -> str:
    """The sentence with how many times faster views are drawn than lightly's."""
    sharp, blurred, crops = figures("views").values()
    values = [sharp["ssl_zoo"], blurred["ssl_zoo"], sharp["ssl_zoo, compiled"], blurred["ssl_zoo, compiled"]]
    first, *others = (f"{one['ratio']:.0f}" for one in values)
    between = [*map("".join, zip(sentence.groups()[:3], others, strict=True))]
    return f"views come {first}{''.join(between)}{sentence[4]} and {crops['ssl_zoo']['ratio']:.1f}{sentence[5]}"


def with_rows(text: str, head: str, change: Callable[[list[str]], Sequence[str]]) -> str:
    """The text with other rows in every table whose first line matches `head`."""
    return re.sub(rf"(?m)^({head}\n\|[-|]+\n)((?:\|.*\n)*)", lambda found: found[1] + "".join(
        f"{row}\n" for row in change(found[2].splitlines())), text)


def survived(trials: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each thing that happened to runs."""
    kinds = dict.fromkeys(trial["kind"] for trial in trials)
    rows = []
    for kind in kinds:
        of_kind = [trial for trial in trials if trial["kind"] == kind]
        lost = [trial["lost"] for trial in of_kind]
        rows.append(f"| {kind} | {sum(not trial['wrong'] for trial in of_kind)} of {len(of_kind)} | {mean(lost):.1f}, "
                    f"{max(lost)} |")
    return rows


def faster(found: dict[str, Any]) -> list[str]:
    """A row for each setting of a step: how many times as fast as float32's, for each size."""
    settings = dict.fromkeys(name for size in found.values() for name in size)
    return ["| " + " | ".join([name, *(f"{size[name]['times float32']:.2f}" if name in size else "-"
                                          for size in found.values())]) + " |"
            for name in settings]


def loaded(found: dict[str, Any]) -> list[str]:
    """A row for each way to read images of each size."""
    return [f"| {size} | {name} | {one['images_per_core_second']:,.0f} | {one['times lightly']:.1f} |"
            for size, ways in found.items() for name, one in ways.items()]


def compared(found: dict[str, Any]) -> list[str]:
    """A row for each loss of each size: seconds, memory, and what of lightly's these are."""
    rows = []
    for size, losses in found.items():
        for name, one in losses.items():
            time, memory = (one[f"{what} to lightly's"] for what in ("time", "memory"))
            rows.append(f"| {name} | {size} | {one['seconds']:.2f} | {one['MiB']:,} | {time:.2f} | {memory:.3f} |")
    return rows


def by_maps(found: dict[str, Any]) -> list[str]:
    """A row for each encoder of the dense benchmark, the best first."""
    shares = sorted(found["mean_iou"].items(), key=lambda item: -mean(item[1]))
    return [f"| {name} | {spread([100 * share for share in seeds])} | {len(seeds)} |" for name, seeds in shares]


def by_batch(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A row for each method of the benchmark of batches."""
    methods = dict.fromkeys(name.partition(",")[0] for name in found)
    runs = {name: [found[f"{name}, batch {batch}"] for batch in (32, 256)] for name in methods}
    return [f"| {name} | " + " | ".join(spread([100 * run["knn_instdisc"]["trained"] for run in one]) for one in both)
            + f" | {min(map(len, both))} |" for name, both in runs.items()]


def race(found: dict[str, Any]) -> list[str]:
    """A row for each entry of the speed record, each track's fastest first: means and ranges over the seeds."""
    rows = []
    for name, entry in found["entries"].items():
        runs, targets = entry["runs"], found["tracks"][entry["track"]]["targets"]
        reached = all(mean([run[score] for run in runs]) >= target for score, target in targets.items())
        verdict = "yes" if reached and len(runs) >= 3 else "no" if len(runs) >= 3 else f"{len(runs)} of 3 seeds"
        machine = runs[-1]["machine"]
        where = machine["gpu"] or ", ".join([machine["cpu"], *machine["instructions"][-1:]])
        clock = "wall" if entry["track"] == "cuda" else "seconds"
        cells = [entry["track"], name, f"{runs[0]['steps']:,}", *(spread([100 * run[score] for run in runs]) + " %"
                                                                 for score in targets),
                 spread([run[clock] for run in runs]), verdict, where, runs[-1]["commit"], runs[-1]["date"][:10]]
        rows.append((entry["track"], mean([run[clock] for run in runs]), "| " + " | ".join(cells) + " |"))
    return [row for *_, row in sorted(rows)]


def rules() -> str:
    """Those of the speed record, which stand in its program's heading."""
    heading = ast.get_docstring(ast.parse((RESULTS.parent / "speedrun.py").read_text())) or ""
    return heading.partition("\nRules\n\n")[2].partition("\nTargets, ")[0]


def spread(values: Sequence[float]) -> str:
    """Mean and range."""
    return f"{mean(values):.1f}" + f" ({min(values):.1f} to {max(values):.1f})" * (len(values) > 1)


def gains() -> dict[str, float]:
    """By class the points of knn_instdisc over the untrained encoder's, of the shortest recipe cifar10/*_cpu."""
    found: dict[str, float] = {}
    for name, one in sorted(figures("methods")["methods"].items(), key=lambda item: len(item[0])):
        kind = yaml.safe_load(shipped()[f"cifar10/{name}_cpu"].read_text())["model"]["class_path"]
        found.setdefault(kind, 100 * (mean(one["knn_instdisc"]["trained"]) - mean(one["knn_instdisc"]["untrained"])))
    return found


def gain(row: str, found: dict[str, float]) -> str:
    """The last cell of a row, whose first names classes."""
    names = re.findall(r"`(\w+)`", row.split("|")[1])
    return ", ".join(f"{found[name]:+.1f}" if name in found else "-" for name in names)


def main() -> None:
    recipes, said = shipped(), expected()
    files = {recipes[name]: rewritten(recipes[name].read_text(), one) for name, one in said.items()
             if heading(recipes[name])["Expected"] != one}
    pages = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
    files |= {path: new for path, text in pages.items() if (new := page(text)) != text}
    if "--check" not in sys.argv:
        for file, text in files.items():
            file.write_text(text)
    elif files:
        sys.exit(f"{', '.join(map(str, files))} and the record differ: python benchmarks/render.py")


if __name__ == "__main__":
    main()
