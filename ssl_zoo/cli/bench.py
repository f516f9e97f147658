"""The command bench."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ssl_zoo.cli.messages import Options
from ssl_zoo.cli.preview import RECIPES


def bench(arguments: Sequence[str]) -> None:
    """Train a few steps by a recipe and say where their time goes, what limits them here, and what to change."""
    parser = Options("bench", bench.__doc__, others=RECIPES, epilog="All other options are those of ssl-zoo fit. "
                     "Nothing is left in the folder of runs.")
    parser.add_argument("--steps", type=int, default=20, help="how many steps to measure, twice")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--output", type=Path, help="picture to write")
    options, rest = parser.parse_known_args(arguments)
    if options.steps < 1:
        raise ValueError(f"a measurement is of at least 1 step, not {options.steps}: raise --steps")
    from ssl_zoo.bench import WARM, figures, measure, picture, table
    from ssl_zoo.cli.fit import Cli
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Cli([
            *rest, "--trainer.logger", "false", "--trainer.default_root_dir", folder,
            "--trainer.max_epochs", "-1", "--trainer.max_steps", str(WARM + 2 * options.steps),
            "--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0",
            "--trainer.enable_checkpointing", "false", "--trainer.enable_progress_bar", "false"], run=False),
            options.steps)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(figures(found), indent=2) + "\n")
    if options.output:
        picture(found).save(options.output)
