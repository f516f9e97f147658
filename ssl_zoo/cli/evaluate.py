"""The command evaluate."""

import itertools
import json
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from ssl_zoo import data
from ssl_zoo.checkpoints import read_encoder
from ssl_zoo.cli.fit import Parser
from ssl_zoo.evaluation import protocols
from ssl_zoo.evaluation.report import printed
from ssl_zoo.paths import name_and_weights, own_data


def evaluate(arguments: Sequence[str]) -> None:
    """Measure encoders on a data set by named protocols: a table, report.json, report.md and pictures in one folder.

    ENCODER is an exported encoder (.safetensors), a training checkpoint (.ckpt), or a model of torchvision or timm by
    name, with weights from a file: resnet50=resnet50.pth. A name alone is that model untrained.
    """
    suite = import_module("ssl_zoo.evaluation.suite")   # and matplotlib, for which no other command should wait
    parser = Parser("ssl-zoo evaluate", description=evaluate.__doc__ or "")
    parser.add_argument("encoders", nargs="+", metavar="ENCODER", help="what to evaluate; several are compared")
    parser.add_subclass_arguments(data.Images, "data", required=False, help="images; those of the first encoder's own "
                                  "run where left out")
    parser.add_argument("--output", type=Path, default=Path("evaluation"), help="folder of the features, which a "
                        "second call reuses, and of the reports, each in a folder of its own")
    parser.add_argument("--protocols", nargs="+", type=protocol, metavar="NAME", help="what to measure: "
                        f"{', '.join(protocols.names())}, or the class path of a protocol of your own; all that take "
                        "seconds where left out, but not those that train on images, for long")
    parser.add_argument("--dense", type=Path, help="folder in Pascal VOC's layout, for a linear probe on feature maps")
    parser.add_argument("--epochs", type=int, help="of linear_simclr and finetune_simclr, instead of their own")
    parser.add_argument("--half", action="store_true", help="keep the features in float16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to measure")
    if any(one.startswith("--data.") for one in arguments) and not re.search(r"(^| )--data[ =]", " ".join(arguments)):
        raise ValueError("--data. options are those of a data set: name it, as in --data ImageFolder --data.root "
                         "my_images")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"there is no {options.device} on this machine: leave --device out")
    found = {name_of(given, options.encoders): read_encoder(given) for given in options.encoders}
    if "data" not in options or options.data is None:
        options = parser.parse_args([*arguments, "--data", json.dumps(own_data(options.encoders[0]))])
    images = parser.instantiate_classes(options).data
    images.prepare_data()
    images.setup("fit")
    versions = (options.output / f"version_{n}" for n in itertools.count())
    folder = next(version for version in versions if not version.exists())
    measured = suite.evaluate({name: encoder.to(options.device) for name, encoder in found.items()}, images, folder,
                              protocols=options.protocols, features=options.output / "features", dense=options.dense,
                              epochs=options.epochs, half=options.half)
    print(printed(measured), end="")
    if measured.unwritten:
        raise OSError(measured.unwritten)
    print(folder / "report.md")


def protocol(name: str) -> str:
    """The name, if there is a protocol of that name."""
    protocols.check(name)
    return name


def name_of(given: str, others: Sequence[str]) -> str:
    """A column's heading: the run's folder for what a run has left, as far as it tells the encoders apart."""
    def short(one: str) -> str:
        name, weights = name_and_weights(one)
        path = Path(name)
        generic = ("checkpoints", "encoder", "last", "runs", "/")
        parts = [part for part in path.with_suffix("").parts if part not in generic]
        if len(path.parts) == 1 and not path.suffix:
            return name if weights else f"{name}, untrained"
        return "/".join(parts[-2:]) or name
    return short(given) if [short(other) for other in others].count(short(given)) <= 1 else given
