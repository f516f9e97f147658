"""How do the recipes for folders learn on one GPU? kNN on Imagenette, seconds an epoch and peak memory.

    python benchmarks/folder.py [--epochs 100] [--every 25] [RECIPE ...] [-- OPTION ...]

Without names it runs all of folder/*, with seed 0; what follows -- goes to ssl-zoo fit. The images are the 9,469
training and 3,925 test photographs of Imagenette v2 in its ten classes, at 128 x 128 pixels, in folders train and val.
Each recipe's figures are recorded when it ends, and the others' stay as they were.
"""

import tarfile
import tempfile
from pathlib import Path

from cifar10 import asked, measure_all
from record import data

from ssl_zoo.cli.messages import quiet
from ssl_zoo.cli.recipes import shipped


def unpack(folder: Path) -> Path:
    """The pack as a folder of images, unpacked once."""
    if not (folder / "imagenette128/val").is_dir():
        with tarfile.open(data("imagenette128.tar.gz")) as pack:
            pack.extractall(folder, filter="data")
    return folder / "imagenette128"


if __name__ == "__main__":
    quiet()
    recipes, options = asked(__doc__, epochs=100, every=25)
    images = ["--data.root", str(unpack(Path(tempfile.gettempdir())))]
    measure_all(recipes or [name for name in shipped() if name.startswith("folder/")], images, options, "folder")
