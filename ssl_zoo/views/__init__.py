"""Views: each row of a recipe is a distribution; its numbers are drawn on the host, its pixels made on the device.

specs.py defines a row, tables.py draws its random numbers, crops.py cuts and compares regions, reduction.py cuts them
from files, operations.py changes pixels (with the mathematics in colour.py), kornia_ops.py runs Kornia's augmentations,
pipeline.py puts these together, and preview.py makes pictures of the result. To add an operation of your own, follow
the first lines of operations.py. To use one of Kornia's, write no code and name it in a row's `extra`.
"""

from ssl_zoo.distributed import Key
from ssl_zoo.views.pipeline import Augmentation, Canvases, Crops, View, by_size
from ssl_zoo.views.reduction import Reduction, Scaled
from ssl_zoo.views.specs import PRESETS, ViewSpec

__all__ = ["PRESETS", "Augmentation", "Canvases", "Crops", "Key", "Reduction", "Scaled", "View", "ViewSpec", "by_size"]
