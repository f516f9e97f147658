"""Does PixPro learn features for dense tasks? Mean IoU of linear_dense on CamVid, against SimCLR's and untrained ones.

Both methods take the same encoder, steps, batches and views, from the 367 training images without their masks. The
probe sees whole images of 120x160 pixels with masks of that size: it trains on those 367 and is tested on the 233 of
the test part. PixPro's momentum and gamma were chosen on the 101 of the validation part, the paper's being 0.99 and 2;
SimCLR's temperature is that of recipes/folder.
"""

import argparse
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from record import data, record
from torch import Tensor

from ssl_zoo.cli.messages import quiet
from ssl_zoo.data import ArrayImages, Segmentation, read_segmentation
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation import IoU, dense_linear, encode_maps
from ssl_zoo.methods import PixPro, SimCLR
from ssl_zoo.schedules import WarmupCosine
from ssl_zoo.views import Augmentation, ViewSpec

SIZE = (120, 160)   # of CamVid's 360x480
WIDTH, BATCH = 16, 32
VIEWS = ViewSpec(64, count=2, jitter=0.8, strength=0.5, gray=0.2)
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "SimCLR": (SimCLR, {"projector": (256, 128), "temperature": 0.2}),
    "PixPro": (PixPro, {"projector": (256, 128), "momentum": 0.9, "gamma": 4.0}),
}
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
        model = method(encoder=encoder, augment=Augmentation([VIEWS]), schedule=SCHEDULE,
                       optimizer=partial(torch.optim.AdamW, **OPTIMIZER), **settings)
        trainer = pl.Trainer(accelerator="cpu", max_steps=steps, limit_val_batches=0, num_sanity_val_steps=0,
                             logger=False, enable_checkpointing=False, enable_progress_bar=False,
                             enable_model_summary=False)
        trainer.fit(model, ArrayImages(str(Path(folder) / "train.npz"), BATCH))
    return encoder


def probe(maps: list[Tensor], parts: tuple[Segmentation, Segmentation]) -> IoU:
    train, test = parts
    return dense_linear(maps[0], train.masks, maps[1], test.masks, len(train.classes))


def main(seeds: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        parts = read(folder)
        results: dict[str, list[IoU]] = {}
        seconds: dict[str, list[int]] = {}
        for name in ("untrained encoder", *METHODS):
            for seed in range(seeds):
                start = time.perf_counter()
                encoder = pretrain(name, seed, steps, folder)
                seconds.setdefault(name, []).append(round(time.perf_counter() - start))
                maps = [encode_maps(encoder, part.images) for part in parts]
                results.setdefault(name, []).append(probe(maps, parts))
                print(f"{name}, seed {seed}: mean IoU {results[name][-1].mean:.4f}", flush=True)
        cells = maps[0].shape[2:]
        pixels = [F.adaptive_avg_pool2d(part.images / 255, cells) for part in parts]
        results["raw pixels"] = [probe(pixels, parts)]
    figures = {
        "protocol": "linear_dense", "image_size": SIZE, "map_size": list(cells), "steps": steps, "batch": BATCH,
        "encoder": f"NarrowResNet(width={WIDTH})", "views": repr(VIEWS), "optimizer": {"AdamW": OPTIMIZER},
        "methods": {name: settings for name, (_, settings) in METHODS.items()},
        "mean_iou": {name: [round(iou.mean, 4) for iou in found] for name, found in results.items()},
        "class_iou": {name: dict(zip(parts[0].classes, mean_over_seeds(found), strict=True))
                      for name, found in results.items()},
        "pretraining_seconds": seconds,
    }
    record("dense", figures)


def mean_over_seeds(found: list[IoU]) -> list[float]:
    return [round(value, 4) for value in torch.stack([iou.classes for iou in found]).mean(0).tolist()]


if __name__ == "__main__":
    quiet()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=800)
    main(**vars(parser.parse_args()))
