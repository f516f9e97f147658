"""A linear classifier of pixels on frozen feature maps: the protocol linear_dense.

A 1x1 convolution with bias on the last feature map of the whole image, standardised per channel by the training maps;
its logits bilinearly enlarged to the mask; cross entropy over the pixels of each batch that have a class. It starts at
0 and is trained by Adam (lr 0.05, betas 0.9 and 0.999, no weight decay) for 10 epochs in batches of 16 images, with
half a cosine to 0 over the steps; no augmentation, the order drawn from seed 0. The number is the mean IoU of the test
part after the last epoch. Which images, and at which size, is up to the caller.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.encoders import Encoder, evaluation_mode
from ssl_zoo.evaluation.linear import Head, descend, shuffled

IGNORE = 255   # in a mask: unknown, or not needed


class IoU(NamedTuple):
    """Intersection over union of what is predicted and what is true."""

    classes: Tensor   # [C] float64, NaN for a class that occurs neither in the truth nor in the predictions
    mean: float       # over the other classes


# Not torchmetrics' confusion and Jaccard index, which equal these: they take 2.1 and 3.2 times as long on masks
# (benchmarks/torchmetrics_cost.py). On labels of images, where it takes 1.3 times as long, charts.py has torchmetrics'.
def confusion(predictions: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Count how many pixels of each true class (row) were given each class (column): [C, C] int64.

    Counts of several batches may be added up.

    Args:
        predictions, truth: of one shape, whole numbers below `classes`; pixels whose truth is 255 are left out.

    Raises:
        ValueError: the shapes differ, or a number is out of range.
    """
    if predictions.shape != truth.shape:
        raise ValueError(f"predictions {list(predictions.shape)} do not fit a truth {list(truth.shape)}: enlarge them "
                         "to its size")
    known = truth != IGNORE
    predictions, truth = predictions[known].long(), truth[known].long()
    require_range(predictions, classes)
    require_range(truth, classes)
    return torch.bincount(truth * classes + predictions, minlength=classes ** 2).view(classes, classes)


def mean_iou(confusion: Tensor) -> IoU:
    """The IoU from a confusion [C, C] over the whole test part, as Pascal VOC computes it: not a mean over images.

    A class that occurs neither in the truth nor in the predictions is left out of the mean. A class that is predicted
    but occurs nowhere in the truth counts 0.
    """
    both = confusion.diagonal().double()
    iou = both / (confusion.sum(0) + confusion.sum(1) - both)        # 0 / 0 is NaN
    return IoU(iou, iou.nanmean().item())


def encode_maps(encoder: Encoder, images: Tensor, batch: int = 32) -> Tensor:
    """Feature maps [N, D, h, w] float32, on the device of `images`; in evaluation mode and without autocast."""
    device = encoder.mean.device
    with evaluation_mode(encoder):
        return torch.cat([encoder.maps(some.to(device)).float().to(images.device) for some in images.split(batch)])


def dense_linear(train_maps: Tensor, train_masks: Tensor, test_maps: Tensor, test_masks: Tensor, classes: int, *,
                 epochs: int = 10, batch: int = 16, lr: float = 0.05, seed: int = 0) -> IoU:
    """Train a linear layer on the training part and return its IoU on the test part; the defaults are linear_dense.

    The enlarged logits are held for one batch at a time. On a CPU the same input gives the same bits.

    Args:
        train_maps, test_maps: [N, D, h, w] of a frozen encoder.
        train_masks, test_masks: [N, H, W], whole numbers below `classes`, or 255 for pixels without a class.
        classes: how many, C.
        epochs: passes over the training part.
        batch: images of a step.
        lr: of Adam at the first step.
        seed: decides the order of the images.
    """
    require_masks(test_maps, test_masks, classes)      # before the training
    head = train_dense_head(train_maps, train_masks, classes, epochs=epochs, batch=batch, lr=lr, seed=seed)
    return dense_iou(head, test_maps, test_masks, classes, batch)


@torch.no_grad()
def dense_iou(head: Head, maps: Tensor, masks: Tensor, classes: int, batch: int = 16) -> IoU:
    """The IoU of what a trained head predicts for the pixels of `masks` [N, H, W] from `maps` [N, D, h, w]."""
    require_masks(maps, masks, classes)
    counts = torch.zeros(classes, classes, dtype=torch.long, device=maps.device)
    with torch.autocast(maps.device.type, enabled=False):
        for some, truth in zip(maps.split(batch), masks.split(batch), strict=True):
            counts += confusion(pixel_logits(head, some, truth).argmax(1), truth, classes)
    return mean_iou(counts)


def require_masks(maps: Tensor, masks: Tensor, classes: int) -> None:
    if maps.ndim != 4 or masks.ndim != 3 or len(maps) != len(masks):
        raise ValueError(f"a dense probe reads maps [N, D, h, w] with masks [N, H, W], not {list(maps.shape)} with "
                         f"{list(masks.shape)}: one mask for each map")
    known = masks[masks != IGNORE]
    if not len(known):
        raise ValueError("no pixel of the masks has a class: every one is 255, which is ignored")
    require_range(known, classes)


def require_range(labels: Tensor, classes: int) -> None:
    if len(labels) and not 0 <= (extremes := torch.stack(labels.aminmax())).min() <= extremes.max() < classes:
        raise ValueError(f"pixels have classes from {extremes[0]} to {extremes[1]}, and {classes} classes are 0 to "
                         f"{classes - 1}, or 255 in a mask for pixels to ignore")


def train_dense_head(maps: Tensor, masks: Tensor, classes: int, *, epochs: int = 10, batch: int = 16, lr: float = 0.05,
                     seed: int = 0) -> Head:
    """A head for the cells of `maps`, learnt from the pixels of `masks`. The run's random numbers are not touched."""
    require_masks(maps, masks, classes)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(maps.device.type, enabled=False):
        head = Head(*channel_statistics(maps), classes)

        def loss(rows: Tensor) -> Tensor | None:
            truth = masks[rows].long()
            if (truth == IGNORE).all():
                return None                                          # a mean over no pixels is NaN
            return F.cross_entropy(pixel_logits(head, maps[rows], truth), truth, ignore_index=IGNORE)

        descend("linear_dense", torch.optim.Adam(head.parameters(), lr), lr,
                shuffled(len(maps), batch, maps.device, seed), steps=-(-len(maps) // batch), epochs=epochs, loss=loss)
    return head


def pixel_logits(head: Head, maps: Tensor, masks: Tensor) -> Tensor:
    """[B, C, H, W] for maps [B, D, h, w] and masks [B, H, W]."""
    logits = head(maps.float().movedim(1, -1)).movedim(-1, 1)         # [B, C, h, w]
    return F.interpolate(logits, masks.shape[1:], mode="bilinear", align_corners=False)


def channel_statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [D] of each channel over all cells, in float64 on the way; infinite for a constant channel."""
    cells = maps[:, 0].numel()
    mean = torch.stack([some.double().sum((0, 2, 3)) for some in maps.split(32)]).sum(0) / cells
    squares = [(some - mean[:, None, None]).square().sum((0, 2, 3)) for some in maps.split(32)]
    std = (torch.stack(squares).sum(0) / cells).sqrt()
    std = torch.where(std > 1e-6 * mean.abs(), std, torch.inf)       # what never changes says nothing: 0 after division
    return mean.float(), std.float()
