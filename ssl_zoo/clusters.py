"""Clusters of unit vectors by the cosine: k-means, whose work the processes share, and a bank that keeps clusters."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo import distributed
from ssl_zoo.draws import Draws
from ssl_zoo.losses import full_precision, unit
from ssl_zoo.memory import SampleTable

ROWS = 4096     # whose cosines with all centroids are in memory at a time
Pool = Literal["semi_hard", "hard", "semi_easy", "random"]


# k-means: every process has all rows, looks at its part of them, and gets the same answer

@torch.no_grad()
@full_precision
def nearest(x: Tensor, centroids: Tensor) -> Tensor:
    """The centroid [N] int64 with the largest cosine for each row of `x` [N, D].

    Args:
        x: unit rows, the same on every process.
        centroids: unit rows [K, D].
    """
    own = x.tensor_split(distributed.world_size())[distributed.rank()]
    return distributed.gather_uneven(torch.cat([(rows @ centroids.T).argmax(1) for rows in own.split(ROWS)]))


@torch.no_grad()
@full_precision
def member_means(x: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """The mean direction [K, D] of each cluster's rows, 0 where it has none, and their number [K].

    Args:
        x: unit rows [N, D], the same on every process.
        labels: the cluster of each row [N].
        clusters: their number, K.
    """
    x, labels = (part.tensor_split(distributed.world_size())[distributed.rank()] for part in (x, labels))
    sums = x.new_zeros(clusters, x.shape[1]).index_add_(0, labels, x)
    counts = labels.new_zeros(clusters).index_add_(0, labels, torch.ones_like(labels))
    return unit(distributed.gather(sums[None]).sum(0)), distributed.gather(counts[None]).sum(0)


@torch.no_grad()
def kmeans(x: Tensor, centroids: Tensor, iterations: int = 20) -> Tensor:
    """The cluster [N] of each row of `x` after `iterations` rounds of assigning rows and averaging clusters.

    Spherical k-means: cosines, and means of unit length. A cluster that loses all rows keeps its centroid.

    Args:
        x: unit rows [N, D], the same on every process.
        centroids: unit rows to start from [K, D], at most as many as there are rows.
        iterations: at least 1.
    """
    if not 1 <= len(centroids) <= len(x):
        raise ValueError(f"k-means makes 1 to {len(x)} clusters of {len(x)} rows, not {len(centroids)}: lower the "
                         "number of clusters")
    for _ in range(iterations):
        labels = nearest(x, centroids)
        means, counts = member_means(x, labels, len(centroids))
        centroids = torch.where(counts[:, None] > 0, means, centroids)
    return labels


@torch.no_grad()
@full_precision
def kmeans_step(prototypes: Tensor, keys: Tensor) -> Tensor:
    """Prototypes [P, D] after a step of spherical k-means over keys [K, D], unit norm, K >= P.

    One without keys becomes the key that is farthest from its own prototype, the next one the second farthest. Each
    process does it all: for some hundreds of rows, which all of them have, that is less than telling each other.
    """
    cosines = keys @ prototypes.T                                                        # [K, P]
    members = cosines.argmax(1)[:, None] == torch.arange(len(prototypes), device=keys.device)
    farthest = keys[cosines.amax(1).argsort()]
    empty = ~members.any(0)                                                              # [P]
    means = F.normalize(members.to(keys).T @ keys, dim=-1)
    return torch.where(empty[:, None], farthest[(empty.cumsum(0) - 1).clamp_min(0)], means)


@torch.no_grad()
def repaired(x: Tensor, labels: Tensor, clusters: int, smallest: int) -> Tensor:
    """Labels [N] without small clusters: their rows go to the nearest of the others, and halves of large ones replace
    them.

    If there are 2 * clusters * smallest rows or more, no cluster is left with fewer than `smallest`.

    Args:
        x: unit rows [N, D], the same on every process.
        labels: the cluster of each row [N].
        clusters: their number, K.
        smallest: the number of rows that a cluster needs.
    """
    means, counts = member_means(x, labels, clusters)
    small = counts < smallest
    small[counts.argmax()] = False                                    # somewhere the rows must go
    labels = labels.clone()
    moving = small[labels]
    labels[moving] = (x[moving] @ means.T).masked_fill(small, float("-inf")).argmax(1)
    counts = labels.bincount(minlength=clusters)
    for empty in small.nonzero().flatten().tolist():
        largest = counts.argmax()
        if counts[largest] < 2 * smallest:
            break
        members = (labels == largest).nonzero().flatten()
        leaving = members[half(x[members], smallest)]
        labels[leaving] = empty
        counts[empty], counts[largest] = len(leaving), len(members) - len(leaving)
    return labels


def half(x: Tensor, smallest: int, rounds: int = 5) -> Tensor:
    """The places of about half of the rows `x` [n, D], on one side of a cut by 2-means; at least `smallest` on each."""
    first = x[(x @ x.mean(0)).argmin()]
    second = x[(x @ first).argmin()]
    for _ in range(rounds):
        side = x @ (second - first) > 0
        first, second = x[~side].sum(0), x[side].sum(0)
        first, second = unit(first), unit(second)
    side = x @ (second - first)
    count = int((side > 0).sum().clamp(smallest, len(x) - smallest))
    return side.argsort(descending=True, stable=True)[:count]


# The bank

class Drawn(NamedTuple):
    """What the bank has for each query."""

    positive: Tensor   # [B] cosine with a random image of its image's cluster
    negative: Tensor   # [B, n] cosines with images of other clusters, -inf where there are too few
    known: Tensor      # [B] bool: whether its image is in a cluster; one that is not has a positive that means nothing


class ClusterBank(nn.Module):
    """A feature of each image of the data set, and clusters that follow the features as they change.

    InterCLR, arXiv:2008.11702. The same bank on every process. An image enters it when it is first written,
    and `tidy` makes the clusters.

    Args:
        images: the number of images in the training part.
        dim: width D of a feature.
        clusters: the number of clusters, K.
        smallest: clusters of fewer images are dissolved.
    """

    centroids: Tensor   # [K, D]
    made: Tensor        # [] 1.0 once there are clusters, 0.0 before

    def __init__(self, images: int, dim: int, clusters: int, smallest: int):
        super().__init__()
        if clusters < 2 or smallest < 1 or 2 * clusters * smallest > images:
            raise ValueError(f"{images} images do not make {clusters} clusters of {smallest} or more that can be kept "
                             f"apart: take 2 or more clusters, and 2 * clusters * smallest up to {images}")
        self.table = SampleTable(images, feature=[0.0] * dim, cluster=-1.0)        # -1 is in none
        self.register_buffer("centroids", torch.zeros(clusters, dim))
        self.register_buffer("made", torch.tensor(0.0))
        self.draws, self.smallest = Draws(), smallest

    @torch.no_grad()
    @full_precision
    def write(self, index: Tensor, features: Tensor, share: float) -> None:
        """Move the features of images at the places `index` [B] towards new ones, and find their clusters.

        Args:
            index: [B], with the same B on every process.
            features: unit rows [B, D].
            share: of the new feature; the rest is the former one.
        """
        former = self.table.read("feature", index)
        feature = unit(torch.lerp(former, features.to(former.dtype), share))
        cluster = (feature @ self.centroids.T).argmax(1)
        self.table.write(index, feature=feature, cluster=torch.where(self.made > 0, cluster, -1))

    @full_precision
    def draw(self, query: Tensor, index: Tensor, negatives: int, pool: int, kind: Pool) -> Drawn:
        """Draw a positive and negatives for each query; a gradient reaches the queries alone.

        Args:
            query: [B, D], any scale.
            index: [B] places of the queries' images.
            negatives: to draw for each query, without repetition.
            pool: of how many images of other clusters they are drawn: the most similar ones for "semi_hard", the least
                for "semi_easy".
            kind: those two; "hard" for the most similar themselves, "random" for a pool of all images.
        """
        clusters = self.table.get_buffer("cluster").clone()
        own = clusters[index]                                                            # [B]
        cosines = unit(query) @ self.table.get_buffer("feature").clone().T               # [B, N]
        other = (clusters >= 0) & (clusters != own[:, None])                             # [B, N]
        place = candidates(cosines.detach(), other, negatives if kind == "hard" else pool, kind)      # [B, pool]
        numbers = self.draws(len(query), 1 + place.shape[1])
        chosen = torch.where(other.gather(1, place), numbers[:, 1:], -1).topk(negatives, sorted=False).indices
        place = place.gather(1, chosen)                                                  # [B, n]
        negative = cosines.gather(1, place).masked_fill(~other.gather(1, place), float("-inf"))
        together, order = clusters.sort(stable=True)                                     # images by cluster
        first, end = torch.searchsorted(together, own), torch.searchsorted(together, own, right=True)
        member = order[first + numbers[:, 0] % (end - first)]                            # [B], perhaps the image itself
        return Drawn(cosines.gather(1, member[:, None])[:, 0], negative, own >= 0)

    @torch.no_grad()
    def tidy(self) -> None:
        """Make the clusters of the images written so far, if these are enough; later, mend and average them.

        It reads the device, so call it every few steps.
        """
        features, clusters = self.table.get_buffer("feature"), self.table.get_buffer("cluster")
        there = features.any(1).nonzero().flatten()                                      # written at least once
        x, count = features[there], len(self.centroids)
        if self.made == 0:
            start = x[self.draws.order(len(x))[:count]]
            if len(start) < count:
                return
            labels = kmeans(x, start)
            self.centroids.copy_(start)
        else:
            labels = clusters[there].long()
        labels = repaired(x, labels, count, self.smallest)
        means, counts = member_means(x, labels, count)
        self.centroids.copy_(torch.where(counts[:, None] > 0, means, self.centroids))
        clusters[there] = labels.to(clusters.dtype)
        self.made.fill_(1.0)


def candidates(cosines: Tensor, other: Tensor, count: int, kind: Pool) -> Tensor:
    """The places [B, count] from which negatives are drawn; all [B, N] for "random".

    Args:
        cosines: of each query with each image of the bank, [B, N].
        other: [B, N] bool, whether the image is of another cluster. The authors' code takes the pool of all images and
            draws again where it meets the query's own cluster, which is the same but for the size of the pool.
    """
    if kind == "random":
        return torch.arange(cosines.shape[1], device=cosines.device).expand(cosines.shape)
    signed = -cosines if kind == "semi_easy" else cosines
    return signed.masked_fill(~other, float("-inf")).topk(count, sorted=False).indices
