"""Loader processes that stay for a whole run, and end with it, not at the signals that stop it."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader


class Crew:
    """Processes that load the items of a source ahead, a whole batch in each message.

    Args:
        source: of which `source[item]` is what is loaded.
        workers: their number; 0 loads in this process.
        pin_memory: of the tensors, from which a GPU copies without a wait.
        stays: whether they wait for a further plan after one; then one plan runs at a time.
    """

    def __init__(self, source: Any, workers: int, pin_memory: bool = False, stays: bool = False):
        self.source, self.workers, self.pin_memory, self.stays = source, workers, pin_memory, stays
        self.plan: list[Any] = []
        self.loader: DataLoader | None = None

    def load(self, plan: Sequence[Any]) -> Iterator[Any]:
        """The items of a plan, in its order."""
        if not self.workers:
            return (self.source[item] for item in plan)
        self.plan[:] = plan
        self.loader = self.loader or DataLoader(
            self.source, batch_size=None, sampler=self.plan, num_workers=self.workers, collate_fn=as_it_is,
            generator=torch.Generator(),   # its own, so that torch's stays where it is
            worker_init_fn=obey_the_run_alone, pin_memory=self.pin_memory, persistent_workers=self.stays)
        with later():   # from their first instruction on, workers have it blocked
            return iter(self.loader)


def load_ahead(source: Any, plan: Sequence[Any], workers: int) -> Iterator[Any]:
    """`source[item]` for each item of the plan, in its order, by processes that load ahead; 0 loads in this one."""
    return Crew(source, workers).load(plan)


def as_it_is(batch: Any) -> Any:
    """Keeps torch's default from turning the tables of `Crops` into tensors."""
    return batch


@contextmanager
def later() -> Iterator[None]:
    """Keep a SIGTERM waiting meanwhile, in this thread and in processes that it starts."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_the_run_alone(worker: int) -> None:
    """Let a worker load on while the run finishes its batch, where a terminal or a scheduler signals them all."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_with_the_run, daemon=True).start()


def end_with_the_run() -> None:
    """End this process at a SIGTERM of its parent, as DataLoader sends it, and at nobody else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
