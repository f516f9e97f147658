"""A vocabulary of visual words, and bags of them. OBoW, arXiv:2012.11552."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo import distributed
from ssl_zoo.draws import Draws
from ssl_zoo.losses import full_precision
from ssl_zoo.memory import Queue

CUT = 5     # cells: a map of this side or more is read without its outermost cells, which have seen padding


class Vocabulary(nn.Module):
    """The features of random places in the newest images, as words; the same on every process.

    As in the authors' code, it starts with random words, which features soon replace, and the bags of a step are of
    the words before it.

    Args:
        words: their number, K.
        dim: width C of a feature.
        sharpness: of the soft assignment to words, over the moving mean distance of a feature from its nearest word.
    """

    distance: Tensor    # [] squared: moving mean over all features

    def __init__(self, words: int, dim: int, sharpness: float):
        super().__init__()
        self.queue = Queue(words, dim)
        self.queue.keys.copy_(torch.randn(words, dim).clamp(min=0))
        self.register_buffer("distance", torch.tensor(0.5))
        self.draws, self.sharpness = Draws(), sharpness

    @torch.no_grad()
    @full_precision
    def bags(self, maps: Tensor, index: Tensor) -> Tensor:
        """The bag of words [B, K] of each map [B, C, h, w], of at least 3 x 3 cells, a word of which is then learnt.

        Args:
            index: [B] places of the maps' images in their data set.
        """
        maps = maps[:, :, 1:-1, 1:-1] if min(maps.shape[2:]) >= CUT else maps
        distances = squared_distances(maps, self.queue.keys)                             # [B, K, n]
        nearest = distributed.gather(distances.amin(1).mean()[None]).mean()
        self.distance.lerp_(nearest.to(self.distance.dtype), 0.01)
        found = bag(distances, self.sharpness / self.distance)
        around = F.avg_pool2d(maps, 3, 1).flatten(2)                                     # [B, C, m]
        place = self.draws(len(maps), 1) % around.shape[2]
        self.queue.enqueue(around.gather(2, place[:, None].expand(-1, around.shape[1], -1))[:, :, 0], index)
        return found


def squared_distances(maps: Tensor, words: Tensor) -> Tensor:
    """The squared distances [B, K, h * w] of the cells of maps [B, C, h, w] from words [K, C]."""
    cells = maps.flatten(2)                                                              # [B, C, n]
    products = words.to(cells.dtype) @ cells                                             # [B, K, n]
    return cells.square().sum(1, keepdim=True) - 2 * products + words.square().sum(1)[:, None]


def bag(distances: Tensor, sharpness: Tensor | float) -> Tensor:
    """How much of each word there is in each image [B, K]; rows sum to 1.

    Each place is softly assigned to the words near it, and an image has of a word what its best place has.

    Args:
        distances: squared, [B, K, n].
        sharpness: divides 1 by the distance at which a word is e times less likely.
    """
    return F.normalize((-sharpness * distances).softmax(1).amax(2), p=1, dim=1)
