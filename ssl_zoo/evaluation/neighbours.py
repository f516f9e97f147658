"""Pictures of the nearest training images of a few held-out ones."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_zoo.distributed import run_folder
from ssl_zoo.evaluation.features import FeatureCallback, Features
from ssl_zoo.evaluation.knn import nearest
from ssl_zoo.pictures import Tile, publish, sheet

NEIGHBOURS = 8


class Neighbours(FeatureCallback):
    """A picture after each evaluation: held-out images, each with its 8 nearest training images by cosine.

    Neighbours of another class are marked. Without labels or a test part the queries are training images.

    Args:
        queries: how many images to look up, the same ones every time.
    """

    needs_labels = False

    def __init__(self, queries: int = 10):
        super().__init__()
        self.queries = queries
        self.found: list[list[tuple[int, int, int]]] = []   # for each query: part, place and label, its own first

    def measure(self, train: Features, test: Features) -> dict[str, float]:
        chosen = torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(test.x))[:self.queries]))
        itself = int(test is train)                          # the nearest of an image of the bank is that image
        _, rows = nearest(test.x[chosen], train.x, NEIGHBOURS + itself)
        self.found = [[(-1, *at(test, query)), *((0, *at(train, row)) for row in near[itself:])]
                      for query, near in zip(chosen.tolist(), rows.tolist(), strict=True)]
        return {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        datamodule: Any = trainer.datamodule                 # type: ignore[attr-defined]
        classes = getattr(datamodule, "classes", [])
        heading = "left: query; right: its 8 nearest training images, nearest first"
        picture = sheet([[tile(trainer, classes, *image, wanted=row[0][2]) for image in row] for row in self.found],
                        heading + "; those of another class are crossed" * bool(classes), split=1)
        publish(picture, "neighbours", folder, trainer.logger, trainer.global_step)


def at(features: Features, row: int) -> tuple[int, int]:
    return int(features.places[row]), int(features.labels[row])


def tile(trainer: pl.Trainer, classes: list[str], part: int, place: int, label: int, wanted: int) -> Tile:
    loaders: Any = trainer.val_dataloaders
    loader = loaders[part] if isinstance(loaders, list) else loaders
    image: Tensor = loader.image(place) if hasattr(loader, "image") else loader.dataset[place][0]
    return Tile(image, classes[label] if 0 <= label < len(classes) else "", wrong=label != wanted)
