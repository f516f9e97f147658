"""How many photographs a second does a core decode and crop, against lightly's transform; and which decoder is fastest?

    python benchmarks/decoding.py            about 4 minutes
    python benchmarks/decoding.py --rounds 1 fewer than 3 rounds; nothing is written

Two views of 224 pixels of photographs of ImageNet with a short side of 256, and of 12 megapixels (the same, enlarged,
with noise): what the loader does in one process on one thread, in the processor's seconds, taking turns; median. Ours
cuts crops, which the device colours; of cached canvases the device cuts them too. lightly's SimCLRTransform does all of
it in a DataLoader. The decoders give pixels of the same files; of those that are not installed there are no figures.
"""

import argparse
import contextlib
import io
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import imagecodecs
import lightly.transforms
import numpy as np
import torch
import torchvision
from PIL import Image
from record import data, record

from ssl_zoo.cli.messages import quiet
from ssl_zoo.cli.shard import shard
from ssl_zoo.data import ImageFolder, Images, ImageShards
from ssl_zoo.data.decoding import COLOURS, read_image
from ssl_zoo.data.scaled import read_scaled
from ssl_zoo.data.sources import Loader
from ssl_zoo.views import Augmentation, ViewSpec

SMALL, LARGE, BATCH = 128, 8, 8
ROWS = [ViewSpec(224, count=2, scale=(0.08, 1.0), jitter=0.8, gray=0.2, blur=0.5)]


def made(folder: Path) -> None:
    """Folders of the same photographs: files/a of 256 pixels, and large/a of 12 megapixels."""
    with tarfile.open(data("imagenet_sample256.tar.gz")) as pack:
        pack.extractall(folder, filter="data")
    for name in ("files", "large"):
        (folder / name / "a").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for place, path in enumerate(sorted((folder / "imagenet_sample256").glob("*.JPEG"))[:SMALL]):
        if place < LARGE:
            pixels = np.asarray(Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.LANCZOS))
            grain = noise.normal(0, 6, pixels.shape).astype(np.int16)
            Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(
                folder / "large/a" / path.name, "JPEG", quality=90)
        path.rename(folder / "files/a" / path.name)


def ours(images: Images) -> Loader:
    images.said = True
    with contextlib.redirect_stderr(io.StringIO()):
        images.setup("validate")
    images.train.augment, images.train.scaled = Augmentation(ROWS), True   # type: ignore[union-attr]
    return Loader(images.train, BATCH, training=True)


def theirs(root: Path) -> Iterable[Any]:
    """lightly's transform, as its documentation has it."""
    transform = lightly.transforms.SimCLRTransform(input_size=224)
    return torch.utils.data.DataLoader(torchvision.datasets.ImageFolder(str(root), transform), BATCH, shuffle=True)


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """What makes pixels [H, W, 3] or [3, H, W] of a file's bytes."""
    rgb = torchvision.io.ImageReadMode.RGB
    found: dict[str, Callable[[bytes], Any]] = {
        "PIL": lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB")),
        "ssl_zoo": lambda content: read_image("a.jpg", content=content),
        "imagecodecs": lambda content: imagecodecs.jpeg8_decode(content, outcolorspace="RGB"),
        "torchvision": lambda content: torchvision.io.decode_jpeg(torch.frombuffer(bytearray(content),
                                                                                   dtype=torch.uint8), rgb)}
    with contextlib.suppress(ImportError):
        import simplejpeg
        found["simplejpeg"] = lambda content: simplejpeg.decode_jpeg(content, "RGB")
    with contextlib.suppress(ImportError, RuntimeError):   # without libturbojpeg
        import turbojpeg
        turbo = turbojpeg.TurboJPEG()
        found["PyTurboJPEG"] = lambda content: turbo.decode(content, pixel_format=turbojpeg.TJPF_RGB)
    return found


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def in_turns(calls: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """Median seconds of each."""
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: statistics.median(runs) for name, runs in times.items()}


def loaders(folder: Path, rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        shard([str(folder / "files"), str(folder / "shards")])
    small = {"lightly": theirs(folder / "files"), "folder": ours(ImageFolder(str(folder / "files"), BATCH)),
             "shards": ours(ImageShards(str(folder / "shards"), BATCH)),
             "cached canvases": ours(ImageFolder(str(folder / "files"), BATCH, cache=str(folder / "cache"), workers=0))}
    large = {"lightly": theirs(folder / "large"), "folder": ours(ImageFolder(str(folder / "large"), BATCH))}
    for size, count, sources in (("256 pixels", SMALL, small), ("12 megapixels", LARGE, large)):
        found = in_turns({name: lambda source=source: [None for _ in source] for name, source in sources.items()},
                         rounds)
        figures[size] = {name: {"images_per_core_second": round(count / value, 1),
                                "times lightly": round(found["lightly"] / value, 2)} for name, value in found.items()}
    return figures


def files(contents: list[bytes], rounds: int) -> dict[str, Any]:
    each = len(contents)
    found = in_turns({name: lambda decode=decode: [None for content in contents if decode(content) is None]
                      for name, decode in decoders().items()}, rounds)
    scaled = in_turns({factor: lambda factor=factor: [
        None for content in contents if read_scaled("a.jpg", COLOURS, lambda *size: factor, content) is None]
        for factor in (2, 4, 8)}, rounds)
    return {**{name: {"milliseconds": round(1e3 * value / each, 2), "times PIL": round(found["PIL"] / value, 2)}
               for name, value in found.items()},
            **{f"ssl_zoo at 1/{factor}, milliseconds": round(1e3 * value / each, 2)
               for factor, value in scaled.items()},
            "largest difference of ssl_zoo from PIL, levels": max(map(difference, contents))}


def difference(content: bytes) -> int:
    pixels = (read_image("a.jpg", content=content).permute(1, 2, 0).numpy(), decoders()["PIL"](content))
    return int(np.abs(np.subtract(*pixels, dtype=int)).max())


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())][:60]


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        made(Path(name))
        figures = {"decoders": {size: files(contents(Path(name) / part / "a"), rounds or 3)
                                for size, part in (("256 pixels", "files"), ("12 megapixels", "large"))},
                   "loaders": loaders(Path(name), rounds or 3)}
    if rounds:
        print(json.dumps(figures, indent=2))
    else:
        record("decoding", figures)


if __name__ == "__main__":
    main()
