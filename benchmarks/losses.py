"""How much time and memory do losses over large batches take? Against lightly's NT-Xent, on one thread.

Forward and backward of projections of width 128. Each loss has a process of its own, which reports the process time of
its fastest of three passes and how far its resident pages rose above what was there before the first one. Processes
take turns; the ratio is that of the medians.

    python benchmarks/losses.py                 8,192 and 16,384 rows, about 10 minutes and 6 GiB
    python benchmarks/losses.py 2048 --turns 1  another number of rows; nothing is written
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightly.loss import NTXentLoss
from record import record
from torch import Tensor

from ssl_zoo.adaptive import PairTemperature, adaptive_contrast
from ssl_zoo.blocks import by_rows
from ssl_zoo.losses import batch_products, batch_similarities, contrast, nt_xent, unit

WIDTH, TEMPERATURE, HEADS = 128, 0.1, 3
Loss = Callable[[Tensor, Tensor], Tensor]


def decoupled(kind: str) -> Loss:
    return lambda z1, z2: contrast(*batch_similarities(z1, z2), TEMPERATURE, kind)   # type: ignore[arg-type]


def amcl(z1: Tensor, z2: Tensor) -> Tensor:
    """The bounded form of three heads that see the same projections, as in AMCL.training_loss."""
    network, (u1, u2), losses = PairTemperature(WIDTH), map(unit, (z1, z2)), []

    def terms(negative: Tensor, negative_codes: Tensor, positive: Tensor, positive_codes: Tensor) -> Tensor:
        temperatures = network.of(positive_codes), network.of(negative_codes)
        return adaptive_contrast(positive, negative, *temperatures, WIDTH, 1e-4, reduction="none")

    for _ in range(HEADS):
        positive, negative = batch_similarities(u1, u2)
        positive_codes, negative_codes = batch_products(network(u1), network(u2))
        losses.append(by_rows(terms, (negative, negative_codes), (positive, positive_codes)).mean())
    return torch.stack(losses).sum()


LOSSES: dict[str, Loss] = {
    "lightly, NT-Xent": NTXentLoss(temperature=TEMPERATURE),
    "NT-Xent": lambda z1, z2: nt_xent(z1, z2, TEMPERATURE),
    "DCL": decoupled("decoupled"), "DCLW": decoupled("weighted_decoupled"), "AMCL, 3 heads": amcl}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def one(name: str, rows: int) -> None:
    """Print the seconds and bytes of one loss, as JSON."""
    torch.set_num_threads(1)
    z1, z2 = torch.randn(2, rows // 2, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    LOSSES[name](z1[:64], z2[:64]).backward()           # what a first call leaves behind is not the loss's
    before, most, running, seconds = resident(), 0, True, []

    def watch() -> None:
        nonlocal most
        while running:
            most = max(most, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(3):
        start = time.process_time()
        LOSSES[name](z1, z2).backward()
        seconds.append(time.process_time() - start)
    running = False
    watcher.join()
    print(json.dumps([min(seconds), most - before]))


def measure(rows: int, turns: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[list[float]]] = {name: [] for name in LOSSES}
    for _ in range(turns):
        for name in LOSSES:
            said = subprocess.run([sys.executable, __file__, str(rows), "--one", name], check=True,
                                  capture_output=True, text=True).stdout
            found[name].append(json.loads(said))
    seconds, memory = ({name: statistics.median(turn[i] for turn in turns) for name, turns in found.items()}
                       for i in (0, 1))
    peer = next(iter(LOSSES))
    return {name: {"seconds": round(seconds[name], 3), "MiB": round(memory[name] / 2 ** 20),
                   "time to lightly's": round(seconds[name] / seconds[peer], 3),
                   "memory to lightly's": round(memory[name] / memory[peer], 4)} for name in LOSSES}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=int)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one", choices=LOSSES)
    options = parser.parse_args()
    if options.one:
        one(options.one, *options.rows)
    elif options.rows:
        print(json.dumps({rows: measure(rows, options.turns) for rows in options.rows}, indent=2))
    else:
        record("losses", {f"{rows} rows": measure(rows, options.turns) for rows in (8192, 16384)})
