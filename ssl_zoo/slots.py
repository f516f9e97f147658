"""Slots: the cells of a feature map in groups, and what SlotCon compares of them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo import distributed
from ssl_zoo.blocks import Products, by_rows
from ssl_zoo.distributed import gather
from ssl_zoo.losses import full_precision, unit
from ssl_zoo.views import View
from ssl_zoo.views.crops import inverse_sample


class SemanticGrouping(nn.Module):
    """Prototypes that share the cells of a map among them. SlotCon, arXiv:2205.15288.

    Args:
        dim: width D of a cell.
        prototypes: the number of prototypes, K.
        temperature: divides the cosines of cells and prototypes before their softmax.
    """

    def __init__(self, dim: int, prototypes: int, temperature: float):
        super().__init__()
        if prototypes < 1:
            raise ValueError(f"cells are shared among 1 or more prototypes, not {prototypes}")
        self.weight = nn.Parameter(torch.randn(prototypes, dim))      # [K, D]
        self.temperature = temperature

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Slots [B, K, D], which are means of the cells by their shares, and cosines [B, K, h, w], of [B, D, h, w]."""
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
            cosines = torch.einsum("kd,bdhw->bkhw", F.normalize(self.weight.to(maps.dtype), dim=1),
                                   F.normalize(maps, dim=1))
            shares = (cosines / self.temperature).softmax(1) + 1e-6        # no slot is without cells
            return torch.einsum("bdhw,bkhw->bkd", maps, shares / shares.sum((2, 3), keepdim=True)), cosines


@full_precision
def slot_contrast(prediction: Tensor, target: Tensor, counts: Tensor, keys: Tensor, valid: Tensor,
                  temperature: float) -> Tensor:
    """Each slot's prediction [R, D] finds its target [R, D] among the valid keys of all processes, [S, D].

    Twice the temperature times the mean over the rows of all processes that count, [R]; a target is one of the keys.
    """
    prediction, target, keys = unit(prediction), unit(target), gather(unit(keys))
    absent = gather(valid.to(keys)) == 0                                                             # [W * S]

    def choices(cosines: Tensor) -> Tensor:
        return (cosines.masked_fill(absent, float("-inf")) / temperature).logsumexp(1)

    every = by_rows(choices, (Products(prediction, keys, absent.new_zeros(len(target), 0, dtype=torch.long)),), ())
    terms = (every - (prediction * target).sum(1) / temperature) * counts
    rows = gather(counts.sum()[None]).sum().clamp_min(1)
    return 2 * temperature * terms.sum() / rows * distributed.world_size()


def aligned(cosines: Tensor, view: View, places: Tensor) -> Tensor:
    """The cosines [B, K, h, w] of a view, at places of the source image that it shows: [B, h, w, K]."""
    return inverse_sample(cosines, view.boxes, view.flipped, places)[0].movedim(1, -1)


def nearest_to_some(cosines: Tensor) -> Tensor:
    """1.0 for each prototype [B, K] that is the nearest of at least one cell, by the cosines [B, K, h, w]."""
    return torch.zeros_like(cosines[:, :, 0, 0]).scatter(1, cosines.argmax(1).flatten(1), 1.0)


def rows(slots: Tensor, places: Tensor) -> Tensor:
    """The slots [B * n, D] at the places [B, n] of [B, K, D]."""
    return slots.gather(1, places[:, :, None].expand(-1, -1, slots.shape[2])).flatten(0, 1)
