"""The lines of Python that use an exported file. A card shows them, and an export is checked by running them."""

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_zoo.encoders import Encoder, check_size

TOLERANCE = 1e-4   # of the largest feature


class Different(ValueError):
    """A sentence on a file whose features are not the encoder's."""


class Usage(NamedTuple):
    """A program that makes `features` of `images`, uint8 [B, C, H, W]."""

    imports: str
    load: str          # has FILE where the path of the file belongs
    use: str
    numpy: bool = False   # whether images and features are arrays

    def lines(self, file: str | Path) -> str:
        return f"{self.imports}\n\n{self.loading(file)}\n{self.use}\n"

    def loading(self, file: str | Path) -> str:
        return self.load.replace("FILE", json.dumps(str(file), ensure_ascii=False))

    @classmethod
    def of_ssl_zoo(cls, kind: str) -> "Usage":
        module, _, name = kind.rpartition(".")
        imports = f"import torch\nfrom {module} import {name}" if module else "import torch"
        return cls(f"{imports}\nfrom ssl_zoo import load_encoder",
                   f"encoder = load_encoder(FILE{f', kind={name}' if module else ''})", TORCH)

    def require_equal(self, encoder: Encoder, file: Path, shapes: Iterable[tuple[int, int, int]]) -> None:
        """Refuse a file that does not give the encoder's features, for images of these shapes B, H, W."""
        names: dict[str, Any] = {}
        exec(f"{self.imports}\n{self.loading(file)}", names)   # our own lines, with values as literals in them
        for batch, height, width in shapes:
            images = noise(batch, encoder.channels, height, width)
            with torch.no_grad():
                expected = encoder(images)
            found: dict[str, Any] = {}
            exec(self.use, names | {"images": images.numpy() if self.numpy else images}, found)
            features = torch.as_tensor(found["features"])
            apart = (features - expected).abs().max() if features.shape == expected.shape else torch.inf
            largest = expected.abs().max()
            if not apart <= TOLERANCE * largest:   # nor where one is not a number
                raise Different(f"of {batch} images of {height} x {width} pixels the file's features differ from the "
                                f"encoder's by {apart:.2g}, where the largest is {largest:.2g}: they may differ by "
                                f"{TOLERANCE:g} of it; .safetensors keeps the encoder bit for bit")


TORCH = "with torch.no_grad():\n    features = encoder(images)"


def noise(batch: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(256, (batch, channels, height, width), generator=generator, dtype=torch.uint8)


def plain(encoder: Encoder, size: int | None) -> Encoder:
    """A copy on the CPU, in evaluation mode and without torch.compile, if it can be compared with other programs."""
    if size is None:
        raise ValueError("the size of the encoder's images is unknown, with which the file is checked: give size (on "
                         "the command line --size), in pixels")
    others = {str(value.dtype).removeprefix("torch.") for value in encoder.state_dict().values()
              if value.is_floating_point()} - {"float32"}
    if others:
        raise ValueError(f"the encoder has weights in {' and '.join(sorted(others))}, and other programs are compared "
                         "with it in float32: give encoder.float()")
    encoder = copy.deepcopy(encoder).cpu().eval()
    while compiled := next(((name, one) for name, one in encoder.named_modules() if hasattr(one, "_orig_mod")), None):
        encoder.set_submodule(compiled[0], compiled[1]._orig_mod)
    check_size(encoder, size)
    return encoder
