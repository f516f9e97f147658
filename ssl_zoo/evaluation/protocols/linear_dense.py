"""linear_dense: a linear layer on feature maps, which tells the class of each pixel."""

import sys
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from ssl_zoo.data.orders import some
from ssl_zoo.data.segmentation import Segmentation, common_size, described, read_segmentation, splits, voc_folder
from ssl_zoo.evaluation import charts
from ssl_zoo.evaluation.dense import dense_iou, encode_maps, pixel_logits, train_dense_head
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity
from ssl_zoo.evaluation.score import number


class LinearDense(Protocol):
    """Mean intersection over union of pixels' classes, read from the last feature map of images that have masks.

    Args:
        root: folder in Pascal VOC's layout, which is read at once.
    """

    name = "linear_dense"
    quantities = {"linear_dense": Quantity("a linear layer on the last feature map, Adam, lr 0.05, batch 16, 10 "
                                           "epochs; mean IoU")}
    quick = False
    needs_labels = False   # it has images of its own

    def __init__(self, root: Path | None = None):
        self.parts: list[Segmentation] = []
        if root is not None:
            root = voc_folder(root)
            size, names = common_size(root), splits(root)
            self.parts = [read_segmentation(root, split, size) for split in names]
            print(described(root, names, *self.parts), file=sys.stderr)
            self.about = {"folder": str(root), "train": names[0], "test": names[1], "size": size}

    def measure(self, train: Features, test: Features, context: Context) -> Measured:
        encoder = context.encoder
        if not self.parts or encoder is None:
            raise ValueError("it reads images with masks: name their folder, in Pascal VOC's layout, with --dense")
        learnt, masks = self.parts
        head = train_dense_head(encode_maps(encoder, learnt.images), learnt.masks, len(learnt.classes))
        maps = encode_maps(encoder, masks.images)
        iou = dense_iou(head, maps, masks.masks, len(masks.classes))
        scores = {"linear_dense": number(iou.mean)}
        scores |= {f"linear_dense/{name}": number(value)
                   for name, value in zip(masks.classes, iou.classes.tolist(), strict=True)}
        chosen = torch.from_numpy(some(len(maps), 6))
        with torch.no_grad():
            predictions = pixel_logits(head, maps[chosen], masks.masks[chosen]).argmax(1)
        return Measured(scores, {"masks": partial(sheet, masks, chosen, predictions, f"{context.name}: linear_dense")},
                        {"linear_dense": {**self.about, "map": list(maps.shape[2:])}})


def sheet(masks: Segmentation, chosen: torch.Tensor, predictions: torch.Tensor, title: str) -> Image.Image:
    """Some images beside their masks and what was predicted."""
    return charts.picture(charts.mask_sheet(masks.images[chosen], masks.masks[chosen], predictions, masks.classes,
                                            title))
