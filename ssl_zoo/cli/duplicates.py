"""The command duplicates."""

from collections.abc import Sequence
from pathlib import Path

from ssl_zoo.cli.devices import ENCODER, IMAGES, add_options, encoder_on_device, require_options, reuse, save
from ssl_zoo.cli.messages import Options


def duplicates(arguments: Sequence[str]) -> None:
    """Find groups of near duplicates by their features: a table, and a picture. No file is changed."""
    parser = Options("duplicates", duplicates.__doc__)
    parser.add_argument("encoder", metavar="ENCODER", help=ENCODER)
    parser.add_argument("images", metavar="IMAGES", help=IMAGES)
    parser.add_argument("--threshold", type=float, default=0.99, help="cosine from which two images are duplicates, at "
                        "most 1; 0.99 if left out. Which is right depends on the encoder: the last line says how near "
                        "images are in general")
    parser.add_argument("--output", type=Path, default=Path("duplicates.png"), help="picture to write, of the first 30 "
                        "groups; what exists is not replaced, the next free name is taken")
    reuse(parser)
    add_options(parser)
    options = parser.parse_args(arguments)
    require_options(options)
    if not 0 < options.threshold <= 1:
        raise ValueError(f"--threshold is a cosine above 0 and at most 1, not {options.threshold:g}")
    from ssl_zoo import alike
    found, source = alike.duplicates(encoder_on_device(options), options.images,
                                     threshold=options.threshold, size=options.size, workers=options.workers,
                                     features=options.features)
    print(alike.duplicates_table(found, options.threshold))
    if found.groups:
        save(alike.duplicates_sheet(found, options.threshold, source), options.output)
