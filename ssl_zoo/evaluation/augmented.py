"""Classifiers trained on views of the images: linear_simclr with the encoder frozen, finetune_simclr with all weights.

SimCLR's two protocols (arXiv:2002.05709, app. B.5 and B.6): a linear layer on the features, trained on one random crop
of each image, flipped half of the time; SGD with Nesterov momentum 0.9, no weight decay, no warm-up, in float32. The
layer starts at zero and the learning rate falls to 0 by half a cosine over the steps, as in the authors' commands. The
number is the accuracy on plain images after the last epoch.

What differs: the paper's batch is 4,096, and here it is the caller's; the learning rate is 0.1 or 0.05 x batch / 256 in
both. The paper resizes crops bicubically, and this file bilinearly. The paper fine-tunes for 30 epochs on a tenth of
the labels (60 on a hundredth), with BatchNorm over all devices; here it is 30 epochs on all labels that there are, with
BatchNorm over the batch. The authors' command for ImageNet adds a weight decay of 1e-6 to the linear layer.
"""

import copy
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ssl_zoo import distributed
from ssl_zoo.encoders import Encoder
from ssl_zoo.evaluation.accuracy import accuracies
from ssl_zoo.evaluation.linear import descend
from ssl_zoo.evaluation.protocol import Context, Measured
from ssl_zoo.evaluation.score import Score
from ssl_zoo.views import Augmentation, Canvases, Crops, Key, ViewSpec


class Recipe(NamedTuple):
    """What a protocol fixes."""

    name: str
    lr: float       # at the first step, for a batch of 256
    epochs: int
    frozen: bool    # whether the encoder stays as it is
    share: float = 1.0           # of the learning rate, for the encoder's weights
    weight_decay: float = 0.0
    standardise: bool = False    # whether a BatchNorm without weights stands before the linear layer


LINEAR = Recipe("linear_simclr", lr=0.1, epochs=90, frozen=True)
FINETUNE = Recipe("finetune_simclr", lr=0.05, epochs=30, frozen=False)


class Trained(NamedTuple):
    """What a classifier trained on images reached."""

    name: str             # of the protocol; if the epochs are not the protocol's own, it says how many
    score: Score          # over the test images, in the order of their places
    predictions: Tensor   # [N] classes, in the same order
    truth: Tensor         # [N]


class TrainingBatches(Protocol):
    """Whole batches (uint8 images, canvases or crops, labels [B], ...), in an order that the epoch decides."""

    batch_size: int

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


def crop_and_flip(size: int, channels: int = 3) -> Augmentation:
    """The views of both protocols, `size` pixels wide. Give it to workers that cut crops before the training starts."""
    augment = Augmentation([ViewSpec(size, scale=(0.08, 1.0), flip=0.5)])
    augment.require_channels(channels)
    return augment


def linear_simclr(encoder: Encoder, train: TrainingBatches, test: Iterable[Any], classes: int, size: int, *,
                  epochs: int = LINEAR.epochs) -> Trained:
    """Accuracy of a linear layer on the features of a frozen encoder in evaluation mode, trained on views.

    Runs on the encoder's device, in one process. The encoder and the run's random numbers stay as they are.

    Args:
        encoder: stays as it is; a copy of it is trained.
        train: yields whole batches of the training part, with a class for every image.
        test: yields plain batches (uint8 images [B, 3, H, W], labels [B], places [B], ...), in any order.
        classes: how many there are, C; labels are below C.
        size: side of the views, pixels.
        epochs: passes over the training part.
    """
    return evaluate(LINEAR, encoder, train, test, classes, size, epochs)


def finetune_simclr(encoder: Encoder, train: TrainingBatches, test: Iterable[Any], classes: int, size: int, *,
                    epochs: int = FINETUNE.epochs) -> Trained:
    """Accuracy of a copy of the encoder with a linear layer, all of whose weights are trained on views.

    As `linear_simclr`, but with BatchNorm and everything else in training mode.
    """
    return evaluate(FINETUNE, encoder, train, test, classes, size, epochs)


def on_images(recipe: Recipe, context: Context) -> Measured:
    """What a protocol of this file finds, with the encoder and the images that the context has."""
    if context.encoder is None or context.batches is None:
        raise ValueError(f"{recipe.name} trains on images, for long: measure the exported encoder with "
                         "ssl-zoo evaluate")
    train, test = context.batches(crop_and_flip(context.size, context.encoder.channels))
    epochs = context.epochs or recipe.epochs
    trained = evaluate(recipe, context.encoder, train, test, len(context.classes), context.size, epochs)
    about = {"batch": train.batch_size, "size": context.size, "epochs": epochs}
    return Measured(accuracies(trained.name, trained.predictions, trained.truth), notes={trained.name: about})


def evaluate(recipe: Recipe, encoder: Encoder, train: TrainingBatches, test: Iterable[Any], classes: int, size: int,
             epochs: int) -> Trained:
    model = learn(recipe, encoder, train, classes, size, epochs).eval()
    device = encoder.mean.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        found = [(model(images.to(device)).argmax(1), labels, places) for images, labels, places, *_ in test]
    predictions, labels, places = (torch.cat(column).cpu() for column in zip(*found, strict=True))
    predictions, labels = predictions[order := places.argsort()], labels[order]
    return Trained(named(recipe, epochs), Score((predictions == labels).double(), "image"), predictions, labels)


def named(recipe: Recipe, epochs: int) -> str:
    return recipe.name if epochs == recipe.epochs else f"{recipe.name}_{epochs}_epochs"


def learn(recipe: Recipe, encoder: Encoder, train: TrainingBatches, classes: int, size: int,
          epochs: int) -> nn.Sequential:
    """A copy of the encoder and its linear layer after training. Views depend on (seed, epoch, batch) alone."""
    name, batch, steps = named(recipe, epochs), train.batch_size, len(train)
    require_steps(name, epochs, batch, steps)
    seed, device, augment = distributed.run_seed(), encoder.mean.device, crop_and_flip(size, encoder.channels)
    with alone(seed, device), tqdm(total=epochs * steps, desc=name, unit="step", file=sys.stderr, disable=None) as bar:
        model = assemble(encoder, classes, recipe.frozen, recipe.standardise)
        groups: list[dict[str, Any]] = [{"params": model[0].parameters(), "share": recipe.share},
                                        {"params": model[1:].parameters()}]
        optimizer = torch.optim.SGD(groups[recipe.frozen:], momentum=0.9, nesterov=True,
                                    weight_decay=recipe.weight_decay)

        def views(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            train.set_epoch(epoch)
            for step, (images, labels, *_) in enumerate(train):
                if epoch == 0:                                       # once: on a GPU it waits, and no label changes
                    require_labels(name, labels, classes)
                view, = augment(to(device, images), Key(seed, epoch, step, 0))
                yield view.images, labels.to(device)
                bar.update()

        descend(name, optimizer, recipe.lr * batch / 256, views, steps=steps, epochs=epochs,
                loss=lambda batch: F.cross_entropy(model(batch[0]), batch[1]))
    return model


def assemble(encoder: Encoder, classes: int, frozen: bool, standardise: bool = False) -> nn.Sequential:
    """A copy of the encoder, perhaps a BatchNorm without weights, and a linear layer that starts at zero."""
    linear = nn.Linear(encoder.dim, classes, device=encoder.mean.device)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    before = [nn.BatchNorm1d(encoder.dim, affine=False, device=encoder.mean.device)] if standardise else []
    return nn.Sequential(copy.deepcopy(encoder).float().train(not frozen).requires_grad_(not frozen), *before, linear)


@contextmanager
def alone(seed: int, device: torch.device) -> Iterator[None]:
    """In float32 and with gradients, whatever the caller's mode, and with random numbers (dropout's) of its own."""
    with (torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False),
          torch.random.fork_rng([device] if device.type == "cuda" else [])):
        torch.manual_seed(seed)
        yield


def to(device: torch.device, images: Tensor | Canvases | Crops) -> Tensor | Canvases | Crops:
    if isinstance(images, Crops):
        return images._replace(pixels=[pixels.to(device, non_blocking=True) for pixels in images.pixels])
    if isinstance(images, Canvases):
        return images._replace(pixels=images.pixels.to(device, non_blocking=True))
    return images.to(device, non_blocking=True)


def require_steps(name: str, epochs: int, batch: int, steps: int) -> None:
    if epochs < 1:
        raise ValueError(f"{name} trains for at least 1 epoch, not {epochs}")
    if not steps:
        raise ValueError(f"{name} has no whole batch of {batch} images to train on: lower the batch size")
    if distributed.world_size() > 1:
        raise ValueError(f"{name} trains in one process, not in {distributed.world_size()}: evaluate on one device")


def require_labels(name: str, labels: Tensor, classes: int) -> None:
    for label in torch.stack(labels.aminmax()).tolist():
        if not 0 <= label < classes:
            raise ValueError(f"{name} needs labels from 0 to {classes - 1} for {classes} classes, and some batch has "
                             f"{label}: give every image its class, or leave this protocol out")
