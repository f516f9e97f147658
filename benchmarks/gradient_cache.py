"""Does memory stay flat in the batch with gradient caching, and what does a step cost? SimCLR on one thread.

A narrow ResNet on views of 32 pixels; each run is two forks with pages of their own: one reports the processor's time
of its faster of two steps, forward and backward, and one how far its resident pages rose above those before it. The
views are made before, and are not counted.

    python benchmarks/gradient_cache.py      about 20 minutes of one core, 2 GiB
"""

from functools import partial

import torch
from cost import Cost, cost, in_a_process
from record import record

from ssl_zoo.distributed import Key
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.gradient_cache import entrances
from ssl_zoo.method import Batch
from ssl_zoo.methods import SimCLR
from ssl_zoo.schedules import WarmupCosine
from ssl_zoo.views import Augmentation, View, ViewSpec

BATCHES, PLAIN, IMAGES, SIDE = (256, 1024, 4096, 16384, 32768), (256, 1024), 128, 32


def built() -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(projector=(128, 64), encoder=NarrowResNet(16), augment=Augmentation([ViewSpec(SIDE, 2)]),
                  optimizer=partial(torch.optim.SGD, lr=0.1), schedule=WarmupCosine())


def batch_of(images: int) -> Batch:
    views = [View(torch.rand(images, 3, SIDE, SIDE), torch.zeros(images, 4), torch.zeros(images, 2, dtype=torch.bool))
             for _ in range(2)]
    return Batch(torch.empty(0), torch.empty(0), torch.arange(images), views, Key(0, 0, 0, 0))


def step(method: SimCLR, batch: Batch, images: int | None) -> None:
    ways = [] if images is None else entrances(method, images)
    for way in ways:
        way.narrow()
    method.training_loss(batch).backward()
    for way in ways:
        way.widen()


def one(images: int, at_once: int | None) -> Cost:
    method = built()
    step(method, batch_of(8), None)                # what a first call leaves behind is not the step's
    batch = batch_of(images)
    return cost(lambda: step(method, batch, at_once))


def measure(images: int, at_once: int | None) -> dict[str, float]:
    seconds, taken = in_a_process(one, images, at_once)
    print(images, at_once, seconds, taken >> 20, flush=True)
    return {"seconds": round(seconds, 3), "MiB": round(taken / 2 ** 20)}


if __name__ == "__main__":
    record("gradient_cache", {"images": IMAGES, "batches": {str(batch): {
        "cached": measure(batch, IMAGES), **({"plain": measure(batch, None)} if batch in PLAIN else {})}
        for batch in BATCHES}})
