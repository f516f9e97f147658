"""Does memory stay flat in the batch with gradient caching, and what does a step cost? SimCLR on one thread.

A narrow ResNet on views of 32 pixels; each run is a fork with pages of its own, which reports the processor's time of
its faster of two steps, forward and backward, and how far its resident pages rose above those before it. The views are
made before, and are not counted.

    python benchmarks/gradient_cache.py      about 2 minutes of one core, 2 GiB
"""

import ctypes
import multiprocessing
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import record

from ssl_zoo.distributed import Key
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.gradient_cache import entrances
from ssl_zoo.method import Batch
from ssl_zoo.methods import SimCLR
from ssl_zoo.schedules import WarmupCosine
from ssl_zoo.views import Augmentation, View, ViewSpec

M_MMAP_THRESHOLD = -3   # of glibc: raised by itself, it keeps memory that a step has freed
BATCHES, PLAIN, IMAGES, SIDE = (256, 1024, 4096), (256, 1024), 128, 32


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


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


def one(images: int, at_once: int | None, answer: Any) -> None:
    """Send the seconds of a step and the bytes that it takes."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2 ** 20)
    method = built()
    step(method, batch_of(8), None)                # what a first call leaves behind is not the step's
    batch, seconds = batch_of(images), []
    before, most, running = resident(), 0, True

    def watch() -> None:
        nonlocal most
        while running:
            most = max(most, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2):
        start = time.process_time()
        step(method, batch, at_once)
        seconds.append(time.process_time() - start)
    running = False
    watcher.join()
    answer.send((min(seconds), most - before))


def measure(images: int, at_once: int | None) -> dict[str, float]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=one, args=(images, at_once, theirs))
    process.start()
    seconds, taken = ours.recv()
    process.join()
    print(images, at_once, seconds, taken >> 20, flush=True)
    return {"seconds": round(seconds, 3), "MiB": round(taken / 2 ** 20)}


if __name__ == "__main__":
    record("gradient_cache", {"images": IMAGES, "batches": {str(batch): {
        "cached": measure(batch, IMAGES), **({"plain": measure(batch, None)} if batch in PLAIN else {})}
        for batch in BATCHES}})
