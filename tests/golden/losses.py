"""Twenty losses of every method, as text: `python -m tests.golden.losses [NAME ...]` writes those of the names anew.

Renew them only for a change that is meant to change a method's numbers, and say so in the commit.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch

from ssl_zoo.data import ArrayImages
from tests.golden.make import Losses, write_images

FILE = Path(__file__).with_suffix(".txt")
STEPS = 20
LR = 0.01       # at the tests' own some losses grow, and weights that differ by 1e-14 give losses that differ by 2e-5


class Noise(pl.Callback):
    """Puts noise in the views, so that no other machine's float32 kernels have a part in what follows in float64."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        generator = torch.Generator().manual_seed(trainer.global_step)
        for view in batch.views:
            torch.rand(view.images.shape, out=view.images, generator=generator)


def twenty(build):
    """The losses of seven epochs of three batches of noise but for the last batch, in float64."""
    pl.seed_everything(0, verbose=False)
    method, losses = build(), Losses()
    method.optimizer = partial(torch.optim.SGD, lr=LR)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images.npz")
        data = ArrayImages(f"{folder}/images.npz", batch_size=8, train_images=27)
        pl.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, callbacks=[Noise(), losses], logger=False,
                   enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                   num_sanity_val_steps=0, limit_val_batches=0, max_steps=STEPS, precision="64-true",
                   ).fit(method, datamodule=data)
    return losses.losses


def read():
    """The recorded losses by the method's name."""
    lines = (line.split(": ") for line in FILE.read_text().splitlines())
    return {name: [float(loss) for loss in losses.split()] for name, losses in lines}


def main(names):
    from tests.test_contract import CASES
    torch.set_num_threads(1)
    kept = read() if names else {}
    chosen = names or CASES
    found = {name: twenty(CASES[name]) if name in chosen else kept[name] for name in CASES if name in [*chosen, *kept]}
    lines = (f"{name}: {' '.join(f'{loss:.9g}' for loss in losses)}\n" for name, losses in found.items())
    FILE.write_text("".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
