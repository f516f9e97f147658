"""Balanced soft assignment of samples to prototypes."""

import torch
from torch import Tensor

from ssl_zoo import distributed


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, counted: Tensor | None = None) -> Tensor:
    """Compute soft codes that agree with `scores` and use all prototypes about equally, over all processes' samples.

    Sec. 3.1 of SwAV, arXiv:2006.09882: eq. (3), solved in the form of eq. (5) by Sinkhorn-Knopp, in logarithms. Each
    iteration first gives every prototype the same mass, then every sample. This is the order of the authors' code; with
    it, a constant added to all scores of a prototype changes nothing. After few iterations, sharp codes may still use
    prototypes unequally.

    Args:
        scores: cosines [B, K] of samples and prototypes. B may differ between processes. A sample passed by two
            processes counts twice, so each process should pass its own share of a queue that all of them hold.
        epsilon: weight of the codes' entropy, > 0; smaller values make sharper codes.
        iterations: rounds of balancing.
        counted: [B] bool; a sample that does not count gets a code, and no other code depends on it. All count if left
            out.

    Returns:
        The codes [B, K], without gradient, in float32, or in float64 if the scores are. Each row sums to 1; all values
        are 1 / K where all samples are identical.
    """
    prototypes = scores.shape[1]
    if prototypes < 2:
        raise ValueError(f"sinkhorn shares samples among 2 or more prototypes, not {prototypes}: give it more")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, not {epsilon}: the paper's is 0.05, and sharper codes have a "
                         "smaller one")
    if iterations < 1:
        raise ValueError(f"sinkhorn needs 1 or more iterations, not {iterations}: the paper's number is 3")
    with torch.autocast(scores.device.type, enabled=False):
        codes = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon     # [B, K], logarithms
        absent = None if counted is None else ~counted[:, None]
        for _ in range(iterations):
            own = codes if absent is None else codes.masked_fill(absent, -torch.inf)
            masses = distributed.gather(own.logsumexp(0, keepdim=True))                   # [W, K], of each process
            codes = (codes - masses.logsumexp(0)).log_softmax(1)
        return codes.exp()
