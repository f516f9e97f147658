"""Do runs survive what happens to machines? Ends small runs at random moments, and lets `--resume auto` go on.

    python benchmarks/survive.py            60 trials, recorded: some 12 minutes
    python benchmarks/survive.py --short    one of each kind, as the tests run it

A trial ends a run by one of five misfortunes: SIGKILL; SIGTERM, as a scheduler sends it; a disk that is full from some
moment on; a SIGKILL after which the newest checkpoint is torn; and, of two processes, the loss of one. Then the same
command goes on. It has survived if the weights at the end are those of a run that nothing happened to, bit for bit, if
the curve has each step once, and if the report has the same numbers. Runs are forks of a process that has imported
everything, since to import takes longer than they do.
"""

import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from record import record
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ssl_zoo.cli.fit  # noqa: F401  for what it imports
from ssl_zoo.__main__ import main as ssl_zoo_main

FORK = multiprocessing.get_context("fork")
TRIALS, EPOCHS, HANGING = 60, 8, 900      # seconds; only for hangs
KINDS = ("SIGKILL", "SIGTERM", "full disk", "torn checkpoint", "lost process")
VIEWS = [{"size": 16, "count": 2, "jitter": 0.8, "gray": 0.2}]
HEADS = {"encoder": {"class_path": "NarrowResNet", "init_args": {"width": 4, "stages": 2}},
         "augment": {"views": VIEWS}, "projector": [16, 8],
         "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003, "weight_decay": 0.01}}}
METHODS = {
    "SimCLR": {},
    "MoCo": {"queue": 32, "momentum": 0.9, "splits": 2},
    "SwAV": {"prototypes": 6, "queue": 32, "queue_start": 2},
    "AMCL": {"heads": 2},
    "SogCLR": {"images": 60},
}


class Steps(pl.Callback):
    """Writes each step and its loss to a file at once, so that a killed run tells how far it had come."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        if trainer.is_global_zero:
            with open("steps.txt", "a") as file:
                file.write(f"{trainer.global_step} {outputs['loss'].item()!r}\n")


class Trial(NamedTuple):
    """What happened to a run."""

    method: str
    processes: int
    kind: str
    after: int      # steps, when it happened
    lost: int       # steps that were done twice
    seconds: float  # from the misfortune to the end of all processes
    wrong: str      # empty where it survived


def recipe(method: str) -> dict[str, Any]:
    return {
        "seed_everything": 0,
        "trainer": {"accelerator": "cpu", "max_epochs": EPOCHS, "check_val_every_n_epoch": 2, "log_every_n_steps": 1,
                    "enable_progress_bar": False,
                    "callbacks": [{"class_path": "survive.Steps"},
                                  {"class_path": "ModelCheckpoint", "init_args": {"save_top_k": -1}}]},
        "evaluation": {"protocols": ["knn", "health"]},
        "checkpoints": {"every_n_steps": 3},
        "model": {"class_path": method, "init_args": HEADS | METHODS[method]},
        "data": {"class_path": "ArrayImages", "init_args": {"path": "images.npz"}},
    }


def prepare(folder: Path, method: str) -> None:
    """60 and 24 labelled images of 16 pixels, and the recipe."""
    folder.mkdir()
    generator, labels = np.random.default_rng(0), np.arange(84) % 3
    images = generator.integers(0, 120, (84, 16, 16, 3)).astype(np.uint8)
    images[np.arange(84), :, :, labels] += 100
    np.savez(folder / "images.npz", train_images=images[:60], train_labels=labels[:60], test_images=images[60:],
             test_labels=labels[60:])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(method)))


def process(folder: Path, rank: int, processes: int, port: int) -> None:
    os.setsid()
    os.chdir(folder)
    said = os.open(f"said{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.modules.setdefault("survive", sys.modules["__main__"])
    torch.set_num_threads(1)
    sys.argv = ["ssl-zoo", "fit", "--config", "recipe.yaml", "--data.batch_size", str(10 // processes),
                "--resume", "auto"]
    if processes > 1:           # Lightning then takes them for processes that a launcher has started
        os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(port))
        sys.argv += ["--trainer.strategy", "ddp", "--trainer.devices", str(processes)]
    ssl_zoo_main()


def started(folder: Path, processes: int) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = [FORK.Process(target=process, args=(folder, rank, processes, port)) for rank in range(processes)]
    for one in found:
        one.start()
    return found


def ended(processes: Sequence[Any]) -> list[int | None]:
    """Wait for all, and give their exit codes; None for one that had to be killed."""
    until = time.monotonic() + HANGING
    for one in processes:
        one.join(max(0.1, until - time.monotonic()))
    codes = [one.exitcode for one in processes]
    for one in processes:
        one.kill()
        one.join()
    return codes


def steps(folder: Path) -> list[tuple[int, str]]:
    """Each step that was done and its loss, in the order in which they were done."""
    file = folder / "steps.txt"
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(int(step), loss) for step, loss in lines]


def wait_for(folder: Path, running: Sequence[Any], step: int) -> None:
    """Wait until the run has done this step, or has ended; for step 0 not even until it has started."""
    while step and step > len(steps(folder)) and all(one.exitcode is None for one in running):
        time.sleep(0.005)


def happens(kind: str, folder: Path, running: Sequence[Any], chance: random.Random) -> None:
    victim = chance.choice(running)
    if kind == "full disk":
        for one in running:     # no file of theirs may grow: less than a checkpoint, and its write ends half way
            resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
    elif kind == "SIGTERM":     # a scheduler sends it to all
        for one in running:
            os.kill(one.pid, signal.SIGTERM)
    else:
        for one in [victim] if kind == "lost process" else running:
            os.kill(one.pid, signal.SIGKILL)


def tear(folder: Path) -> None:
    """Leave half of the newest checkpoint, as a disk does that has lost its cache."""
    newest = max(folder.glob("runs/*/*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None:
        os.truncate(newest, newest.stat().st_size // 2)


def outcome(folder: Path) -> dict[str, Any]:
    """What is left of a run and of those that went on from it: weights, curve and report."""
    runs = sorted((folder / "runs/recipe").iterdir(), key=lambda path: int(path.name.rpartition("_")[2]))
    checkpoint = torch.load(runs[-1] / "checkpoints/last.ckpt", weights_only=False)
    curve: dict[int, float] = {}
    for run in runs:            # a run that goes on from a step replaces what came after it
        points = EventAccumulator(str(run)).Reload()
        found = points.Scalars("loss") if "loss" in points.Tags()["scalars"] else []
        if len({point.step for point in found}) < len(found):
            raise ValueError(f"{run.name} has a step twice in its curve")
        first = min((point.step for point in found), default=0)
        curve = {step: loss for step, loss in curve.items() if step < first} | {p.step: p.value for p in found}
    return {"weights": checkpoint["state_dict"], "optimizer": checkpoint["optimizer_states"], "curve": curve,
            "report": (runs[-1] / "report.txt").read_text()}


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    for part in "weights", "curve", "report":
        if not same(found[part], expected[part]):
            return f"another {part}"
    return ""


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or one != one and other != other


def tried(folder: Path, trial: tuple[str, int, str], expected: dict[str, Any], chance: random.Random) -> Trial:
    method, processes, kind = trial
    prepare(folder, method)
    running = started(folder, processes)
    wait_for(folder, running, chance.randrange(len(expected["curve"])))
    time.sleep(chance.uniform(0, 0.1))
    happens(kind, folder, running, chance)
    began = time.monotonic()
    codes = ended(running)
    seconds, before = time.monotonic() - began, steps(folder)
    if kind == "torn checkpoint":
        tear(folder)
    expected_codes = {0, 143} if before else {0, 143, -signal.SIGTERM}       # before it has begun, nobody listens
    wrong = (f"the processes ended with {codes}" if None in codes or kind == "SIGTERM" and set(codes) - expected_codes
             else "")
    codes = ended(started(folder, processes))
    if not wrong:
        wrong = f"going on ended with {codes}" if any(codes) else difference(outcome(folder), expected)
    after = max((step for step, _ in before), default=0)
    return Trial(*trial, after, len(steps(folder)) - len({step for step, _ in steps(folder)}), round(seconds, 1), wrong)


def trials(count: int) -> list[tuple[str, int, str]]:
    """All kinds and methods on one process and two, once and over again."""
    every = [(method, processes, kind) for kind, processes, method in itertools.product(KINDS, (1, 2), METHODS)
             if processes == 2 or kind != "lost process"]
    return list(itertools.islice(itertools.cycle(every), count))


SHORT = [("MoCo", 1, kind) for kind in KINDS[:-1]] + [("SwAV", 2, "lost process")]


def whole(folder: Path, method: str, processes: int) -> dict[str, Any]:
    """A run that nothing happens to."""
    prepare(folder, method)
    if any(codes := ended(started(folder, processes))):
        raise SystemExit(f"{method} on {processes} processes ended with {codes}: {(folder / 'said0.txt').read_text()}")
    return outcome(folder)


def main(chosen: Sequence[tuple[str, int, str]], seed: int = 0) -> list[Trial]:
    chance, results, references = random.Random(seed), list[Trial](), dict[tuple[str, int], dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name:
        for number, trial in enumerate(chosen):
            method, processes, _ = trial
            if (method, processes) not in references:
                references[method, processes] = whole(Path(name, f"{method}{processes}"), method, processes)
            folder = Path(name, str(number))
            results.append(tried(folder, trial, references[method, processes], chance))
            print(*results[-1], flush=True)
            if results[-1].wrong:
                print((folder / "said0.txt").read_text(), file=sys.stderr)
            shutil.rmtree(folder)
    lost = [trial.lost for trial in results]
    survived = sum(not trial.wrong for trial in results)
    print(f"{survived} of {len(results)} survived; {sum(lost) / len(lost):.1f} steps were done twice on average, "
          f"{max(lost)} at most")
    return results


if __name__ == "__main__":
    short = sys.argv[1:] == ["--short"]
    found = main(SHORT if short else trials(TRIALS))
    if not short:
        record("survive", {"survived": sum(not trial.wrong for trial in found), "tried": len(found),
                           "trials": [trial._asdict() for trial in found]})
    sys.exit(any(trial.wrong for trial in found))
