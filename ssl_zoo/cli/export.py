"""The command export."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssl_zoo.checkpoints import check_whole, load_method
from ssl_zoo.evaluation.report import epoch, whole_recipe
from ssl_zoo.export import save_encoder


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
