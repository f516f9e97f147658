"""The commands fit and validate: constructor signatures are the schema of a recipe, one file is one whole run."""

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytorch_lightning as pl
from lightning_fabric.plugins import CheckpointIO
from lightning_fabric.plugins.collectives.torch_collective import default_pg_timeout
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from ssl_zoo import (
    data,
    encoders,
    evaluation,
    fast,
    gradient_cache,
    methods,
    monitor,
    optim,
    peers,
    progress,
    provenance,
    saving,
    stopping,
)
from ssl_zoo.checkpoints import check_resumable, read_checkpoint
from ssl_zoo.cli import places
from ssl_zoo.cli.messages import QUIET, parse_error
from ssl_zoo.cli.recipes import run_name
from ssl_zoo.data import arrays, digits, folder, hugging_face, photographs, shards, torchvision_sets
from ssl_zoo.distributed import run_folder, run_seed
from ssl_zoo.evaluation import callback, former
from ssl_zoo.evaluation.curve import Curve
from ssl_zoo.method import Method
from ssl_zoo.views.specs import PRESETS

# What most runs share. A recipe, or an option, says otherwise where its run differs, and --print_config says all.
TRAINER = {"devices": 1, "precision": "32-true", "check_val_every_n_epoch": 10, "num_sanity_val_steps": -1,
           "enable_model_summary": False}
RUNS = "runs"   # the folder of all runs
CALLBACKS = {"evaluation": callback.Evaluation, "report": callback.Report, "checkpoints": saving.Checkpoints,
             "gradient_cache": gradient_cache.GradientCache, "fast": fast.Fast}

# the families hold the classes that a recipe may name alone, once their files are imported
__all__ = ["Cli", "Parser", "arrays", "callback", "data", "digits", "encoders", "evaluation", "folder", "former",
           "hugging_face", "methods", "optim", "photographs", "shards", "torchvision_sets"]


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


class Recipe(SaveConfigCallback):
    """Leaves a run's whole configuration and its provenance in its folder.

    Lightning's own is in the place of all runs of a service.
    """

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if (folder := run_folder(trainer)) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(folder / "config.yaml"), skip_none=False, overwrite=True)
            provenance.leave(folder, seed=run_seed(), data=getattr(trainer, "datamodule", None),
                             resumed=self.config.get("ckpt_path"))


class Cli(LightningCLI):
    """Lightning's command line over any Method and any data module, with the callbacks that every run gets."""

    def __init__(self, arguments: Sequence[str] | None = None, run: bool = True):
        arguments = sys.argv[1:] if arguments is None else list(arguments)
        self.quiet, arguments = QUIET in arguments, [word for word in arguments if word != QUIET]
        self.run_name = run_name(arguments)
        logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": RUNS, "name": self.run_name}}
        self.stop, self.start, self.extent = stopping.SafeStop(), stopping.FailedStart(), monitor.Extent()
        self.peers = peers.Peers()
        watching = [self.peers, self.start, progress.Progress(), self.extent, monitor.Speed(), monitor.FiniteRun(),
                    Curve(), self.stop, monitor.ViewsPicture(), saving.LastCheckpoint(), LearningRateMonitor()]
        super().__init__(
            Method, pl.LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
            parser_class=Parser, auto_configure_optimizers=False, run=run, args=arguments,
            save_config_callback=Recipe, save_config_kwargs={"save_to_log_dir": False}, seed_everything_default=0,
            trainer_defaults=TRAINER | {"logger": logger, "callbacks": watching})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, kind in CALLBACKS.items():
            parser.add_lightning_class_args(kind, name)
        parser.add_argument("--resume", type=Literal["auto"] | None, default=None, help="auto goes on from the "
                            "newest whole checkpoint of the newest run in this recipe's folder, or starts where there "
                            "is none; --ckpt_path, if given, decides instead")

    def instantiate_classes(self) -> None:
        for name in ("trainer", *CALLBACKS):
            if not hasattr(value := self._get(self.config, name), "items"):
                raise ValueError(f"{name} lists options, as in {name}: {{option: value}}, and is {value!r} here")
        super().instantiate_classes()
        if isinstance(self.datamodule, data.Images):
            self.datamodule.said |= self.quiet

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        """Leave out callbacks that the trainer's options refuse, and a default one if the recipe lists one of its kind.

        Without a logger the run's folder is still that which a logger would have made.
        """
        listed = config["callbacks"] if isinstance(config["callbacks"], list) else [config["callbacks"]]
        refused: list[type] = []
        if config["logger"] is False:
            refused.append(LearningRateMonitor)
        config["default_root_dir"] = config["default_root_dir"] or places.default(
            Path(RUNS, self.run_name), config["logger"])
        if config["enable_checkpointing"] is False:
            refused.append(ModelCheckpoint)
        if self.quiet or config["enable_progress_bar"] is False:
            config["enable_progress_bar"] = False
            refused.append(ProgressBar)
        plugins = config["plugins"] if isinstance(config["plugins"], list) else [config["plugins"]]
        if not any(isinstance(one, CheckpointIO) for one in plugins):
            config["plugins"] = [*filter(None, plugins), saving.WholeCheckpoints()]
        config["callbacks"] = [one for one in listed if one is not None and not isinstance(one, tuple(refused))]
        self.trainer_defaults["callbacks"] = [one for one in self.trainer_defaults["callbacks"]
                                              if not isinstance(one, tuple(refused))]
        try:
            trainer = super()._instantiate_trainer(config, [
                one for one in callbacks if not any(isinstance(other, type(one)) for other in listed)
                and not isinstance(one, tuple(refused))])
        except BaseException as error:
            places.give_back(config["default_root_dir"])
            if isinstance(error, TypeError):
                raise ValueError(f"--trainer cannot be made of its options: {error}") from error
            raise
        strategy: Any = trainer.strategy
        if getattr(strategy, "_timeout", None) == default_pg_timeout:    # the user has not set one
            strategy._timeout = peers.TIMEOUT
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's values override the command line's; here the recipe and the options decide."""

    def _run_subcommand(self, subcommand: str) -> None:
        there = existing(self.place())
        try:
            with self.stop.listening(), saving.forgiving(self.trainer.loggers):
                super()._run_subcommand(subcommand)
            if not self.extent.trained:
                self.start.remove(self.trainer, there)
        except BaseException as error:
            self.start.remove(self.trainer, there)
            if self.stop.signum and isinstance(error, KeyboardInterrupt | SystemExit):
                sys.exit(128 + self.stop.signum)
            if lost := self.peers.reason(error):
                raise ValueError(lost) from error
            raise

    def place(self) -> Path:
        """The folder in which runs have theirs."""
        logger = self.trainer.logger
        return Path(logger and logger.save_dir or self.trainer.default_root_dir)

    def before_fit(self) -> None:
        """Find out before the first step whether the checkpoint can be read and the run's folder written."""
        place = self.place()
        try:
            tempfile.TemporaryFile(dir=existing(place)).close()
        except OSError as error:
            raise ValueError(f"the folder {place} cannot be written ({error.strerror}): choose another with "
                             "--trainer.logger.save_dir or --trainer.default_root_dir") from error
        places.take(self.trainer)
        if (path := self.found("fit")) and self.config["fit"].get("weights_only") is not False:
            check_resumable(path, self.model)
            places.require_undamaged(path)

    def found(self, subcommand: str) -> str | None:
        """The checkpoint to start from, looked for where the options name none by its path."""
        config, path = self.config[subcommand], self.config[subcommand]["ckpt_path"]
        word = path or config["resume"]
        if word in places.FINDERS:
            found = places.FINDERS[word](self.trainer)
            path = config["ckpt_path"] = self.config_init[subcommand]["ckpt_path"] = found and str(found)
        return path

    def after_fit(self) -> None:
        if failed := getattr(self.trainer.strategy.checkpoint_io, "failed", ""):
            raise OSError(failed)

    def before_validate(self) -> None:
        places.take(self.trainer)
        if (path := self.found("validate")) and self.config["validate"].get("weights_only") is not False:
            read_checkpoint(path)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in ("fit", "validate")}


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(one for one in (folder, *folder.absolute().parents) if one.exists())
