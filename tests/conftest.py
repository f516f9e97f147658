"""Small runs that several tests share: noise images, a tiny encoder, a few steps."""

import copy
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml

from ssl_zoo.data import ArrayImages
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.evaluation.protocol import Context
from ssl_zoo.methods import SimCLR
from ssl_zoo.schedules import WarmupCosine
from ssl_zoo.views import Augmentation, ViewSpec
from tests.processes import TwoProcesses

# Tensors this small gain nothing from two threads, and where others keep the cores busy they lose hundredfold.
os.environ["OMP_NUM_THREADS"] = "1"   # of the processes and kernels that tests start
torch.set_num_threads(1)


@pytest.fixture
def process(monkeypatch):
    """Makes torch.distributed say that this is one of several processes."""
    def of(rank, processes):
        for name, value in (("is_initialized", True), ("get_rank", rank), ("get_world_size", processes)):
            monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    return of


@pytest.fixture(scope="module")
def benchmarks():
    """A benchmark by its name."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield __import__
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="session")
def arrays(tmp_path_factory):
    """A file of 60 + 24 labelled images of 16 pixels, three classes by mean colour."""
    generator = np.random.default_rng(0)
    labels = np.arange(84) % 3
    images = generator.integers(0, 120, (84, 16, 16, 3))
    images[np.arange(84), :, :, labels] += 100
    path = tmp_path_factory.mktemp("arrays") / "images.npz"
    np.savez(path, train_images=images[:60].astype(np.uint8), train_labels=labels[:60],
             test_images=images[60:].astype(np.uint8), test_labels=labels[60:])
    return path


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """Calls a function on two processes at once: see `tests.processes`."""
    processes = TwoProcesses(tmp_path_factory.mktemp("meetings"))
    yield processes
    processes.end()


@pytest.fixture
def data(arrays):
    return ArrayImages(str(arrays), batch_size=8)


def simclr(**changes):
    pl.seed_everything(0)
    row = ViewSpec(size=16, count=2, jitter=0.8, gray=0.2, blur=0.5, solarize=0.2)
    return SimCLR(**{"encoder": NarrowResNet(4, 2), "augment": Augmentation([row]),
                     "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
                     "schedule": WarmupCosine(0.2), "projector": (16, 8)} | changes)


TWO_VIEWS = ViewSpec(size=16, count=2, jitter=0.8, gray=0.2, blur=0.5, solarize=0.2)
MULTI_CROP = (ViewSpec(size=16, count=2, jitter=0.8, role="global"),
              ViewSpec(size=8, count=3, role="local", scale=(0.05, 0.3)))


def small(method, *rows, **changes):
    """A tiny method of any class; whoever builds it has seeded."""
    return method(**{"encoder": NarrowResNet(4, 2), "augment": Augmentation(rows or [TWO_VIEWS]),
                     "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
                     "schedule": WarmupCosine(0.2, start=0.1)} | changes)


@pytest.fixture
def method():
    return simclr()


def trainer(folder, *callbacks, **options):
    return pl.Trainer(**{"accelerator": "cpu", "devices": 1, "default_root_dir": folder, "callbacks": list(callbacks),
                         "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
                         "enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": 2} | options)


def measured(protocol, train, test, running=True):
    """The values that a protocol finds, as a run would log them."""
    return {name: score.value for name, score in protocol.measure(train, test, Context(running=running)).scores.items()}


def state(method):
    return copy.deepcopy(method.state_dict())


def same(first, second):
    """Bit for bit, through dictionaries and lists."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def small_run(arrays):
    """A small whole run on arrays, as a dictionary."""
    whole = yaml.safe_load((Path(__file__).parents[1] / "recipes/quickstart.yaml").read_text())
    whole["trainer"] |= {"max_epochs": 2, "check_val_every_n_epoch": 1, "log_every_n_steps": 1}
    whole["model"]["init_args"]["encoder"]["init_args"] = {"width": 4, "stages": 2}
    whole["model"]["init_args"]["augment"]["views"] = [{"size": 16, "count": 2}]
    whole["model"]["init_args"]["projector"] = [16, 8]
    whole["data"] = {"class_path": "ArrayImages", "init_args": {"path": str(arrays), "batch_size": 8}}
    return whole


@pytest.fixture
def recipe(tmp_path, arrays, monkeypatch):
    """A small whole run in an empty folder, which tests change before they write it."""
    monkeypatch.chdir(tmp_path)
    return small_run(arrays)
