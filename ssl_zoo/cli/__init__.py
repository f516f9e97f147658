"""The commands, each in a file of its own that is imported when it is asked for."""

import os
import sys
from importlib import import_module

DEBUG = "SSL_ZOO_DEBUG"   # set it to see whole tracebacks
COMMANDS = ("evaluate", "export", "preview")   # beside those of Lightning's command line


def run(arguments: list[str]) -> None:
    """Run a command; bad input ends it with one sentence and status 1."""
    messages = import_module("ssl_zoo.cli.messages")
    messages.quiet()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())   # for methods of one's own, as python does
    try:
        if arguments[0] in COMMANDS:
            getattr(import_module(f"ssl_zoo.cli.{arguments[0]}"), arguments[0])(arguments[1:])
        else:
            import_module("ssl_zoo.cli.fit").Cli(arguments)
    except (ValueError, OSError, ImportError, messages.MisconfigurationException) as error:
        if os.environ.get(DEBUG):
            raise
        sys.exit(f"ssl-zoo: {messages.way_out(error)}\n(for the traceback: {DEBUG}=1)")
