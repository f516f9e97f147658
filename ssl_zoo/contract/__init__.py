"""The contract that every method keeps, as checks of anyone's method: `ssl-zoo check my_module.Align`.

    from functools import partial
    from ssl_zoo import contract

    for result in contract.check(build):        # `build` makes a small method: partial(Align, encoder=..., width=8)
        print(result)

Each check is also a function of its own, which raises what is wrong: `contract.resume(build)`. They train on noise
images, on a CPU, for seconds. That a loss is its paper's, and that it learns, is left to its author to test.
"""

import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pytorch_lightning.utilities.seed import isolate_rng

from ssl_zoo.contract.checks import accumulation, bfloat16, compiled, files, gpu, gradients, resume
from ssl_zoo.contract.gloo import in_two_processes, processes, sentence
from ssl_zoo.contract.runs import BATCH, IMAGES, Broken, Build, batches, seeded

__all__ = ["BATCH", "CHECKS", "IMAGES", "Broken", "Build", "Result", "accumulation", "batches", "bfloat16", "check",
           "compiled", "files", "gpu", "gradients", "in_two_processes", "processes", "results", "resume", "seeded"]

CHECKS = {check.__name__: check for check in (gradients, processes, resume, accumulation, bfloat16, compiled, files,
                                              gpu)}


class Result(NamedTuple):
    """How one check went."""

    name: str
    passed: bool
    sentence: str      # what the method keeps, or what is wrong
    seconds: float


def check(build: Build, checks: Iterable[str] = tuple(CHECKS)) -> list[Result]:
    """Run checks on the method that `build` makes; whatever one of them meets, the others run.

    Args:
        build: makes the method, each time from its first weights; small, for it trains some twenty times. The images
            are 27 of 16 pixels, in batches of 8. Define it at the top of a module, so that other processes find it.
        checks: names from `CHECKS`; all of them by default.
    """
    return list(results(build, checks))


def results(build: Build, checks: Iterable[str] = tuple(CHECKS)) -> Iterator[Result]:
    """As `check`, each result as soon as it is there."""
    for name in checks:
        start = time.monotonic()
        passed, said = True, (CHECKS[name].__doc__ or "").splitlines()[0].rstrip(".")
        try:
            with quiet(), isolate_rng():
                CHECKS[name](build)
        except (Exception, SystemExit) as error:
            passed, said = False, sentence(error)
        yield Result(name, passed, said, time.monotonic() - start)


@contextmanager
def quiet() -> Iterator[None]:
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
