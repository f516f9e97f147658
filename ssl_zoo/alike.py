"""Images that an encoder finds alike: the nearest of some to others, and groups of near duplicates."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ssl_zoo.data.decoding import Unread
from ssl_zoo.data.orders import some
from ssl_zoo.data.sources import Files, centre
from ssl_zoo.data.tree import counted
from ssl_zoo.encoders import Encoder
from ssl_zoo.evaluation.features import require_rows
from ssl_zoo.evaluation.nearest import above, ieee_products, inverse_norms, nearest, tile, working
from ssl_zoo.features import Images, images_in, names_of, taken
from ssl_zoo.losses import unit
from ssl_zoo.pictures import TILE, Tile, sheet

THRESHOLD = 0.99    # cosine from which two images count as duplicates, unless said otherwise
ROUNDING = 2e-6     # by which the cosine of an image with its copy may fall short of 1
LOOKED_AT = 1000    # images whose nearest tells how near images are in general
ROWS, COLUMNS = 30, 8   # of a picture


class Match(NamedTuple):
    """An image, and how near it is."""

    name: str
    cosine: float
    place: int    # in the source of its images


class Similar(NamedTuple):
    """The images nearest to one, nearest first."""

    query: Match           # with itself
    found: list[Match]


class Group(NamedTuple):
    """Images of which each has another one in the group that is as near as the threshold, or nearer."""

    images: list[Match]    # each with the cosine of the nearest other one of the group


class Duplicates(NamedTuple):
    """The groups of a set of images, the largest first."""

    groups: list[Group]
    images: int
    usual: float      # the cosine of an image with its nearest: the median over a thousand images
    high: float       # and the one above which 1 in 100 lies


def similar(encoder: Encoder, query: Images, among: Images, *, count: int = COLUMNS, size: int | None = None,
            workers: int = 2, features: Path | None = None) -> tuple[list[Similar], Files, Files]:
    """The `count` images of `among` that are nearest to each of `query` by the cosine of their features.

    A file is not its own neighbour where it is in both.

    Args:
        encoder: on the device that is to work.
        query: see `ssl_zoo.embed`; as `among`.
        features: folder that keeps those of `among` for other calls.

    Returns:
        What was found for each query, and the sources of the queries and of the others, which have the pictures.
    """
    asked, bank = images_in(query, encoder, size, workers), images_in(among, encoder, size, workers)
    queries = taken(encoder, asked, 0 if len(asked) < 64 else workers, what="query")
    rows = taken(encoder, bank, workers, features)
    device = encoder.mean.device
    x = rows.x.to(device)
    cosines, nearby = (found.cpu() for found in nearest(queries.x.to(device), x, count + 1))
    results = []
    for place, name, cosine, row in zip(queries.places.tolist(), names_of(asked, queries.places), cosines.tolist(),
                                        nearby, strict=True):
        places = rows.places[row]
        found = [Match(*one) for one in zip(names_of(bank, places), cosine, places.tolist(), strict=True)]
        others = [one for one in found if Path(one.name).absolute() != Path(name).absolute()]
        results.append(Similar(Match(name, 1.0, place), others[:count]))
    return results, asked, bank


def duplicates(encoder: Encoder, images: Images, *, threshold: float = THRESHOLD, size: int | None = None,
               workers: int = 2, features: Path | None = None) -> tuple[Duplicates, Files]:
    """Groups of images whose features are alike: chains of pairs with a cosine of at least `threshold`.

    Which cosine means the same picture depends on the encoder; `usual` and `high` tell how near images are in general.

    Args:
        encoder: on the device that is to work.
        images: see `ssl_zoo.embed`.
        features: folder that keeps the features for other calls.

    Returns:
        The groups, and the source of the images, which has the pictures.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold is a cosine above 0 and at most 1, not {threshold:g}")
    source = images_in(images, encoder, size, workers)
    rows = taken(encoder, source, workers, features)
    if len(rows.x) < 2:
        raise ValueError("one image alone has no duplicates: give two or more")
    x = rows.x.to(encoder.mean.device)
    looked_at = torch.from_numpy(some(len(x), LOOKED_AT)).to(x.device)
    usual = nearest(x[looked_at], x, 1, own=looked_at)[0]
    members = groups(x, threshold)
    found = [group_of(rows.x[own].to(x.device), names_of(source, rows.places[own]), rows.places[own].tolist())
             for own in members]
    found.sort(key=lambda group: (-len(group.images), group.images[0].name))
    return Duplicates(found, len(x), float(usual.median()), float(usual.quantile(0.99))), source


def group_of(x: Tensor, names: Sequence[str], places: Sequence[int]) -> Group:
    """The images of a group by name, with the cosine of each with its nearest."""
    cosines = nearest(x, x, 1, own=torch.arange(len(x), device=x.device))[0][:, 0].tolist()
    return Group(sorted(map(Match, names, cosines, places)))


@torch.no_grad()
@ieee_products()
def groups(x: Tensor, threshold: float) -> list[Tensor]:
    """The rows of `x` [N, D] in chains of cosines of at least `threshold`: of each of two or more, [n] rising.

    Exact, tile by tile. After each the groups so far are joined by their new pairs, so that a thousand copies of an
    image, which are half a million pairs, are never held together.
    """
    inverse = inverse_norms(require_rows(x))
    chunk, columns = tile(x.device)
    group = np.arange(len(x))                     # of each row, by its number
    for start in range(0, len(x), chunk):
        queries = unit(x[start:start + chunk])
        for first in range(start, len(x), columns):
            bank = slice(first, first + columns)
            cosines = (queries @ working(x[bank]).T).mul_(inverse[bank])
            flat = above(cosines, cosines.new_full((len(queries), 1), threshold - ROUNDING))[0].cpu().numpy()
            one, other = np.divmod(flat, cosines.shape[1])
            group = joined(group, one + start, other + first)
    order = np.argsort(group, kind="stable")
    pieces = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return [torch.from_numpy(piece) for piece in pieces if len(piece) > 1]


def joined(group: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The groups [N] once the rows `one` [h] are in the same as `other` [h]."""
    new = group[one] != group[other]
    if not new.any():
        return group
    pairs = group[one[new]], group[other[new]]
    graph = coo_array((np.ones(len(pairs[0]), bool), pairs), shape=(len(group), len(group)))
    return connected_components(graph, directed=False)[1][group]


# Tables and pictures

def similar_table(results: Sequence[Similar]) -> str:
    lines = []
    for query, found in results:
        lines += [query.name, *(f"  {match.cosine:.4f}  {match.name}" for match in found)]
    return "\n".join(lines)


def duplicates_table(found: Duplicates, threshold: float) -> str:
    inside = sum(len(group.images) for group in found.groups)
    lines = []
    for number, group in enumerate(found.groups, 1):
        lines += [f"group {number}, {len(group.images)} images",
                  *(f"  {match.cosine:.4f}  {match.name}" for match in group.images)]
    return "\n".join([*lines, f"{inside:,} of {found.images:,} images are in {counted(len(found.groups), 'group')}, by "
                      f"a cosine of {threshold:g} or more (--threshold); an image's nearest has {found.usual:.4f} in "
                      f"the median, and 1 in 100 has more than {found.high:.4f}"])


def similar_sheet(results: Sequence[Similar], queries: Files, among: Files) -> Image.Image:
    """A row for each of the first queries, which stands left of its nearest images."""
    rows = [[tile_of(queries, query, "query"), *(tile_of(among, one, f"{one.cosine:.4f}") for one in found)]
            for query, found in results[:ROWS]]
    return sheet(rows, "left: query; right: the nearest images by the cosine of their features, nearest first", split=1)


def duplicates_sheet(found: Duplicates, threshold: float, source: Files) -> Image.Image:
    """A row for each of the first groups, with the first of its images."""
    rows = [[tile_of(source, one, f"{one.cosine:.4f}") for one in group.images[:COLUMNS + 1]]
            for group in found.groups[:ROWS]]
    return sheet(rows, f"groups of images with a cosine of {threshold:g} or more; below: with the nearest of the group")


def tile_of(source: Files, match: Match, caption: str) -> Tile:
    """The middle of an image: the features are of no more; white where its file is no longer to be read."""
    image = source.attempt(match.place)
    return Tile(torch.ones(3, TILE, TILE) if isinstance(image, Unread) else centre(image, max(source.size, TILE)),
                caption)
