"""Balanced soft assignment of samples to prototypes."""

import torch
from torch import Tensor

from ssl_zoo import distributed


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Soft codes that agree with `scores` and use every prototype about equally, over the samples of all processes.

    Sec. 3.1 of SwAV, arXiv:2006.09882: eq. (3), solved as its eq. (5) by Sinkhorn-Knopp, in logarithms. An iteration
    gives every prototype the same mass, then every sample. That order is the authors' code's, and makes the codes
    blind to a constant added to a prototype's scores; with few iterations sharp codes use prototypes unequally still.

    Args:
        scores: [B, K] cosines of samples and prototypes. B may differ between processes; a sample that stands on
            two of them counts twice, so of a gathered queue each process passes a share of its own.
        epsilon: weight of the codes' entropy, > 0: the smaller, the sharper they are.
        iterations: rounds of balancing.

    Returns:
        [B, K] float32 (float64 for float64), without gradient; each row sums to 1. 1 / K where all samples are
        identical.
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
        for _ in range(iterations):
            masses = distributed.gather(codes.logsumexp(0, keepdim=True))                 # [W, K], of each process
            codes = (codes - masses.logsumexp(0)).log_softmax(1)
        return codes.exp()
