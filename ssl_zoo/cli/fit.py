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
from ssl_zoo.data import arrays, digits, folder, torchvision_sets
from ssl_zoo.evaluation import callback, former
from ssl_zoo.method import Method
from ssl_zoo.paths import check_whole
from ssl_zoo.views.specs import PRESETS

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
