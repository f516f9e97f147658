import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.distributed import world_size
from ssl_zoo.heads import mlp
from ssl_zoo.losses import full_precision, key_similarities, unit
from ssl_zoo.method import Batch, Method


class GroCo(Method):
    """A sorting network puts the other views of an image above the images that are most similar to it.

    Shvetsova et al., ICCV 2023, arXiv:2301.02009. There is no temperature, and the loss never reaches 0: at steepness 1
    it is 0.16 for one positive and one negative that are as far apart as cosines can be. Of multi-crop views, only
    global ones are positives, and all are sorted.

    Args:
        projector: layer widths of the projector, which ends in a BatchNorm without scale and shift.
        negatives: how many of the most similar other images to sort with the positives of a view.
        steepness: how sharply the network decides between two cosines; the inverse of a temperature.
    """

    def __init__(self, projector: Sequence[int] = (2048, 2048, 2048), negatives: int = 10, steepness: float = 1.0,
                 **kwargs: Any):
        super().__init__(**kwargs)
        self.positives = self.augment.require_views("GroCo", or_more=True, role="global")
        if negatives < 1:
            raise ValueError(f"GroCo sorts 1 or more negatives, not {negatives}")
        if not steepness > 0:
            raise ValueError(f"a sorting network is steeper than 0, not {steepness}")
        self.projector = mlp(self.encoder.dim, *projector, last_norm=True, last_scale=False)
        self.negatives, self.steepness = negatives, steepness

    def training_loss(self, batch: Batch) -> Tensor:
        z = [unit(self.projector(self.encoder(view.images))) for view in batch.views]    # V x [B, D]
        if (others := len(z[0]) * world_size() - 1) < self.negatives:
            raise ValueError(f"GroCo sorts the {self.negatives} most similar other images, and a batch of {others + 1} "
                             f"has {others}: lower negatives, or raise the batch size")
        losses = []
        for v, anchor in enumerate(z):
            positive = [(anchor * z[g].detach()).sum(1) for g in self.positives if g != v]
            if not positive:                                                             # the only global view
                continue
            negative = key_similarities(anchor, anchor)[1]                               # of the same view: [B, N]
            losses.append(group_order(torch.stack(positive, 1), negative, self.negatives, self.steepness))
        return torch.stack(losses).mean()


@full_precision
def group_order(positive: Tensor, negative: Tensor, count: int, steepness: float) -> Tensor:
    """How far positives and the largest negatives are from lying in two groups, after a sorting network has sorted.

    The cross entropy between each one's share of the upper places and whether it is a positive. The authors add the
    same of the lower places and halve the sum, which is the same number.

    Args:
        positive: cosines [B, P].
        negative: cosines [B, N], -inf where there is none.
        count: of the negatives to sort, the largest.
        steepness: of the network.
    """
    largest = negative.topk(count, dim=1).values.flip(1)                                 # rising, as the positives
    places = sorted_places(torch.cat([largest, positive.sort(1).values], 1), steepness)
    above = places[:, :, count:].sum(2).clamp(0, 1)                                      # [B, count + P]
    is_positive = torch.arange(above.shape[1], device=above.device) >= count
    return F.binary_cross_entropy(above, is_positive.to(above).expand_as(above))


def sorted_places(scores: Tensor, steepness: float) -> Tensor:
    """The share [B, n, n] of each score [B, n] that a sorting network puts at each place, from the least upwards.

    An odd-even network with Cauchy comparators of Petersen et al., ICML 2021 and ICLR 2022, arXiv:2105.04019 and
    2203.09630: two neighbours a, b stay as they are by a share of 1/2 + arctan(steepness * (b - a)) / pi.
    """
    n = scores.shape[1]
    first = torch.eye(n, dtype=scores.dtype, device=scores.device).expand(len(scores), n, n)
    rows = torch.cat([scores[:, None], first], 1)                      # [B, 1 + n, n]: the scores, and where they are
    for layer in range(n):
        start = layer % 2
        end = start + (n - start) // 2 * 2
        a, b = rows[:, :, start:end].unflatten(2, (-1, 2)).unbind(3)                     # [B, 1 + n, pairs]
        stay = 0.5 + torch.atan(steepness * (b - a)[:, :1]) / math.pi                    # [B, 1, pairs]
        compared = torch.stack([stay * a + (1 - stay) * b, (1 - stay) * a + stay * b], 3).flatten(2)
        rows = torch.cat([rows[:, :, :start], compared, rows[:, :, end:]], 2)
    return rows[:, 1:]
