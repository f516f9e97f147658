"""How long does linear_grid train, against one head by a plain loop? Ratio of the times of a step.

24 heads on 50,000 x 512 features with 10 classes and batches of 256, as the protocol trains them, against one linear
layer with autograd, cross entropy and torch.optim.SGD. Interleaved epochs, medians; features are random numbers: no
time depends on what they are. Also what this spares: 24 such loops, one after the other.

    python benchmarks/linear_grid.py             about 1 minute, on 1 and on 2 threads
    python benchmarks/linear_grid.py --epochs 3  fewer epochs than the 9 of each; nothing is written
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from record import record
from torch import nn

from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.grid import CELLS, train_heads
from ssl_zoo.evaluation.grid import statistics as mean_and_std
from ssl_zoo.schedules import cosine

IMAGES, WIDTH, CLASSES, BATCH = 50_000, 512, 10, 256


def plain_epoch(train: Features) -> None:
    head = nn.Linear(WIDTH, CLASSES)
    optimizer = torch.optim.SGD(head.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    batches = torch.randperm(IMAGES).split(BATCH)
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = cosine(0.1, 0.0, step / len(batches))
        loss = F.cross_entropy(head(train.x[rows]), train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def grid_epoch(train: Features) -> None:
    lr, weight_decay = torch.tensor([cell[:2] for cell in CELLS[:len(CELLS) // 2]]).T
    mean, std = mean_and_std(train.x[:1000])
    with torch.no_grad():
        train_heads(train, train.places, mean, std, lr, weight_decay, classes=CLASSES, epochs=1)


def seconds(call: Callable[[Features], None], train: Features) -> float:
    start = time.perf_counter()
    call(train)
    return time.perf_counter() - start


def compare(train: Features, threads: int, epochs: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    runs = [(seconds(plain_epoch, train), seconds(grid_epoch, train)) for _ in range(epochs + 1)][1:]
    plain, grid = (1000 * statistics.median(times) for times in zip(*runs, strict=True))
    steps = -(-IMAGES // BATCH)
    return {"one head, ms a step": round(plain / steps, 3), "24 heads, ms a step": round(grid / steps, 3),
            "ratio": round(statistics.median(grid / plain for plain, grid in runs), 2),
            "24 heads one by one / together": round(len(CELLS) * plain / grid, 1)}


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
arguments = parser.parse_args()
generator = torch.Generator().manual_seed(0)
train = Features(torch.randn(IMAGES, WIDTH, generator=generator).relu(),
                 torch.randint(CLASSES, (IMAGES,), generator=generator), torch.arange(IMAGES))
figures = {f"{threads} thread{'s' * (threads > 1)}": compare(train, threads, arguments.epochs or 9)
           for threads in (1, 2)}
if arguments.epochs:
    print(figures)
else:
    record("linear_grid", figures)
