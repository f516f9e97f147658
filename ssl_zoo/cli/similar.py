"""The command similar."""

from collections.abc import Sequence
from pathlib import Path

from ssl_zoo.cli.devices import ENCODER, IMAGES, add_options, encoder_on_device, require_options, reuse, save
from ssl_zoo.cli.messages import Options


def similar(arguments: Sequence[str]) -> None:
    """Find the images nearest to others by their features: a table, and a picture."""
    parser = Options("similar", similar.__doc__)
    parser.add_argument("encoder", metavar="ENCODER", help=ENCODER)
    parser.add_argument("query", metavar="QUERY", help=f"one image or several: {IMAGES}")
    parser.add_argument("--among", metavar="IMAGES", required=True, help="the images to look among, named likewise")
    parser.add_argument("--count", type=int, default=8, help="how many to find for each query; 8 if left out")
    parser.add_argument("--output", type=Path, default=Path("similar.png"), help="picture to write, of the first 30 "
                        "queries; what exists is not replaced, the next free name is taken")
    reuse(parser)
    add_options(parser)
    options = parser.parse_args(arguments)
    require_options(options)
    if options.count < 1:
        raise ValueError(f"--count is 1 or more, not {options.count}")
    from ssl_zoo import alike
    found, queries, among = alike.similar(encoder_on_device(options), options.query, options.among,
                                          count=options.count, size=options.size, workers=options.workers,
                                          features=options.features)
    print(alike.similar_table(found))
    save(alike.similar_sheet(found, queries, among), options.output)
