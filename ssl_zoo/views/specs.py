"""Describe views: each row of a recipe is a `ViewSpec`, and the rows of well-known papers have names."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ssl_zoo.views.crops import KERNELS


@dataclass(frozen=True)
class ViewSpec:
    """A distribution over views of one image. Operations run in the order in which their options stand here.

    Args:
        size: side of the view, pixels.
        count: number of views of each image to make from this row.
        role: a name by which methods tell views apart, such as global and local in multi-crop.
        clean: take the largest centred square, resize it to the view's size, and change nothing else. Evaluation sees
            less of an image: it resizes the shorter side to 8/7 of the size and takes the centre of that.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's width divided by its height, whose logarithm is drawn uniformly.
        overlap: least share of the crop that must lie in the image's first view, as in SlotCon, arXiv:2205.15288. A
            crop with less is drawn again, up to ten times; after that, the first view's crop is taken.
        interpolation: how to resize the crop; antialias is always on.
        flip: probability of mirroring left to right.
        vertical_flip: probability of mirroring top to bottom.
        jitter: probability of changing brightness, contrast, saturation and hue, in an order drawn for each view.
        strength: multiplies the four ranges below; the s of SimCLR, arXiv:2002.05709, app. A.
        brightness: factor between 1 - this * strength (not below 0) and 1 + this * strength.
        contrast: range of the contrast factor, given as for brightness.
        saturation: range of the saturation factor, given as for brightness.
        hue: shift of up to this * strength turns either way; at most half a turn.
        gray: probability of dropping the colour.
        blur: probability of a Gaussian blur.
        sigma: range of the blur's standard deviation, pixels.
        kernel: width of the blur, an odd number of pixels. If you leave it out, it is a tenth of the side as in SimCLR,
            but at most three sigma either way, beyond which the blur does not change.
        solarize: probability of inverting all values that are at least `threshold`.
        threshold: share of full brightness.
        extra: Kornia augmentations to run after all of these, each a class_path with its init_args, such as
            {class_path: kornia.augmentation.RandomErasing, init_args: {p: 0.3}}. In Python you can also pass objects.
    """

    size: int
    count: int = 1
    role: str = ""
    clean: bool = False
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    overlap: float = 0.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    flip: float = 0.5
    vertical_flip: float = 0.0
    jitter: float = 0.0
    strength: float = 1.0
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    gray: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    kernel: int | None = None
    solarize: float = 0.0
    threshold: float = 128 / 255
    extra: Sequence[dict[str, Any]] = ()

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise ValueError(f"a view's {name} must be {rule}, not {getattr(self, name)}")

        for name in ("size", "count"):
            require(isinstance(getattr(self, name), int), name, "a whole number")
            require(getattr(self, name) >= 1, name, "at least 1")
        require(self.interpolation in KERNELS, "interpolation", f"one of {', '.join(KERNELS)}")
        for name in ("overlap", "flip", "vertical_flip", "jitter", "gray", "blur", "solarize", "threshold"):
            require(0 <= getattr(self, name) <= 1, name, "between 0 and 1")
        for name in ("strength", "brightness", "contrast", "saturation", "hue"):
            require(getattr(self, name) >= 0, name, "at least 0")
        require(self.hue * self.strength <= 0.5, "hue", f"at most half a turn with strength {self.strength}")
        require(0 < self.scale[0] <= self.scale[1] <= 1, "scale", "two rising shares of the image's area in (0, 1]")
        require(0 < self.ratio[0] <= self.ratio[1], "ratio", "two rising numbers above 0")
        require(0 < self.sigma[0] <= self.sigma[1], "sigma", "two rising numbers of pixels above 0")
        require(self.kernel is None or (self.kernel % 2 == 1 and 0 <= self.kernel // 2 < self.size), "kernel",
              "an odd number of pixels that the view can hold")
        for name in ("overlap", "vertical_flip", "jitter", "gray", "blur", "solarize") if self.clean else ():
            require(getattr(self, name) == 0, name, "0 where it is clean")
        require(isinstance(self.extra, list | tuple), "extra", "a list of Kornia's augmentations")
        require(not (self.clean and self.extra), "extra", "empty where it is clean")

    @property
    def blur_kernel(self) -> int:
        """The width of the blur's kernel, pixels.

        Pixels beyond three standard deviations are left out; they would add 0.002 of 255 on average (measured).
        """
        return self.kernel or min(self.size // 10 | 1, 2 * math.ceil(3 * self.sigma[1]) + 1)


Preset = Literal["simclr", "simclr_32", "moco_v2", "moco_v2_32", "swav", "swav_32", "byol", "byol_32", "pixpro",
                 "pixpro_32"]

SIMCLR = ViewSpec(224, count=2, interpolation="bicubic", jitter=0.8, gray=0.2, blur=0.5)   # arXiv:2002.05709, app. A
# arXiv:2002.05709, app. B.9: at 32 pixels half the strength and no blur
SIMCLR_32 = replace(SIMCLR, size=32, interpolation="bilinear", strength=0.5, blur=0.0)
# arXiv:2003.04297; the authors' code has hue 0.1
MOCO_V2 = ViewSpec(224, count=2, scale=(0.2, 1.0), jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1,
                   gray=0.2, blur=0.5)
# arXiv:2006.09882, app. A, with the numbers of the authors' code
SWAV = ViewSpec(224, count=2, role="global", scale=(0.14, 1.0), jitter=0.8, gray=0.2, blur=0.5)
# arXiv:2006.07733, app. B: the two views differ in blur and solarisation
BYOL = ViewSpec(224, interpolation="bicubic", jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1,
                gray=0.2, blur=1.0)
BYOL_32 = replace(BYOL, size=32, interpolation="bilinear", blur=0.0)

PRESETS: dict[str, tuple[ViewSpec, ...]] = {
    "simclr": (SIMCLR,),
    "simclr_32": (SIMCLR_32,),
    "moco_v2": (MOCO_V2,),
    "moco_v2_32": (replace(MOCO_V2, size=32, scale=(0.08, 1.0), blur=0.0),),      # the authors' CIFAR-10 notebook
    "swav": (SWAV, replace(SWAV, size=96, count=6, role="local", scale=(0.05, 0.14))),
    # not from a paper: SwAV's two scales without blur. A local view of 96/224 of 32 pixels would be 14 pixels wide; at
    # 16 an encoder can halve it three times without a remainder
    "swav_32": (replace(SWAV, size=32, strength=0.5, blur=0.0),
                replace(SWAV, size=16, count=4, role="local", scale=(0.05, 0.14), strength=0.5, blur=0.0)),
    "byol": (BYOL, replace(BYOL, blur=0.1, solarize=0.2)),
    "byol_32": (BYOL_32, replace(BYOL_32, solarize=0.2)),
    # arXiv:2011.10043: BYOL's pair; bilinear, as the authors' code has it
    "pixpro": (replace(BYOL, interpolation="bilinear"),
               replace(BYOL, interpolation="bilinear", blur=0.1, solarize=0.2)),
    "pixpro_32": (BYOL_32, replace(BYOL_32, solarize=0.2)),
}
