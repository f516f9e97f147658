"""How fast views are drawn, as ratios of images per second: one process, one thread, interleaved, medians.

On the CPU against lightly's transform on PIL images; where there is a GPU also there, against Kornia as it is, with the
kernels launched, the waits for the device and the share of a ResNet-50 step. Images are random bytes: no time depends
on what they show.

    python benchmarks/views.py          about 8 minutes on the CPU, half of it compiling; 5 minutes more with a GPU
    python benchmarks/views.py --gpu    the GPU alone
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import kornia.augmentation as K
import lightly.transforms
import numpy as np
import torch
import torchvision
import torchvision.transforms.v2 as T
from PIL import Image
from record import record

from ssl_zoo.views import Augmentation, Key, View, ViewSpec

CIFAR = {"size": 32, "count": 2, "jitter": 0.8, "strength": 0.5, "gray": 0.2}
WORKLOADS: dict[str, tuple[Any, int, int, Callable[..., Any]]] = {   # views, batch, side of the images, lightly's
    "SimCLR 2x32, no blur": ([ViewSpec(**CIFAR)], 256, 32, lambda: lightly.transforms.SimCLRTransform(
        input_size=32, cj_strength=0.5, gaussian_blur=0.0)),
    "SimCLR 2x32, blur 0.5": ([ViewSpec(**CIFAR, blur=0.5)], 256, 32, lambda: lightly.transforms.SimCLRTransform(
        input_size=32, cj_strength=0.5, gaussian_blur=0.5)),
    "SwAV 2x224+6x96": ("swav", 16, 256, lightly.transforms.SwaVTransform),
}
ROUNDS, SHORTEST = 9, 0.3   # timings of each candidate, seconds of each
R50_BATCH = 64


def kornia_row(spec: ViewSpec, fixed_order: bool = False) -> list[torch.nn.Module]:
    """A row by Kornia's modules; with a fixed order of the jitter they compile without breaks."""
    b, c, s, h = (amount * spec.strength for amount in (spec.brightness, spec.contrast, spec.saturation, spec.hue))
    order = {"order": (0, 1, 2, 3)} if fixed_order else {}
    modules = [K.RandomResizedCrop((spec.size, spec.size), spec.scale, spec.ratio,
                                   cropping_mode="resample" if fixed_order else "slice"),
               K.RandomHorizontalFlip(p=spec.flip), K.ColorJitter(b, c, s, h, p=spec.jitter, **order),
               K.RandomGrayscale(p=spec.gray)]
    if spec.blur:
        modules.append(K.RandomGaussianBlur((spec.blur_kernel, spec.blur_kernel), spec.sigma, p=spec.blur))
    return modules


def kornia_views(augmentation: Augmentation, fixed_order: bool = False) -> Callable[[torch.Tensor], Any]:
    """The same rows by Kornia's modules as they are."""
    rows = [(torch.nn.Sequential(*kornia_row(spec, fixed_order)), spec.count) for spec in augmentation.views]

    def draw(images: torch.Tensor) -> list[torch.Tensor]:
        pixels = images / 255
        return [module(pixels) for module, count in rows for _ in range(count)]
    return draw


def torchvision_views(augmentation: Augmentation) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """The same rows by torchvision's transforms, image by image."""
    def chain(spec: ViewSpec) -> Callable[[torch.Tensor], torch.Tensor]:
        amounts = (amount * spec.strength for amount in (spec.brightness, spec.contrast, spec.saturation, spec.hue))
        blur = T.GaussianBlur(spec.blur_kernel, spec.sigma)
        return T.Compose([T.RandomResizedCrop(spec.size, spec.scale, spec.ratio, T.InterpolationMode(
            spec.interpolation)), T.RandomHorizontalFlip(spec.flip), T.RandomApply([T.ColorJitter(*amounts)],
            spec.jitter), T.RandomGrayscale(spec.gray), T.RandomApply([blur], spec.blur)])

    return [chain(spec) for spec in augmentation.views for _ in range(spec.count)]


def numbered(augmentation: Augmentation, images: torch.Tensor) -> Callable[[], Any]:
    """A call that draws other views each time, as training does."""
    batches = iter(range(10 ** 9))
    return lambda: augmentation(images, Key(0, 0, next(batches), 0))


def interleaved(candidates: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of process time for one call of each: waiting for a busy core does not count."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    for _ in range(ROUNDS):
        for name, call in candidates.items():
            start, calls = time.process_time(), 0
            while time.process_time() - start < SHORTEST:
                call()
                calls += 1
            times[name].append((time.process_time() - start) / calls)
    return {name: statistics.median(runs) for name, runs in times.items()}


def on_cpu() -> dict[str, Any]:
    figures = {}
    for name, (views, batch, side, transform) in WORKLOADS.items():
        images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, 3, side, side), dtype=np.uint8))
        few = images[:max(4, batch // 8)]                       # of the slow ones
        pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in few]
        ours, theirs = Augmentation(views), transform()
        kornia, chains = kornia_views(ours), torchvision_views(ours)
        candidates = {
            "lightly": lambda pil=pil, theirs=theirs: [theirs(image) for image in pil],
            "torchvision v2 tensors": lambda few=few, chains=chains: [
                chain(image) for image in few for chain in chains],
            "kornia": lambda kornia=kornia, images=images: kornia(images),
            "ssl_zoo": numbered(ours, images)}
        if side == 32:
            compiled = torch.compile(kornia_views(ours, fixed_order=True))
            candidates["kornia, compiled, fixed order"] = lambda compiled=compiled, images=images: compiled(images)
            candidates["ssl_zoo, compiled"] = numbered(Augmentation(views, compile=True), images)
        seconds = interleaved(candidates)
        each = {row: value / len(few if row in ("lightly", "torchvision v2 tensors") else images)
                for row, value in seconds.items()}
        figures[name] = {row: {"microseconds per image": round(1e6 * value), "ratio": round(each["lightly"] / value, 2)}
                         for row, value in each.items()}
    return figures


def on_device(device: torch.device, workloads: Sequence[str] = tuple(WORKLOADS), batch: int | None = None
              ) -> Iterator[tuple[str, dict[str, Any]]]:
    """What views cost there against Kornia's and a ResNet-50's step, and whether they are those of the CPU."""
    for name in workloads:
        views, _, side, _ = WORKLOADS[name]
        images_in = batch or (512 if side == 32 else R50_BATCH)
        pixels = np.random.default_rng(0).integers(0, 256, (images_in, 3, side, side), dtype=np.uint8)
        here, images = torch.from_numpy(pixels), torch.from_numpy(pixels).to(device)
        plain = Augmentation(views, dtype="bfloat16", channels_last=True)
        compiled = Augmentation(views, compile=True, dtype="bfloat16", channels_last=True)
        kornia = kornia_views(plain)
        candidates = {"ssl_zoo": numbered(plain, images), "ssl_zoo, compiled": numbered(compiled, images),
                      "kornia": lambda kornia=kornia, images=images: kornia(images)}
        count = images_in * plain.count
        spent = {row: milliseconds(call, device) for row, call in candidates.items()}
        step = milliseconds(training_step(plain, images_in, device), device)
        key = Key(1, 2, 3, 0)
        rows = {row: {"ms per batch": round(value, 3), "microseconds per view": round(1e3 * value / count, 3),
                      "times kornia": round(spent["kornia"] / value, 1),
                      "share of a ResNet-50 step": round(value / step, 4),
                      "kernels": kernels(candidates[row], device)} for row, value in spent.items()}
        yield name, {
            "batch": images_in, "views": count, "ResNet-50 step, ms": round(step, 2), **rows,
            "waits for the device": sum(waits(candidates[row], device) for row in ("ssl_zoo", "ssl_zoo, compiled")),
            **alike(compiled(images, key), Augmentation(views)(here, key))}


def alike(drawn: Sequence[View], reference: Sequence[View]) -> dict[str, Any]:
    return {"boxes and flips equal the CPU's": all(torch.equal(a.boxes.cpu(), b.boxes) and torch.equal(
                a.flipped.cpu(), b.flipped) for a, b in zip(drawn, reference, strict=True)),
            "mean difference from the CPU's views, levels": round(statistics.mean(
                255 * (a.images.float().cpu() - b.images).abs().mean().item()
                for a, b in zip(drawn, reference, strict=True)), 3)}


def milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    """Median of 20 calls on a GPU; on a CPU of 2, of the processor's time."""
    gpu, times = device.type == "cuda", []
    for _ in range(5 if gpu else 1):
        call()
    for _ in range(20 if gpu else 2):
        if gpu:
            torch.cuda.synchronize()
        start = time.perf_counter() if gpu else time.process_time()
        call()
        if gpu:
            torch.cuda.synchronize()
        times.append(1000 * ((time.perf_counter() if gpu else time.process_time()) - start))
    return statistics.median(times)


def kernels(call: Callable[[], Any], device: torch.device) -> int:
    """Kernels that a call launches; on a CPU, what it runs of torch's operations."""
    kind = "CUDA" if device.type == "cuda" else "CPU"
    with torch.profiler.profile(activities=[getattr(torch.profiler.ProfilerActivity, kind)]) as profile:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages()
               if event.device_type == getattr(torch.profiler.DeviceType, kind))


def waits(call: Callable[[], Any], device: torch.device) -> int:
    """How often the host waits for the device, by the warnings of torch's debug mode; a CPU has no such thing."""
    if device.type == "cpu":
        call()
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in found)


def training_step(augmentation: Augmentation, batch: int, device: torch.device) -> Callable[[], None]:
    """Forward and backward of a ResNet-50 in bfloat16 over as many views of these sizes."""
    network = torchvision.models.resnet50().to(device, memory_format=torch.channels_last)
    views = [torch.randn(batch * spec.count, 3, spec.size, spec.size, device=device).to(
        memory_format=torch.channels_last) for spec in augmentation.views]

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            loss = sum(network(images).float().square().mean() for images in views)
        loss.backward()
    return step


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--gpu" not in sys.argv:
        record("views", on_cpu())
    if torch.cuda.is_available():
        record("views_gpu", dict(on_device(torch.device("cuda"))))
    elif "--gpu" in sys.argv:
        sys.exit("no GPU here: benchmarks/views.py --gpu needs one")
