"""Writes what the code of a commit gives, for later code to be compared with: `PYTHONPATH=<a checkout> python make.py`.

The files beside this one are of c7a8131, and tests/test_golden.py compares them with today's code. Write them again
only for a change that is meant to change numbers, and say so in the commit.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import yaml

from ssl_zoo.data import ArrayImages

HERE = Path(__file__).parent
EPOCHS, STOP = 4, 2     # of the command line's run, and of its checkpoint

RECIPE = {
    "seed_everything": 0,
    "trainer": {
        "accelerator": "cpu", "max_epochs": EPOCHS, "check_val_every_n_epoch": 1, "num_sanity_val_steps": -1,
        "log_every_n_steps": 1,
        "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs", "name": "golden"}},
        "callbacks": [
            {"class_path": "KNN"}, {"class_path": "LinearProbe"}, {"class_path": "Health"},
            {"class_path": "Neighbours"}, {"class_path": "Report", "init_args": {"raw_pixels": True}},
            {"class_path": "ModelCheckpoint", "init_args": {"save_top_k": -1, "filename": "{epoch}"}},
        ],
    },
    "model": {"class_path": "MoCo", "init_args": {
        "encoder": {"class_path": "NarrowResNet", "init_args": {"width": 4, "stages": 2}},
        "augment": {"views": [{"size": 16, "count": 2, "jitter": 0.8, "gray": 0.2, "blur": 0.5}]},
        "projector": [16, 8], "queue": 20, "momentum": 0.9, "symmetric": True, "splits": 2,
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003, "weight_decay": 0.01}},
        "schedule": {"warmup": 0.25},
    }},
    "data": {"class_path": "ArrayImages", "init_args": {"path": "images.npz", "batch_size": 8}},
}


def write_images(path):
    """60 + 24 labelled images of 16 pixels, three classes by mean colour."""
    generator = np.random.default_rng(0)
    labels = np.arange(84) % 3
    images = generator.integers(0, 120, (84, 16, 16, 3))
    images[np.arange(84), :, :, labels] += 100
    np.savez(path, train_images=images[:60].astype(np.uint8), train_labels=labels[:60],
             test_images=images[60:].astype(np.uint8), test_labels=labels[60:])


class Losses(pl.Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def summary(tensor):
    """Norm of a tensor, and its product with fixed numbers, which moves when its elements change places."""
    x = tensor.detach().double().flatten()
    product = (x * torch.arange(len(x), dtype=torch.float64).cos()).sum()
    return [float(f"{value.item():.9g}") for value in (x.norm(), product)]


def six_steps(build, folder):
    """The losses of two epochs of three batches, and a summary of the state after them, in float64."""
    pl.seed_everything(0, verbose=False)
    method, losses = build(), Losses()
    write_images(folder / "images.npz")
    trainer = pl.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, callbacks=[losses], logger=False,
                         enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                         num_sanity_val_steps=0, limit_val_batches=0, max_epochs=2, precision="64-true")
    trainer.fit(method, datamodule=ArrayImages(str(folder / "images.npz"), batch_size=8, train_images=27))
    return {"losses": losses.losses, "state": {name: summary(value) for name, value in method.state_dict().items()}}


def whole_run(folder):
    """A run of the command line: its config.yaml, a checkpoint of its middle, and the encoder of its end."""
    from ssl_zoo.cli import run
    before = os.getcwd()
    os.chdir(folder)
    write_images("images.npz")
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    run(["fit", "--config", "recipe.yaml"])
    os.chdir(before)
    return folder / "runs/golden/version_0"


def main():
    from ssl_zoo import load_encoder
    from tests.test_contract import CASES
    torch.set_num_threads(1)
    found = {}
    for name, build in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = six_steps(build, Path(folder))
    lines = (f" {json.dumps(name)}: {json.dumps(one)}" for name, one in found.items())
    (HERE / "six_steps.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    with tempfile.TemporaryDirectory() as folder:
        left = whole_run(Path(folder))
        for file in ("config.yaml", "encoder.safetensors", "encoder.json"):
            shutil.copy(left / file, HERE)
        shutil.copy(left / f"checkpoints/epoch={STOP - 1}.ckpt", HERE / "middle.ckpt")
        with np.load(Path(folder) / "images.npz") as arrays:
            images = torch.from_numpy(arrays["test_images"][:4]).permute(0, 3, 1, 2)
        with torch.no_grad():
            features = load_encoder(left / "encoder")(images)
        (HERE / "features.json").write_text(json.dumps(features.tolist()) + "\n")


if __name__ == "__main__":
    sys.exit(main())
