"""Runs that are stopped by real signals: Ctrl-C, schedulers, on one process, with workers, on two."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssl_zoo.cli import run
from ssl_zoo.data import ArrayImages, images
from ssl_zoo.saving import LastCheckpoint, WholeCheckpoints
from ssl_zoo.stopping import SafeStop, Stopped
from tests.conftest import same, simclr, state, trainer
from tests.processes import PROCESSES

TRAINING, SANITY, EVALUATION = "on_train_batch_end", "on_sanity_check_start", "on_validation_batch_end"


class Signals(pl.Callback):
    """Sends this process a signal in a hook, the n-th time."""

    def __init__(self, signum: int, hook: str = TRAINING, after: int = 3):
        self.signum, self.hook, self.left = signum, hook, after
        setattr(self, hook, self.send)

    def send(self, trainer, *_):
        if trainer.sanity_checking == (self.hook == SANITY):
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), self.signum)


@pytest.fixture(autouse=True)
def handlers_of_a_terminal():
    """A shell lets what it starts in the background ignore Ctrl-C, and nohup the end of the terminal."""
    before = {one: signal.signal(one, handler) for one, handler in (
        (signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL))}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def ended(recipe, *options, signum=signal.SIGTERM, **where):
    """The exit status of a run that gets a signal."""
    callback = {"class_path": "tests.test_stopping.Signals", "init_args": {"signum": int(signum), **where}}
    recipe["trainer"] |= {"callbacks": [callback], "check_val_every_n_epoch": 1}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    handlers = [signal.getsignal(one) for one in signal.valid_signals()]
    with pytest.raises(SystemExit) as found:
        run(["fit", "--config", "recipe.yaml", *options])
    assert [signal.getsignal(one) for one in signal.valid_signals()] == handlers
    return found.value.code


def steps(path):
    return torch.load(path, weights_only=True)["global_step"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_signal_finishes_the_batch_saves_and_says_how_to_go_on(recipe, capfd, name):
    signum = getattr(signal, name)
    assert ended(recipe, "--trainer.log_every_n_steps", "1", signum=signum) == 128 + signum
    curve = EventAccumulator("runs/recipe/version_0").Reload().Scalars("loss")
    assert [point.step for point in curve] == [0, 1, 2]        # the batch at hand is in it
    said = capfd.readouterr().err
    assert said.count("stopping after the batch at hand, to save it") == 1
    assert "Traceback" not in said
    command = re.search(rf"stopped by {name} at step 3; go on with:\n  ssl-zoo (fit .*)", said)[1].split()
    assert command[-1].endswith("runs/recipe/version_0/checkpoints/interrupted.ckpt")
    assert steps(command[-1]) == 3
    if signum == signal.SIGTERM:
        recipe["trainer"].pop("callbacks")
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        run(["fit", "--config", "recipe.yaml", *command[-2:]])
        assert (Path("runs/recipe/version_1") / "report.txt").exists()


def test_a_signal_before_the_first_step_leaves_nothing(recipe, capfd):
    assert ended(recipe, hook=SANITY, after=1) == 143
    assert ended(recipe, signum=signal.SIGINT, hook=SANITY, after=1) == 130
    said = capfd.readouterr().err
    assert "stopped by SIGTERM before the first step: nothing was trained" in said
    assert "stopped by SIGINT before the first step: nothing was trained" in said
    assert "Traceback" not in said
    assert os.listdir() == ["recipe.yaml"]


def test_a_signal_in_an_evaluation_stops_at_once_and_loses_nothing(recipe, capfd):
    assert ended(recipe, hook=EVALUATION, after=1) == 143
    said = capfd.readouterr().err
    assert "stopping after" not in said
    path = re.search(r"stopped by SIGTERM at step 7; go on with:\n.* --ckpt_path (\S+)", said)[1]
    assert path.endswith("checkpoints/last.ckpt")
    assert steps(path) == 7


def test_a_signal_between_the_last_batch_and_the_evaluation_is_not_put_off_until_after_it(recipe, capfd):
    assert ended(recipe, "--trainer.max_epochs", "1", hook="on_validation_start", after=1) == 143
    path = re.search(r"stopped by SIGTERM at step 7; go on with:\n.* --ckpt_path (\S+)", capfd.readouterr().err)[1]
    assert path.endswith("checkpoints/last.ckpt")


@pytest.fixture
def asked(recipe, monkeypatch):
    """What a job of SLURM has asked of it, in a file."""
    tools, asked = Path("tools").absolute(), Path("asked").absolute()
    tools.mkdir()
    (tools / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {asked}\n")
    (tools / "scontrol").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    for name, value in {"NTASKS": "1", "NTASKS_PER_NODE": "1", "JOB_ID": "1234", "JOB_NAME": "train", "PROCID": "0",
                        "LOCALID": "0", "NODEID": "0", "NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return asked


def test_slurm_starts_a_job_again_and_it_goes_on(recipe, capfd, monkeypatch, asked):
    assert ended(recipe, signum=signal.SIGUSR1) == 128 + signal.SIGUSR1
    assert asked.read_text() == "requeue 1234\n"
    assert ended(recipe, after=2) == 143                 # SLURM takes the node away, and requeues by itself
    assert asked.read_text() == "requeue 1234\n"         # nobody asks for what scancel has ended
    folder = Path("runs/recipe/slurm_1234")
    assert [steps(folder / f"hpc_ckpt_{number}.ckpt") for number in (1, 2)] == [3, 5]
    recipe["trainer"].pop("callbacks")
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(["fit", "--config", "recipe.yaml"])
    assert "going on from runs/recipe/slurm_1234/hpc_ckpt_2.ckpt, step 5" in capfd.readouterr().err
    monkeypatch.setenv("SLURM_JOB_ID", "1235")           # another job starts for itself
    run(["fit", "--config", "recipe.yaml", "--trainer.max_steps", "1"])
    assert "going on" not in capfd.readouterr().err


@pytest.mark.parametrize(("hook", "step"), [("on_train_batch_start", 1), ("on_validation_start", 7), (EVALUATION, 7)])
def test_slurm_starts_a_job_again_whenever_it_warns(recipe, asked, hook, step):
    assert ended(recipe, "--trainer.max_epochs", "1", signum=signal.SIGUSR1, hook=hook, after=1) == 128 + signal.SIGUSR1
    assert asked.read_text() == "requeue 1234\n"
    assert steps("runs/recipe/slurm_1234/hpc_ckpt_1.ckpt") == step
    recipe["trainer"].pop("callbacks")
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(["fit", "--config", "recipe.yaml", "--trainer.max_epochs", "1"])
    assert Path("runs/recipe/version_1/report.txt").exists()


def test_workers_that_get_the_signal_too_load_the_batch_and_say_nothing(recipe):
    for i in range(24):
        place = Path("images") / f"{i % 3}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (9 * i, 80, 99)).save(place)
    recipe["data"] = {"class_path": "ImageFolder",
                      "init_args": {"root": "images", "batch_size": 4, "evaluation_size": 16, "workers": 2}}
    recipe["trainer"] |= {"max_epochs": 100_000, "num_sanity_val_steps": 0, "check_val_every_n_epoch": 100_000}
    recipe["checkpoints"] = {"every_n_steps": 1}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    process = subprocess.Popen([sys.executable, "-m", "ssl_zoo", "fit", "--config", "recipe.yaml"], text=True,
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    since = time.monotonic()
    while not list(Path("runs").rglob("last.ckpt")) and process.poll() is None and time.monotonic() - since < 1800:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=1800)
    assert process.returncode == 143, said
    assert said.count("stopping after the batch") == 1
    assert "Traceback" not in said
    step, path = re.search(r"stopped by SIGTERM at step (\d+); go on with:\n.* --ckpt_path (\S+)", said).groups()
    assert steps(path) == int(step)


class Meanwhile:
    """Stands for a trainer that is asked for its callbacks when a signal arrives."""

    world_size = 1

    def __init__(self, stop):
        self.stop = stop

    @property
    def callbacks(self):
        self.stop.ask(signal.SIGTERM, None)
        return []


def test_a_signal_that_arrives_while_processes_agree_counts_at_the_next_batch():
    stop = SafeStop()
    stop.begun = True
    assert stop.agree(Meanwhile(stop)) == 0
    assert stop.agree(Meanwhile(stop)) == signal.SIGTERM


# Two processes

def on_two_processes(rank, folder, arrays):
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(PROCESSES), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT="0")
    stop = SafeStop()
    signals = [Signals(signal.SIGTERM)] if rank else []
    running = trainer(folder, *signals, stop, LastCheckpoint(), plugins=[WholeCheckpoints()], strategy="ddp",
                      devices=PROCESSES, enable_checkpointing=True, limit_val_batches=0)
    try:
        running.fit(simclr(), datamodule=ArrayImages(str(arrays), batch_size=4))
    except (SystemExit, Stopped):
        return running.global_step, stop.signum, state(running.lightning_module)


def test_processes_stop_at_the_same_batch_where_one_of_them_gets_the_signal(two_processes, tmp_path, arrays):
    first, second = two_processes(on_two_processes, tmp_path, arrays)
    assert first[:2] == second[:2] == (3, signal.SIGTERM)
    assert same(dict(torch.load(tmp_path / "checkpoints/interrupted.ckpt", weights_only=True)["state_dict"]),
                dict(first[2]))


def warned_in_an_evaluation(rank, folder, arrays):
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(PROCESSES), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT="0")
    whole, images.EVALUATION_BATCH = images.EVALUATION_BATCH, 8
    stop, requeued, batches = SafeStop(), [], 4 - rank                      # the second has one batch less
    stop.requeue[signal.SIGUSR1] = lambda *_: requeued.append(running.global_step)
    signals = [Signals(signal.SIGUSR1, EVALUATION, batches)] if rank else []
    running = trainer(folder, *signals, stop, LastCheckpoint(), plugins=[WholeCheckpoints()], strategy="ddp",
                      devices=PROCESSES, enable_checkpointing=True, limit_val_batches=batches, max_epochs=1)
    try:
        running.fit(simclr(), datamodule=ArrayImages(str(arrays), batch_size=4))
    except (SystemExit, Stopped):
        return requeued
    finally:
        images.EVALUATION_BATCH = whole


def test_processes_are_requeued_together_where_one_of_them_is_warned_in_an_evaluation(two_processes, tmp_path, arrays):
    assert two_processes(warned_in_an_evaluation, tmp_path, arrays) == [[7], [7]]
