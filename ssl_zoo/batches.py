"""A batch of any loader, read as the images, labels, places and key that a method needs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_zoo import distributed
from ssl_zoo.distributed import Key
from ssl_zoo.memory import SampleTable
from ssl_zoo.views import Canvases, Crops

IMAGES, LABELS, INDEX = ("image", "images", "img", "pixel_values"), ("label", "labels", "target", "targets"), ("index",)
STRIDE = 2 ** 24     # more images than a batch has
TAKES = ("a batch is (images, labels), with more behind them or nothing, or a dict with image and label, where images "
         "are plain pictures [B, C, H, W], uint8 or floats from 0 to 1")


def read(batch: Any, method: Any, loader: int) -> tuple[Tensor | Canvases | Crops, Tensor, Tensor, Key]:
    """Images, labels [B], places [B] and key of a batch.

    The loaders of `ssl_zoo.data` yield these four. Of a batch of your own (a DataLoader's pair, dict or tensor) labels
    that are no whole numbers become -1, the key comes from the trainer's counts, and an image without a place counts
    as another one each time that it is shown.

    Args:
        batch: as a loader yields it, on the device.
        method: whose trainer knows which batch this is, and whose parts may need the images' places.
        loader: the number of the loader among those of the evaluation.

    Raises:
        ValueError: this is no batch of images, or has no places and `method` keeps a `SampleTable`.
    """
    if isinstance(batch, tuple | list) and len(batch) == 4 and isinstance(batch[3], Key):
        return batch[0], batch[1], batch[2], batch[3]
    if isinstance(batch, Mapping):
        batch = [next((batch[name] for name in names if name in batch), None) for names in (IMAGES, LABELS, INDEX)]
    images, labels, index, *_ = [*batch, None, None] if isinstance(batch, tuple | list) else [batch, None, None]
    trainer, number = method.trainer, count(method.trainer, loader)
    images = as_bytes(images, first=number == 0)
    if images.shape[1] == 1:   # gray
        images = images.expand(-1, len(method.encoder.mean), -1, -1)
    if not is_whole(labels, len(images)):
        labels = torch.full((len(images),), -1, device=images.device)
    key = Key(distributed.run_seed(), trainer.current_epoch, number, distributed.rank())
    if not is_whole(index, len(images)):
        index = (places_shown if trainer.training else places_evaluated)(images, method, loader, number)
    return images, labels, index, key if trainer.training else Key(0, 0, 0, 0)


def places_shown(images: Tensor, method: Any, loader: int, number: int) -> Tensor:
    """A number of its own for each image that training shows: two may be the same image."""
    if any(isinstance(part, SampleTable) for part in method.modules()):
        raise ValueError(f"{type(method).__name__} keeps a row for each image, and this loader does not say which one "
                         "is which: let each batch be (images, labels, index), with an image's place in its data set")
    batches = (method.trainer.fit_loop.total_batch_idx + 1) * distributed.world_size() + distributed.rank()
    return batches * STRIDE + torch.arange(len(images), device=images.device)


def places_evaluated(images: Tensor, method: Any, loader: int, number: int) -> Tensor:
    """Places in the order of a loader that does not shuffle, whose images the processes take in turn."""
    loaders = method.trainer.val_dataloaders
    source = loaders[loader] if isinstance(loaders, list | tuple) else loaders
    before = number * (getattr(source, "batch_size", None) or len(images))
    own = before + torch.arange(len(images), device=images.device)
    return own * distributed.world_size() + distributed.rank()


def as_bytes(images: Any, first: bool) -> Tensor:
    """The images of a loader of one's own as uint8 [B, C, H, W]; only in a `first` batch is their range looked at."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        shape = f" {list(images.shape)}" if isinstance(images, Tensor) else ""
        views = ("; views of an image are drawn from it by `augment`, so let the data set make none" if isinstance(
            images, tuple | list) else "")
        raise ValueError(f"this loader yields a {type(images).__name__}{shape} for images: {TAKES}{views}")
    if images.shape[1] > 4 and images.shape[3] <= 4:
        raise ValueError(f"this loader yields images {list(images.shape)}: put the channels first, [B, C, H, W]")
    if images.is_floating_point():
        if first and not 0 <= images.amin() <= images.amax() <= 1:
            raise ValueError(f"this loader yields images from {images.amin():.3g} to {images.amax():.3g}: leave out "
                             f"Normalize, for the encoder normalises; {TAKES}")
        images = images.mul(255).round().to(torch.uint8)
    if images.dtype != torch.uint8:
        raise ValueError(f"this loader yields images of {images.dtype}: {TAKES}")
    return images


def is_whole(values: Any, rows: int) -> bool:
    """Whether `values` are whole numbers [rows]."""
    return (isinstance(values, Tensor) and values.shape == (rows,) and not values.is_floating_point()
            and values.dtype != torch.bool)


def count(trainer: Any, loader: int) -> int:
    """The number of this batch: in its epoch, or in the pass over an evaluation loader."""
    if trainer.training:
        return trainer.fit_loop.batch_idx + 1
    evaluation = trainer.fit_loop.epoch_loop.val_loop if trainer.state.fn == "fit" else trainer.validate_loop
    of_each = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
    return evaluation.batch_progress.current.ready - int(sum(of_each[:loader]))
