"""The command compare."""

import json
import sys
import textwrap
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_zoo.cli import arms
from ssl_zoo.cli.arms import Arm
from ssl_zoo.cli.children import Failed, fit, only_one
from ssl_zoo.cli.devices import device
from ssl_zoo.cli.messages import TRUST, Options, way_out
from ssl_zoo.evaluation import protocols
from ssl_zoo.files import claim, put
from ssl_zoo.paths import own_data, plain_yaml

PROTOCOLS = ("knn", "linear_cached", "health")
ENDINGS = ("md", "tex", "json")
WIDTH = 120   # letters in a line of the terminal


def compare(arguments: Sequence[str]) -> None:
    """Train recipes on several seeds, measure them by the same protocols, and put them into one table.

    What is there already is not run again, and what was interrupted goes on: the same command may be given again at any
    time. RECIPE is a recipe by its name or path, the folder of a finished run, or one that holds several seeds of it.
    """
    options = parser().parse_args(arguments)
    if options.seeds < 1:
        raise ValueError(f"--seeds is 1 or more, not {options.seeds}")
    for name in options.protocols or ():
        protocols.check(name)
    chosen = arms.found(options.recipes, options.set)
    with only_one(options.output):
        told = train(chosen, options)
        measure(chosen, options, told)
    if told.failed:
        raise ValueError(f"not all is there, and the same command tries again: {', '.join(told.failed)}")


def parser() -> Options:
    parser = Options("compare", compare.__doc__)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="what to compare; the others are tested against "
                        "the first")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe, with the seeds 0, 1, ...; 3 if left "
                        "out")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE[,VALUE]", help="an option of fit "
                        "for every recipe, as in trainer.max_epochs=50; several values make a line of the table each. "
                        "May be given several times")
    parser.add_argument("--output", type=Path, default=Path("comparison"), help="folder of the runs, the features and "
                        "the reports; comparison if left out")
    parser.add_argument("--protocols", nargs="+", metavar="NAME", help="what to measure, as ssl-zoo evaluate takes it; "
                        f"{', '.join(PROTOCOLS)} if left out")
    parser.add_argument("--device", help="where to measure; the GPU if there is one")
    parser.add_argument("--trust", metavar="CLASS", action="append", default=[], help=TRUST)
    return parser


# The runs

class Told:
    """What the comparison knows of its arms before it measures them."""

    def __init__(self) -> None:
        self.data: Any = None                            # the data module of the first arm
        self.configs: dict[str, Any] = {}                # by the name of the arm
        self.places: dict[str, dict[int, Path]] = {}     # of finished runs, by arm and seed
        self.failed: dict[str, str] = {}                 # by the name of a run, why it is not in the table


def train(chosen: Sequence[Arm], options: Namespace) -> Told:
    """Run what is missing, seed by seed, so that after the first seed all recipes are there.

    All recipes are read, and their images compared, before the first one is run.
    """
    told, images = Told(), {}
    for arm in chosen:
        told.configs[arm.name], data, images[arm.name] = known(arm, options)
        told.data = told.data or data
        told.places[arm.name] = {} if arm.recipe else arms.seeds_of(arm)
    from ssl_zoo.evaluation.comparison import require_same_images, require_same_size
    first, *others = images.items()
    for name, other in others:
        require_same_images(first[0], first[1], name, other)
        require_same_size(first[0], told.configs[first[0]], name, told.configs[name])
    missing = []
    for seed in range(options.seeds):
        for arm in (one for one in chosen if one.recipe):
            place = options.output / arm.place / f"seed_{seed}"
            for folder in place.glob("version_*"):
                if (folder / "config.yaml").is_file():
                    arms.require_same_recipe(folder, told.configs[arm.name])
            if there := arms.finished(place):
                told.places[arm.name][seed] = there[-1]
                require_same_images(str(there[-1]), arms.origin(there[-1]).get("data"), f"{arm.name} today",
                                    images[arm.name])
            else:
                missing.append((arm, seed, place))
    for number, (arm, seed, place) in enumerate(missing, 1):
        try:
            told.places[arm.name][seed] = fit(arm, seed, place, f"run {number} of {len(missing)}")
        except Failed as error:
            told.failed[f"{arm.name}, seed {seed}"] = str(error)
    return told


def known(arm: Arm, options: Namespace) -> tuple[Any, Any, Any]:
    """The configuration of an arm, its data module and what is known of its images."""
    from ssl_zoo.cli.evaluate import recorded_images
    from ssl_zoo.data import Images
    from ssl_zoo.provenance import images
    if arm.recipe:
        config, data = resolved(arm, options.output)
    else:
        config, origin = plain_yaml(arm.runs[0] / "config.yaml"), arms.origin(arm.runs[0])
        own = own_data(str(arm.runs[0] / "encoder.safetensors"), options.trust)
        data = recorded_images(own, str(arm.runs[0]), options.trust)
        if origin.get("data"):
            return config, data, origin["data"]
    if not isinstance(data, Images):
        raise ValueError(f"{arm.name} has its images from {type(data).__name__}, and encoders are measured on a data "
                         "module of ssl_zoo.data: name one in the recipe")
    data.said = True
    data.prepare_data()
    data.setup("fit")
    return config, data, images(data)


def resolved(arm: Arm, output: Path) -> tuple[dict[str, Any], Any]:
    """The whole configuration of a recipe with what is set in it, and its data module: a recipe that cannot be made is
    refused before any run."""
    import yaml

    from ssl_zoo.cli.fit import Cli
    try:
        cli = Cli(["--config", arm.recipe, *arm.options, "--trainer.logger", "false", "--trainer.default_root_dir",
                   str(output)], run=False)
    except SystemExit as error:
        sys.exit(f"ssl-zoo: {arm.name}: {str(error.code).removeprefix('ssl-zoo: ')}")
    except ValueError as error:
        sys.exit(f"ssl-zoo: {arm.name}: {way_out(error)}")
    return yaml.safe_load(cli.parser.dump(cli.config, skip_none=False)), cli.datamodule


# The measurement

def measure(chosen: Sequence[Arm], options: Namespace, told: Told) -> None:
    """Measure all encoders by the same protocols, and leave table, tests and pictures in a new folder."""
    from ssl_zoo.checkpoints import read_encoder
    from ssl_zoo.cli.evaluate import preprocessing
    from ssl_zoo.evaluation import comparison, curve, suite
    from ssl_zoo.evaluation.seeds import Origin
    runs = [comparison.Run(arm.name, seed, folder, folder / "encoder.safetensors", plain_yaml(folder / "config.yaml"),
                           arms.origin(folder), curve.read(folder))
            for arm in chosen for seed, folder in sorted(told.places[arm.name].items())]
    if not runs:
        raise ValueError("no run was finished, so that there is nothing to compare: " + "; ".join(
            f"{name}: {why}" for name, why in told.failed.items()))
    comparison.require_comparable(runs)
    place, data = device(options.device), told.data
    found = {run.name: read_encoder(str(run.encoder), options.trust) for run in runs}
    data.read_as(preprocessing(found.values()))
    data.prepare_data()
    data.setup("fit")
    folder = claim(options.output / "reports")
    seeds = {arm: [run.name for run in runs if run.arm == arm] for arm in comparison.arms(runs)}
    measured = suite.evaluate({name: encoder.to(place) for name, encoder in found.items()}, data, folder,
                              protocols=options.protocols or PROTOCOLS, features=options.output / "features",
                              origins={run.name: Origin(run.encoder, None) for run in runs}, seeds=seeds)
    told.failed |= measured.failed
    if measured.unwritten:
        raise OSError(measured.unwritten)
    write(folder, runs, measured, options, told.failed)


def write(folder: Path, runs: Sequence[Any], measured: Any, options: Namespace, failed: Mapping[str, str]) -> None:
    """Leave the comparison as Markdown, LaTeX, JSON and pictures, and print it."""
    from ssl_zoo.evaluation import comparison as side
    from ssl_zoo.evaluation import comparison_charts, report
    found = side.side_by_side(runs, measured, options.seeds, only=report.SHOWN if options.protocols is None else ())
    lacking = [f"{name} is not in the table: {why}" for name, why in failed.items()]
    left_out = dict.fromkeys(text for column in measured.columns.values() for text in column.left_out)
    said = [*found.said, *left_out, *lacking]                                     # what holds for all runs is said once
    pictures = [report.save(folder, "", name, draw()) for name, draw in comparison_charts.pictures(
        runs, found.scores, timed=found.timed).items()] if found.curved else []
    put(folder / "comparison.tex", side.as_latex(found.table))
    put(folder / "comparison.json", json.dumps({**found.as_plain(), "remarks": said}, indent=2) + "\n")
    put(folder / "comparison.md", "\n".join([
        "# Comparison\n", report.as_markdown(found.table), found.legend, "\n## Against the first, seed by seed\n",
        *([report.as_markdown(found.tested)] if found.tests else []), found.meaning,
        *(["\n## To know\n"] if said else []),
        *(f"- {one}" for one in said), *(f"\n![{path.stem}]({path.name})" for path in pictures)]) + "\n")
    tested = [report.as_text(found.tested)] if found.tests else []
    lines = [report.as_text(found.table), wrapped(found.legend), "", *tested, wrapped(found.meaning), "",
             *map(wrapped, said), *(folder / f"comparison.{end}" for end in ENDINGS)]
    print(*lines, *pictures, sep="\n")


def wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, WIDTH, break_on_hyphens=False, break_long_words=False)
