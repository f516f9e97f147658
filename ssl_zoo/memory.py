"""What a method remembers between steps without a gradient: a queue of keys and averaged weights."""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo import distributed
from ssl_zoo.views.tables import Key


class Queue(nn.Module):
    """The last `size` keys of all processes, the oldest overwritten first; the same queue on every process.

    Sec. 3.1 of MoCo, arXiv:1911.05722. It starts with random directions of unit norm and index -1. Keys of several
    heads are kept side by side, `dim = heads * D`, and viewed apart by who reads them.

    Args:
        size: keys remembered. Keep it well below the data set's, or an image meets its own old keys in it.
        dim: width D of a key.
    """

    keys: Tensor     # [size, D]
    index: Tensor    # [size] place of each key's image in its data set, -1 where the key is random
    head: Tensor     # [] the slot written next
    filled: Tensor   # [] how many keys are real

    def __init__(self, size: int, dim: int):
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a queue holds 1 or more keys of width 1 or more, not {size} of width {dim}")
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=-1))
        self.register_buffer("index", torch.full((size,), -1))
        self.register_buffer("head", torch.tensor(0))
        self.register_buffer("filled", torch.tensor(0))
        self.known_full = False

    @torch.no_grad()
    def enqueue(self, keys: Tensor, index: Tensor) -> None:
        """Write this step's keys, gathered from all processes, over the oldest ones.

        Args:
            keys: [B, D], B the same on each process.
            index: [B] place of each key's image in its data set.
        """
        size, dim = self.keys.shape
        if index.ndim != 1 or keys.shape != (len(index), dim):
            raise ValueError(f"a queue of width {dim} takes keys [B, {dim}] with an index [B], "
                             f"not {list(keys.shape)} with {list(index.shape)}")
        batch = self.check(len(keys))
        slots = (self.head + torch.arange(batch, device=self.head.device)) % size
        self.keys[slots] = distributed.gather(keys).to(self.keys.dtype)
        self.index[slots] = distributed.gather(index)
        self.head.copy_((self.head + batch) % size)          # numbers that stay on the device: nothing waits for it
        self.filled.add_(batch).clamp_(max=size)

    def check(self, keys: int) -> int:
        """How many keys arrive where each process brings so many, if they fit."""
        batch, size = keys * distributed.world_size(), len(self.keys)
        if batch > size:
            raise ValueError(f"a batch of {batch} keys does not fit a queue of {size}: make the queue longer, or the "
                             "batch, counted over all processes, smaller")
        return batch

    def share(self) -> Tensor:
        """The keys of which this process takes care where the processes share the work, [about size / processes, D]."""
        return self.keys[distributed.rank()::distributed.world_size()]

    def full(self) -> bool:
        """Whether no key is random any more; when that is so once, the device is not asked again."""
        self.known_full = self.known_full or bool(self.filled == len(self.keys))
        return self.known_full

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.known_full = False

    def snapshot(self) -> Tensor:
        """[size, D]: a copy of the keys, for a loss; `enqueue` changes the keys in place, which its gradient cannot."""
        return self.keys.clone()


class MomentumEncoder(nn.Module):
    """Modules applied in turn whose weights are a moving average of those they were copied from, and never trained.

    Eq. (2) of MoCo, arXiv:1911.05722: average <- momentum * average + (1 - momentum) * online, for the parameters.
    Statistics of batch norm are, as in the authors' code, those of its own passes: it stays in the method's mode.

    Args:
        online: the modules to copy and then to follow, images in at the first.
    """

    def __init__(self, *online: nn.Module):
        super().__init__()
        self.average = nn.Sequential(*copy.deepcopy(online)).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.average(images)

    @torch.no_grad()
    def keys(self, images: Tensor, key: Key, splits: int = 1) -> Tensor:
        """As `forward`, where no query can tell its key by the batch whose BatchNorm statistics they share.

        Several processes encode each other's images, shuffled (sec. 3.3 of MoCo); and each encodes its share in
        `splits` groups, every `splits`-th image together, which is what a single one can do.
        """
        if (processes := distributed.world_size()) > 1:
            seed = np.random.SeedSequence([key.seed, key.epoch, key.batch], spawn_key=(1,))   # the same on each
            order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images) * processes))
            order = order.to(images.device, non_blocking=True)
            mine = order.chunk(processes)[distributed.rank()]
            keys = distributed.gather(self.grouped(distributed.gather(images)[mine], splits))
            return keys[order.argsort().chunk(processes)[distributed.rank()]]
        return self.grouped(images, splits)

    def grouped(self, images: Tensor, splits: int) -> Tensor:
        if splits == 1:
            return self.average(images)
        if splits < 1:
            raise ValueError(f"keys are encoded in 1 or more groups, not {splits}: 1 is without groups")
        if len(images) < 2 * splits:
            raise ValueError(f"a batch of {len(images)} images does not make {splits} groups of 2 or more: lower "
                             "splits, or raise the batch size")
        keys = [self.average(images[group::splits]) for group in range(splits)]
        places = torch.arange(len(images), device=images.device)
        order = torch.cat([places[group::splits] for group in range(splits)])
        return torch.cat(keys)[order.argsort()]

    @torch.no_grad()
    def maps(self, images: Tensor) -> list[Tensor]:
        """What each module after the first makes of the first one's feature map."""
        encoder, *heads = self.average
        maps = encoder.maps(images)   # type: ignore[operator]
        return [head(maps) for head in heads]

    @torch.no_grad()
    def update(self, *online: nn.Module, momentum: float) -> None:
        """Move towards the modules it was made of; once per optimiser step. `momentum` is the share kept.

        From 0, with `online` at 1, it stands at 1 - momentum ** n after n updates.
        """
        average: list[Tensor] = list(self.average.parameters())
        value: list[Tensor] = list(nn.Sequential(*online).parameters())
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is the share kept, 0 to 1, not {momentum}: the paper's is 0.999")
        if [p.shape for p in average] != [p.shape for p in value]:
            raise ValueError("a momentum encoder follows the modules it was made of, in their order, "
                             f"{len(average)} parameters, and got others, {len(value)}: update it with the same")
        for dtype in {p.dtype for p in average}:
            if torch.finfo(dtype).bits < 32:     # a share of 1 - momentum is less than half of its last place
                raise ValueError(f"{str(dtype).removeprefix('torch.')} is too coarse for a momentum encoder's small "
                                 "steps: train in mixed precision (bf16-mixed), which keeps weights in float32")
        torch._foreach_lerp_(average, value, 1 - momentum)
