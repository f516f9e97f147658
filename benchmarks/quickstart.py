"""What does `make quickstart` find, in what time, and would a texture histogram find as much?

The run is timed in the environment that is active, on as many threads as OMP_NUM_THREADS says. Its picture of nearest
neighbours becomes docs/neighbours.png. --install times a fresh clone with its installation, too.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import ROOT, record
from skimage.feature import local_binary_pattern
from torch import Tensor

from ssl_zoo.data import Photographs
from ssl_zoo.files import whole

KIBIBYTES = 150   # of the picture, at most


def histograms(images: Tensor) -> Tensor:
    """How often each of the ten uniform binary patterns occurs at radius 1, 2 and 3: [N, 30], square roots of shares.

    Ojala, Pietikäinen and Mäenpää, "Multiresolution gray-scale and rotation invariant texture classification", 2002.
    """
    rows = [[np.bincount(local_binary_pattern(image, 8, radius, "uniform").astype(int).ravel(), minlength=10)
             for radius in (1, 2, 3)] for image in images[:, 0].numpy()]
    return torch.from_numpy(np.array(rows)).flatten(1).float().div(images[0, 0].numel()).sqrt()


def texture() -> float:
    """The share of test patches whose nearest histogram, by the cosine, is of the same photograph."""
    data = Photographs()
    data.read()
    train, test = (torch.nn.functional.normalize(histograms(part.images)) for part in (data.train, data.test))
    return (data.train.labels[(test @ train.T).argmax(1)] == data.test.labels).float().mean().item()


def run(folder: str) -> dict[str, object]:
    """The quickstart's own table, and what it took."""
    start, before = time.perf_counter(), spent()
    command = [sys.executable, "-m", "ssl_zoo", "fit", "--config", "quickstart"]
    printed = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    took = {"seconds": round(time.perf_counter() - start), "processor's seconds": round(spent() - before)}
    table = printed[printed.rindex("\n", 0, printed.index("raw pixels")) + 1:printed.index("whole table")]
    return took | {"table": [line for line in table.splitlines() if line]}


def spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def publish(picture: Path) -> None:
    """Commit-sized: a palette of 64 greys and colours keeps the patches and the frames."""
    path = ROOT / "docs" / "neighbours.png"
    with Image.open(picture) as image, whole(path) as half:
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(half, format="png", optimize=True)
    if path.stat().st_size > KIBIBYTES * 1024:
        raise SystemExit(f"{path} has {path.stat().st_size // 1024} KiB: {KIBIBYTES} are the most")


def installed() -> int:
    """Seconds of `make quickstart` on a fresh clone."""
    with tempfile.TemporaryDirectory() as clone:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), clone], check=True)
        start = time.perf_counter()
        subprocess.run(["make", "quickstart"], cwd=clone, check=True, capture_output=True)
        return round(time.perf_counter() - start)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        figures = run(place) | {"knn of a texture histogram": texture()}
        publish(Path(place) / "runs" / "quickstart" / "version_0" / "neighbours.png")
    if "--install" in sys.argv:
        figures |= {"seconds, with installation": installed()}
    record("quickstart", figures)
