"""The command preview."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ssl_zoo.cli.messages import Options

RECIPES = ("--config", "--model", "--data", "--trainer", "--evaluation", "--report", "--checkpoints", "--fast",
           "--gradient_cache", "--seed_everything", "--print_config")   # starts of the options of a recipe


def preview(arguments: Sequence[str]) -> None:
    """Draw the views of a recipe: the sources with the boxes of their crops, the views, and which cells match."""
    parser = Options("preview", preview.__doc__, others=RECIPES, epilog="All other options are those of ssl-zoo fit.")
    parser.add_argument("--images", type=int, default=4, help="how many images to draw")
    parser.add_argument("--output", type=Path, default=Path("views.png"),
                        help="picture to write; the matches go beside it")
    options, rest = parser.parse_known_args(arguments)
    if options.images < 1:
        raise ValueError(f"a preview is of at least 1 image, not {options.images}: raise --images")
    from ssl_zoo.cli.fit import Cli
    draw(Cli(rest, run=False), options.images, options.output)


def draw(cli: Any, count: int, output: Path) -> None:
    """Write the pictures of the first `count` readable images, in an order that the run's seed draws."""
    import numpy as np

    from ssl_zoo.distributed import run_seed
    from ssl_zoo.views import Key
    from ssl_zoo.views.preview import match_sheet, view_sheet
    augment = cli.model.augment
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    cli.datamodule.introduce(cli.model)
    source = cli.datamodule.train
    places = np.random.default_rng(run_seed()).permutation(len(source))
    images = list(itertools.islice(readable(source, places), count))
    key = Key(run_seed(), 0, 0, 0)
    views = augment(augment.cut(images, key), key)
    output.parent.mkdir(parents=True, exist_ok=True)
    view_sheet(images, views).save(output)
    print(output)
    if len(views) > 1 and not any(view.moved for view in views[:2]):
        matches = output.with_stem(f"{output.stem}_matches")
        match_sheet(views[0], views[1]).save(matches)
        print(matches)


def readable(source: Any, places: Iterable[int]) -> Iterator[Any]:
    """The images [C, H, W] at these places of a source, without those that cannot be read, which a run will name."""
    found = (source.attempt(int(place)) for place in places)
    return (image for image in found if hasattr(image, "shape"))
