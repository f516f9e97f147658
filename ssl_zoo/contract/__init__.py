"""The contract that every method keeps, as checks of anyone's method: `ssl-zoo check my_module.Align`.

    from functools import partial
    from ssl_zoo import contract

    for result in contract.check(build):        # `build` makes a small method: partial(Align, encoder=..., width=8)
        print(result)

Each check is also a function of its own, which raises what is wrong: `contract.resume(build)`. They train on noise
images, on a CPU, for seconds. That a loss is its paper's, and that it learns, is left to its author to test.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_zoo.contract.checks import accumulation, bfloat16, compiled, files, gpu, gradients, resume
    from ssl_zoo.contract.gloo import in_two_processes, processes
    from ssl_zoo.contract.runs import BATCH, IMAGES, Broken, Build, batches, seeded
    from ssl_zoo.contract.verdicts import CHECKS, Result, check, results

__all__ = ["BATCH", "CHECKS", "IMAGES", "NAMES", "Broken", "Build", "Result", "accumulation", "batches", "bfloat16",
           "check", "compiled", "files", "gpu", "gradients", "in_two_processes", "processes", "results", "resume",
           "seeded"]

# Of the checks, in their order. All else is imported when it is first asked for: a misspelt name needs no torch.
NAMES = ("gradients", "processes", "resume", "accumulation", "bfloat16", "compiled", "files", "gpu")
FILES = ("verdicts", "runs", "gloo", "checks")


def __getattr__(name: str) -> Any:
    for file in FILES if name in __all__ else ():
        if hasattr(module := import_module(f"{__name__}.{file}"), name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
