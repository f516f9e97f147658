"""Data modules: uint8 images, labels and places; no augmentation, no normalisation.

The classes are imported when they are first asked for: `ssl_zoo.data.sources`, which evaluation reads, needs no
Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_zoo.data.arrays import ArrayImages
    from ssl_zoo.data.digits import Digits
    from ssl_zoo.data.folder import ImageFolder
    from ssl_zoo.data.hugging_face import HuggingFaceImages
    from ssl_zoo.data.images import Images
    from ssl_zoo.data.photographs import Photographs
    from ssl_zoo.data.prepare import read_images
    from ssl_zoo.data.segmentation import Segmentation, read_segmentation
    from ssl_zoo.data.shards import ImageShards
    from ssl_zoo.data.torchvision_sets import TorchvisionImages

__all__ = ["ArrayImages", "Digits", "HuggingFaceImages", "ImageFolder", "ImageShards", "Images", "Photographs",
           "Segmentation", "TorchvisionImages", "read_images", "read_segmentation"]
FILES = {"ArrayImages": "arrays", "Digits": "digits", "HuggingFaceImages": "hugging_face", "ImageFolder": "folder",
         "ImageShards": "shards", "Images": "images", "Photographs": "photographs", "Segmentation": "segmentation",
         "TorchvisionImages": "torchvision_sets", "read_images": "prepare",
         "read_segmentation": "segmentation"}


def __getattr__(name: str) -> Any:
    if name in FILES:
        return getattr(import_module(f"{__name__}.{FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
