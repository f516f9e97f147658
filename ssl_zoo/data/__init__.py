"""Data modules: uint8 images, labels and places; no augmentation, no normalisation."""

from ssl_zoo.data.arrays import ArrayImages
from ssl_zoo.data.digits import Digits
from ssl_zoo.data.folder import ImageFolder
from ssl_zoo.data.images import Images
from ssl_zoo.data.segmentation import Segmentation, read_segmentation
from ssl_zoo.data.torchvision_sets import TorchvisionImages

__all__ = ["ArrayImages", "Digits", "ImageFolder", "Images", "Segmentation", "TorchvisionImages", "read_segmentation"]
