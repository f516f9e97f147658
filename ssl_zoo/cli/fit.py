"""The commands fit and validate: constructor signatures are the schema of a recipe, one file is one whole run."""

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from ssl_zoo import data, encoders, evaluation, methods, monitor, optim
from ssl_zoo.cli.messages import parse_error
from ssl_zoo.cli.recipes import run_name
from ssl_zoo.data import arrays, digits, folder, torchvision_sets
from ssl_zoo.evaluation import callback, former
from ssl_zoo.method import Method
from ssl_zoo.paths import check_whole
from ssl_zoo.views.specs import PRESETS

# What most runs share. A recipe, or an option, says otherwise where its run differs, and --print_config says all.
TRAINER = {"devices": 1, "precision": "32-true", "check_val_every_n_epoch": 10, "num_sanity_val_steps": -1,
           "enable_model_summary": False}
CALLBACKS = {"evaluation": callback.Evaluation, "report": callback.Report, "checkpoints": monitor.Checkpoints}

# the families hold the classes that a recipe may name alone, once their files are imported
__all__ = ["Cli", "Parser", "arrays", "callback", "data", "digits", "encoders", "evaluation", "folder", "former",
           "methods", "optim", "torchvision_sets"]


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
        arguments = sys.argv[1:] if arguments is None else list(arguments)
        logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs", "name": run_name(arguments)}}
        watching = [monitor.Progress(), monitor.Speed(), monitor.FiniteLoss(), monitor.SafeInterrupt(),
                    monitor.ViewsPicture(), monitor.LastCheckpoint(), LearningRateMonitor()]
        super().__init__(
            Method, pl.LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
            parser_class=Parser, auto_configure_optimizers=False, run=run, args=arguments,
            save_config_kwargs={"overwrite": True}, seed_everything_default=0,
            trainer_defaults=TRAINER | {"logger": logger, "callbacks": watching})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, kind in CALLBACKS.items():
            parser.add_lightning_class_args(kind, name)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        """Leave out a default callback if the recipe's own list has one of its kind, as former recipes do."""
        listed = config["callbacks"] if isinstance(config["callbacks"], list) else [config["callbacks"]]
        return super()._instantiate_trainer(
            config, [one for one in callbacks if not any(isinstance(other, type(one)) for other in listed)])

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's values override the command line's; here the recipe and the options decide."""

    def before_fit(self) -> None:
        """Find out before the first step whether the checkpoint can be read and the run's folder written."""
        if path := self.config["fit"]["ckpt_path"]:
            check_whole(Path(path))
        logger = self.trainer.logger
        place = Path(logger and logger.save_dir or self.trainer.default_root_dir)
        try:
            place.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise ValueError(f"the folder {place} cannot be written ({error.strerror}): choose another with "
                             "--trainer.logger.save_dir or --trainer.default_root_dir") from error

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in ("fit", "validate")}
