"""Views: rows of a recipe as distributions, drawn on the host, cut and coloured on the device."""

from ssl_zoo.distributed import Key
from ssl_zoo.views.pipeline import Augmentation, Canvases, Crops, View, by_size
from ssl_zoo.views.specs import PRESETS, ViewSpec

__all__ = ["PRESETS", "Augmentation", "Canvases", "Crops", "Key", "View", "ViewSpec", "by_size"]
