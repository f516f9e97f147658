"""Recipes side by side: whether they may stand there, one table over seeds, and tests that are paired over seeds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from ssl_zoo.evaluation import report
from ssl_zoo.evaluation.score import Interval, Score, finite, number
from ssl_zoo.evaluation.seeds import Samples, differing, settings
from ssl_zoo.paths import mapping

SECONDS = {"seconds": "seconds", "processor_seconds": "processor's seconds"}   # of a curve, with their heads


class Run(NamedTuple):
    """What a finished run has left."""

    arm: str                 # the name of its recipe, with what was set
    seed: int
    folder: Path
    encoder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]   # empty of a run of an earlier version
    curve: dict[str, Any]        # likewise

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"


# What may stand side by side

def require_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs of other images, of another size of them, or of other versions of ssl_zoo.

    Raises:
        ValueError: one sentence that names two runs, in what they differ, and the way out.
    """
    for one, other in combinations(runs, 2):
        require_same_images(one.name, one.provenance.get("data"), other.name, other.provenance.get("data"))
        require_same_size(one.name, one.config, other.name, other.config)
        first, second = (mapping(run.provenance, "ssl_zoo").get("version") for run in (one, other))
        if first and second and first != second:
            raise ValueError(f"{one.name} was trained by ssl_zoo {first}, and {other.name} by {second}, between which "
                             f"recipes may mean something else: train both with one version, with another --output")


def require_same_images(one: str, first: Any, other: str, second: Any) -> None:
    """Refuse two data sets, as their provenance describes them; what is unknown is not refused."""
    for part, which in (("train", "training"), ("test", "test")):
        seen = [mapping(known, part) for known in (first, second)]
        if not first or not second or seen[0] == seen[1]:
            continue
        counts = [f"{found.get('images', 'no'):,}" if found else "no" for found in seen]
        where = [known.get("root") or known["class"] for known in (first, second)]
        apart = (f"{counts[0]} and {counts[1]}" if counts[0] != counts[1] else
                 f"{counts[0]} each, with fingerprints {seen[0].get('fingerprint')} and {seen[1].get('fingerprint')}")
        raise ValueError(f"{one} and {other} have other {which} images ({apart}; {where[0]} and {where[1]}), and "
                         "accuracies on other images are not put side by side: give both the same, as in --set "
                         "data.root=my_images, or measure their encoders on named images with ssl-zoo evaluate --data")


def require_same_size(one: str, first: Any, other: str, second: Any) -> None:
    """Refuse two configurations that evaluate on images of different sizes."""
    sizes = [mapping(mapping(config, "data"), "init_args").get("evaluation_size") for config in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{one} is evaluated on images of {sizes[0]} pixels, and {other} of {sizes[1]}: give both one "
                         f"size, with --set data.evaluation_size={sizes[0] or sizes[1]}")


def remarks(runs: Sequence[Run]) -> list[str]:
    """Sentences on differences that do not forbid a comparison, and that a reader should know."""
    said = []
    commits = {describe_commit(run.provenance) for run in runs}
    if len(commits) > 1:
        said.append(f"the runs were made by {len(commits)} states of the code: {', '.join(sorted(commits))}")
    elif commits & {"an unknown commit"} or any("changed" in one for one in commits):
        said.append(f"the runs were made by {', '.join(commits)}, which nobody else can check out")
    for package in ("torch", "torchvision", "python"):
        known = {found for run in runs if (found := mapping(run.provenance, "packages").get(package))}
        if len(known) > 1:
            said.append(f"the runs were made with {package} {' and '.join(sorted(known))}")
    lengths = {arm: {run.curve["images"] for run in runs if run.arm == arm and "images" in run.curve}
               for arm in arms(runs)}
    if len({images for found in lengths.values() for images in found}) > 1:
        each = ", ".join(f"{arm} {' and '.join(f'{images:,}' for images in sorted(found))}"
                         for arm, found in lengths.items() if found)
        said.append(f"the runs saw different numbers of images: {each}")
    return said


def describe_commit(provenance: Mapping[str, Any]) -> str:
    known = mapping(provenance, "ssl_zoo")
    if not known.get("commit"):
        return "an unknown commit"
    return known["commit"][:10] + " with changed files" * (known.get("clean") is False)


def seconds_comparable(runs: Sequence[Run]) -> str:
    """Why the seconds of these runs do not stand side by side; empty where they do."""
    if lacking := [run.name for run in runs if not run.curve]:
        return f"{lacking[0]} has recorded no seconds, as no run of an earlier version has"
    machines = {tuple(sorted((name, str(value)) for name, value in mapping(run.provenance, "machine").items()
                             if name in ("cpu", "cores", "gpu"))) for run in runs}
    if len(machines) > 1:
        each = [", ".join(f"{value} {name}" for name, value in one) for one in sorted(machines)]
        return f"the runs were made on different machines: {'; '.join(each)}"
    return ""


def curves_comparable(runs: Sequence[Run]) -> str:
    """Why the accuracies during these runs do not stand side by side; empty where they do."""
    if lacking := [run.name for run in runs if not run.curve.get("points")]:
        return f"{lacking[0]} has recorded no curve, as no run of an earlier version has"
    for one, other in combinations(runs, 2):
        first, second = (settings({"evaluation": run.config.get("evaluation")}) for run in (one, other))
        if first != second:
            return (f"{one.name} and {other.name} were evaluated by other protocols while they ran: they differ in "
                    f"{differing(first, second)}")
    return ""


# One table

class SideBySide(NamedTuple):
    """What a comparison says."""

    runs: Sequence[Run]
    scores: Mapping[str, bool]         # those shown, and whether they are written in percent
    found: Mapping[str, Mapping[str, Score]]         # the scores of each run, by its name
    table: Sequence[Sequence[str]]
    tests: "Sequence[Test]"
    said: Sequence[str]                # sentences that a reader should know
    timed: bool                        # whether seconds stand side by side
    curved: bool                       # whether the curves do

    @property
    def legend(self) -> str:
        several = any("±" in cell for line in self.table for cell in line)
        return ("± is the deviation over seeds" if several else "Brackets hold the 95 % interval over test images"
                ) + (". Seconds are those of training, evaluations left out: by the clock, on which other work on the "
                     "machine counts, and of the processor's cores together." if self.timed else ".")

    @property
    def tested(self) -> list[list[str]]:
        return tested(self.tests, self.scores)

    @property
    def meaning(self) -> str:
        if not any(self.scores.values()):
            return "No accuracy was measured, and nothing is tested."
        if len(arms(self.runs)) < 2:
            return "Only one recipe has finished runs, and nothing is tested."
        return what_p_means([len(test.seeds) for test in self.tests])

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": 1, "table": self.table,
                "tests": [{**test._asdict(), "difference": finite(test.difference)} for test in self.tests],
                "runs": [{"recipe": run.arm, "seed": run.seed, "folder": str(run.folder),
                          "scores": {name: finite(score.value) for name, score in self.found.get(run.name, {}).items()},
                          "provenance": run.provenance} for run in self.runs]}


def side_by_side(runs: Sequence[Run], measured: report.Comparison, asked: int, only: Sequence[str] = ()) -> SideBySide:
    """Put runs that were measured together side by side.

    Args:
        asked: the number of seeds that each recipe was to have.
        only: the scores to show, in this order; all where left out.
    """
    columns = by_arm(runs, measured.scores)
    every = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    scores = {name: report.explained(name, measured.protocols)[1].percent
              for name in ([name for name in only if name in every] or every)}
    untimed, uncurved = seconds_comparable(runs), curves_comparable(runs)
    said = [*remarks(runs), *([f"no seconds: {untimed}"] if untimed else []),
            *([f"no curves: {uncurved}"] if uncurved else [])]
    if not uncurved:
        columns |= untrained(runs)
    tests = paired_tests(runs, measured.scores, [name for name, percent in scores.items() if percent])
    lines = table(runs, columns, scores, asked=asked, timed=not untimed)
    return SideBySide(runs, scores, measured.scores, lines, tests, said, not untimed, not uncurved)


def arms(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(run.arm for run in runs))


def by_arm(runs: Sequence[Run], scores: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, Samples]]:
    """The scores of each arm's seeds, from those of each run by its name."""
    found: dict[str, dict[str, Samples]] = {arm: {} for arm in arms(runs)}
    for run in runs:
        for score, value in scores.get(run.name, {}).items():
            found[run.arm][score] = (*found[run.arm].get(score, ()), value)
    return found


def untrained(runs: Sequence[Run]) -> dict[str, dict[str, Samples]]:
    """The scores before training, as the runs themselves have found them: of each arm, or where they are equal once."""
    found: dict[str, dict[str, Samples]] = {}
    for run in runs:
        first = run.curve["points"][0]
        if first["step"] == 0:
            scores = {name: number(value) for name, value in first["scores"].items() if value is not None}
            own = found.setdefault(f"{run.arm}, untrained", {})
            for name, score in scores.items():
                own[name] = (*own.get(name, ()), score)
    values = [{name: [score.value for score in samples] for name, samples in scores.items()}
              for scores in found.values()]
    alike = len(values) > 1 and all(one == values[0] for one in values)
    return {"untrained": next(iter(found.values()))} if alike else found


def table(runs: Sequence[Run], columns: Mapping[str, Mapping[str, Samples]], shown: Mapping[str, bool], *,
          asked: int, timed: bool) -> list[list[str]]:
    """The cells of the table: a line for each arm with its seeds, its scores and, where `timed`, its seconds.

    Args:
        columns: the scores of each arm's seeds.
        shown: the scores in their order, and whether they are written in percent.
        asked: the number of seeds that each recipe was to have.
    """
    lines = [["", "seeds", *shown, *(SECONDS.values() if timed else ())]]
    for arm, found in columns.items():
        own = [run for run in runs if run.arm == arm]
        count = max(map(len, found.values()), default=0)
        cells = [report.cell(found.get(score, ()), percent, count) for score, percent in shown.items()]
        spent = [spread([run.curve[name] for run in own]) if own else "-" for name in SECONDS] if timed else []
        lines.append([arm, f"{count} of {asked}" if count < asked else str(count), *cells, *spent])
    return lines


def spread(values: Sequence[float]) -> str:
    form = "{:,.0f}" if statistics.mean(values) >= 100 else "{:.1f}"
    return form.format(statistics.mean(values)) + (f" ± {form.format(statistics.stdev(values))}" if values[1:] else "")


def as_latex(rows: Sequence[Sequence[str]]) -> str:
    """A table for the package booktabs."""
    head, *body = [[latex(cell) for cell in row] for row in rows]
    lines = [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\toprule", " & ".join(head) + r" \\", r"\midrule",
             *(" & ".join(row) + r" \\" for row in body), r"\bottomrule", r"\end{tabular}"]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(lines) + "\n"


def latex(text: str) -> str:
    escaped = "".join({"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}.get(
        letter, f"\\{letter}" if letter in "_%&$#{}" else letter) for letter in text)
    return escaped.replace(" ± ", r" $\pm$ ")


# Tests that are paired over seeds

class Test(NamedTuple):
    """How far one arm is above another over the seeds that both have, by Student's paired t-test."""

    score: str
    arm: str
    over: str
    seeds: Sequence[int]
    difference: float          # the mean over these seeds
    interval: Interval | None  # of 95 %
    p: float | None            # two-sided; None where the differences do not vary, or there is one
    corrected: float | None    # by Holm, for all tests of the same comparison


def paired_tests(runs: Sequence[Run], scores: Mapping[str, Mapping[str, Score]], names: Sequence[str]) -> list[Test]:
    """Each arm after the first against the first one, in each of these scores, on the seeds that both have."""
    first, *others = arms(runs)
    found = []
    for score in names:
        values: dict[str, dict[int, float]] = {}
        for run in runs:
            if score in scores.get(run.name, {}):
                values.setdefault(run.arm, {})[run.seed] = scores[run.name][score].value
        for arm in others:
            both = sorted(values.get(first, {}).keys() & values.get(arm, {}).keys())
            if both:
                found.append(paired(score, arm, first, both, [values[arm][seed] for seed in both],
                                    [values[first][seed] for seed in both]))
    return holm(found)


def paired(score: str, arm: str, over: str, seeds: Sequence[int], one: Sequence[float], other: Sequence[float]) -> Test:
    apart = [a - b for a, b in zip(one, other, strict=True)]
    mean = statistics.mean(apart)
    if len(apart) < 2 or not math.isfinite(mean) or max(apart) - min(apart) < 1e-12:   # what varies is rounding
        return Test(score, arm, over, seeds, mean, None, None, None)
    result = stats.ttest_rel(one, other)
    low, high = result.confidence_interval(0.95)
    return Test(score, arm, over, seeds, mean, Interval(float(low), float(high)), float(result.pvalue), None)


def holm(tests: Sequence[Test]) -> list[Test]:
    """With the p-values that Holm's method (1979, Scand. J. Stat. 6) corrects for the number of tests."""
    order = sorted((place for place, test in enumerate(tests) if test.p is not None), key=lambda at: tests[at].p or 0)
    corrected: dict[int, float] = {}
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * (tests[place].p or 0)))
        corrected[place] = largest
    return [test._replace(corrected=corrected.get(place)) for place, test in enumerate(tests)]


def tested(tests: Sequence[Test], percent: Mapping[str, bool]) -> list[list[str]]:
    """The tests as the cells of a table."""
    lines = [["", "score", "difference", "seeds", "p", "p, corrected"]]
    for test in tests:
        share = percent[test.score]
        apart = ("+" if test.difference >= 0 else "") + report.shown(test.difference, share)
        lines.append([f"{test.arm} - {test.over}", test.score, apart + report.ends(test.interval, share),
                      f"{len(test.seeds)}", probability(test.p), probability(test.corrected)])
    return lines


def probability(p: float | None) -> str:
    return "-" if p is None else f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def what_p_means(seeds: Sequence[int]) -> str:
    """What these p-values can say, and what they cannot, by the number of seeds of each test."""
    if not seeds:
        return "The recipes have no seed in common: nothing is tested."
    few = min(seeds)
    if few < 2:
        return ("One seed says nothing about others: where there is one there is no test, and two recipes may differ "
                "by luck.")
    wide = float(stats.t.ppf(0.975, few - 1)) / math.sqrt(few)
    return (f"Paired t-tests over {few} seeds, {few - 1} degree{'s' * (few > 2)} of freedom. Seed by seed both recipes "
            "see the images in the same order, and equal encoders begin with equal weights. p is below 0.05 only where "
            f"the mean difference is more than {wide:.1f} times the deviation of the differences over seeds; the test "
            f"takes these for normal, which {few} cannot show, and one by signs alone could not go below "
            f"{2 / 2 ** few:.2g}. A large p does not say that two recipes are alike: the interval says how far apart "
            f"they may be. The last column is corrected by Holm's method for the {len(seeds)} tests here. Seeds are "
            "the luck of a run; other data sets are not tested.")
