"""Evaluation: protocols that measure an encoder by its features, during a run and outside of one.

Nothing is imported before it is asked for: a pure metric needs no Lightning, and the names of the protocols no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_zoo.evaluation.callback import Evaluation, Report, ScoreRecorder
    from ssl_zoo.evaluation.dense import IoU, confusion, dense_linear, encode_maps, mean_iou
    from ssl_zoo.evaluation.protocol import Context, Measured, Protocol, Quantity

__all__ = ["Context", "Evaluation", "IoU", "Measured", "Protocol", "Quantity", "Report", "ScoreRecorder", "confusion",
           "dense_linear", "encode_maps", "mean_iou"]
FILES = {name: file for file, held in {
    "ssl_zoo.evaluation.callback": ("Evaluation", "Report", "ScoreRecorder"),
    "ssl_zoo.evaluation.dense": ("IoU", "confusion", "dense_linear", "encode_maps", "mean_iou"),
    "ssl_zoo.evaluation.former": ("KNN", "Health", "LinearProbe", "NaiveBayes", "Neighbours"),
    "ssl_zoo.evaluation.protocol": ("Context", "Measured", "Protocol", "Quantity")}.items() for name in held}


def __getattr__(name: str) -> Any:
    if name in FILES:
        return getattr(import_module(FILES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
