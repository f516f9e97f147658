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
        final: multiplier of the learning rate at the last step.
    """

    warmup: float = 0.0
    start: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of training, at least 0 and below 1, not {self.warmup}; "
                             "divide the warm-up epochs by all epochs")

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return self.start + (1 - self.start) * progress / self.warmup
        return cosine(1.0, self.final, min(1.0, (progress - self.warmup) / (1 - self.warmup)))


def cosine(start: float, end: float, progress: Any) -> Any:
    """`start` at progress 0, `end` at progress 1, half a cosine between; a tensor for a tensor (`batch.progress`)."""
    angle = math.pi * progress
    return end + (start - end) * 0.5 * (1 + (math.cos(angle) if isinstance(angle, float) else angle.cos()))
