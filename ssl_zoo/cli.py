"""The commands: constructor signatures are the schema of a recipe, one file is one whole run."""

import argparse
import copy
import dataclasses
import difflib
import inspect
import itertools
import json
import logging
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from ssl_zoo import data, encoders, evaluation, methods, monitor, optim
from ssl_zoo.distributed import run_seed
from ssl_zoo.evaluation import summary
from ssl_zoo.evaluation.report import epoch, whole_recipe
from ssl_zoo.export import files, load_encoder, save_encoder
from ssl_zoo.method import Method
from ssl_zoo.views import Key
from ssl_zoo.views.preview import match_sheet, view_sheet
from ssl_zoo.views.specs import PRESETS

__all__ = ["Cli", "data", "encoders", "evaluation", "methods", "optim", "run"]   # classes that a recipe may name alone

NOISE = re.compile("Does not validate|Subtypes:|Errors:|Given value|Expected a path|"
                   "Expected a <class '(NoneType|collections.abc.Sequence)'>")
DEBUG = "SSL_ZOO_DEBUG"   # set it to see whole tracebacks


class Parser(LightningArgumentParser):
    """Says in one sentence what is wrong with a recipe, where jsonargparse prints its usage and a tree of attempts."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:   # a part of the recipe; whoever parses the whole says where it stands
            super().error(message, ex)
        sys.exit(f"ssl-zoo: {parse_error(message)}")

    def dump(self, cfg: Any, *args: Any, **kwargs: Any) -> str:
        """The configuration, with the rows of named views spelt out: what a run saves must not change with a name."""
        cfg = cfg.clone()
        for key, value in list(cfg.items()):
            if key.endswith("augment.init_args.views") and isinstance(value, str) and value in PRESETS:
                cfg[key] = [dataclasses.asdict(row) for row in PRESETS[value]]
        return super().dump(cfg, *args, **kwargs)


class Cli(LightningCLI):
    """Lightning's command line over any Method and any data module, with the callbacks that every run gets."""

    def __init__(self, arguments: Sequence[str] | None = None, run: bool = True):
        callbacks = [monitor.Progress(), monitor.Speed(), monitor.FiniteLoss(), monitor.SafeInterrupt(),
                     monitor.ViewsPicture(), monitor.LastCheckpoint(), LearningRateMonitor()]
        super().__init__(
            Method, pl.LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
            parser_class=Parser, auto_configure_optimizers=False, run=run,
            save_config_kwargs={"overwrite": True},
            args=None if arguments is None else list(arguments),
            trainer_defaults={"callbacks": callbacks, "enable_model_summary": False, "num_sanity_val_steps": 0})

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's values override the command line's; here the recipe and the options decide."""

    def before_fit(self) -> None:
        """Find out before the first step whether the checkpoint can be read and the run's folder written."""
        if path := self.config["fit"]["ckpt_path"]:
            check_whole(Path(path))
        logger = self.trainer.logger
        folder = Path(logger and logger.save_dir or self.trainer.default_root_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(f"the folder {folder} cannot be written ({error.strerror}): choose another with "
                             "--trainer.logger.save_dir or --trainer.default_root_dir") from error

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in ("fit", "validate")}


def export(arguments: Sequence[str]) -> None:
    """Write the encoder of a training checkpoint as .safetensors, and what it is as .json."""
    parser = argparse.ArgumentParser("ssl-zoo export", description=export.__doc__)
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file that ssl-zoo fit left")
    parser.add_argument("--output", type=Path, help="file to write; the checkpoint's name if left out")
    options = parser.parse_args(arguments)
    checkpoint = check_whole(options.checkpoint)
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    method = load_method(checkpoint, content.get("hyper_parameters", {}))
    report: Any = next((state for name, state in content["callbacks"].items() if name.startswith("Report")),
                       {"columns": {}, "size": None})
    print(save_encoder(method.evaluated, options.output or checkpoint.with_suffix(".safetensors"), size=report["size"],
                       recipe=whole_recipe(checkpoint.resolve().parents[1], method),
                       metrics=report["columns"].get(epoch(content["epoch"] + 1), {})))


def preview(arguments: Sequence[str]) -> None:
    """Draw the views of a recipe: the sources with the boxes of their crops, the views, and which cells match."""
    parser = argparse.ArgumentParser("ssl-zoo preview", description=preview.__doc__, allow_abbrev=False,
                                     epilog="All other options are those of ssl-zoo fit.")
    parser.add_argument("--images", type=int, default=4, help="how many images to draw")
    parser.add_argument("--output", type=Path, default=Path("views.png"),
                        help="picture to write; the matches go beside it")
    options, rest = parser.parse_known_args(arguments)
    if options.images < 1:
        raise ValueError(f"a preview is of at least 1 image, not {options.images}: raise --images")
    cli = Cli(rest, run=False)
    augment = cli.model.augment
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    source = cli.datamodule.train
    places = np.random.default_rng(run_seed()).permutation(len(source))
    images = list(itertools.islice(readable(source, places), options.images))
    views = augment(augment.cut(images, Key(run_seed(), 0, 0, 0)), Key(run_seed(), 0, 0, 0))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    view_sheet(images, views).save(options.output)
    print(options.output)
    if len(views) > 1:
        matches = options.output.with_stem(f"{options.output.stem}_matches")
        match_sheet(views[0], views[1]).save(matches)
        print(matches)


def readable(source: Any, places: Iterable[int]) -> Iterator[Tensor]:
    for i in places:
        try:
            yield source.read(int(i))
        except Exception:   # whatever a decoder raises on a damaged file, which a run will name
            continue


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
    parser.add_argument("--protocols", nargs="+", choices=list(suite.PROTOCOLS), default=list(suite.QUICK),
                        metavar="NAME", help=f"what to measure: {', '.join(suite.PROTOCOLS)}; the last two train on "
                        "images, for long, and run only where they are named")
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
    print(summary.as_text(summary.rows({name: one.scores for name, one in measured.found.items()})))
    print(summary.LEGEND)
    for name, one in measured.found.items():
        print("".join(f"left out, {name}: {said}\n" for said in one.left_out), end="")
    print("".join(f"{name} was not measured: {said}\n" for name, said in measured.failed.items()), end="")
    if measured.unwritten:
        raise OSError(measured.unwritten)
    print(folder / "report.md")


def read_encoder(given: str) -> encoders.Encoder:
    """An encoder by its file, its checkpoint, or its name, with weights from a file after an equals sign."""
    name, weights = name_and_weights(given)
    if name.endswith(".ckpt"):
        checkpoint = check_whole(Path(name))
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        return load_method(checkpoint, content.get("hyper_parameters", {})).evaluated
    if files(name)[1].is_file() or name.endswith(".safetensors"):
        return load_encoder(name)
    kind = encoders.named(name)
    if kind is None:
        raise ValueError(f"there is no encoder {given}: give an exported encoder's .safetensors, a .ckpt, or the name "
                         "of a model of torchvision or timm, with its weights as in resnet50=resnet50.pth")
    return kind(weights=weights or None)


def name_and_weights(given: str) -> tuple[str, str]:
    """What stands before and after an equals sign, unless it is part of a path, as in epoch=1-step=14.ckpt."""
    if Path(given).is_file() or files(given)[0].is_file():
        return given, ""
    name, _, weights = given.partition("=")
    return name, weights


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


def own_data(given: str) -> Any:
    """The images that a run's encoder has learnt from, as its recipe names them."""
    described, config = files(given)[1], Path(given).absolute().parents[1] / "config.yaml"
    recipe = None
    if given.endswith(".ckpt") and config.is_file():
        recipe = yaml.safe_load(config.read_text())
    elif described.is_file():
        recipe = json.loads(described.read_text()).get("recipe")
    if not isinstance(recipe, dict) or "data" not in recipe:
        raise ValueError(f"nobody knows on which images to evaluate {given}: name them with --data, as in --data "
                         "ImageFolder --data.root my_images")
    return recipe["data"]


COMMANDS = {"evaluate": evaluate, "export": export, "preview": preview}   # beside those of Lightning's command line


def check_whole(checkpoint: Path) -> Path:
    """The path, if a checkpoint is there and was written to its end."""
    if not checkpoint.is_file():
        raise FileNotFoundError(f"no checkpoint at {checkpoint}; ssl-zoo fit leaves them in its run's folder, "
                                "under checkpoints")
    if not zipfile.is_zipfile(checkpoint):   # as torch.save writes it, with the contents at its end
        raise ValueError(f"{checkpoint} is no checkpoint, or was cut short; take another of its folder")
    return checkpoint


def load_method(checkpoint: Path, values: Mapping[str, Any]) -> Method:
    """The method of a checkpoint that a recipe's run left, of whatever class it is."""
    if "_class_path" not in values:
        raise ValueError(f"{checkpoint} is of a run built in Python and does not say how to build its encoder: write "
                         "it there with ssl_zoo.save_encoder(method.evaluated, path)")
    module, _, name = values["_class_path"].rpartition(".")
    kind = getattr(import_module(module), name)
    if not issubclass(kind, Method):
        raise ValueError(f"{checkpoint} holds a {name}, which is no method of ssl_zoo")
    encoder = copy.deepcopy(values["encoder"])
    encoder["init_args"].pop("weights", None)   # the checkpoint holds what became of them
    return kind.load_from_checkpoint(checkpoint, map_location="cpu", encoder=encoder)


def run(arguments: list[str]) -> None:
    """Run a command; bad input ends it with one sentence and status 1."""
    quiet()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())   # for methods of one's own, as python does
    try:
        if arguments[0] in COMMANDS:
            COMMANDS[arguments[0]](arguments[1:])
        else:
            Cli(arguments)
    except (ValueError, OSError, ImportError, MisconfigurationException) as error:
        if os.environ.get(DEBUG):
            raise
        sys.exit(f"ssl-zoo: {way_out(error)}\n(for the traceback: {DEBUG}=1)")


def way_out(error: BaseException) -> str:
    """What `error` says, and what to do where it is not ours and does not say."""
    said = parse_error(str(error))   # jsonargparse wraps what a constructor says in its tree
    if isinstance(error, MisconfigurationException) and re.search("accelerator|backend|CUDA|GPU", said):
        return f"{said.rstrip('.!')}: this machine has none; run with --trainer.accelerator cpu, or auto"
    return said


def parse_error(message: str) -> str:
    """jsonargparse's tree of attempts as one sentence: where in the recipe, what is wrong, what would be near."""
    where, wrong, kind = [], [], None
    for line in message.splitlines():
        line = line.strip().removeprefix("- ")
        key = re.match(r'(?:error: )?Parser key "([^"]+)":?\s*(.*)', line)
        path = re.match(r"Problem with given class_path '([^']+)'", line)
        if key:
            where.append(key[1])
            wrong += [key[2]] if key[2] else []
        elif path:
            kind = path[1]
            where.append(kind.rpartition(".")[2])
        elif line and not NOISE.match(line):
            wrong.append(line)
    choices = [line for line in wrong if "Expected a typing.Literal" in line]   # rows of views, or one of these names:
    text = "; ".join(dict.fromkeys(line for line in wrong if line not in choices)) or "; ".join(choices) or message
    if choice := re.search(r"Expected a typing.Literal\[(.+)\]", text):
        text = f"expected one of {choice[1]}"
    if unknown := re.search(r"Expected a dot import path string: (\w+)", text):
        names = [name for module in (methods, data, evaluation, encoders, optim) for name in dir(module)]
        near = difflib.get_close_matches(unknown[1], names, n=1)
        text = f"there is no class {unknown[1]}" + (f"; did you mean {near[0]}?" if near else "")
    if option := re.search(r"Option '([^']+)' is not accepted|does not accept option 'trainer.(\w+)'", text):
        takes = parameters(kind or "pytorch_lightning.Trainer")
        near = difflib.get_close_matches(option[1] or option[2], takes, n=1)
        text += f"; did you mean {near[0]}?" if near else f"; it takes {', '.join(takes)}"
    return ": ".join([" > ".join(where), text] if where else [text])


def parameters(path: str) -> list[str]:
    """The options of a class by its import path, those of its bases included."""
    module, _, name = path.rpartition(".")
    kinds = inspect.getmro(getattr(import_module(module), name))
    ours = path.partition(".")[0], "ssl_zoo."
    return list(dict.fromkeys(option for kind in kinds if kind.__module__.startswith(ours)
                              for option, parameter in inspect.signature(kind).parameters.items()
                              if parameter.kind is not parameter.VAR_KEYWORD))


def quiet() -> None:
    """Lightning's hints about its own workings are not for the user of a recipe."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed",
                 "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*LightningCLI's args parameter.*", ".*LeafSpec.*",
                    ".*smaller than the logging interval.*",
                    ".*You have overridden `on_after_batch_transfer`.*", ".*sync_dist=True.*"):
        warnings.filterwarnings("ignore", message)
