"""The command preview."""

import argparse
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ssl_zoo.cli.fit import Cli
from ssl_zoo.distributed import run_seed
from ssl_zoo.views import Key
from ssl_zoo.views.preview import match_sheet, view_sheet


def preview(arguments: Sequence[str]) -> None:
    """Draw the views of a recipe: the sources with the boxes of their crops, the views, and which cells match."""
    parser = argparse.ArgumentParser("ssl-zoo preview", description=preview.__doc__, allow_abbrev=False,
                                     epilog="All other options are those of ssl-zoo fit.")
    parser.add_argument("--images", type=int, default=4, help="how many images to draw")
    parser.add_argument("--output", type=Path, default=Path("views.png"),
                        help="picture to write; the matches go beside it")
    options, rest = parser.parse_known_args(arguments)
    if options.images < 1:
        raise ValueError(f"a preview is of at least 1 image, not {options.images}: raise --images")
    cli = Cli(rest, run=False)
    augment = cli.model.augment
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    source = cli.datamodule.train
    places = np.random.default_rng(run_seed()).permutation(len(source))
    images = list(itertools.islice(readable(source, places), options.images))
    views = augment(augment.cut(images, Key(run_seed(), 0, 0, 0)), Key(run_seed(), 0, 0, 0))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    view_sheet(images, views).save(options.output)
    print(options.output)
    if len(views) > 1:
        matches = options.output.with_stem(f"{options.output.stem}_matches")
        match_sheet(views[0], views[1]).save(matches)
        print(matches)


def readable(source: Any, places: Iterable[int]) -> Iterator[Tensor]:
    for i in places:
        try:
            yield source.read(int(i))
        except Exception:   # whatever a decoder raises on a damaged file, which a run will name
            continue
