"""How much time and memory do losses over large batches take? Against lightly's NT-Xent, on one thread.

Forward and backward of projections of width 128. Each loss has two processes of its own: one reports the process time
of its faster of two passes, and one how far its resident pages rose above what was there before the first. In the
second, memory that is freed goes back to the system, which glibc else keeps for later. Losses take turns; the ratio is
that of the medians.

    python benchmarks/losses.py                 8,192 and 16,384 rows, and a queue; about 25 minutes and 5 GiB
    python benchmarks/losses.py 4096            another number of rows, whose figures are not recorded
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import cache, partial

import torch
from cost import Cost, cost, in_a_process
from lightly.loss import NTXentLoss
from record import record
from torch import Tensor

from ssl_zoo.adaptive import PairTemperature, adaptive_batch
from ssl_zoo.distributed import Key
from ssl_zoo.losses import batch_products, batch_similarities, contrast, nt_xent, queue_similarities, unit
from ssl_zoo.methods.pixcontrast import pixel_contrast
from ssl_zoo.mixing import draw_mixture, hard_similarities, hardest_keys
from ssl_zoo.multi_view import mv_dhel, mv_info_nce

WIDTH, TEMPERATURE, HEADS, QUEUE, ROWS = 128, 0.1, 3, 65536, (8192, 16384)
Loss = Callable[[Tensor, Tensor], Tensor]


def decoupled(kind: str) -> Loss:
    return lambda z1, z2: contrast(*batch_similarities(z1, z2), TEMPERATURE, kind)   # type: ignore[arg-type]


def amcl(z1: Tensor, z2: Tensor) -> Tensor:
    """The bounded form of three heads that see the same projections, as in AMCL.training_loss."""
    network, (u1, u2), losses = PairTemperature(WIDTH), map(unit, (z1, z2)), []
    for _ in range(HEADS):
        products = *batch_similarities(u1, u2), *batch_products(network(u1), network(u2))
        losses.append(adaptive_batch(*products, network, 1e-4).mean())
    return torch.stack(losses).sum()


def cells(z1: Tensor, z2: Tensor) -> Tensor:
    """PixContrast of maps of 8 x 8 cells, with a row for each cell."""
    x, target = (z.view(-1, 64, WIDTH).mT.unflatten(2, (8, 8)) for z in (z1, z2))
    return pixel_contrast(x, target, torch.eye(64, dtype=torch.bool).expand(len(x), 64, 64), TEMPERATURE)


def moco(query: Tensor, key: Tensor, mixed: bool = False) -> Tensor:
    """Queries against a queue, and MoCHi's mixtures of the 1,024 hardest of its keys."""
    queue = keys()
    positive, negative = queue_similarities(query, key.detach(), queue)
    if mixed:
        drawn = draw_mixture(Key(0, 0, 0, 0), len(query), 1024, 1024, 128, query.device)
        hardest = hardest_keys(query, queue, 1024)
        negative = negative._replace(besides=hard_similarities(query, queue, hardest, drawn))
    return contrast(positive, negative, TEMPERATURE)


@cache
def keys() -> Tensor:
    return unit(torch.randn(QUEUE, WIDTH, generator=torch.Generator().manual_seed(1)))


@cache
def with_bank() -> NTXentLoss:
    return NTXentLoss(TEMPERATURE, (QUEUE, WIDTH))


LOSSES: dict[str, Loss] = {
    "lightly, NT-Xent": NTXentLoss(temperature=TEMPERATURE),
    "NT-Xent": lambda z1, z2: nt_xent(z1, z2, TEMPERATURE),
    "DCL": decoupled("decoupled"), "DCLW": decoupled("weighted_decoupled"),
    "MV-InfoNCE": lambda z1, z2: mv_info_nce(torch.stack([z1, z2]), TEMPERATURE),
    "MV-DHEL": lambda z1, z2: mv_dhel(torch.stack([z1, z2]), TEMPERATURE),
    "PixContrast": cells, "AMCL, 3 heads": amcl}
WITH_QUEUE: dict[str, Loss] = {     # of 256 queries
    "lightly, MoCo": lambda query, key: with_bank()(query, key.detach()),
    "MoCo": moco, "MoCHi": partial(moco, mixed=True)}


def one(loss: Loss, rows: int) -> Cost:
    z1, z2 = torch.randn(2, rows // 2, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss(z1[:64], z2[:64]).backward()                   # what a first call leaves behind is not the loss's
    return cost(lambda: loss(z1, z2).backward())


def measure(losses: dict[str, Loss], rows: int, turns: int) -> dict[str, dict[str, float]]:
    """By loss; the first is that which the others are compared with."""
    found: dict[str, list[Cost]] = {name: [] for name in losses}
    for _ in range(turns):
        for name, loss in losses.items():
            found[name].append(in_a_process(one, loss, rows))
            print(rows, name, found[name][-1], file=sys.stderr, flush=True)
    seconds, memory = ({name: statistics.median(turn[i] for turn in turns) for name, turns in found.items()}
                       for i in (0, 1))
    peer = next(iter(losses))
    return {name: {"seconds": round(seconds[name], 3), "MiB": round(memory[name] / 2 ** 20),
                   "time to lightly's": round(seconds[name] / seconds[peer], 3),
                   "memory to lightly's": round(memory[name] / memory[peer], 4)} for name in losses}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=int)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    if options.rows:
        print(json.dumps({rows: measure(LOSSES, rows, options.turns) for rows in options.rows}, indent=2))
    else:
        found = {"256 queries, a queue of 65,536": measure(WITH_QUEUE, 512, options.turns)}
        record("losses", found | {f"{rows:,} rows": measure(LOSSES, rows, options.turns) for rows in ROWS})
