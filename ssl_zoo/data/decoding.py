"""Files into images: any format, any type of pixels and any number of channels become uint8 [C, H, W].

Pictures of 8 bits are PIL's. Where PIL would shorten pixels to 8 bits, read one channel of several, or knows no such
type, tifffile and imagecodecs read the samples as they are stored, and `levels` says which of them are black and white.
"""

import errno
import io
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Self, TypeVar

import imagecodecs
import numpy as np
import tifffile
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from ssl_zoo.data import jpeg
from ssl_zoo.data.tree import counted

Found = TypeVar("Found")
Levels = Literal["file"] | tuple[float, float]
PAUSES = (0.1, 1.0)   # seconds before a disk is asked again
LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
MAX_PIXELS = 89_478_485   # PIL warns of a decompression bomb beyond it
TIFF = {".tif", ".tiff", ".btf", ".lsm"}
SUFFIXES = TIFF | {".apng", ".avif", ".avifs", ".bmp", ".dds", ".dib", ".fit", ".fits", ".gif", ".j2c", ".j2k", ".jfif",
                   ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm",
                   ".png", ".pnm", ".ppm", ".psd", ".qoi", ".ras", ".sgi", ".tga", ".webp", ".xbm", ".xpm"}
# how a camera's pixels are stored, by the orientation tag -> upright
UPRIGHT = {2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
           6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: lambda x: np.rot90(x, 1)}


class Unreadable(ValueError):
    """A file that is an image, but none that can be taken; the sentence says why and what to do.

    Args:
        kind: what a count calls it, "too large" or "unsupported".
    """

    def __init__(self, kind: str, sentence: str):
        super().__init__(sentence)
        self.kind = kind


class Unread(NamedTuple):
    """Why a file was left out: "too large", "unsupported", "broken", "not opened", or "disk" where the disk failed."""

    kind: str
    sentence: str   # names the file

    def require_disk(self) -> Self:
        """Raise an OSError if the disk failed, which says nothing of the image."""
        if self.kind == "disk":
            raise OSError(self.sentence)
        return self

    def refuse(self) -> NoReturn:
        """Raise what `attempted` has met."""
        raise Unreadable(self.kind, self.require_disk().sentence)


@dataclass(frozen=True)
class Decoder:
    """How a file becomes an image. An exported encoder keeps the first three, without which its features are others.

    Args:
        channels: 3 for colours (gray is repeated), 1 for gray, any other number for files with just these channels.
        levels: the two values that become 0 and 255, in files of more than 8 bits; what lies beyond is clipped. "file"
            is the whole range of the file's type, and 0 to 1 for floats.
        background: the colour behind transparent pixels, by a name or as "#rrggbb".
        max_pixels: larger pictures are decoded at a reduced scale, or refused where their format has none.
    """

    channels: int = 3
    levels: Levels = "file"
    background: str = "white"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name in ("channels", "max_pixels"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {getattr(self, name)}")
        try:
            ImageColor.getrgb(str(self.background))
        except ValueError:
            raise ValueError(f"background must be a colour such as white, gray or '#80ff00', not {self.background}"
                             ) from None
        if self.levels != "file":
            given = tuple(self.levels) if isinstance(self.levels, list | tuple) else ()
            numbers = [one for one in given if isinstance(one, int | float) and math.isfinite(one)]
            if len(numbers) != 2 or len(given) != 2 or numbers[0] >= numbers[1]:
                raise ValueError("levels must be two rising numbers, the values that become black and white, not "
                                 f"{self.levels}")
            object.__setattr__(self, "levels", given)   # a list, as recipes and json have it, has no hash

    def like(self, preprocessing: Mapping[str, Any]) -> Self:
        """This decoder with what an encoder's description says."""
        return replace(self, **{name: preprocessing[name] for name in ("channels", "levels", "background")
                                if name in preprocessing})

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Plain values for an encoder's description."""
        levels = self.levels if self.levels == "file" else list(self.levels)
        return {"channels": self.channels, "levels": levels, "background": self.background}


COLOURS = Decoder()   # three channels of 8 bits


class Samples(NamedTuple):
    """The pixels of a file as they are stored."""

    pixels: np.ndarray        # [H, W, C] of an integer or float type
    bits: int                 # that are used of an integer type
    alpha: bool = False       # the last channel is the opacity
    nodata: float | None = None   # stands where nothing was measured

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and largest value that the type has; 0 and 1 for floats."""
        if self.pixels.dtype.kind == "f":
            return 0.0, 1.0
        if self.pixels.dtype.kind == "i":
            return -2 ** (self.bits - 1), 2 ** (self.bits - 1) - 1
        return 0, 2 ** self.bits - 1

    @property
    def extremes(self) -> tuple[float, float] | None:
        """The smallest and largest value that the colours have; None if there is no finite one."""
        pixels = self.pixels[..., :-1] if self.alpha else self.pixels
        known = np.ones(pixels.shape, bool) if self.nodata is None else pixels != self.nodata
        if pixels.dtype.kind == "f":
            known &= np.isfinite(pixels)
        pixels = pixels[known]
        return (pixels.min().item(), pixels.max().item()) if pixels.size else None


@dataclass
class LeftOut:
    """Which images of a data set could not be read, and why; each once."""

    unread: dict[str, Unread] = field(default_factory=dict)   # by name, as far as they have been tried

    def note(self, name: str, why: Unread) -> bool:
        """Remember why a file was left out; False where that is known."""
        new = name not in self.unread
        self.unread.setdefault(name, why)
        return new

    @property
    def kinds(self) -> str:
        """The counts of `unread`, as in "2 broken, 1 too large"."""
        return ", ".join(f"{count} {kind}" for kind, count in Counter(why.kind for why in self.unread.values()
                                                                      ).most_common())

    @property
    def sentences(self) -> list[str]:
        """For a report."""
        return [f"{counted(len(self.unread), 'image')} that could not be read: {self.kinds}; such as {why.sentence}"
                for why in list(self.unread.values())[:1]]


def read_image(path: str | Path, decoder: Decoder = COLOURS, content: bytes | None = None) -> Tensor:
    """Read an image as uint8 [C, H, W], upright.

    This uses PIL, and imagecodecs where that gives the same pixels in less time.

    Args:
        path: of the file; only its name where there is `content`.
        content: of the file, where it is a part of another one.

    Raises:
        Unreadable: the image is too large, or its pixels or channels are none that `decoder` takes.
        Exception: whatever a decoder raises on a file that is no whole image.
    """
    with opened(path, content) as file:
        size = None if file is None else file.size
        samples = stored(path, file, decoder, content)
        if samples is not None:
            return from_samples(path, samples, decoder)
        return whole(path, file, decoder, content) if file.size == size else picture(file, decoder)


def whole(path: str | Path, file: Any, decoder: Decoder, content: bytes | None = None) -> Tensor:
    """A picture of 8 bits at its own size."""
    pixels = jpeg.pixels_of(path, file, decoder.channels, content)
    return picture(file, decoder) if pixels is None else pixels


def stored_samples(path: str | Path, decoder: Decoder, content: bytes | None = None) -> Samples | None:
    """The samples of a file of more than 8 bits; None for a picture of 8 bits, which is not decoded."""
    with opened(path, content) as file:
        samples = stored(path, file, decoder, content)
        return None if samples is None or samples.bits <= 8 else samples


@contextmanager
def opened(path: str | Path, content: bytes | None) -> Iterator[Any]:
    """The file as PIL's image, not yet decoded; None for a TIFF of a kind that PIL does not know."""
    kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None   # `bounded` has its own limit, and says its sentence
    try:
        file = Image.open(path if content is None else io.BytesIO(content))
    except UnidentifiedImageError:
        if Path(path).suffix.lower() not in TIFF:
            raise
        yield None
        return
    finally:
        Image.MAX_IMAGE_PIXELS = kept
    with file:
        yield file


def stored(path: str | Path, file: Any, decoder: Decoder, content: bytes | None) -> Samples | None:
    """The samples of a file that PIL would shorten, or of which it would leave channels out; None for any other."""
    if file is None or file.format == "TIFF":
        return None if file is not None and whole_tiff(file, decoder) else tiff(path, decoder, content)
    bounded(path, file, decoder)
    if file.format in ("PNG", "JPEG2000") and content is None:
        content = Path(path).read_bytes()
    if file.format == "PNG" and content is not None and content[24] == 16:
        pixels = imagecodecs.png_decode(content)
        alpha = pixels.shape[2:] in ((2,), (4,)) and decoder.channels in (1, 3)
        return Samples(upright(np.atleast_3d(pixels), exif_orientation(file)), 16, alpha)
    if file.format == "JPEG2000" and content is not None and (bits := jpeg2000_bits(content)) > 8:
        return Samples(np.atleast_3d(imagecodecs.jpeg2k_decode(content)), bits)
    if file.mode[0] in "IF":
        pixels = np.atleast_3d(np.asarray(file))
        if pixels.dtype.kind == "i" and pixels.min() >= 0 and pixels.max() < 2 ** 16:
            pixels = pixels.astype(np.uint16)   # a PGM, whose 16 bits PIL has in 32
        return Samples(pixels, 8 * pixels.itemsize)
    if decoder.channels not in (1, 3):
        return Samples(np.atleast_3d(np.asarray(file)), 8)
    return None


def whole_tiff(file: Any, decoder: Decoder) -> bool:
    """Whether PIL reads all of a TIFF: 8 bits or fewer without a sign, no further channels, and one page."""
    tags = file.tag_v2
    bits, kinds, samples = tags.get(258, (1,)), tags.get(339, (1,)), tags.get(277, 1)
    if file.mode == "L" and tags.get(274, 1) != 1:
        return False   # Pillow 13 leaves gray ones as the camera lay
    return (max(bits) <= 8 and set(kinds) == {1} and samples <= len(file.getbands()) and file.n_frames == 1
            and decoder.channels in (1, 3) and file.width * file.height <= decoder.max_pixels)


def tiff(path: str | Path, decoder: Decoder, content: bytes | None) -> Samples:
    """The samples of the first series of a TIFF, of its finest level that `max_pixels` allows."""
    with tifffile.TiffFile(path if content is None else io.BytesIO(content)) as file:
        series = file.series[0]
        levels = [level for level in series.levels
                  if math.prod(level.sizes[side] for side in ("height", "width")) <= decoder.max_pixels]
        if not levels:
            raise too_large(path, series.sizes["width"], series.sizes["height"], decoder)
        level, page = levels[0], series.keyframe
        others = [place for place, axis in enumerate(level.axes) if axis not in "YX"]
        planes = {axis: count for axis, count in zip(level.axes, level.shape, strict=True) if axis not in "YXSC"}
        channels = math.prod(level.shape[place] for place in others)
        if math.prod(planes.values()) > 1 and channels != decoder.channels:
            raise Unreadable("unsupported", f"{path} is a stack of {math.prod(planes.values())} images (axes "
                             f"{level.axes}): save each as a file of its own, or set channels to {channels} to take "
                             "them as the channels of one image")
        order = [level.axes.index("Y"), level.axes.index("X"), *others]
        pixels = level.asarray().transpose(order).reshape(*(level.shape[place] for place in order[:2]), channels)
        bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
            pixels = 2 ** bits - 1 - pixels
        alpha = tuple(page.extrasamples) in ((1,), (2,)) and decoder.channels in (1, 3)
        orientation = page.tags.valueof(274, default=1)
        return Samples(upright(pixels, orientation), bits, alpha, page.nodata if 42113 in page.tags else None)


def from_samples(path: str | Path, samples: Samples, decoder: Decoder) -> Tensor:
    """Samples as an image: levels mapped to bytes, then a picture of 8 bits or, for other channels, all of them."""
    require_order(path, samples, decoder)
    channels = samples.pixels.shape[2]
    if channels != decoder.channels and (decoder.channels not in (1, 3) or channels - samples.alpha not in (1, 3)):
        raise Unreadable("unsupported", f"{path} has {channels} channel{'s' * (channels > 1)}, and channels is "
                         f"{decoder.channels}: set channels to {channels}, or leave the file out")
    pixels = to_bytes(samples.pixels, levels_of(samples, decoder))
    if samples.alpha:
        pixels[..., -1:] = to_bytes(samples.pixels[..., -1:], samples.range)
    if decoder.channels not in (1, 3) or (channels == 3 and decoder.channels == 3):
        return torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)
    return picture(Image.fromarray(pixels if channels > 1 else pixels[..., 0]), decoder)   # L, LA, RGB or RGBA


def require_order(path: str | Path, samples: Samples, decoder: Decoder) -> None:
    """Refuse pixels of a type or range that does not say which values are black and white."""
    kind = samples.pixels.dtype.kind
    if kind not in "uif":
        raise Unreadable("unsupported", f"{path} has pixels of type {samples.pixels.dtype}, which are not dark or "
                         "bright: save it with integers or floats")
    if kind == "f" and decoder.levels == "file" and (found := samples.extremes) and not 0 <= found[0] <= found[1] <= 1:
        raise Unreadable("unsupported", f"{path} has floats from {found[0]:.6g} to {found[1]:.6g}, and a file does not "
                         "say which of them are black and white: set levels to data, or to two numbers")


def levels_of(samples: Samples, decoder: Decoder) -> tuple[float, float]:
    """The values that become 0 and 255; bytes stay as they are, whatever the levels."""
    if decoder.levels == "file" or samples.pixels.dtype == np.uint8:
        return samples.range
    return decoder.levels


def to_bytes(pixels: np.ndarray, levels: tuple[float, float]) -> np.ndarray:
    """Map `levels` to 0 and 255 in a straight line; values beyond are clipped, and NaN becomes 0.

    Integers are rounded down, so that each byte stands for as many of them; floats, which once were bytes, to the
    nearest.
    """
    low, high = levels
    half = 0.5 * (pixels.dtype.kind == "f")
    if pixels.dtype == np.uint8 and (low, high) == (0, 255):
        return pixels
    found = np.empty(pixels.shape, np.uint8)
    for row, given in zip(found, pixels, strict=True):           # whole images of doubles would take much memory
        row[:] = np.nan_to_num(((given.astype(np.float64) - low) * 255 / (high - low) + half).clip(0, 255), nan=0)
    return found


def picture(image: Image.Image, decoder: Decoder) -> Tensor:
    """A PIL image of 8 bits as uint8 [1, H, W] or [3, H, W], upright and on the background if it is transparent."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, decoder.background)
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    mode = "RGB" if decoder.channels == 3 else "L"
    return F.pil_to_tensor(image if image.mode == mode else image.convert(mode))


def bounded(path: str | Path, file: Any, decoder: Decoder) -> None:
    """Let a picture of more than `max_pixels` be decoded at a reduced scale, or refuse it."""
    width, height = file.size
    for power in range(1, 4):
        if width * height <= decoder.max_pixels << 2 * (power - 1):
            break
        if width * height <= decoder.max_pixels << 2 * power and file.format in ("JPEG", "MPO"):
            file.draft(file.mode, (width >> power, height >> power))
            return
        if width * height <= decoder.max_pixels << 2 * power and file.format == "JPEG2000":
            file.reduce = power
            return
    if width * height > decoder.max_pixels:
        raise too_large(path, width, height, decoder)


def too_large(path: str | Path, width: int, height: int, decoder: Decoder) -> Unreadable:
    return Unreadable("too large", f"{path} has {width:,} x {height:,} pixels, more than max_pixels "
                      f"({decoder.max_pixels:,}), and cannot be decoded at a scale that has fewer: reduce the picture, "
                      "or raise max_pixels (each worker needs about 12 bytes for a pixel)")


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return UPRIGHT.get(orientation, lambda x: x)(pixels)


def attempted(read: Callable[[int], Found], place: int, name: str) -> Found | Unread:
    """The image of a place, or why there is none. A disk that does not answer is asked three times."""
    for pause in (*PAUSES, None):
        try:
            return read(place)
        except Unreadable as error:
            return Unread(error.kind, str(error))
        except MemoryError:
            return Unread("too large", f"{name} does not fit into memory: reduce the picture, or lower max_pixels")
        except Exception as error:   # whatever a decoder raises on a damaged file
            if not isinstance(error, OSError) or error.errno is None:
                why = str(error).partition("\n")[0].replace(f" {name!r}", "") or type(error).__name__
                return Unread("broken", f"{name} cannot be read as an image ({why}); remove it")
            if error.errno in LASTING:
                return Unread("not opened", f"{name} cannot be opened ({error.strerror}); give it back, or remove it")
            if pause is None:
                return Unread("disk", f"{name} was not read because its disk failed {len(PAUSES) + 1} times in a row "
                              f"({error.strerror}): go on from the last checkpoint when the disk answers")
            time.sleep(pause)
    raise AssertionError   # the last pause is None


def exif_orientation(file: Any) -> int:
    exif = Image.Exif()
    exif.load(file.info.get("exif"))
    return exif.get(0x0112, 1)


def jpeg2000_bits(content: bytes) -> int:
    """The bits of a sample, which stand in the header of the code stream."""
    return (content[content.index(b"\xff\x4f\xff\x51") + 42] & 127) + 1
