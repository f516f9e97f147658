"""How fast does SimCLR learn from our views, against lightly's, Kornia's and torchvision's? All else is the same.

    python benchmarks/peers.py                  on the CPU: 7 rounds, about 10 minutes of one core
    python benchmarks/peers.py --short          3 rounds, 4 minutes
    python benchmarks/peers.py --device cuda    on a GPU, with 16 loader processes: 3 rounds, or one with --short

Each pipeline makes the same rows of views in the way that its documentation shows: lightly's transform and
torchvision's v2 transforms image by image in the loader; Kornia's AugmentationSequential over the batch on the device,
of files that the loader resizes to one size; ours with crops cut in the loader and the rest on the device (images in
memory: all of it there). One SimCLR learns from them, by one Lightning trainer, with one encoder, loss, optimiser,
batch and precision; the encoder normalises for all, so that lightly's and torchvision's transforms leave it out.
`limit` is the same step with views that are there already: nobody can be faster. Colours are those of SimCLR and SwAV,
blur included for files, and crops are bilinear for all.

Three sets of views: two of 32 pixels of CIFAR-10 in memory, two of 224 of photographs in JPEG files with a short side
of 256, and SwAV's two of 224 and six of 96 of the same files. On the CPU everything runs in one process on one thread,
and seconds are the processor's; on a GPU they are the clock's, which starts once every batch that loaders had made
ahead is used up. `loader` is what the loader does for an image, always in one process on one thread: decoding, and what
is made of the image there. Pipelines take turns, and a figure is the median of the rounds. Writes peers.json, a table
peers.md and a picture peers.png to results/; on a GPU peers_cuda.*.
"""

import argparse
import functools
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import kornia.augmentation as K
import lightly.transforms
import numpy as np
import pytorch_lightning as pl
import torch
import torchvision.transforms.v2 as T
from learning import unpack
from PIL import Image
from record import ROOT, data, record
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from views import kornia_row, torchvision_views

from ssl_zoo.cli.messages import quiet
from ssl_zoo.data import ImageFolder
from ssl_zoo.data.arrays import resident
from ssl_zoo.data.sources import Files, Loader, Resident
from ssl_zoo.encoders import Encoder, NarrowResNet, ResNet
from ssl_zoo.evaluation.charts import COLOURS, blank, picture
from ssl_zoo.method import Batch
from ssl_zoo.methods import SimCLR
from ssl_zoo.schedules import WarmupCosine
from ssl_zoo.views import Augmentation, Key, View, ViewSpec
from ssl_zoo.views.specs import PRESETS

RESULTS = ROOT / "benchmarks/results"
WARM = 1            # steps before the clock starts
AHEAD = 2           # batches that each loader process makes ahead, by default
AGAIN = 20          # times that a GPU sees the images in an epoch, at whose end loader processes start anew
LIMIT, PEER = "limit", "lightly"
FLOAT = T.ToDtype(torch.float32, scale=True)
ALONE = 64          # images in a batch where a loader is measured alone
CROPPED = 256       # pixels: Kornia takes batches of one size, so files are resized and cut to it


class Workload(NamedTuple):
    """Which images, which views of them, and what learns from these."""

    rows: Sequence[ViewSpec]
    files: bool
    lightly: Callable[[], Any]               # its transform of the same views
    encoder: Callable[[str], Encoder]        # by the device's type
    batch: dict[str, int]                    # by the device's type
    steps: dict[str, int]                    # measured in a round


def bilinear(rows: Sequence[ViewSpec]) -> list[ViewSpec]:
    return [replace(row, interpolation="bilinear") for row in rows]


WORKLOADS = {
    "2x32, in memory": Workload(
        PRESETS["simclr_32"], False,
        functools.partial(lightly.transforms.SimCLRTransform, input_size=32, cj_strength=0.5, gaussian_blur=0.0,
                          normalize=None),
        lambda kind: NarrowResNet(32) if kind == "cpu" else ResNet(18, small_images=True),
        {"cpu": 256, "cuda": 512}, {"cpu": 3, "cuda": 40}),
    "2x224, files": Workload(
        bilinear(PRESETS["simclr"]), True, functools.partial(lightly.transforms.SimCLRTransform, normalize=None),
        lambda kind: ResNet(18 if kind == "cpu" else 50), {"cpu": 4, "cuda": 128}, {"cpu": 2, "cuda": 30}),
    "2x224 + 6x96, files": Workload(
        PRESETS["swav"], True, functools.partial(lightly.transforms.SwaVTransform, normalize=None),
        lambda kind: ResNet(18 if kind == "cpu" else 50), {"cpu": 4, "cuda": 128}, {"cpu": 2, "cuda": 30})}


# The pipelines: a loader, and what turns its batches into views on the device

class Pipeline(NamedTuple):
    loader: Iterable[Any]
    views: Callable[[Any], list[Tensor]] | None = None      # None where it is our own


class Transformed(Dataset):
    """PIL images, from memory or files, with a transform in the loader's process."""

    def __init__(self, images: Sequence[Any], transform: Callable[[Image.Image], Any]):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Any:
        image = self.images[place]
        if isinstance(image, str):
            with Image.open(image) as file:
                return self.transform(file.convert("RGB"))
        return self.transform(Image.fromarray(image))


class Whole(Dataset):
    """Images in memory on the device, of which a batch is one index."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, places: list[int]) -> Tensor:
        return self.images[torch.tensor(places, device=self.images.device)]


def by_image(images: Sequence[Any], transform: Callable[[Image.Image], Any], batch: int, workers: int) -> Iterable[Any]:
    return DataLoader(Transformed(images, transform), batch, shuffle=True, num_workers=workers, drop_last=True,
                      pin_memory=torch.cuda.is_available())


def by_torchvision(augmentation: Augmentation) -> Callable[[Image.Image], list[Tensor]]:
    chains, tensor = torchvision_views(augmentation), T.PILToTensor()

    def transform(image: Image.Image) -> list[Tensor]:
        pixels = tensor(image)
        return [FLOAT(chain(pixels)) for chain in chains]
    return transform


def by_kornia(augmentation: Augmentation) -> Callable[[Tensor], list[Tensor]]:
    rows = [(K.AugmentationSequential(*kornia_row(spec), data_keys=["input"]), spec.count)
            for spec in augmentation.views]
    return lambda images: [row(images / 255) for row, count in rows for _ in range(count)]


def pipelines(work: Workload, images: Sequence[Any], source: Resident | Files, batch: int, workers: int
              ) -> dict[str, Pipeline]:
    """Every way to the same views of the same images.

    Args:
        work: the views.
        images: as the peers take them: arrays [H, W, 3], or paths.
        source: as ours takes them, in memory on the device or files.
        batch: images in a batch.
        workers: processes of each loader; 0 loads in this one.
    """
    ours = Augmentation(work.rows)
    if isinstance(source, Files):
        source.augment, source.scaled = ours, True
        whole = by_image(images, T.Compose([T.PILToTensor(), T.Resize(CROPPED), T.CenterCrop(CROPPED)]), batch, workers)
    else:
        sampler = BatchSampler(RandomSampler(range(len(source))), batch, drop_last=True)
        whole = DataLoader(Whole(source.images), sampler=sampler, batch_size=None)
    theirs = by_image(images, work.lightly(), batch, workers)
    return {PEER: Pipeline(theirs, list), "torchvision v2": Pipeline(
                by_image(images, by_torchvision(ours), batch, workers), list),
            "kornia": Pipeline(whole, by_kornia(ours)),
            "ssl_zoo": Pipeline(Loader(source, batch, workers, training=True))}


# What learns, and what is measured

class Peer(SimCLR):
    """SimCLR whose views another pipeline makes."""

    make: Callable[[Any], list[Tensor]]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        views, place = self.make(batch), torch.zeros(0)
        index = torch.arange(len(views[0]), device=self.device)
        memory = torch.channels_last if self.augment.channels_last else torch.contiguous_format
        return Batch(place, index, index, [View(one.contiguous(memory_format=memory), place, place, role)
                                           for one, role in zip(views, self.augment.roles, strict=True)],
                     Key(0, 0, 0, 0), torch.tensor(self.progress))


class Stopwatch(pl.Callback):
    """Seconds of `steps` whole steps after `warm` others, from the end of one to the end of another."""

    def __init__(self, warm: int, steps: int, device: torch.device):
        self.warm, self.all_steps, self.device, self.seconds = warm, warm + steps, device, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        if trainer.global_step == self.warm:
            self.began = now(self.device)
        elif trainer.global_step == self.all_steps:
            self.seconds = now(self.device) - self.began


def now(device: torch.device) -> float:
    """The processor's seconds, so that other work on the machine counts little; beside a GPU those of the clock."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def step_seconds(work: Workload, pipeline: Pipeline, warm: int, device: torch.device) -> float:
    """Of a step, end to end, after `warm` others."""
    gpu, steps = device.type == "cuda", work.steps[device.type]
    augment = Augmentation(work.rows, dtype="bfloat16" if gpu else "float32", channels_last=gpu, compile=gpu)
    torch.manual_seed(0)
    method = (SimCLR if pipeline.views is None else Peer)(
        encoder=work.encoder(device.type), augment=augment, projector=(256, 128), temperature=0.2,
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-3), schedule=WarmupCosine())
    if pipeline.views is not None:
        method.make = pipeline.views
    if gpu:
        method.to(memory_format=torch.channels_last)   # type: ignore[call-overload]
    watch = Stopwatch(warm, steps, device)
    trainer = pl.Trainer(accelerator=device.type, devices=1, precision="bf16-mixed" if gpu else "32-true", logger=False,
                         max_steps=watch.all_steps, callbacks=[watch], enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(method, train_dataloaders=pipeline.loader)
    return watch.seconds / steps


def loader_seconds(loader: Iterable[Any], images: int, batch: int) -> float:
    """The processor's seconds for an image in the loader alone, after a first batch."""
    batches: Iterator[Any] = iter(loader)
    next(batches)
    start = time.process_time()
    count = sum(1 for _, _ in zip(range(max(1, images // batch)), batches, strict=False))
    return (time.process_time() - start) / (count * batch)


def ready(work: Workload, batch: int, device: torch.device) -> Pipeline:
    """Views that are there already."""
    views = [torch.rand(batch, 3, spec.size, spec.size, device=device) for spec in work.rows for _ in range(spec.count)]
    if device.type == "cuda":
        views = [view.bfloat16() for view in views]
    return Pipeline(DataLoader(torch.zeros(batch * 1000, 0), batch), lambda _: views)


def measure(work: Workload, images: Sequence[Any], source: Resident | Files, device: torch.device, rounds: int,
            workers: int, sample: int) -> dict[str, dict[str, float]]:
    """Milliseconds of an image by pipeline: in the loader on one core, and end to end.

    Args:
        sample: images that a loader alone makes in a round.
    """
    batch, warm = work.batch[device.type], WARM + AHEAD * workers
    ends = pipelines(work, images, source, batch, workers) | {LIMIT: ready(work, batch, device)}
    alone = pipelines(work, images, source, ALONE, 0)
    whole: dict[str, list[float]] = {name: [] for name in ends}
    loaders: dict[str, list[float]] = {name: [] for name in alone}
    for _ in range(rounds):
        for name, pipeline in ends.items():
            whole[name].append(step_seconds(work, pipeline, warm, device) / batch)
        for name, pipeline in alone.items():
            loaders[name].append(loader_seconds(pipeline.loader, sample, ALONE))
    return {name: {"end to end, ms": round(1000 * statistics.median(whole[name]), 4),
                   "loader, ms": round(1000 * statistics.median(loaders[name]), 4) if name in loaders else 0.0}
            for name in ends}


def in_memory(device: torch.device, again: int = 1) -> tuple[Sequence[Any], Resident]:
    """10,000 small images, each `again` times."""
    with np.load(unpack(Path(tempfile.gettempdir()), 10_000)) as arrays:
        images = np.tile(arrays["train_images"], (again, 1, 1, 1))
    return images, resident(images).to(device)


def of_files(folder: Path, again: int = 1) -> tuple[Sequence[Any], Files]:
    """Photographs, each `again` times."""
    with tarfile.open(data("imagenet_sample256.tar.gz")) as pack:
        pack.extractall(folder, filter="data")
    module = ImageFolder(str(folder / "imagenet_sample256"))
    module.said = True
    module.setup("validate")
    assert isinstance(module.train, Files)
    files = module.train.subset(np.tile(np.arange(len(module.train)), again))
    return list(files.names), files


# What is shown

def compared(title: str, found: dict[str, dict[str, float]]) -> Iterator[tuple[str, list[float | None]]]:
    """For each pipeline: loader ms, times lightly's; images/s end to end, times lightly's, share of the limit.

    Of images in memory the loaders are not compared: some have nothing to do.
    """
    peer = found[PEER]
    for name, one in found.items():
        loader, end = one["loader, ms"], one["end to end, ms"]
        faster = peer["loader, ms"] / loader if loader and WORKLOADS[title].files else None
        yield name, [loader or None, faster, 1000 / end, peer["end to end, ms"] / end,
                     found[LIMIT]["end to end, ms"] / end]


def table(figures: dict[str, Any]) -> str:
    """One row for each pipeline of each workload."""
    heads = ["views", "pipeline", "loader, ms of a core", "times lightly's", "end to end, images/s", "times lightly's",
             "of the limit"]
    forms = ("{:.3f}", "{:.1f}", "{:,.1f}", "{:.2f}", "{:.0%}")
    rows = [[title if name == PEER else "", name, *("" if value is None else form.format(value)
                                                    for form, value in zip(forms, values, strict=True))]
            for title, found in figures["views"].items() for name, values in compared(title, found)]
    lines = ["| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows]]
    return "\n".join([f"{figures['setting']}; medians of {figures['rounds']} rounds.", "", *lines, ""])


def show(figures: dict[str, Any], name: str) -> None:
    """Write the table, and bars of how many times lightly's speed each pipeline has."""
    (RESULTS / f"{name}.md").write_text(table(figures))
    figure = blank(9, 4, f"Times lightly's images per second: {figures['setting']}")
    for axes, (title, found) in zip(figure.subplots(1, len(figures["views"]), squeeze=False)[0],
                                    figures["views"].items(), strict=True):
        rows = dict(compared(title, found))
        places = np.arange(len(rows))
        columns = {"loader alone": 1, "end to end": 3} if WORKLOADS[title].files else {"end to end": 3}
        for number, (label, column) in enumerate(columns.items()):
            values = [row[column] or 0 for row in rows.values()]
            shift = 0.4 * (number - (len(columns) - 1) / 2)
            bars = axes.barh(places + shift, values, 0.38, color=COLOURS[column // 2], label=label)
            axes.bar_label(bars, [f"{value:.2f}" if value else "" for value in values], padding=2, fontsize=7,
                           bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        axes.axvline(1, color="black", linewidth=0.6, zorder=0.5)
        axes.set_yticks(places, list(rows), fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.18)
    handles = figure.axes[-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, fontsize=8)
    picture(figure).save(RESULTS / f"{name}.png")


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="of each loader, on a GPU")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, views = torch.device(options.device), {}
    workers, again = (options.workers, AGAIN) if device.type == "cuda" else (0, 1)
    rounds = {"cpu": (7, 3), "cuda": (3, 1)}[device.type][options.short]
    setting = ("one process on one thread, float32, the processor's seconds" if device.type == "cpu" else
               f"{torch.cuda.get_device_name()}, bf16-mixed, channels_last, {workers} loader processes")
    name = "peers" if device.type == "cpu" else "peers_cuda"
    with tempfile.TemporaryDirectory() as folder:
        small, large = in_memory(device, again), of_files(Path(folder), again)
        for title, work in WORKLOADS.items():
            sample = 64 if work.files else 512
            views[title] = measure(work, *(large if work.files else small), device, rounds, workers, sample)
            record(name, {"setting": setting, "rounds": rounds, "views": views})
            show({"setting": setting, "rounds": rounds, "views": views}, name)
    print(table({"setting": setting, "rounds": rounds, "views": views}))


if __name__ == "__main__":
    main()
