"""JPEG files decoded at a share of their size, for crops that need no more pixels."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ssl_zoo.data.decoding import Decoder, from_samples, opened, picture, stored, whole
from ssl_zoo.data.jpeg import ORIENTATION
from ssl_zoo.views import Scaled

Factor = Callable[[int, int], int]   # height and width of an upright image -> 1, 2, 4 or 8


def read_scaled(path: str | Path, decoder: Decoder, factor: Factor, content: bytes | None = None) -> Tensor | Scaled:
    """Read an image as `decoding.read_image`, and a JPEG file reduced by what `factor` says of its size.

    libjpeg leaves out the high frequencies of each 8 x 8 block: 12 megapixels and their two crops take a fifth of the
    time. Where the factor is 1, in other formats, and in a picture that is too large to be decoded whole, the pixels
    are those of `read_image`.
    """
    with opened(path, content) as file:
        size = None if file is None else file.size
        samples = stored(path, file, decoder, content)
        if samples is not None:
            return from_samples(path, samples, decoder)
        if file.format not in ("JPEG", "MPO") or file.size != size:   # `bounded` has reduced it
            return picture(file, decoder)
        orientation = file.getexif().get(ORIENTATION, 1)
        width, height = file.size if orientation < 5 else file.size[::-1]
        chosen = factor(height, width)
        if orientation != 1:   # its left or upper edge may have been the other one, where a pixel reaches beyond it
            while chosen > 1 and (width % chosen or height % chosen):
                chosen //= 2
        if chosen == 1:
            return whole(path, file, decoder, content)
        file.draft(file.mode, tuple(side // chosen for side in file.size))
        as_it_is = file.size == size   # a file that PIL does not reduce
        pixels = picture(file, decoder)
        return pixels if as_it_is else Scaled(pixels, (height, width), chosen)
