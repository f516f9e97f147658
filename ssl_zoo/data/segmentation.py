"""Images with a class for each pixel, for dense evaluation."""

import glob
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from ssl_zoo.data.decoding import read_image
from ssl_zoo.data.tree import counted, some_of

IGNORE = 255   # in a mask: the class is unknown, or not to be counted
VOC = ["background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
       "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]


class Segmentation(NamedTuple):
    """One part of a segmentation data set, in memory."""

    images: Tensor        # [N, 3, H, W] uint8
    masks: Tensor         # [N, H, W] uint8: the place of each pixel's class in `classes`, or IGNORE
    classes: list[str]


def read_segmentation(root: str | Path, split: str, size: tuple[int, int] | None = None) -> Segmentation:
    """Read the images that ImageSets/Segmentation/<split>.txt lists, with their masks, from a folder in VOC's layout.

    Args:
        root: the folder with JPEGImages, SegmentationClass and ImageSets. Its classes.txt names the classes, one line
            `number name` each, in rising order from 0; without that file they are Pascal VOC's.
        split: train, val or whatever else has a list.
        size: height and width to which images (antialiased) and masks (nearest pixel) are resized. Without it all
            images must have the same size.
    """
    root = voc_folder(root)
    names, classes = read_names(root, split), read_classes(root)
    pairs = [read_pair(root, name, len(classes), size) for name in names]
    for name, (image, _) in zip(names, pairs, strict=True):
        if image.shape != pairs[0][0].shape:
            raise ValueError(f"{name} has {list(image.shape[1:])} pixels and {names[0]} has "
                             f"{list(pairs[0][0].shape[1:])}: give a size to which all are resized")
    images, masks = zip(*pairs, strict=True)
    return Segmentation(torch.stack(images), torch.stack(masks), classes)


def voc_folder(root: str | Path) -> Path:
    """The folder that holds JPEGImages: this one, or the only one at most two levels below it (VOCdevkit/VOC2012)."""
    root = Path(root).expanduser()
    levels = ([place.parent for place in root.glob(f"{below}JPEGImages")] for below in ("", "*/", "*/*/"))
    found = next(filter(None, levels), [])
    if not found:
        raise FileNotFoundError(f"no folder in VOC's layout at {root.absolute()}; give the one that holds JPEGImages "
                                "and SegmentationClass")
    if len(found) > 1:
        raise ValueError(f"{root.absolute()} has {len(found)} folders in VOC's layout, such as {min(found).name}: give "
                         "one of them")
    return found[0]


def described(root: Path, names: tuple[str, str], train: Segmentation, test: Segmentation) -> str:
    """Two lines on what was understood: images, parts and classes, and what is not used."""
    seen = [torch.bincount(mask.flatten().long(), minlength=IGNORE + 1) > 0 for mask in train.masks]
    sizes = list(zip(torch.stack(seen).sum(0).tolist(), train.classes, strict=False))
    (few, rarest), (many, commonest) = min(sizes), max(sizes)
    learnt, tested = (set(read_names(root, split)) for split in names)
    unlisted = sum(path.stem not in learnt | tested for path in (root / "JPEGImages").glob("[!.]*"))
    others = sorted(path.stem for path in (root / "ImageSets" / "Segmentation").glob("*.txt") if path.stem not in names)
    said = [f"{counted(len(learnt | tested), 'image')} with masks, {len(train.images):,} to train on ({names[0]}) and "
            f"{len(test.images):,} to test on ({names[1]})",
            f"{counted(len(learnt & tested), 'image')} in both parts" * bool(learnt & tested),
            f"{counted(len(sizes), 'class')} in {few:,} ({rarest}) to {many:,} ({commonest}) training images"]
    left_out = [f"the lists {some_of(others)}" * bool(others),
                f"{counted(unlisted, 'image')} in neither list" * bool(unlisted)]
    return f"{root}: {'; '.join(filter(None, said))}\nleft out: {'; '.join(filter(None, left_out)) or 'nothing'}"


def splits(root: str | Path) -> tuple[str, str]:
    """The names of the parts to train and to test on: train, and test if it has masks, otherwise val."""
    root = Path(root)
    if not (root / "ImageSets" / "Segmentation" / "test.txt").is_file():
        return "train", "val"
    masked = (root / "SegmentationClass" / f"{read_names(root, 'test')[0]}.png").is_file()   # Pascal VOC hides its own
    return "train", "test" if masked else "val"


def common_size(root: str | Path, short: int = 224) -> tuple[int, int]:
    """Height and width for a whole set: the first image's, its shorter side `short`, in multiples of 32 pixels."""
    root = Path(root)
    height, width = read_image(image_path(root, read_names(root, "train")[0])).shape[1:]
    scale = short / min(height, width)
    return max(32, round(height * scale / 32) * 32), max(32, round(width * scale / 32) * 32)


def read_names(root: Path, split: str) -> list[str]:
    lists = root / "ImageSets" / "Segmentation"
    path = lists / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(other.stem for other in lists.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"no list of images at {path.absolute()}; the lists there are: {there}")
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]   # more may follow the name
    if not lines:
        raise ValueError(f"{path.absolute()} lists no images; it needs one name a line, without folder and suffix")
    return [re.sub(r"(?i)\.(jpe?g|png|bmp|tiff?)$", "", words[0].rpartition("/")[2]) for words in lines]


def image_path(root: Path, name: str) -> Path:
    """The image of that name; most are .jpg, but any one suffix will do."""
    usual = root / "JPEGImages" / f"{name}.jpg"
    others = [] if usual.is_file() else sorted(usual.parent.glob(f"{glob.escape(name)}.*"))
    return others[0] if others else usual


def read_classes(root: Path) -> list[str]:
    """The names in the order of their numbers; 255 may be listed, but is not a class."""
    path = root / "classes.txt"
    if not path.is_file():
        return VOC
    rows = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
    rows = [row for row in rows if row[0] != str(IGNORE)]
    if not rows or any(len(row) < 2 or row[0] != str(place) for place, row in enumerate(rows)):
        raise ValueError(f"{path.absolute()} does not number its classes: write one line for each, '0 sky', '1 road' "
                         "and so on, in rising order")
    return [row[1].strip() for row in rows]


def read_pair(root: Path, name: str, classes: int, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """An image [3, H, W] and its mask [H, W], both uint8."""
    pixels, mask_path = image_path(root, name), root / "SegmentationClass" / f"{name}.png"
    for path in (pixels, mask_path):
        if not path.is_file():
            raise FileNotFoundError(f"{name} is listed but there is no {path.absolute()}; add the file or strike the "
                                    "name from the list")
    image, mask = read_image(pixels), read_mask(mask_path)
    if image.shape[1:] != mask.shape:
        raise ValueError(f"{name}'s image has {list(image.shape[1:])} pixels and its mask {list(mask.shape)}: a mask "
                         "needs the size of its image")
    values = mask.unique()
    if wrong := values[(values >= classes) & (values != IGNORE)].tolist():
        raise ValueError(f"{mask_path} has pixels of class {wrong[0]}, and the classes are 0 to {classes - 1} and "
                         f"{IGNORE} for pixels to ignore: correct the mask, or name its classes in classes.txt")
    if size is not None:
        image = F.resize(image, list(size), antialias=True)
        mask = F.resize(mask[None], list(size), InterpolationMode.NEAREST_EXACT)[0]
    return image, mask


def read_mask(path: Path) -> Tensor:
    """Read a mask as uint8 [H, W]: the numbers that a palette or grey image stores, not their colours."""
    with Image.open(path) as file:
        if file.mode not in ("P", "L"):
            raise ValueError(f"{path} is a picture of mode {file.mode}, and a mask is a palette (or 8-bit grey) PNG "
                             "whose pixels are the numbers of the classes: convert its colours to numbers")
        return torch.from_numpy(np.array(file))
