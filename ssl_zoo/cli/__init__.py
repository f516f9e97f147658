"""The commands, each in a file of its own that is imported when it is asked for.

A command reads its options first and imports torch and Lightning afterwards, inside its function: they take seconds,
for which neither --help nor a misspelt name should wait.
"""

import os
import re
import sys
from importlib import import_module
from pathlib import Path

from ssl_zoo.cli import messages
from ssl_zoo.cli.recipes import with_recipes
from ssl_zoo.paths import check_whole

DEBUG = "SSL_ZOO_DEBUG"   # set it to see whole tracebacks
LIGHT = ("bench", "check", "compare", "duplicates", "embed", "evaluate", "export", "new", "preview", "recipes",
         "shard", "similar")                                    # in files of their names
NAMED = ("last", "best", "hpc")                                 # checkpoints that are looked for
METHOD = {"--method"}                                           # of fit, for a folder alone
LIGHTNINGS = ("fit", "validate")                                # of Lightning's command line


def run(arguments: list[str]) -> None:
    """Run a command; bad input ends it with one sentence and status 1."""
    messages.quiet()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())   # for methods of one's own, as python does
    try:
        dispatch(arguments[0], with_recipes(arguments[1:]))
    except KeyboardInterrupt:   # before or after a run, which says more
        sys.exit(130)
    except Exception as error:
        if not messages.expected(error) or os.environ.get(DEBUG):
            raise
        sys.exit(f"ssl-zoo: {messages.way_out(error)}\n(for the traceback: {DEBUG}=1)")


def dispatch(command: str, arguments: list[str]) -> None:
    if command in LIGHT:
        getattr(import_module(f"ssl_zoo.cli.{command}"), command)(arguments)
    elif command in LIGHTNINGS:
        if command == "fit" and (arguments and not arguments[0].startswith("-") or METHOD & {
                word.partition("=")[0] for word in arguments}):
            arguments = import_module("ssl_zoo.cli.choose").with_recipe(arguments)
        found = re.search("(?:^|\n)--ckpt_path[=\n]([^\n]+)", "\n".join(arguments))
        if found and found[1] not in NAMED:
            check_whole(Path(found[1]))
        import_module("ssl_zoo.cli.fit").Cli([command, *arguments])
    else:
        raise ValueError(f"there is no command {command}{messages.did_you_mean(command, [*LIGHTNINGS, *LIGHT])}")
