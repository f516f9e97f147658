"""The command embed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ssl_zoo.cli.devices import ENCODER, IMAGES, add_options, encoder_on_device, require_options
from ssl_zoo.cli.messages import Options


def embed(arguments: Sequence[str]) -> None:
    """Write the features of images, with their names, as .parquet, .npz or .csv.

    Nothing that exists is replaced; a call that was ended is gone on with by the same command.
    """
    parser = Options("embed", embed.__doc__)
    parser.add_argument("encoder", metavar="ENCODER", help=ENCODER)
    parser.add_argument("images", metavar="IMAGES", help=IMAGES)
    parser.add_argument("--output", type=Path, required=True, help="file to write; its ending says how")
    parser.add_argument("--maps", action="store_true", help="write each image's feature map, too; not as .csv")
    add_options(parser)
    options = parser.parse_args(arguments)
    require_options(options)
    from ssl_zoo.features import embed_to_file, require_new
    require_new(options.output, options.maps)
    encoder = encoder_on_device(options)
    try:
        found = embed_to_file(encoder, options.images, options.output, size=options.size, workers=options.workers,
                              maps=options.maps)
    except KeyboardInterrupt:
        print(f"ended: the same command goes on with {options.output}.parts", file=sys.stderr)
        raise
    missing = found.given - found.images
    maps = f" and a map of {' x '.join(map(str, found.cells))}" if found.cells else ""
    print(f"{found.path}: {found.features:,} features{maps} of each of {found.images:,} images"
          + f"; {missing:,} of {found.given:,} could not be read" * (missing > 0))
