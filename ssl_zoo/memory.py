"""What a method remembers between steps without a gradient: keys, averaged weights, a centre, a row for each image."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo import distributed
from ssl_zoo.distributed import Key
from ssl_zoo.grouped import by_groups, each, encode

# what drops at random, with the name of its probability: of timm, torchvision and torch
DROPS = {"DropPath": "drop_prob", "StochasticDepth": "p", "Dropout": "p", "Dropout1d": "p", "Dropout2d": "p"}


class Queue(nn.Module):
    """The last `size` keys of all processes, the oldest overwritten first; the same queue on every process.

    Sec. 3.1 of MoCo, arXiv:1911.05722. It starts with random directions of unit norm and index -1. A method with
    several heads stores their keys side by side, `dim = heads * D`, and views them apart when it reads them.

    Args:
        size: the number of keys to remember. Keep it well below the number of images, or an image meets its own old
            keys in the queue.
        dim: width D of a key.
    """

    keys: Tensor     # [size, D]
    index: Tensor    # [size] place of each key's image in its data set, -1 where the key is random
    head: Tensor     # [] the slot to write next
    filled: Tensor   # [] how many keys are real

    def __init__(self, size: int, dim: int):
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a queue holds 1 or more keys of width 1 or more, not {size} of width {dim}")
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=-1))
        self.register_buffer("index", torch.full((size,), -1))
        self.register_buffer("head", torch.tensor(0))
        self.register_buffer("filled", torch.tensor(0))

    @torch.no_grad()
    def enqueue(self, keys: Tensor, index: Tensor) -> None:
        """Write this step's keys, gathered from all processes, over the oldest ones.

        Args:
            keys: [B, D], with the same B on every process.
            index: [B] place of each key's image in its data set.
        """
        size, dim = self.keys.shape
        if index.ndim != 1 or keys.shape != (len(index), dim):
            raise ValueError(f"a queue of width {dim} takes keys [B, {dim}] with an index [B], "
                             f"not {list(keys.shape)} with {list(index.shape)}")
        batch = self.arriving(len(keys))
        slots = (self.head + torch.arange(batch, device=self.head.device)) % size
        self.keys[slots] = distributed.gather(keys).to(self.keys.dtype)
        self.index[slots] = distributed.gather(index)
        self.head.copy_((self.head + batch) % size)          # head and filled stay on the device: nothing waits for it
        self.filled.add_(batch).clamp_(max=size)

    def arriving(self, keys: int) -> int:
        """The number of keys that all processes bring together when each brings `keys`.

        Raises:
            ValueError: the queue cannot hold them.
        """
        batch, size = keys * distributed.world_size(), len(self.keys)
        if batch > size:
            raise ValueError(f"a batch of {batch} keys does not fit a queue of {size}: make the queue longer, or the "
                             "batch, counted over all processes, smaller")
        return batch

    def share(self) -> Tensor:
        """This process's part of the keys, for work that the processes divide: [about size / processes, D]."""
        return self.keys[distributed.rank()::distributed.world_size()]

    def newest(self, count: int) -> Tensor:
        """The keys written last [count, D], the oldest of them first; random ones where fewer were written."""
        places = self.head - count + torch.arange(count, device=self.head.device)
        return self.keys[places % len(self.keys)]

    def full(self) -> Tensor:
        """Whether every key is real: a tensor [] of bool, on the device, so that asking makes nothing wait."""
        return self.filled == len(self.keys)

    def snapshot(self) -> Tensor:
        """A copy of the keys [size, D] for a loss: `enqueue` changes the keys, which its backward pass still needs."""
        return self.keys.clone()


class MomentumEncoder(nn.Module):
    """Modules applied in turn whose weights are a moving average of those they were copied from, and never trained.

    Eq. (2) of MoCo, arXiv:1911.05722: average <- momentum * average + (1 - momentum) * online, for the parameters.
    BatchNorm's statistics are those of its own passes, as in the authors' code: it stays in the method's mode. The
    copies drop nothing (dropout, stochastic depth), since a target should not depend on chance.

        self.teacher = MomentumEncoder(self.encoder, self.projector)
        target = self.teacher(images)                                # [B, D], without gradient
        encoder, projector = self.teacher                            # the averaged modules themselves
        self.teacher.update(momentum=0.99)                           # in after_step

    Args:
        online: the modules to copy and then to follow, in the order in which they are applied.
    """

    def __init__(self, *online: nn.Module):
        super().__init__()
        self.online = list(online)      # a plain list: the method owns these modules, and the state dict has them once
        self.average = nn.Sequential(*copy.deepcopy(online)).requires_grad_(False)
        for module in self.average.modules():
            if probability := DROPS.get(type(module).__name__):
                setattr(module, probability, 0.0)
        by_groups(self.average)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.average)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        return self.average(images)

    @torch.no_grad()
    def keys(self, images: Tensor, key: Key, splits: int = 1, forward: Callable[[Tensor], Any] | None = None) -> Any:
        """Encode keys among other images than their queries, or shared BatchNorm statistics would give the keys away.

        With several processes, each encodes images of all of them, shuffled (sec. 3.3 of MoCo). On one process, groups
        do the same: every `splits`-th image is encoded together.

        Args:
            images: [B, 3, H, W].
            key: of the batch; decides the shuffle.
            splits: the number of groups on each process.
            forward: makes the keys of some images, a tensor or a tuple of tensors with one row for each image; by
                default the averaged modules in turn.
        """
        forward = forward or self.average
        if (processes := distributed.world_size()) == 1:
            return encode(forward, self.average, images, splits)
        order = torch.from_numpy(key.generator("shuffled keys").permutation(len(images) * processes))
        order = order.to(images.device, non_blocking=True)
        keys = encode(forward, self.average, distributed.gather(images)[distributed.mine(order)], splits)
        back = distributed.mine(order.argsort())
        return each(lambda part: distributed.gather(part)[back], keys)

    @torch.no_grad()
    def maps(self, images: Tensor) -> list[Tensor]:
        """The first module's feature map, passed through each of the others."""
        encoder, *heads = self.average
        maps = encoder.maps(images)   # type: ignore[operator]
        return [head(maps) for head in heads]

    @torch.no_grad()
    def update(self, *, momentum: float) -> None:
        """Move towards the modules it was made of; call it once per optimiser step. `momentum` is the share kept.

        Starting at 0, with the online weights at 1, it stands at 1 - momentum ** n after n updates.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is the share kept, 0 to 1, not {momentum}: the paper's is 0.999")
        average: list[Tensor] = list(self.average.parameters())
        online: list[Tensor] = list(nn.Sequential(*self.online).parameters())
        if [p.shape for p in average] != [p.shape for p in online]:
            raise ValueError(f"a momentum encoder of {len(average)} parameters follows modules that have {len(online)} "
                             "or other shapes by now: change the modules before you make it of them")
        for dtype in {p.dtype for p in average}:
            if torch.finfo(dtype).bits < 32:     # a share of 1 - momentum is less than half of its last place
                raise ValueError(f"{str(dtype).removeprefix('torch.')} is too coarse for a momentum encoder's small "
                                 "steps: train in mixed precision (bf16-mixed), which keeps weights in float32")
        torch._foreach_lerp_(average, online, 1 - momentum)      # private, but it is one kernel for all parameters


class Centre(nn.Module):
    """The moving mean of a teacher's outputs, which is subtracted so that no dimension wins for every image.

    Eq. (4) of DINO, arXiv:2104.14294: centre <- momentum * centre + (1 - momentum) * mean over the rows of all
    processes. It starts at 0.

    Args:
        dim: width D of the outputs.
        momentum: share of the centre kept at each update.
    """

    value: Tensor   # [D]

    def __init__(self, dim: int, momentum: float = 0.9):
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is the share of the centre kept, 0 to 1, not {momentum}: the paper's is 0.9")
        self.register_buffer("value", torch.zeros(dim))
        self.momentum = momentum

    def forward(self, outputs: Tensor) -> Tensor:
        """The outputs [..., D], less the centre."""
        return outputs - self.value

    @torch.no_grad()
    def update(self, outputs: Tensor) -> None:
        """Move towards the mean of outputs [..., D]; processes may bring different numbers of rows, or none."""
        rows = outputs.detach().flatten(0, -2).to(self.value.dtype)
        sums = torch.cat([rows.sum(0), rows.new_tensor([len(rows)])])                # [D + 1], the last is the count
        sums = distributed.gather(sums[None]).sum(0)
        mean = sums[:-1] / sums[-1].clamp_min(1)
        self.value.lerp_(torch.where(sums[-1] > 0, mean, self.value), 1 - self.momentum)


class SampleTable(nn.Module):
    """A row for each image of the data set, in named columns; the same table on every process.

        self.table = SampleTable(50_000, average=0.0, temperature=0.1)      # a number for each image
        self.table = SampleTable(50_000, feature=[0.0] * 128)               # a vector for each image
        old = self.table.read("average", batch.index)                       # [B]
        self.table.write(batch.index, average=new)

    The data modules of `ssl_zoo.data` refuse, before anything runs, to train on another number of images.

    Args:
        images: the number of images N in the training part.
        columns: the first value of each column: a number, or a vector as a sequence of numbers.
    """

    def __init__(self, images: int, **columns: float | Sequence[float]):
        super().__init__()
        if images < 1 or not columns:
            raise ValueError(f"a table has 1 or more rows and columns, not {images} rows and {len(columns)} columns")
        self.images, self.columns = images, tuple(columns)
        for name, start in columns.items():
            row = torch.tensor(start, dtype=torch.float32)
            self.register_buffer(name, row.repeat(images, *[1] * row.ndim))

    def read(self, column: str, index: Tensor) -> Tensor:
        """The values of a column for the images at the places `index` [B]: [B] or [B, D]."""
        self.require_places(index)
        return self.get_buffer(column)[index]

    @torch.no_grad()
    def write(self, index: Tensor, **values: Tensor) -> None:
        """Write the rows of all processes' images; where an image occurs twice, its last row counts.

        Args:
            index: [B] places of the images, with the same B on every process.
            values: by column, [B] or [B, D].
        """
        self.require_places(index)
        index = distributed.gather(index)
        rows = torch.arange(len(index), device=index.device)
        last = rows.new_zeros(self.images).scatter_reduce_(0, index, rows, "amax")[index]   # equal rows may race
        for name, new in values.items():
            column = self.get_buffer(name)
            if new.shape != (len(index) // distributed.world_size(), *column.shape[1:]):
                raise ValueError(f"the column {name} takes [B{''.join(f', {side}' for side in column.shape[1:])}] for "
                                 f"an index [B], not {list(new.shape)}")
            column[index] = distributed.gather(new.detach().to(column.dtype))[last]

    def require_places(self, index: Tensor) -> None:
        if index.device.type != "cpu" or torch.compiler.is_compiling() or not len(index):
            return                     # to look at a GPU's index is to wait for it; there `require_size` has to do
        if not 0 <= index.min() <= index.max() < self.images:
            raise ValueError(f"image indices run from {int(index.min())} to {int(index.max())}, and the table has rows "
                             f"for {self.images} images: make it as long as the training part")

    def require_size(self, images: int) -> None:
        """Refuse a data set of another number of images than the table has rows."""
        if images != self.images:
            raise ValueError(f"the method keeps a table of {self.images} images, and the training part has {images}: "
                             "give the method that number, or the data set its own with --data.train_images")
