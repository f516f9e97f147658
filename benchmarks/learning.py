"""Does SimCLR on 10,000 images of CIFAR-10 learn? kNN of the trained less the untrained encoder's, three seeds."""

import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from record import data, record

from ssl_zoo.cli.fit import Cli
from ssl_zoo.cli.messages import quiet
from ssl_zoo.cli.recipes import path_of
from ssl_zoo.evaluation import Report

RECIPE = "cifar10/simclr_cpu"


def unpack(folder: Path, train: int) -> Path:
    """The pack's first `train` training images, a balanced subset, and all test images, as one file of arrays."""
    path = folder / f"cifar10_{train}.npz"
    if not path.is_file():
        with np.load(data("cifar10_jpeg.npz")) as pack:
            arrays = {}
            for part, count in (("train", train), ("test", 10_000)):
                bytes_, offsets = pack[f"{part}_jpeg"], pack[f"{part}_offsets"]
                arrays[f"{part}_images"] = np.stack([
                    np.asarray(Image.open(io.BytesIO(bytes_[offsets[i]:offsets[i + 1]].tobytes())).convert("RGB"))
                    for i in range(count)])
                arrays[f"{part}_labels"] = pack[f"{part}_labels"][:count]
            np.savez(path, classes=pack["class_names"], **arrays)
    return path


def arrays(path: Path) -> list[str]:
    """The options that put this file of arrays in place of a recipe's data."""
    return ["--data", "ArrayImages", "--data.path", str(path), "--data.train_images", "null"]


def run(recipe: str, images: Sequence[str], seed: int, folder: str, extra: Sequence[str] = (),
        callbacks: Sequence[pl.Callback] = ()) -> dict:
    """Train by a recipe's name, on one thread: seed, steps, the processor's seconds and what its report holds."""
    torch.set_num_threads(1)
    start = time.process_time()       # other work on the machine counts little
    cli = Cli(["--config", path_of(recipe), "--seed_everything", str(seed), "--trainer.logger.save_dir", folder,
               *images, *extra], run=False)
    cli.trainer.callbacks.extend(callbacks)
    cli.trainer.fit(cli.model, cli.datamodule)
    report = next(callback for callback in cli.trainer.callbacks if isinstance(callback, Report))
    return {"seed": seed, "steps": cli.trainer.global_step, "seconds": round(time.process_time() - start),
            **{name: {key: round(value, 4) for key, value in numbers.items()}
               for name, numbers in report.columns.items()}}


if __name__ == "__main__":
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        images = arrays(unpack(Path(tempfile.gettempdir()), 10_000))
        runs = [run(RECIPE, images, seed, folder, sys.argv[1:]) for seed in range(3)]
    gains = {protocol: [round(list(one.values())[-1][protocol] - one["untrained encoder"][protocol], 4) for one in runs]
             for protocol in ("knn_instdisc", "knn_dino", "linear_cached")}
    print(json.dumps(gains))
    record("learning", {"recipe": RECIPE, "gains": gains, "runs": runs})
