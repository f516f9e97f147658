"""What a training step asks of the device: how many operations, and which of them make the host wait.

Counted on the CPU, where nothing waits: an operation that gives the host a number, or a tensor whose size depends on
numbers, waits on a GPU.
"""

import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.utils._python_dispatch import TorchDispatchMode

import ssl_zoo
from ssl_zoo.data import ArrayImages
from ssl_zoo.memory import SampleTable
from ssl_zoo.monitor import Speed
from ssl_zoo.progress import Progress
from tests.golden.make import write_images
from tests.test_contract import CASES

FILE = Path(__file__).parent / "golden/operations.txt"
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique", "unique")
LOOKS = {"InterCLR, clustered at once": ("clusters.py",)}      # whose clusters the tests mend after every step, not 10
STEPS, WITHIN = 6, 4       # of two epochs; the step whose operations are counted, within an epoch


class Operations(TorchDispatchMode):
    """Counts operations, and notes where in the package each wait comes from."""

    def __init__(self):
        super().__init__()
        self.count, self.waits = 0, Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += not operation.is_view
        if operation.overloadpacket.__name__.startswith(WAITS):
            self.waits[f"{operation.overloadpacket.__name__} in {place()}"] += 1
        return operation(*args, **(kwargs or {}))


def place():
    frames = [frame for frame in traceback.extract_stack() if str(Path(ssl_zoo.__file__).parent) in frame.filename]
    return f"{frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "Lightning"


class Steps(pl.Callback):
    """From the first callback of a batch to the next batch's: with the optimiser, the logs and the progress bar."""

    def __init__(self):
        self.steps, self.mode = [], None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.stop()
        self.mode = Operations()
        self.mode.__enter__()

    def on_train_end(self, trainer, pl_module):
        self.stop()

    def stop(self):
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.steps.append(self.mode)
            self.mode = None


def steps(build):
    """The operations of each of two epochs' batches, in a run with a progress bar and a logger."""
    pl.seed_everything(0, verbose=False)
    method, counted = build(), Steps()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images.npz")
        pl.Trainer(accelerator="cpu", devices=1, callbacks=[counted, Progress(), Speed()], logger=CSVLogger(folder),
                   enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
                   limit_val_batches=0, max_steps=STEPS,
                   ).fit(method, datamodule=ArrayImages(f"{folder}/images.npz", batch_size=8, train_images=27))
    return counted.steps


def recorded():
    lines = (line.split(": ") for line in FILE.read_text().splitlines())
    return {name: int(count) for name, count in lines}


@pytest.mark.filterwarnings("ignore:the loss of .* sits at")
@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_for_nothing_and_asks_for_no_more_operations_than_recorded(name, monkeypatch):
    monkeypatch.setattr(SampleTable, "require_places", lambda table, index: None)     # looks at the CPU's index alone
    step = steps(CASES[name])[WITHIN]
    assert not [wait for wait in step.waits if not any(file in wait for file in LOOKS.get(name, ()))]
    assert name in recorded(), "record the operations of a new method: python -m tests.test_waits"
    assert step.count <= recorded()[name], "a step has more operations: if it must, python -m tests.test_waits"


def test_nobody_asks_swavs_queue_whether_it_is_full_while_it_fills():
    first, second, *_ = steps(CASES["SwAV, multi-crop with queue"])       # 8 of its 12 keys are real, then all
    assert not first.waits + second.waits


def main():
    torch.set_num_threads(1)
    FILE.write_text("".join(f"{name}: {steps(build)[WITHIN].count}\n" for name, build in CASES.items()))


if __name__ == "__main__":
    sys.exit(main())
