"""Pictures of the nearest training images of a few held-out ones."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from ssl_zoo.distributed import run_folder
from ssl_zoo.evaluation.features import FeatureCallback, Features
from ssl_zoo.evaluation.nearest import nearest
from ssl_zoo.pictures import Tile, publish, sheet

NEIGHBOURS = 8


class Found(NamedTuple):
    """An image of a sheet."""

    part: int    # 0 is the first, -1 the last
    place: int   # in its part
    label: int   # -1 where unknown


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
        self.found: list[list[Found]] = []

    def measure(self, train: Features, test: Features) -> dict[str, float]:
        self.found = find_neighbours(train, test, self.queries)
        return {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        folder, (found, self.found) = run_folder(trainer), (self.found, [])
        if not trainer.is_global_zero or folder is None or not found:
            return
        datamodule: Any = trainer.datamodule                 # type: ignore[attr-defined]
        loaders: Any = trainer.val_dataloaders

        def image(part: int, place: int) -> Tensor:
            loader = loaders[part] if isinstance(loaders, list) else loaders
            return loader.image(place) if hasattr(loader, "image") else loader.dataset[place][0]

        who = "untrained encoder: " if trainer.sanity_checking else f"epoch {trainer.current_epoch + 1}: "
        picture = neighbour_sheet(found, image, getattr(datamodule, "classes", []), who)
        publish(picture, "neighbours", folder, trainer.logger, trainer.global_step)


def find_neighbours(train: Features, test: Features, queries: int) -> list[list[Found]]:
    """For each of some images of `test`, the same ones every time, itself and then its 8 nearest of `train`.

    Where both are one and the same, an image is not its own neighbour.
    """
    chosen = torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(test.x))[:queries])).to(test.x.device)
    _, rows = nearest(test.x[chosen], train.x, NEIGHBOURS, own=chosen if test is train else None)
    return [[at(-1, test, query), *(at(0, train, row) for row in near)]
            for query, near in zip(chosen.tolist(), rows.tolist(), strict=True)]


def at(part: int, features: Features, row: int) -> Found:
    return Found(part, int(features.places[row]), int(features.labels[row]))


def neighbour_sheet(rows: Sequence[Sequence[Found]], image: Callable[[int, int], Tensor],
                    classes: Sequence[str], who: str = "") -> Image.Image:
    """A row for each query, which stands left of its neighbours; those of another class are crossed.

    Args:
        rows: as `find_neighbours` returns them.
        image: from part and place to [3, H, W], uint8 or float in [0, 1].
        classes: names by label, none where there are no labels.
        who: the heading starts with it.
    """
    heading = f"{who}left: query; right: its {NEIGHBOURS} nearest training images, nearest first"
    heading += "; those of another class are crossed" * bool(classes)
    return sheet([[Tile(image(part, place), classes[label] if 0 <= label < len(classes) else "",
                        wrong=min(label, row[0].label) >= 0 and label != row[0].label) for part, place, label in row]
                  for row in rows], heading, split=1)
