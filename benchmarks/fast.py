"""What bfloat16, channels_last, compilation and fused optimisers gain in a training step: process time, interleaved.

One thread, one process: forward pass of two views of 32 pixels, loss, backward pass and optimiser, for the encoder of
the recipes for a CPU with 2 x 32 images, and for a ResNet-18 with 2 x 16. A CPU gains from bfloat16 if it has
instructions for it. A GPU is to be measured where there is one.

    python benchmarks/fast.py             about 2 minutes, most of it compiling
    python benchmarks/fast.py --rounds 1  fewer than 7 rounds; nothing is written
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from record import record

from ssl_zoo.encoders import Encoder, NarrowResNet, ResNet
from ssl_zoo.losses import nt_xent

# encoder, batch, side, and whether it is compiled, too: that of a ResNet-18 takes minutes
SIZES = {"NarrowResNet": (partial(NarrowResNet, 32), 32, 32, True),
         "ResNet-18": (partial(ResNet, 18, small_images=True), 16, 32, False)}
# precision, memory format, compiled, fused
SETTINGS = {"float32": (torch.float32, False, False, False),
            "float32, fused optimiser": (torch.float32, False, False, True),
            "float32, channels_last": (torch.float32, True, False, True),
            "float32, channels_last, compiled": (torch.float32, True, True, True),
            "bfloat16": (torch.bfloat16, False, False, True),
            "bfloat16, channels_last": (torch.bfloat16, True, False, True),
            "bfloat16, channels_last, compiled": (torch.bfloat16, True, True, True)}


def step(encoder: Encoder, batch: int, side: int, dtype: torch.dtype, last: bool, compiled: bool, fused: bool
         ) -> Callable[[], None]:
    layout = torch.channels_last if last else torch.contiguous_format
    encoder.to(memory_format=layout)
    if compiled:
        encoder.compile()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01, momentum=0.9, fused=fused)
    views = torch.rand(2 * batch, 3, side, side).contiguous(memory_format=layout)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            features = encoder(views)
        nt_xent(*features.float().chunk(2), 0.2).backward()
        optimizer.step()
    return run


def interleaved(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in steps.values():
        run()
        run()
    for _ in range(rounds):
        for name, run in steps.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return times


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int)
arguments = parser.parse_args()
torch.set_num_threads(1)
figures: dict[str, Any] = {}
for size, (make, batch, side, compiles) in SIZES.items():
    steps = {name: step(make(), batch, side, *options) for name, options in SETTINGS.items()
             if compiles or not options[2]}
    times = interleaved(steps, arguments.rounds or 7)
    figures[size] = {name: {
        "milliseconds": round(1e3 * statistics.median(runs)),
        "times float32": round(statistics.median(a / b for a, b in zip(times["float32"], runs, strict=True)), 2)}
        for name, runs in times.items()}
if arguments.rounds:
    print(json.dumps(figures, indent=2))
else:
    record("fast", figures)
