"""Random numbers that are made on the device by arithmetic alone, and of which a checkpoint holds all that matters."""

import torch
from torch import Tensor, nn

from ssl_zoo import distributed


class Draws(nn.Module):
    """New random whole numbers at each call; a row's do not depend on how many processes share the rows.

    They are a function of a number that a checkpoint holds and that grows with each call. So torch.compile keeps them
    in its graph, nothing waits for the device, and a resumed run draws what an uninterrupted one would have drawn.
    """

    number: Tensor   # [] int64

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("number", torch.randint(2 ** 31, ()))       # of the run's seed

    @torch.no_grad()
    def forward(self, rows: int, columns: int) -> Tensor:
        """Numbers [rows, columns], from 0 to below 2 ** 32, for this process's part of the rows of all processes."""
        self.number.add_(1)
        count = rows * columns
        places = torch.arange(count, device=self.number.device) + count * distributed.rank()
        return scrambled(places ^ scrambled(self.number)).view(rows, columns)

    @torch.no_grad()
    def order(self, count: int) -> Tensor:
        """The numbers below `count` in a random order [count], the same on every process."""
        self.number.add_(1)
        places = torch.arange(count, device=self.number.device)
        return scrambled(places ^ scrambled(self.number)).argsort(stable=True)


def scrambled(numbers: Tensor) -> Tensor:
    """Integers below 2 ** 32 that look independent of each other, for other integers: a hash without a key."""
    x = numbers & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):        # Wellons' lowbias32
        x = (x ^ (x >> shift)) * factor & 0xFFFFFFFF
    return x ^ (x >> 16)
