"""Where the time of a training step goes, how near that is to what the device can do, and what to change."""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.profilers import Profiler
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_zoo.evaluation.charts import COLOURS, blank
from ssl_zoo.evaluation.charts import picture as drawn
from ssl_zoo.saving import stepped

WARM = 3       # steps before anything is measured: caches, autotuning, compilation
SECTIONS = {
    "data": "wait for the loader",
    "transfer": "the batch to the device",
    "views": "augmentation",
    "encoders": "forward passes of the encoder and its average",
    "loss": "heads, memory and loss",
    "backward": "backward pass",
    "optimizer": "optimiser",
    "momentum": "averaged weights",
    "logging": "logs, callbacks, Lightning",
}


class Found(NamedTuple):
    """What a measurement found. Seconds are of one step; rates are images a second."""

    seconds: dict[str, float]         # by section
    step: float                       # of a whole step, nothing in it measured apart
    batch: int                        # images of a step on this process
    loader_rate: float                # of the loader alone
    workers: int
    evaluation_rate: float | None     # of encoding images to evaluate; None where there are none
    arithmetic: float | None          # operations a second in a step; None where a compiler hides them
    peak: float                       # of large matrix products of the step's type
    device: str
    precision: str
    compiled: bool                    # the views

    @property
    def rate(self) -> float:
        return self.batch / self.step

    @property
    def shares(self) -> dict[str, float]:
        total = sum(self.seconds.values())
        return {name: seconds / total for name, seconds in self.seconds.items()}


class Sections(Profiler):
    """Adds up the seconds of what Lightning does, each of which ends when the device has done its work."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.counting = device, False
        self.since: dict[str, float] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def start(self, action_name: str) -> None:
        if self.counting:
            self.since[action_name] = self.now()

    def stop(self, action_name: str) -> None:
        if (began := self.since.pop(action_name, None)) is not None:
            self.seconds[action_name] += self.now() - began

    def of(self, ending: str) -> float:
        """Seconds of the action whose name ends so; of several, one holds the others."""
        return max((seconds for name, seconds in self.seconds.items() if name.endswith(ending)), default=0.0)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, measured."""
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.profile(name):
                return call(*args, **kwargs)
        return measured


class Stopwatch(pl.Callback):
    """Measures `steps` whole steps after the warm ones, and as many in sections; counts the operations of one."""

    def __init__(self, sections: Sections, steps: int):
        self.sections, self.steps = sections, steps
        self.began = self.step = self.whole = 0.0
        self.batch = 0
        self.operations = FlopCounterMode(display=False)

    @property
    def all_steps(self) -> int:
        return WARM + 2 * self.steps

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for module in pl_module.modules():
            if module is pl_module.encoder or isinstance(module, type(pl_module.encoder)):
                self.watch(module)
        pl_module.after_step = self.sections.around("momentum", pl_module.after_step)   # type: ignore

    def watch(self, encoder: nn.Module) -> None:
        depth: list[int] = []       # an encoder may call itself, as forward does maps

        def before(module: nn.Module, inputs: Any) -> None:
            depth.append(1)
            if len(depth) == 1:
                self.sections.start(f"encoder {id(module)}")

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            depth.pop()
            if not depth:
                self.sections.stop(f"encoder {id(module)}")

        encoder.register_forward_pre_hook(before)
        encoder.register_forward_hook(after, always_call=True)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                             batch_idx: int) -> None:
        step = trainer.global_step
        if batch_idx % trainer.accumulate_grad_batches:
            return
        if step == WARM - 1:
            self.operations.__enter__()
        elif step == WARM:
            self.began, self.batch = self.sections.now(), len(batch.index)
        elif step == WARM + self.steps:
            self.step = (self.sections.now() - self.began) / self.steps
            self.sections.counting, self.began = True, self.sections.now()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        if not stepped(trainer, batch_idx):
            return
        if trainer.global_step == WARM:
            self.operations.__exit__(None, None, None)
        if trainer.global_step == self.all_steps:
            self.whole = (self.sections.now() - self.began) / self.steps
            self.sections.counting = False

    def seconds(self) -> dict[str, float]:
        """By section, of one step."""
        of, steps = self.sections.of, self.steps
        views, training, backward = of(".on_after_batch_transfer"), of(".training_step"), of(".backward")
        encoders = sum(seconds for name, seconds in self.sections.seconds.items() if name.startswith("encoder "))
        optimizer, momentum = of(".optimizer_step"), of("momentum")
        found = {"data": of(".train_dataloader_next"), "transfer": of(".batch_to_device") - views, "views": views,
                 "encoders": encoders, "loss": training - encoders, "backward": backward,
                 "optimizer": optimizer - training - backward - momentum, "momentum": momentum}
        found = {name: max(value, 0.0) / steps for name, value in found.items()}
        return found | {"logging": max(self.whole - sum(found.values()), 0.0)}


def measure(cli: Any, steps: int) -> Found:
    """Train for a few steps by a recipe, and measure them."""
    method, trainer, data = cli.model, cli.trainer, cli.datamodule
    device = trainer.strategy.root_device
    sections = Sections(device)
    watch = Stopwatch(sections, steps)
    trainer.profiler = sections
    trainer.callbacks = [one for one in trainer.callbacks if not type(one).__module__.startswith("ssl_zoo.evaluation")]
    trainer.callbacks.append(watch)
    trainer.fit(method, datamodule=data)
    operations = watch.operations.get_total_flops()
    return Found(
        seconds=watch.seconds(), step=watch.step, batch=watch.batch * trainer.accumulate_grad_batches,
        loader_rate=loader_rate(trainer, watch.batch, steps), workers=getattr(data, "workers", 0),
        evaluation_rate=evaluation_rate(method, data, device),
        arithmetic=operations / watch.step if operations else None, peak=peak(device, trainer.precision),
        device=str(device), precision=trainer.precision, compiled=bool(getattr(method.augment, "compile", False)))


def loader_rate(trainer: pl.Trainer, batch: int, steps: int) -> float:
    """Images a second from the training loader, when nothing else is done."""
    loader: Any = trainer.train_dataloader
    ahead = 2 * getattr(loader, "workers", getattr(loader, "num_workers", 0))
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for _ in range(ahead + 1):                         # what the workers had made before anyone asked
        next(batches)
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return batch * steps / (time.perf_counter() - began)


@torch.no_grad()
def evaluation_rate(method: Any, data: Any, device: torch.device) -> float | None:
    """Images a second that are read and encoded for an evaluation."""
    loaders = data.val_dataloader() or []
    loader = loaders[0] if isinstance(loaders, list) and loaders else loaders
    method.to(device)
    images, began = 0, time.perf_counter()
    for batch in loader or ():
        method.encode(batch[0].to(device)).sum().item()
        images += len(batch[0])
        if time.perf_counter() - began > 2:
            break
    return images / (time.perf_counter() - began) if images else None


def peak(device: torch.device, precision: str) -> float:
    """Operations a second of a large product of square matrices, in the type that `precision` computes in."""
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32
    side = 8192 if device.type == "cuda" else 1024
    a = torch.ones(side, side, dtype=dtype, device=device)
    rates = []
    for _ in range(8):
        began = time.perf_counter()
        product = a @ a
        product[0, 0].item()                           # waits
        rates.append(2 * side ** 3 / (time.perf_counter() - began))
    return max(rates)


# In plain words

def advice(found: Found) -> list[str]:
    """What limits this recipe here, the largest cause first, and what to change."""
    shares, gpu, said = found.shares, not found.device.startswith("cpu"), []
    if shares["data"] > 0.1:
        said.append(f"The loader limits: {shares['data']:.0%} of a step waits for it, and alone it gives "
                    f"{found.loader_rate:,.0f} images/s with {found.workers} workers. Raise --data.workers, or keep "
                    "decoded images with --data.cache where the data set has it.")
    if shares["views"] > (0.1 if gpu else 0.2):
        how = ("they are compiled already: fewer or smaller views are what is left" if found.compiled else
               "--model.augment.compile true makes fewer passes of them")
        said.append(f"Views take {shares['views']:.0%} of a step; {how}.")
    network = shares["encoders"] + shares["backward"]
    ratio = None if found.arithmetic is None else found.arithmetic / found.peak
    if gpu and found.precision.startswith("32") and network > 0.3:
        said.append(f"The network takes {network:.0%} of a step in float32: --trainer.precision bf16-mixed halves the "
                    "bytes and uses the tensor cores, best with --fast.channels_last true.")
    if gpu and ratio is not None and ratio < 0.1 and shares["data"] <= 0.1:
        said.append(f"The card does {ratio:.0%} of the arithmetic that it can: it waits for kernels to be started. "
                    "Raise --data.batch_size, or fuse them with --fast.compile true.")
    if shares["loss"] > 0.2:
        said.append(f"Heads, memory and loss take {shares['loss']:.0%} of a step: a shorter queue, fewer prototypes or "
                    "a smaller projector.")
    if shares["logging"] > 0.1:
        said.append(f"Logs and callbacks take {shares['logging']:.0%} of a step: raise --trainer.log_every_n_steps.")
    if not said:
        left = "" if ratio is None else f", which does {ratio:.0%} of the arithmetic of this device's matrix products"
        said.append(f"The network limits, with {network:.0%} of a step{left}: a smaller encoder, smaller views or a "
                    "faster device are what is left.")
    return said


def table(found: Found) -> str:
    """The sections of a step, and what is behind them."""
    lines = [f"{'':<12}{'ms':>10}{'share':>8}"]
    lines += [f"{name:<12}{1000 * found.seconds[name]:>10.2f}{found.shares[name]:>8.1%}   {what}"
              for name, what in SECTIONS.items()]
    lines += ["", f"{found.rate:,.0f} images/s: steps of {found.batch} images in {1000 * found.step:.1f} ms, "
                  f"{found.precision} on {found.device}",
              f"{found.loader_rate:,.0f} images/s from the loader alone, {found.workers} workers"]
    if found.evaluation_rate is not None:
        lines.append(f"{found.evaluation_rate:,.0f} images/s are read and encoded for an evaluation")
    if found.arithmetic is not None:
        lines.append(f"{found.arithmetic / 1e12:,.3f} of {found.peak / 1e12:,.3f} TFLOP/s, those of this device's "
                     f"large matrix products: {found.arithmetic / found.peak:.0%}")
    return "\n".join([*lines, "", *advice(found)])


def figures(found: Found) -> Mapping[str, Any]:
    """The same as plain values."""
    return found._asdict() | {"rate": found.rate, "shares": found.shares, "advice": advice(found)}


def picture(found: Found) -> Image.Image:
    """The sections of a step as bars."""
    figure = blank(7, 3.2, f"{found.rate:,.0f} images/s, a step of {1000 * found.step:.1f} ms on {found.device}")
    axes = figure.subplots()
    names = [name for name in SECTIONS if found.shares[name] > 0]
    bars = axes.barh([SECTIONS[name] for name in names], [1000 * found.seconds[name] for name in names],
                     color=COLOURS[0])
    axes.bar_label(bars, [f"{found.shares[name]:.1%}" for name in names], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1200 * max(found.seconds.values()))          # with room for the largest one's label
    axes.set_xlabel("milliseconds of a step")
    return drawn(figure)
