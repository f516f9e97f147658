"""What a method logs while its loss is computed, also where torch.compile has made one graph of it."""

import functools
from collections.abc import Callable
from typing import Any

import torch


def kept_while_compiled(log: Callable[..., None]) -> Any:
    """Let a method's `log` keep what it gets inside a compiled loss, where the call itself would break the graph."""
    @functools.wraps(log)
    def kept(method: Any, *args: Any, **options: Any) -> None:
        if torch.compiler.is_compiling():
            method.kept.append((args, options))
        else:
            log(method, *args, **options)
    return kept


def log_kept(method: Any) -> None:
    """Log what a compiled loss has kept; call it behind the loss, within the training step."""
    for args, options in method.kept:
        method.log(*args, **options)
    method.kept.clear()
