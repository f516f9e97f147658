"""How well images of one class find each other: the ranking of a whole bank by the cosine."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.data.orders import some
from ssl_zoo.evaluation.features import Features, require_rows
from ssl_zoo.evaluation.nearest import inverse_norms, working
from ssl_zoo.evaluation.score import Score
from ssl_zoo.losses import unit

QUERIES = 1000        # at most this many, drawn by chance, the same ones every time
NEAREST = (1, 5, 10)
ELEMENTS = 2 ** 22    # cosines that are ranked at a time, but at least those of 8 queries: 80 bytes each


@torch.no_grad()
def retrieval(train: Features, test: Features) -> dict[str, Score]:
    """Mean average precision when each image of `test` ranks those of `train`, and recall among the nearest 1, 5, 10.

    The average precision of a query is the mean, over all images of its class, of the share of that class among the
    images that are at least as near. Its recall at k is 1 if one of its class is among the k nearest, else 0. Where
    `test` is `train`, an image is not its own answer. A query is left out if no image has its class.

    Raises:
        ValueError: no query has an image of its class.
    """
    chosen = some(len(require_rows(test.x)), QUERIES)
    places = torch.from_numpy(chosen).to(test.x.device)
    inverse = inverse_norms(require_rows(train.x))
    found = [judge(test.x[rows], test.labels[rows], train, inverse, rows if test is train else None)
             for rows in places.split(max(8, ELEMENTS // len(train.x)))]
    scores = torch.cat(found)                                                                # [M, 4]
    if not len(scores):
        raise ValueError(f"none of {len(chosen)} queries has an image of its class among {len(train.x)}: retrieval "
                         "needs parts whose images have a label, and the same classes in both")
    names = ["retrieval/map", *(f"retrieval/recall_{k}" for k in NEAREST)]
    return {name: Score(column, "image") for name, column in zip(names, scores.T, strict=True)}


# Not torchmetrics' retrieval: it counts answers with a cosine of 0 or less as wrong (0.104 for scikit-learn's and our
# 0.101), takes three times as long, and ranks one query at a time (benchmarks/torchmetrics_cost.py).
def judge(queries: Tensor, labels: Tensor, bank: Features, inverse: Tensor, own: Tensor | None) -> Tensor:
    """Average precision and recall among the nearest, [m, 4] float64, of those `queries` [M, D] that have an answer.

    Images at the same distance count as equally near: the shares are read at the end of a run of equal cosines, so that
    the order of such images decides nothing. The ranking is sorted with the furthest first, which makes "at least as
    near as this one" everything from the first place with its cosine to the end.

    Args:
        labels: [M], of the queries.
        inverse: [N], one over the lengths of the bank's features.
        own: [M], place of each query in the bank if it is there.
    """
    cosines = torch.cat([unit(queries) @ working(rows).T for rows in bank.x.split(8192)], 1) * inverse      # [M, N]
    relevant = (labels[:, None] == bank.labels) & (labels[:, None] >= 0)
    cosines.masked_fill_(bank.labels < 0, -torch.inf)                 # of any class: neither right nor wrong
    if own is not None:
        cosines.scatter_(1, own[:, None], -torch.inf)
        relevant.scatter_(1, own[:, None], False)
    cosines, relevant = cosines[relevant.any(1)], relevant[relevant.any(1)]
    cosines, order = cosines.sort(1)                                  # the furthest first
    relevant = relevant.gather(1, order)
    new = F.pad(cosines[:, 1:] != cosines[:, :-1], (1, 0), value=True)
    first = torch.where(new, torch.arange(len(inverse), device=new.device), 0).cummax(1).values    # as near as this one
    total, further = relevant.sum(1, keepdim=True), relevant.cumsum(1) - relevant.long()
    precision = (total - further.gather(1, first)).double() / (len(inverse) - first)               # [m, N]
    average = (precision * relevant).sum(1) / total[:, 0]
    return torch.stack([average, *(relevant[:, -k:].any(1).double() for k in NEAREST)], 1)
