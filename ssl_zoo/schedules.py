"""Schedules: a multiplier or value as a pure function of progress through training."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from `start` over the first `warmup` share of training, then half a cosine to `final`.

    Args:
        warmup: share of the optimiser steps, 0 to below 1; 10 epochs of 200 are 0.05.
        start: multiplier of the learning rate at the first step.
        final: multiplier of the learning rate at the last step; with 0 that step changes nothing.
    """

    warmup: float = 0.0
    start: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of training, at least 0 and below 1, not {self.warmup}; "
                             "divide the warm-up epochs by all epochs")
        if self.start < 0 or self.final < 0:
            raise ValueError(f"start and final multiply the learning rate, and are at least 0, not {self.start} and "
                             f"{self.final}")

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return self.start + (1 - self.start) * progress / self.warmup
        return cosine(1.0, self.final, min(1.0, (progress - self.warmup) / (1 - self.warmup)))


def through(step: int, steps: int | float) -> float:
    """How far a step is on the way from the first of `steps`, step 0, to the last: 0 to 1."""
    return min(1.0, step / max(1, steps - 1))


def cosine(start: float, end: float, progress: Any) -> Any:
    """`start` at progress 0, `end` at progress 1, half a cosine between; a tensor for a tensor (`batch.progress`)."""
    angle = math.pi * progress
    return end + (start - end) * 0.5 * (1 + (math.cos(angle) if isinstance(angle, float) else angle.cos()))
