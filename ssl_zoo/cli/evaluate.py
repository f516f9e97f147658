"""The command evaluate."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ssl_zoo.cli.devices import device
from ssl_zoo.cli.messages import TRUST, Options, expected, way_out
from ssl_zoo.evaluation import protocols
from ssl_zoo.files import claim
from ssl_zoo.paths import check_encoder, mapping, name_and_weights, own_data, own_recipe


def evaluate(arguments: Sequence[str]) -> None:
    """Measure encoders on a data set by named protocols: a table, report.json, report.md and pictures in one folder.

    ENCODER is an exported encoder (.safetensors), a training checkpoint (.ckpt), or a model of torchvision or timm by
    name, with weights from a file: resnet50=resnet50.pth. A name alone is that model untrained.
    """
    others, about_images = split_options(arguments)
    if "--data.help" in about_images:
        chosen_images(about_images)   # prints it and ends
    options = parser().parse_args(others)
    for name in options.protocols or ():
        protocols.check(name)
    for given in options.encoders:
        check_encoder(given)
    if options.dense and not options.dense.is_dir():
        raise FileNotFoundError(f"there is no folder {options.dense} for --dense")
    measure(options, split_sets(about_images), {} if about_images else own_data(options.encoders[0], options.trust))


def parser() -> Options:
    parser = Options("evaluate", evaluate.__doc__, others=["--data"], epilog="The images: --data ImageFolder "
                     "--data.root my_images, or left out those of the first encoder's own run. Several --data, each "
                     "followed by its options, make one table. What a data set takes: --data.help ImageFolder.")
    parser.add_argument("encoders", nargs="+", metavar="ENCODER", help="what to evaluate; several are compared")
    parser.add_argument("--output", type=Path, default=Path("evaluation"), help="folder of the features, which a "
                        "second call reuses, and of the reports, each in a folder of its own")
    parser.add_argument("--protocols", nargs="+", metavar="NAME", help="what to measure: "
                        f"{', '.join(protocols.names())}, or the class path of a protocol of your own; all that take "
                        "seconds where left out, but not linear_lbfgs, which is for runs, nor those that train on "
                        "images, for long")
    parser.add_argument("--dense", type=Path, help="folder in Pascal VOC's layout, for a linear probe on feature maps")
    parser.add_argument("--epochs", type=int, help="of linear_simclr, finetune_simclr and, on all labels, finetune; "
                        "instead of their own")
    parser.add_argument("--half", action="store_true", help="keep the features in float16")
    parser.add_argument("--device", help="where to measure; the GPU if there is one")
    parser.add_argument("--trust", metavar="CLASS", action="append", default=[], help=TRUST)
    return parser


def split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of evaluate itself, and those of a data set, which are only known once its class is imported."""
    others: list[str] = []
    about_images: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        option, equals, _ = word.partition("=")
        found = about_images if option == "--data" or option.startswith("--data.") else others
        found.append(word)
        if found is about_images and not equals and words and not words[0].startswith("--"):
            found.append(words.pop(0))
    return others, about_images


def split_sets(about_images: Sequence[str]) -> list[list[str]]:
    """The options of each data set: its --data, and what follows up to the next one."""
    sets: list[list[str]] = []
    named = [place for place, word in enumerate(about_images) if word.partition("=")[0] == "--data"]
    if about_images and not named:
        raise ValueError("--data. options are those of a data set: name it, as in --data ImageFolder --data.root "
                         "my_images")
    if len(named) > 1 and named[0]:
        raise ValueError(f"{about_images[0]} stands before the first --data: of several data sets, each --data comes "
                         "before its options, as in --data ImageFolder --data.root one --data ImageFolder --data.root "
                         "two")
    for start, end in zip([0, *named[1:]], [*named[1:], len(about_images)], strict=True):
        sets += [list(about_images[start:end])] if start < end else []
    return sets


def names_of_sets(sets: Sequence[Sequence[str]]) -> list[str]:
    """What data sets are called: by the end of their option name, path or root, or by their class.

    Where that does not tell them apart, by the whole option; equal ones are numbered.
    """
    def given(about_images: Sequence[str]) -> str:
        words = [part for word in about_images for part in (word.split("=", 1) if word.startswith("--") else [word])]
        found = dict(zip(words, words[1:], strict=False))
        return next(found[option] for option in ("--data.name", "--data.path", "--data.root", "--data")
                    if option in found)

    whole = [given(own) for own in sets]
    short = [Path(one).name or one for one in whole]
    names = [one if short.count(one) == 1 else whole[i] for i, one in enumerate(short)]
    return [one if one not in names[:i] else f"{one} ({names[:i].count(one) + 1})" for i, one in enumerate(names)]


def preprocessing(encoders: Iterable[Any]) -> dict[str, Any]:
    """How images are read for the first encoder that knows; for the others the evaluation asks again."""
    known = (one for one in encoders if one.preprocessing or one.channels != 3)
    return next(({**one.preprocessing, "channels": one.channels} for one in known), {})


def chosen_images(about_images: Sequence[str]) -> Any:
    """The data module that these options describe."""
    from ssl_zoo import data
    from ssl_zoo.cli.fit import Parser
    parser = Parser("ssl-zoo evaluate")
    parser.add_subclass_arguments(data.Images, "data", help="images")
    return parser.instantiate_classes(parser.parse_args(list(about_images))).data


def recorded_images(recorded: dict[str, Any], source: str, trusted: Sequence[str]) -> Any:
    """The data module that a run's file describes: its values are values, whatever they look like."""
    from ssl_zoo.checkpoints import class_at, instance
    from ssl_zoo.data import Images
    path = recorded["class_path"]
    kind = class_at(path if "." in path else f"ssl_zoo.data.{path}", Images, source)
    return instance(kind, mapping(recorded, "init_args"), source, trusted)


def measure(options: Namespace, sets: Sequence[Sequence[str]], recorded: dict[str, Any]) -> None:
    """Run the protocols, and print the table and where the report is."""
    from ssl_zoo.checkpoints import read_encoder
    from ssl_zoo.evaluation import report, suite, transfer
    from ssl_zoo.evaluation.seeds import Origin
    place = device(options.device)
    names = {name_of(given, options.encoders): given for given in options.encoders}
    found = {name: read_encoder(given, options.trust) for name, given in names.items()}
    origins = {name: Origin(Path(given), None if is_untrained(given) else own_recipe(given)[0], is_untrained(given))
               for name, given in names.items()}
    images = (dict(zip(names_of_sets(sets), map(chosen_images, sets), strict=True)) if sets else
              {"": recorded_images(recorded, options.encoders[0], options.trust)})
    ready, failed = set_up(images, preprocessing(found.values()))
    suite.require_place(options.output)
    folder, everything = claim(options.output), options.protocols is not None
    given: dict[str, Any] = {
        "protocols": options.protocols, "features": options.output / "features", "dense": options.dense,
        "epochs": options.epochs, "half": options.half, "origins": origins}
    on_device = {name: encoder.to(place) for name, encoder in found.items()}
    several = len(images) > 1
    try:
        if several:
            measured: Any = transfer.transfer(on_device, ready, folder, failed=failed, everything=everything, **given)
        else:
            data, = ready.values()
            measured = suite.evaluate(on_device, data, folder, **given)
    except BaseException:
        with suppress(OSError):   # unless there is something in it
            os.removedirs(folder)
        raise
    print((transfer if several else report).printed(measured, everything=everything), end="")
    if measured.unwritten:
        raise OSError(measured.unwritten)
    print(f"the whole table: {folder / 'report.md'}")
    if measured.failed:                            # said above, each with its reason
        raise ValueError(f"not all is there: {', '.join(measured.failed)}")


def set_up(sets: Mapping[str, Any], how: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The data sets that can be read, and why the others cannot; where there is only one, that is raised."""
    ready, failed = {}, {}
    for name, images in sets.items():
        try:
            images.read_as(how)
            images.prepare_data()
            images.setup("fit")
        except Exception as error:
            if len(sets) == 1 or not expected(error):
                raise
            failed[name] = way_out(error)
            print(f"{name} will not be measured: {failed[name]}", file=sys.stderr)   # before hours of work
        else:
            ready[name] = images
    return ready, failed


def is_untrained(given: str) -> bool:
    """Whether this is a model of torchvision or timm by its name alone."""
    name, weights = name_and_weights(given)
    return not weights and len(Path(name).parts) == 1 and not Path(name).suffix


def name_of(given: str, others: Sequence[str]) -> str:
    """A column's heading: the run's folder for what a run has left, as far as it tells the encoders apart."""
    def short(one: str) -> str:
        name, weights = name_and_weights(one)
        path = Path(name)
        generic = ("checkpoints", "encoder", "last", "runs", "/")
        parts = [part for part in path.with_suffix("").parts if part not in generic]
        if len(path.parts) == 1 and not path.suffix:
            return f"{name}, untrained" if is_untrained(one) else name
        return "/".join(parts[-2:]) or name
    return short(given) if [short(other) for other in others].count(short(given)) <= 1 else given
