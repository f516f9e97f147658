"""Whether tensors are finite: one fused reduction, read by the host only where its answer is needed."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def largest(tensors: Iterable[Tensor]) -> Tensor:
    """The largest magnitude in any of the tensors: [], not finite if one of their values is not. Nothing waits."""
    floats = [one.detach() for one in tensors if one.is_floating_point() and one.numel()]
    return nn.utils.get_total_norm(floats, torch.inf) if floats else torch.tensor(0.0)


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with a value that is not finite. The host waits once, and once for each of these."""
    if largest(state.values()).isfinite():
        return []
    return [name for name, value in state.items() if not largest([value]).isfinite()]


def require_finite(module: nn.Module, what: str, way_out: str) -> None:
    """Raise one sentence if a weight or a buffer of a module is not finite.

    Args:
        what: the start of the sentence, such as "runs/a/last.ckpt".
        way_out: its end.
    """
    if names := not_finite(module.state_dict()):
        raise ValueError(f"{what} has values that are not finite in {listed(names)}: {way_out}")


def listed(names: list[str], shown: int = 1) -> str:
    """The first names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + f" and {more} more" * (more > 0)
