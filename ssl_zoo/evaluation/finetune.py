"""Fine-tuning with a share of the labels, and beside it the same training from random weights.

All weights and a linear layer learn from random crops and flips by SGD with Nesterov momentum 0.9, in float32, while
the learning rates fall to 0 by half a cosine. A BatchNorm without weights of its own stands before the linear layer,
which starts at zero, so that one learning rate serves features of any scale. Rates are for a batch of 256 and
proportional to it, as in SimCLR and SwAV (arXiv:2006.09882, semi-supervised), whose encoders also take a tenth of the
head's rate. The encoder from scratch has the rate and weight decay with which ResNets are trained with all labels
(arXiv:1706.02677), and otherwise the same: images, views, steps and batches.

An epoch on few labels is short, and the same number of epochs would be too few steps: with a share s of the labels
there are 30 / sqrt(s) epochs, which are 30 / 95 / 300 for 100 / 10 / 1 %.
"""

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ssl_zoo import distributed
from ssl_zoo.encoders import Encoder
from ssl_zoo.evaluation.accuracy import accuracies
from ssl_zoo.evaluation.augmented import Recipe, Trained, TrainingBatches, crop_and_flip, evaluate, learn
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.lowshot import FewLabels, draw, share, too_few
from ssl_zoo.evaluation.protocol import Context, Measured
from ssl_zoo.evaluation.score import Score

PERCENT = (1, 10, 100)   # of the labels of each class
EPOCHS = 30              # on all labels
PRETRAINED = Recipe("", lr=0.2, epochs=EPOCHS, frozen=False, share=0.1, standardise=True)
SCRATCH = Recipe("", lr=0.1, epochs=EPOCHS, frozen=False, weight_decay=1e-4, standardise=True)
SECONDS = 60             # from which a time is said in minutes


class Job(NamedTuple):
    """One training."""

    name: str              # of its score
    encoder: Encoder
    recipe: Recipe
    places: Tensor         # of its images, rising
    epochs: int


def untrained(encoder: Encoder) -> Encoder:
    """An encoder of the same class and arguments with random weights, the same ones every time."""
    device = encoder.mean.device
    with torch.random.fork_rng([]):
        torch.manual_seed(distributed.run_seed())
        found = type(encoder)(**encoder.arguments).to(device)
    found.preprocessing = encoder.preprocessing
    return found


def epochs_for(percent: float, epochs: int = EPOCHS) -> int:
    """Passes over a share of the labels where all of them have so many."""
    return round(epochs * math.sqrt(100 / percent))


def subsets(train: Features, name: str) -> tuple[dict[int, Tensor], list[str]]:
    """Places of the training images of each percentage, and why the other percentages cannot be drawn.

    Each class gives its share, in the order of one shuffle: a smaller subset is part of a larger one, and every encoder
    learns from the same images.
    """
    counts = train.labels[train.labels >= 0].bincount().cpu()
    found, left_out = {}, []
    for percent in PERCENT:
        if said := too_few(counts, percent):
            left_out.append(f"{name} at {said}")
        else:
            found[percent] = train.places.cpu()[draw(train.labels, share(counts, percent), seed=0)].sort().values
    return found, left_out


def jobs(encoder: Encoder, scratch: Encoder, chosen: Mapping[int, Tensor], name: str, epochs: int) -> list[Job]:
    """All trainings, the shortest first."""
    prefix = f"{name}/" if epochs == EPOCHS else f"{name}/{epochs}_epochs/"
    return [Job(f"{prefix}{percent}%{ending}", start, recipe, places, epochs_for(percent, epochs))
            for percent, places in chosen.items()
            for ending, start, recipe in (("", encoder, PRETRAINED), ("/scratch", scratch, SCRATCH))]


def finetune(name: str, train: Features, context: Context, known: dict[str, Trained]) -> Measured:
    """Accuracies of the fine-tuned encoder and of one from scratch at each percentage, and by how much it gains.

    Args:
        name: of the protocol.
        train: features of the training part, for its labels and places.
        known: what other encoders of this class have reached from scratch, by its images; more is added.
    """
    encoder, batches = context.encoder, context.batches
    if encoder is None or batches is None:
        raise ValueError(f"{name} trains on images, for long: measure the exported encoder with ssl-zoo evaluate")
    chosen, left_out = subsets(train, name)
    planned = jobs(encoder, untrained(encoder), chosen, name, context.epochs or EPOCHS)
    loaders = {job.name: batches(crop_and_flip(context.size, encoder.channels), job.places) for job in planned}
    keys = {job.name: key(job, loaders[job.name][0].source, encoder) for job in planned}
    left = [job for job in planned if keys[job.name] not in known]
    scores, notes = dict[str, Score](), dict[str, Any]()
    if left:
        state_cost(name, left, loaders[left[-1].name][0], context)
    for job in planned:
        loader, test = loaders[job.name]
        start = time.perf_counter()
        if (found := known.get(keys[job.name])) is None:
            found = evaluate(job.recipe._replace(name=job.name, epochs=job.epochs), job.encoder, loader, test,
                             len(context.classes), context.size, job.epochs)
            known |= {keys[job.name]: found} if job.recipe is SCRATCH else {}
        scores |= accuracies(job.name, found.predictions, found.truth)
        notes[job.name] = {"images": len(job.places), "batch": loader.batch_size, "epochs": job.epochs,
                           "steps": job.epochs * len(loader), "seconds": round(time.perf_counter() - start, 1)}
        if job.recipe is SCRATCH:
            own = job.name.removesuffix("/scratch")
            scores[f"{own}/gain"] = scores[own]._replace(units=scores[own].units - scores[job.name].units)
    return Measured(scores, notes=notes, left_out=left_out)


def key(job: Job, source: Any, encoder: Encoder) -> str:
    """What a training depends on, if it starts from scratch; other trainings have a key of their own."""
    start = f"{type(encoder)}{sorted(encoder.arguments.items())}" if job.recipe is SCRATCH else str(id(encoder))
    return f"{start}{source.fingerprint()}{job.recipe}{job.epochs}"


# What it will cost

class Some:
    """The first batches of every epoch, and when each epoch began."""

    def __init__(self, batches: TrainingBatches, count: int):
        self.batches, self.count, self.began = batches, min(count, len(batches)), list[float]()
        self.batch_size = batches.batch_size

    def set_epoch(self, epoch: int) -> None:
        self.began.append(time.perf_counter())
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        yield from (batch for _, batch in zip(range(self.count), self.batches, strict=False))


def state_cost(name: str, left: Sequence[Job], batches: TrainingBatches, context: Context,
               clock: Callable[[], float] = time.perf_counter) -> None:
    """Say how much training there will be, and for how long by the time of a few steps."""
    assert context.encoder is not None
    some = Some(batches, 3)
    learn(PRETRAINED._replace(name=f"{name}: first steps", epochs=2), context.encoder, some, len(context.classes),
          context.size, 2)
    seconds = (clock() - some.began[1]) / len(some) / some.batch_size   # of an image; the first epoch warms up
    images = sum(len(job.places) * job.epochs for job in left)
    plan = ", ".join(dict.fromkeys(f"{len(job.places):,} images for {job.epochs} epochs" for job in left))
    tqdm.write(f"{context.name}: {name} trains {len(left)} times ({plan}), on {images:,} images in all: about "
               f"{duration(images * seconds)} by its first steps", file=sys.stderr)


def duration(seconds: float) -> str:
    if seconds < SECONDS:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 100 * 60 else f"{seconds / 3600:.1f} hours"


# A picture of several encoders

def cells(columns: Mapping[str, Mapping[str, Score]], name: str) -> list[FewLabels]:
    """What all encoders reached, from their scores by name, for charts.learning_curves."""
    kinds = {"": "fine-tuned", "/scratch": "from scratch"}
    named = [(encoder, re.fullmatch(rf"{name}/(?:\d+_epochs/)?(\d+)%(/scratch)?", score), value)
             for encoder, scores in columns.items() for score, value in scores.items()]
    return [FewLabels(encoder, kinds[found[2] or ""], float(found[1]), True, value)
            for encoder, found, value in named if found]
