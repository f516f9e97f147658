"""Features of images, as every protocol reads them: collected batch by batch, and shared by all processes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo import distributed


class Features(NamedTuple):
    """What an encoder makes of one part of a data set."""

    x: Tensor        # [N, D] float32, or float16 where the evaluation keeps them so
    labels: Tensor   # [N], -1 where unknown
    places: Tensor   # [N] place of each image in its part


class Pass:
    """The features of one pass over the evaluation images: added batch by batch, then read as a whole.

    Batches may come in any order, on one process or several, and a sampler may show an image twice: each image counts
    once, in the order of its place.
    """

    def __init__(self) -> None:
        self.batches: dict[int, dict[int, Features]] = {}   # by part, then by number
        self.own: list[Features] = []                       # of each part, this process's images
        self.whole: list[Features] = []                     # of each part, the images of all processes
        self.labels: list[Tensor] = []                      # likewise
        self.broken: list[Tensor] = []                      # likewise, places of images with features that overflowed

    def add(self, part: int, batch: int, features: Features) -> None:
        self.batches.setdefault(part, {})[batch] = features

    def shares(self) -> list[Features]:
        """The features of each part that this process keeps, in the order of the images; each image is on one."""
        if not self.own:
            for part in sorted(self.batches):
                found = Features(*map(torch.cat, zip(*self.batches.pop(part).values(), strict=True)))
                rows = once(found.places)
                share = Features(*(column[rows] for column in found))
                self.own.append(share)
                self.labels.append(distributed.gather_uneven(share.labels))
                self.broken.append(distributed.gather_uneven(share.places[~finite(share.x)]))
        return self.own

    def parts(self) -> list[Features]:
        """The features of each part over all processes, in the order of the images."""
        if distributed.world_size() == 1:
            return self.shares()
        if not self.whole:
            for share in self.shares():
                columns = [distributed.gather_uneven(column) for column in share]
                order = columns[2].argsort()
                self.whole.append(Features(*(column[order] for column in columns)))
        return self.whole

    def centre(self) -> None:
        """Subtract the mean of the first part, over the images of all processes, from the features of every part."""
        first = self.shares()[0].x
        total = distributed.gather_uneven(first.double().sum(0, keepdim=True)).sum(0)                      # [D]
        images = distributed.gather_uneven(torch.ones(1, device=first.device) * len(first)).sum()
        mean = (total / images).to(first.dtype)
        self.own, self.whole = [share._replace(x=share.x - mean) for share in self.own], []


def once(places: Tensor) -> Tensor:
    """The rows of this process, in the order of `places`, without images that an earlier row or process has as well.

    A sampler that pads the shares of the processes to one length shows some images twice.
    """
    ranks = distributed.gather_uneven(torch.full_like(places, distributed.rank()))
    kept = distributed.first_rows(distributed.gather_uneven(places))
    return kept[ranks[kept] == distributed.rank()] - (ranks < distributed.rank()).sum()


def nearest_of_all(cosines: Tensor, found: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest cosines among those that all processes found for the same queries, and what belongs to each.

    Exact where each process brings the k largest of its share of the bank, or the whole share if it is smaller.

    Args:
        cosines: [M, at most k], largest first.
        found: [M, as many], what each of them belongs to, such as a label or a place.
    """
    if distributed.world_size() == 1:
        return cosines, found
    lacking = k - cosines.shape[1]
    cosines, found = F.pad(cosines, (0, lacking), value=-torch.inf), F.pad(found, (0, lacking))
    cosines, found = (torch.cat(distributed.gather(x).chunk(distributed.world_size()), 1) for x in (cosines, found))
    cosines, order = cosines.topk(min(k, int((cosines[:1] > -torch.inf).sum())))
    return cosines, found.gather(1, order)


# What features and labels must be

def finite(x: Tensor) -> Tensor:
    """Which rows of `x` [..., D] hold finite numbers alone; needs no second [..., D], as isfinite does."""
    return torch.linalg.vector_norm(x, torch.inf, -1).isfinite()


def require_rows(x: Tensor) -> Tensor:
    """Return the features [..., D], or raise where there are none to measure."""
    if not x.numel():
        raise ValueError(f"features of shape {list(x.shape)} hold no number, and nothing is measured: give one image "
                         "or more, and an encoder with one or more features")
    return x


def require_finite(x: Tensor, part: str = "", names: Sequence[str] | None = None) -> None:
    """Raises a ValueError where there are no features, and one that names the first images whose are not finite.

    Args:
        part: of the data set, for the message.
        names: of the images, row by row; their numbers where left out.
    """
    wrong = (~finite(require_rows(x))).flatten().nonzero()[:, 0].tolist()
    if wrong:
        here = f" of the {part} part" * bool(part)
        raise ValueError(not_finite([names[row] if names else f"row {row}{here}" for row in wrong[:3]], len(wrong),
                                    x[..., 0].numel(), half=x.dtype == torch.float16))


def not_finite(names: Sequence[str], wrong: int, images: int, *, half: bool = False) -> str:
    """The sentence on `wrong` of so many `images`, some of whose names are given."""
    return (f"the features of {wrong} of {images} images are not finite, such as those of {', '.join(names)}, and "
            "nothing is measured: the encoder's weights have overflowed; go back to an earlier checkpoint and lower "
            "the learning rate" + ", or leave out --half, for float16 ends at 65,504" * half)


def no_accuracy(labels: Sequence[Tensor], classes: Sequence[str] = ()) -> str:
    """What an accuracy needs and these images lack, to follow a subject; empty where they lack nothing.

    Args:
        labels: of each part, [N], -1 where unknown.
        classes: names by label, where they have names.
    """
    if any((known < 0).any() for known in labels):
        return ("needs labels: put the images of each class into a sub-folder of their own, or give them with "
                "--data.labels")
    if len(labels) < 2:
        return "needs a test part, and these images have none"
    first = int(labels[0][0])
    if (labels[0] == first).all():
        name = f"are of class {classes[first]}" if first < len(classes) else f"have label {first}"
        return f"needs two classes: all {len(labels[0])} training images {name}"
    return ""
