"""How long does linear_grid train, against one head by a plain loop? Ratio of their times, one thread, interleaved.

24 heads on 50,000 x 512 features of 10 classes in batches of 256, as the protocol trains them, against one linear layer
with autograd, cross entropy and torch.optim.SGD. Whole epochs, medians of process time: waiting for a busy core does
not count. Features are the positive parts of normal numbers, which no head can classify: the large rates saturate.

    python benchmarks/linear_grid.py             about 20 seconds
    python benchmarks/linear_grid.py --rounds 2  fewer than 15 rounds; nothing is written
"""

import argparse
import statistics
import time
from collections.abc import Callable

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
    mean, std = mean_and_std(train.x[:1000])   # the protocol takes them of all, once for its 90 epochs
    lr, weight_decay, _ = torch.tensor(CELLS).view(2, -1, 3).unbind(-1)
    with torch.no_grad():
        train_heads(train, train.places, mean, std, lr, weight_decay, classes=CLASSES, epochs=1)


def seconds(epoch: Callable[[Features], None], train: Features) -> float:
    start = time.process_time()
    epoch(train)
    return time.process_time() - start


parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int)
rounds = parser.parse_args().rounds
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
train = Features(torch.randn(IMAGES, WIDTH, generator=generator).relu(),
                 torch.randint(CLASSES, (IMAGES,), generator=generator), torch.arange(IMAGES))
runs = [(seconds(plain_epoch, train), seconds(grid_epoch, train)) for _ in range(1 + (rounds or 15))][1:]
one, all_ = (statistics.median(times) for times in zip(*runs, strict=True))
steps = -(-IMAGES // BATCH)
figures = {"one head, microseconds a step": round(1e6 * one / steps),
           "24 heads, microseconds a step": round(1e6 * all_ / steps),
           "ratio": round(statistics.median(grid / plain for plain, grid in runs), 2)}
if rounds:
    print(figures)
else:
    record("linear_grid", figures)
