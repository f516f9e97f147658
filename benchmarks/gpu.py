"""All that has to be measured on a GPU, by one command, within 9 minutes; every figure is recorded as it is found.

    python benchmarks/gpu.py [PART ...] [--minutes 9]          all parts, in this order, or those that are named
    python benchmarks/gpu.py --device cpu --short              each part with few and small images, a minute altogether

views     milliseconds, kernels and waits of drawing views, their share of a ResNet-50 step, against Kornia's as it is,
          and how far they are from a CPU's
memory    time and peak memory of losses over 8,192 and 16,384 rows, against lightly's NT-Xent
nvjpeg    JPEG files decoded on the device and by one core of the host, and how far the pixels differ
methods   for one recipe of each class, as it is but for bfloat16 and channels_last: milliseconds of a step, which part
          limits it, images a second, kernels and waits of a step, and peak memory
cifar10   cifar10/simclr against the clock, compiled in bfloat16: as many of its 200 epochs as fit into what is left of
          the minutes, with the schedule of that many, then kNN; and the seconds of 200 at this rate

A part that fails leaves its sentence in the record, and the others go on. The parts views and memory compare with
Kornia and lightly, which must be installed; memory, nvjpeg and cifar10 take the images of this benchmark's packs, all
else random bytes. Writes gpu.json to results/; on a CPU nothing is kept, and the figures say only that the parts work.
"""

import argparse
import contextlib
import functools
import importlib
import io
import json
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from record import ROOT, data, record
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_zoo import bench
from ssl_zoo.cli.fit import Cli
from ssl_zoo.cli.messages import quiet
from ssl_zoo.cli.recipes import shipped

Figures = Iterator[tuple[str, Any]]      # a figure's name, and what was found
IMAGES = 4096         # of the part methods
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "_unique")
KNN = json.dumps([{"class_path": "Knn", "init_args": {"votes": ["knn_instdisc"]}}])


class Setting(NamedTuple):
    device: torch.device
    short: bool
    ends: float            # time.perf_counter() at which the minutes are over
    folder: Path           # for files that the parts need

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.perf_counter()


def views(setting: Setting) -> Figures:
    module = importlib.import_module("views")
    names = list(module.WORKLOADS)
    yield from module.on_device(setting.device, names[:1] if setting.short else [names[0], names[2]],
                                2 if setting.short else None)


def memory(setting: Setting) -> Figures:
    losses = importlib.import_module("losses")
    for rows in (256,) if setting.short else (8192, 16384):
        peer: tuple[float, float] | None = None
        for name, loss in losses.LOSSES.items():
            try:
                with setting.device:                                      # what a loss makes for itself is there, too
                    found = loss_cost(loss, rows, losses.WIDTH, setting.device)
            except RuntimeError as error:                                 # one loss's failure hides no other's
                yield f"{rows} rows, {name}", f"{type(error).__name__}: {str(error)[:300]}"
                continue
            peer = peer or found
            yield f"{rows} rows, {name}", {
                "ms": round(found[0], 3), "MiB": round(found[1], 1), "time to lightly's": ratio(found[0], peer[0]),
                "memory to lightly's": ratio(found[1], peer[1])}


def loss_cost(loss: Callable[..., torch.Tensor], rows: int, width: int, device: torch.device) -> tuple[float, float]:
    """Milliseconds of a forward and backward pass, and the MiB that it takes above its inputs; 0 on a CPU."""
    z1, z2 = torch.randn(2, rows // 2, width, device=device, generator=torch.Generator(device).manual_seed(0))
    z1.requires_grad_(), z2.requires_grad_()
    milliseconds = importlib.import_module("views").milliseconds(lambda: loss(z1, z2).backward(), device)
    if device.type == "cpu":
        return milliseconds, 0.0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss(z1, z2).backward()
    return milliseconds, (torch.cuda.max_memory_allocated() - before) / 2 ** 20


def ratio(value: float, peer: float) -> float | None:
    return round(value / peer, 4) if peer else None


def nvjpeg(setting: Setting) -> Figures:
    import torchvision

    from ssl_zoo.data.decoding import read_image
    count, batch = (16, 8) if setting.short else (1000, 128)
    with tarfile.open(data("imagenet_sample256.tar.gz")) as pack:
        pack.extractall(setting.folder, filter="data")
    paths = sorted((setting.folder / "imagenet_sample256").glob("*.JPEG"))[:count]
    files = [torch.from_numpy(np.fromfile(path, np.uint8)) for path in paths]
    decode = functools.partial(torchvision.io.decode_jpeg, mode=torchvision.io.ImageReadMode.RGB)
    on_device = functools.partial(decode, device=setting.device)
    images = on_device(files[:batch])                                     # the first call makes the decoder
    start = clock(setting.device)
    for first in range(0, count, batch):
        on_device(files[first:first + batch])
    yield "images a second, on the device", round(count / (clock(setting.device) - start), 1)
    start = time.perf_counter()
    whole = [read_image(path) for path in paths[:200]]
    yield "images a second, by one core of the host", round(len(whole) / (time.perf_counter() - start), 1)
    differences = [(a.cpu().float() - b.float()).abs().mean().item() for a, b in zip(images, whole, strict=False)]
    yield "mean difference, levels", round(sum(differences) / len(differences), 3)


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Asked(TorchDispatchMode):
    """Counts operations that change or make tensors, and those by which the host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.waits = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.launches += not operation.is_view
        self.waits += operation.overloadpacket.__name__.startswith(WAITS)
        return operation(*args, **(kwargs or {}))


class Counted(pl.Callback):
    """Kernels and waits of the step after `step`; on a CPU operations, and those that would wait."""

    def __init__(self, step: int, device: torch.device):
        self.step, self.device, self.found = step, device, {"kernels": 0, "waits": 0}
        self.around: contextlib.ExitStack | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                             batch_idx: int) -> None:
        if trainer.global_step != self.step or self.around is not None:
            return
        self.around = stack = contextlib.ExitStack()
        if self.device.type == "cpu":
            self.asked = stack.enter_context(Asked())
            return
        self.said = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        self.profile = stack.enter_context(torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CUDA]))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        if self.around is None or trainer.global_step != self.step + 1:
            return
        if self.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
        self.around.close()
        if self.device.type == "cpu":
            self.found = {"kernels": self.asked.launches, "waits": self.asked.waits}
            return
        self.found = {"kernels": sum(event.count for event in self.profile.key_averages()
                                     if event.device_type == torch.profiler.DeviceType.CUDA),
                      "waits": sum("synchronizing CUDA operation" in str(one.message) for one in self.said)}


def one_of_each(device: torch.device) -> list[str]:
    """For each class the recipe of CIFAR-10 with the shortest name, SimCLR's first: of the size for a GPU, or a CPU."""
    found: dict[str, str] = {}
    for name in sorted(shipped(), key=len):
        if name.startswith("cifar10/") and name.endswith("_cpu") == (device.type == "cpu"):
            found.setdefault(yaml.safe_load(shipped()[name].read_text())["model"]["class_path"], name)
    return sorted(found.values(), key=lambda name: (not name.startswith("cifar10/simclr"), name))


def methods(setting: Setting) -> Figures:
    images = random_images(setting.folder, IMAGES)
    recipes = one_of_each(setting.device)[:3] if setting.short else one_of_each(setting.device)
    for number, name in enumerate(recipes):
        if setting.left < (0 if setting.short else 150):                  # which cifar10 is to have
            yield "not measured, for want of time", recipes[number:]
            return
        try:
            yield name, step_of(name, images, setting)
        except (RuntimeError, ValueError, SystemExit) as error:           # one method's failure hides no other's
            yield name, f"{type(error).__name__}: {str(error)[:300]}"


def random_images(folder: Path, count: int) -> Path:
    """No time depends on what images show."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(count) % 10
    np.savez(path := folder / "random.npz", train_images=pixels, train_labels=labels, test_images=pixels[:64],
             test_labels=labels[:64])
    return path


def step_of(recipe: str, images: Path, setting: Setting) -> dict[str, Any]:
    """Of one recipe's step: where its time goes, what it launches, and its memory."""
    steps, gpu = (1, False) if setting.short else (5, setting.device.type == "cuda")
    options = yaml.safe_load(shipped()[recipe].read_text())["model"]["init_args"]
    table = ["--model.images", str(IMAGES)] if "images" in options else []
    all_steps = bench.WARM + 2 * steps + 1
    cli = Cli(["--config", str(shipped()[recipe]), "--data", "ArrayImages", "--data.path", str(images),
               "--data.train_images", "null", *table,
               *(["--trainer.precision", "bf16-mixed", "--fast.channels_last", "true",
                  "--model.augment.dtype", "bfloat16"] if gpu else []),
               "--trainer.accelerator", "gpu" if gpu else "cpu", "--trainer.logger", "false",
               "--trainer.default_root_dir", str(setting.folder), "--trainer.max_epochs", "-1", "--trainer.max_steps",
               str(all_steps), "--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0",
               "--trainer.enable_checkpointing", "false", "--trainer.enable_progress_bar", "false"], run=False)
    counted = Counted(all_steps - 1, setting.device)
    cli.trainer.callbacks.append(counted)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    found = bench.measure(cli, steps)
    return {"ms": round(1000 * found.step, 3), "batch": found.batch, "images a second": round(found.rate),
            "shares": {name: round(share, 3) for name, share in found.shares.items()}, **counted.found,
            "of the card's arithmetic": ratio(found.arithmetic or 0, found.peak), "advice": bench.advice(found)[0],
            "peak GiB": round(torch.cuda.max_memory_allocated() / 2 ** 30, 2) if gpu else None}


def cifar10(setting: Setting) -> Figures:
    """With a schedule of as many epochs as fit, judged by the rate of three of them."""
    speedrun = importlib.import_module("speedrun")
    entry = speedrun.ENTRIES["simclr_cpu in bfloat16" if setting.device.type == "cpu" else
                             "simclr, compiled in bfloat16"]
    track = speedrun.Track(10_000 if setting.short else 50_000, {"knn_instdisc": 0.0})
    images = speedrun.arrays(speedrun.unpack(Path(tempfile.gettempdir()), track.images))
    few = ["--data.train_images", "512", "--data.batch_size", "64"] if setting.short else []
    few += ["--evaluation.protocols", KNN, "--trainer.max_epochs"]
    speedrun.run(entry, 100, images, track, [*few, "3"], [watch := importlib.import_module("cifar10").Clock()])
    an_epoch = min(watch.seconds)                               # the first one compiles
    epochs = 1 if setting.short else int(max(1, min(200, (setting.left - 30) / an_epoch)))
    found = speedrun.run(entry, 0, images, track, [*few, str(epochs)])
    yield "seconds of an epoch", round(an_epoch, 2)
    yield "epochs, of 200", epochs
    for name in ("steps", "wall", "knn_instdisc", "losses"):
        yield name, found[name]
    yield "seconds of 200 epochs at this rate", round(found["wall"] + (200 - epochs) * an_epoch, 1)
    yield "images a second", round(found["steps"] * (64 if setting.short else 512) / found["wall"])


PARTS: dict[str, Callable[[Setting], Figures]] = {
    "views": views, "memory": memory, "nvjpeg": nvjpeg, "methods": methods, "cifar10": cifar10}


def measure(parts: Sequence[str], setting: Setting, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Each part's figures as they are found, by its name."""
    figures: dict[str, Any] = {}
    for part in parts:
        found = figures[part] = {}
        start = time.perf_counter()
        try:
            for name, value in PARTS[part](setting):
                found[name] = value
                keep(figures)
                print(f"{part} | {name} | {json.dumps(value)}", flush=True)
        except (Exception, SystemExit) as error:                # the others go on
            found["failed"] = f"{type(error).__name__}: {error}"
            print(f"{part} | failed | {found['failed']}", flush=True)
        found["seconds"] = round(time.perf_counter() - start, 1)
        keep(figures)
        print(f"{part} | seconds | {found['seconds']}", flush=True)
    return figures


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--short", action="store_true", help="few and small images; nothing is kept")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; there are {', '.join(PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here: --device cpu --short tries the parts without one")
    if options.device == "cpu":
        torch.set_num_threads(1)
    kept = ROOT / "benchmarks/results/gpu.json"

    def keep(figures: dict[str, Any]) -> None:
        if options.device == "cuda" and not options.short:
            before = json.loads(kept.read_text())["figures"] if kept.is_file() else {}
            with contextlib.redirect_stdout(io.StringIO()):
                record("gpu", before | figures)

    with tempfile.TemporaryDirectory() as folder:
        measure(options.parts or list(PARTS), Setting(torch.device(options.device), options.short, time.perf_counter()
                                                      + 60 * options.minutes, Path(folder)), keep)


if __name__ == "__main__":
    main()
