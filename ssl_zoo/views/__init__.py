"""Views: rows of a recipe as distributions, drawn on the host, cut and coloured on the device.

specs.py says what a row may be, tables.py draws its numbers, crops.py cuts and knows places, operations.py changes
pixels (with the mathematics in colour.py), kornia_ops.py adds Kornia's, and pipeline.py puts them together. A new
operation of our own is a field of `ViewSpec` and a class in operations.py, whose first lines say how; one of Kornia's
needs no code, for a row takes it in `extra`.
"""

from ssl_zoo.distributed import Key
from ssl_zoo.views.pipeline import Augmentation, Canvases, Crops, View, by_size
from ssl_zoo.views.specs import PRESETS, ViewSpec

__all__ = ["PRESETS", "Augmentation", "Canvases", "Crops", "Key", "View", "ViewSpec", "by_size"]
