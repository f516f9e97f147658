"""How fast do images come from shards, Parquet and Hugging Face's sets, against a folder of files? Per core.

    python benchmarks/streams.py [--images 1000] [--rounds 5] [--workers 2]

The images are 1,000 photographs of ImageNet with a short side of 256 pixels, in one class. Every source hands out the
same training batches of 64: two crops of 224 pixels of each image, cut by the loader. `images_per_core_second` divides
by the processor time of one process that loads alone, median of the rounds, in which the sources take turns;
`overhead` is the time for an image's bytes alone, without decoding. `images_per_second` is what `--workers` processes
give, by the clock. Files are in the page cache: what is measured is the program, not a disk.
"""

import argparse
import contextlib
import io
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from record import data, record

from ssl_zoo.cli.messages import quiet
from ssl_zoo.cli.shard import shard
from ssl_zoo.data import HuggingFaceImages, ImageFolder, Images, ImageShards
from ssl_zoo.data.sources import Files, Loader
from ssl_zoo.data.streams import Enclosed
from ssl_zoo.views import Augmentation, ViewSpec

BATCH, MEGABYTES = 64, 5


def made(folder: Path, images: int) -> dict[str, Images]:
    """The same photographs in every form, each with its data module."""
    with tarfile.open(data("imagenet_sample256.tar.gz")) as pack:
        pack.extractall(folder, filter="data")
    photographs = sorted((folder / "imagenet_sample256").glob("*.JPEG"))[:images]
    (folder / "files").mkdir()
    for path in photographs:
        path.rename(folder / "files" / path.name)
    paths = [str(folder / "files" / path.name) for path in photographs]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for name, more in (("shards", []), ("small", ["--size", "128"])):
            shard([str(folder / "files"), str(folder / name), "--megabytes", str(MEGABYTES), *more])
        rows = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
        table = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
        table.save_to_disk(folder / "saved")
        (folder / "parquet").mkdir()
        table.to_parquet(folder / "parquet" / "train.parquet")
    shards = sorted((folder / "shards/train").glob("*.tar"))
    counts = folder / "counts.json"
    with contextlib.redirect_stdout(io.StringIO()):
        shard([f"pipe:cat {folder}/shards/train/{{000000..{len(shards) - 1:06}}}.tar", str(counts)])
    return {"folder": ImageFolder(str(folder / "files"), BATCH), "shards": ImageShards(str(folder / "shards"), BATCH),
            "shards, fetched by a command": ImageShards(str(counts), BATCH, block=4),
            "shards of images reduced to 128": ImageShards(str(folder / "small"), BATCH),
            "Parquet": HuggingFaceImages(str(folder / "parquet"), BATCH),
            "saved data set": HuggingFaceImages(str(folder / "saved"), BATCH)}


def seconds(clock: Callable[[], float], loader: Loader) -> float:
    """For one epoch."""
    start = clock()
    for _ in loader:
        pass
    return clock() - start


def bytes_alone(source: Files) -> float:
    """Seconds of processor time for the bytes of all images, which nobody decodes."""
    start = time.process_time()
    for place in range(len(source)):
        if isinstance(source, Enclosed):
            source.content(source.whole(place))
        else:
            Path(source.names[place]).read_bytes()
    return time.process_time() - start


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 1000), ("rounds", 5), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    datasets.disable_progress_bars()
    try:
        sources: dict[str, Files] = {}
        for name, images in made(folder, options.images).items():
            images.said = True
            images.setup("validate")
            sources[name] = images.train
            images.train.augment = Augmentation([ViewSpec(224, count=2, scale=(0.2, 1.0))])
        alone: dict[str, list[float]] = {name: [] for name in sources}
        clocks: dict[str, list[float]] = {name: [] for name in sources}
        reading: dict[str, list[float]] = {name: [] for name in sources}
        for number in range(options.rounds):
            for name, source in sources.items():
                loaders = [Loader(source, BATCH, workers, training=True) for workers in (0, options.workers)]
                for loader in loaders:
                    loader.set_epoch(number)
                alone[name].append(seconds(time.process_time, loaders[0]))
                clocks[name].append(seconds(time.perf_counter, loaders[1]))
                reading[name].append(bytes_alone(source))
        shown = len(Loader(sources["folder"], BATCH, training=True)) * BATCH
        record("streams", {"images": options.images, "rounds": options.rounds, "workers": options.workers, "sources": {
            name: {"images_per_core_second": round(shown / statistics.median(alone[name]), 1),
                   "images_per_second": round(shown / statistics.median(clocks[name]), 1),
                   "overhead_microseconds": round(1e6 * statistics.median(reading[name]) / options.images, 1)}
            for name in sources}})
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
