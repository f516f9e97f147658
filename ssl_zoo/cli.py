"""The commands: constructor signatures are the schema of a recipe, one file is one whole run."""

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException

# what a recipe may name by its class alone
import ssl_zoo.data
import ssl_zoo.evaluation
import ssl_zoo.methods
from ssl_zoo import monitor
from ssl_zoo.export import save_encoder
from ssl_zoo.method import Method

DEBUG = "SSL_ZOO_DEBUG"   # set it to see whole tracebacks


class Cli(LightningCLI):
    """Lightning's command line over any Method and any data module, with the callbacks that every run gets."""

    def __init__(self, arguments: Sequence[str] | None = None, run: bool = True):
        callbacks = [monitor.Progress(), monitor.Speed(), monitor.FiniteLoss(), monitor.SafeInterrupt(),
                     monitor.ViewsPicture(), LearningRateMonitor()]
        super().__init__(
            Method, pl.LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
            auto_configure_optimizers=False, save_config_kwargs={"overwrite": True}, args=arguments, run=run,   # type: ignore[arg-type]
            trainer_defaults={"callbacks": callbacks, "enable_model_summary": False, "num_sanity_val_steps": 0})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in ("fit", "validate")}


def export(arguments: Sequence[str]) -> None:
    """The encoder of a training checkpoint as .safetensors and .json."""
    parser = argparse.ArgumentParser("ssl-zoo export", description=export.__doc__)
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file of ssl-zoo fit")
    parser.add_argument("--output", type=Path, help="file to write; encoder.safetensors beside the checkpoint's folder")
    options = parser.parse_args(arguments)
    if not options.checkpoint.is_file():
        raise FileNotFoundError(f"no checkpoint at {options.checkpoint}")
    method = Method.load_from_checkpoint(options.checkpoint, map_location="cpu")
    output = options.output or options.checkpoint.with_suffix(".safetensors")
    print(save_encoder(method.evaluated, output, recipe=dict(method.hparams)))


def run(arguments: list[str]) -> None:
    """Run a command; bad input ends it with one sentence and status 1."""
    quiet()
    try:
        if arguments[0] == "export":
            export(arguments[1:])
        else:
            Cli(arguments)
    except (ValueError, OSError, ImportError, MisconfigurationException) as error:
        if os.environ.get(DEBUG):
            raise
        sys.exit(f"ssl-zoo: {sentence(error)}\n(for the traceback: {DEBUG}=1)")


def quiet() -> None:
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.accelerators.cuda").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")


def sentence(error: BaseException) -> str:
    return str(error)
