"""Settings that make the steps of a run faster, and change its numbers in their last digits alone."""

import os
import shutil
from typing import Any

import pytorch_lightning as pl
import torch

from ssl_zoo.encoders import Encoder


class Fast(pl.Callback):
    """Memory format and compilation of a training run. Its checkpoints and exports are those of any other run.

    Together with trainer.precision: bf16-mixed, which most of the gain of `channels_last` depends on.

    Args:
        channels_last: keep weights and views in the memory format in which convolutions in bfloat16 are faster.
        compile: let torch.compile fuse the encoders while they train, which takes about a minute at the first batch.
            Evaluation stays as it is. The views have a flag of their own, model.augment.compile.
    """

    def __init__(self, channels_last: bool = False, compile: bool = False):
        self.channels_last, self.compile = channels_last, compile

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        if self.channels_last:
            for part in pl_module.children():
                part.to(memory_format=torch.channels_last)
            pl_module.augment.channels_last = True
        if self.compile:
            require_compiler()
            for part in pl_module.modules():
                if isinstance(part, Encoder):
                    part.compile()   # in place: no name of a tensor changes


def require_compiler() -> None:
    """Raise one sentence if torch.compile has no C++ compiler to call."""
    names = [os.environ.get("CXX", "g++"), "g++", "clang++", "c++", "cl"]
    if not any(map(shutil.which, names)):
        raise ValueError("fast.compile calls a C++ compiler, and there is none on the PATH: install g++ or clang, or "
                         "leave fast.compile out")
