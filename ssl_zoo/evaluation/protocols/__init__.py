"""The protocols by name. A file here is a protocol, and its name is the protocol's; nothing else lists them.

This file imports no torch, so that the command line can name the protocols before anything heavy is loaded.
"""

import difflib
import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_zoo.evaluation.protocol import Protocol


def names() -> list[str]:
    """All protocols of the package, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def check(name: str) -> None:
    """Raises a ValueError for a name that is neither a protocol's nor a class path; imports nothing."""
    if name not in names() and "." not in name:
        near = difflib.get_close_matches(name, names(), n=1)
        raise ValueError(f"there is no protocol {name}; " + (f"did you mean {near[0]}?" if near else
                                                              f"there are {', '.join(names())}"))


def find(name: str, **arguments: Any) -> "Protocol":
    """A protocol by its name, or anyone's by the import path of its class, as in my_module.MyProtocol.

    Args:
        arguments: for its constructor.
    """
    check(name)
    module, _, kind = name.rpartition(".")
    if not module:
        module, kind = f"{__name__}.{name}", "".join(map(str.capitalize, name.split("_")))
    return getattr(import_module(module), kind)(**arguments)
