"""What saving costs: seconds of one checkpoint, ours and Lightning's, their share of a run, and the watch on weights.

The checkpoints are of SimCLR with ResNet-50, its weights and the momenta of SGD; the run is quickstart's, on the CPU,
with a checkpoint every N steps (an argument, 100 if left out) beside those at the end of each epoch.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from record import record

from ssl_zoo.cli.fit import Cli
from ssl_zoo.encoders import ResNet
from ssl_zoo.finite import largest
from ssl_zoo.saving import WholeCheckpoints

REPEATS = 5


def seconds(call: Callable[[], object]) -> float:
    found = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return round(median(found[1:]), 4)   # the first makes the file


def share(every: int) -> dict[str, float]:
    """Of quickstart's run: what its checkpoints took, and all of it."""
    os.chdir(tempfile.mkdtemp())
    began = time.perf_counter()
    cli = Cli(["fit", "--config", config, "--checkpoints.every_n_steps", str(every)])
    took, saving = time.perf_counter() - began, cli.trainer.strategy.checkpoint_io
    assert isinstance(saving, WholeCheckpoints)
    return {"every n steps": every, "seconds of the run": round(took, 1), "of saving": round(saving.seconds, 2),
            "share": round(saving.seconds / took, 4)}


config = str(Path(__file__).parents[1] / "recipes" / "quickstart.yaml")
weights = ResNet(50).state_dict()
checkpoint = {"state_dict": weights, "optimizer_states": [{"state": {
    n: {"momentum_buffer": value.clone()} for n, value in enumerate(weights.values())}}], "callbacks": {}}
with tempfile.TemporaryDirectory(dir=os.environ.get("SSL_ZOO_DISK")) as folder:
    path = Path(folder) / "last.ckpt"
    whole, lightnings = WholeCheckpoints(), TorchCheckpointIO()
    saved = {"ours, on the disk": seconds(lambda: whole.save_checkpoint(checkpoint, path)),
             "Lightning's, in the system's memory": seconds(lambda: lightnings.save_checkpoint(checkpoint, path)),
             "megabytes": round(path.stat().st_size / 1e6)}
floats = [value for value in weights.values() if value.is_floating_point()]
record("checkpoints", {"seconds of a checkpoint": saved, "seconds of a look at all weights": seconds(
    lambda: largest(floats)), "threads": torch.get_num_threads(),
    "a run": share(int(sys.argv[1]) if len(sys.argv) > 1 else 100)})
