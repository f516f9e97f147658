"""Runs the checks one after the other; whatever one of them meets, the others have their result."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pytorch_lightning.utilities.seed import isolate_rng

from ssl_zoo.contract import NAMES, checks, gloo
from ssl_zoo.contract.runs import Build

CHECKS: dict[str, Callable[[Build], None]] = {
    name: gloo.processes if name == "processes" else getattr(checks, name) for name in NAMES}


class Result(NamedTuple):
    """How one check went."""

    name: str
    passed: bool
    sentence: str      # what the method keeps, or what is wrong
    seconds: float


def check(build: Build, checks: Iterable[str] = NAMES) -> list[Result]:
    """Run checks on the method that `build` makes; whatever one of them meets, the others run.

    Args:
        build: makes the method, each time from its first weights; small, for it trains some twenty times. The images
            are 27 of 16 pixels, in batches of 8. Define it at the top of a module, so that other processes find it.
        checks: names from `NAMES`; all of them by default.
    """
    return list(results(build, checks))


def results(build: Build, checks: Iterable[str] = NAMES) -> Iterator[Result]:
    """As `check`, each result as soon as it is there."""
    for name in checks:
        start = time.monotonic()
        passed, said = True, (CHECKS[name].__doc__ or "").splitlines()[0].rstrip(".")
        try:
            with silence(), isolate_rng():
                CHECKS[name](build)
        except (Exception, SystemExit) as error:
            passed, said = False, gloo.sentence(error)
        yield Result(name, passed, said, time.monotonic() - start)


@contextmanager
def silence() -> Iterator[None]:
    """Without what Lightning and the compiler say of runs that nobody will look at; the caller's seed stays."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "torch")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            os.environ.pop("PL_GLOBAL_SEED", None)
            if seed is not None:
                os.environ["PL_GLOBAL_SEED"] = seed
