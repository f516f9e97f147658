"""The command shard."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_zoo.cli.messages import Options


def shard(arguments: Sequence[str]) -> None:
    """Write a folder of images as shards, tar files that WebDataset reads; or count the images of shards that exist.

    SOURCE is a folder of images as `ImageFolder` understands it: OUT gets a folder train, and one for the images to
    test on. Nothing that is there is replaced; a call that was ended is gone on with by the same command. Where OUT
    ends in .json, SOURCE is shards (a folder, or paths or addresses with braces for many), and OUT becomes their index.
    """
    parser = Options("shard", shard.__doc__)
    parser.add_argument("source", metavar="SOURCE", help="folder of images; or shards to count")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the shards; or an index to write, .json")
    parser.add_argument("--size", type=int, help="reduce images to this shorter side in pixels, the longer one to at "
                        "most twice that, and write them as JPEG; left out, files are copied as they are")
    parser.add_argument("--quality", type=int, help="of these JPEGs, 1 to 95; 90 if left out")
    parser.add_argument("--megabytes", type=float, default=200, help="size of a shard; 200 if left out")
    parser.add_argument("--labelled", choices=("auto", "true", "false"), default="auto",
                        help="whether sub-folders are classes, as for ImageFolder")
    parser.add_argument("--labels", help="file with a path and a label in each line, as for ImageFolder")
    parser.add_argument("--image", help="of shards to count, what images are called behind the first dot of their "
                        "name, where a sample has several")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images; 2 if left out")
    options = parser.parse_args(arguments)
    require_sensible(options)
    (count if options.out.suffix == ".json" else write)(options)


def require_sensible(options: Namespace) -> None:
    for name, low, high in (("size", 1, None), ("quality", 1, 95), ("megabytes", 0.001, None), ("workers", 0, None)):
        value = getattr(options, name)
        if value is not None and (value < low or high is not None and value > high):
            raise ValueError(f"--{name} is {low}" + (f" to {high}" if high else " or more") + f", not {value}")
    if options.quality is not None and options.size is None:
        raise ValueError("--quality is that of images reduced by --size, and files are copied as they are without it")
    if options.out.suffix == ".json" and options.size is not None:
        raise ValueError("--size is for a folder of images, and an index (.json) is of shards that exist: leave it out")


def write(options: Namespace) -> None:
    """Write the parts of a folder of images, each into a folder of its own."""
    source, out = Path(options.source).expanduser(), options.out.expanduser()
    if not source.is_dir():
        raise FileNotFoundError(f"there is no folder {source} of images to write as shards")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: name a folder for the shards")
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{out} lies in {source}, whose images are written: name a folder beside it")
    from ssl_zoo.data import ImageFolder
    from ssl_zoo.data.counting import shards_in
    from ssl_zoo.data.sharding import Settings, require_eight_bits, write_part
    if found := shards_in(source):
        raise ValueError(f"{source} holds {len(found)} shards already: ssl-zoo shard {source} counts.json counts them")
    labelled: Any = {"auto": "auto", "true": True, "false": False}[options.labelled]
    images = ImageFolder(str(source), labelled=labelled, labels=options.labels, workers=options.workers)
    images.read()
    parts = {"train": images.train} | ({} if images.test is None else {test_name(images.understood.test): images.test})
    others = sorted(path.name for path in out.iterdir() if path.name not in parts) if out.is_dir() else []
    if others:
        raise ValueError(f"{out} has {others[0]} in it: name a new folder for the shards")
    settings = Settings(options.size, options.quality or Settings().quality, options.megabytes)
    for name, files in parts.items():
        if settings.size is not None:
            require_eight_bits(files)
        index = write_part(files, images.classes, out / name, settings, source, options.workers)
        print(f"{out / name}: {index.images:,} images in {len(index.shards):,} shards of "
              f"{sum(shard.bytes or 0 for shard in index.shards) / len(index.shards) / 10 ** 6:,.1f} MB"
              + "".join(f"; left out: {said}" for said in index.left_out))


def test_name(understood: str) -> str:
    """The folder of the test part: val, or test where the folder calls its part so."""
    from ssl_zoo.data.layout import split_name
    return "test" if split_name(understood)[0].startswith("test") else "val"


def count(options: Namespace) -> None:
    """Write the index of shards that exist."""
    if options.out.exists():
        raise FileExistsError(f"{options.out} is there: name another file for the index")
    from ssl_zoo.data.counting import ENDS, count, shards_in
    from ssl_zoo.data.fetching import Scratch, expand
    source = Path(options.source).expanduser()
    names = [str(path) for path in shards_in(source)] if source.is_dir() else expand(options.source)
    if not names:
        raise FileNotFoundError(f"there are no shards ({', '.join(ENDS)}) in {source}")
    index = count(names, Scratch(), options.image, options.workers, quiet=False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with open(options.out, "x") as file:
        file.write(index.beside(options.out.absolute().parent).as_json())
    print(f"{options.out}: {index.images:,} images in {len(index.shards):,} shards"
          + "".join(f"; left out: {said}" for said in index.left_out))
