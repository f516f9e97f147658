"""Pictures of the nearest training images of a few held-out ones."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ssl_zoo.data.orders import some
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.nearest import nearest
from ssl_zoo.pictures import Tile, sheet

NEIGHBOURS = 8


class Found(NamedTuple):
    """An image of a sheet."""

    part: int    # 0 is the first, -1 the last
    place: int   # in its part
    label: int   # -1 where unknown


def find_neighbours(train: Features, test: Features, queries: int) -> list[list[Found]]:
    """For some images of `test`, the same ones every time: the image itself, then its 8 nearest images of `train`.

    Where `test` is `train`, an image is not its own neighbour.
    """
    chosen = torch.from_numpy(some(len(test.x), queries)).to(test.x.device)
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
