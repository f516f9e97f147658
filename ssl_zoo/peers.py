"""The other processes of a run: one that has died or was stopped ends the others, with a sentence that names it.

Without this a collective waits until its timeout, or ends with a traceback of the library that communicates.
"""

import os
import re
import signal
import socket
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytorch_lightning as pl
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from ssl_zoo import distributed

BEAT = 2                              # seconds between two signs of life
SILENT = 20                           # signs of life that may be missing: 40 seconds
GRACE = 5                             # seconds in which a process may end by itself after another is lost
TIMEOUT = timedelta(minutes=30)       # of a collective whose processes are all alive, for gloo and NCCL
DONE = "done"
BROKEN = re.compile("gloo|nccl|connection (closed|reset)|broken pipe|store|socket|timed out", re.IGNORECASE)


class Sign(NamedTuple):
    """What a process says of itself, again and again."""

    host: str
    pid: int
    beat: str
    table: str      # of processes, in which its pid counts: see `table`

    def __str__(self) -> str:
        return " ".join(map(str, self))

    @classmethod
    def of(cls, said: bytes) -> Self:
        host, pid, beat, known = said.decode().split()
        return cls(host, int(pid), beat, known)


class Peers(pl.Callback):
    """Watches over the other processes of a run from a thread, and ends this one when one of them is lost.

    Each process leaves a sign of life in the store by which they met. One that leaves none for 40 seconds was stopped,
    or its machine is gone. Of one on the same machine the system knows at once that it has ended, and by which signal.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None
        self.talker: threading.Thread | None = None
        self.launcher: Any = None              # of Lightning, which has started the others if they share its machine
        self.answers, self.unanswered = 0, 0   # of the store, and signs of life since the last one
        self.silent: dict[int, int] = {}
        self.signs: dict[int, Sign] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if distributed.world_size() > 1 and self.thread is None:
            self.store, self.launcher = _get_default_store().clone(), trainer.strategy.launcher
            self.rank = distributed.rank()
            self.others = [rank for rank in range(distributed.world_size()) if rank != self.rank]
            self.ended.clear()
            dismiss_lightnings()
            self.say("0")
            for rank in self.others:
                self.signs[rank] = Sign.of(self.store.get(f"peers/{rank}"))      # waits for it
            self.talker = threading.Thread(target=self.talk, daemon=True)
            self.talker.start()
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.end()

    def end(self) -> None:
        """Watch no more, and tell the others that this process ends as it should."""
        if self.thread is not None and not self.ended.is_set():
            self.ended.set()
            self.thread.join()
            self.thread = None
            if self.talker is not None:
                self.talker.join(BEAT)                 # whose last sign would replace the one below
            with suppress(RuntimeError, OSError):      # rank 0, which keeps the store, may have ended before
                self.say(DONE)

    def say(self, beat: str) -> None:
        self.store.set(f"peers/{self.rank}", str(Sign(socket.gethostname(), os.getpid(), beat, table())))

    def watch(self) -> None:
        answers = 0
        while not self.ended.wait(BEAT):
            self.unanswered, answers = self.unanswered + 1 if self.answers == answers else 0, self.answers
            if (found := self.lost()) and not self.ended.wait(GRACE):
                os.write(2, f"ssl-zoo: {found}\n".encode())
                if self.launcher is not None:
                    self.launcher.kill(signal.SIGKILL)        # one that was stopped would stay for ever
                os._exit(1)

    def talk(self) -> None:
        """Leave signs of life and read those of the others, in a thread of its own: a stopped store never answers."""
        while not self.ended.wait(BEAT):
            try:
                self.say(str(self.answers))
                found = self.store.multi_get([f"peers/{rank}" for rank in self.others])
            except (RuntimeError, OSError):
                continue                                       # rank 0 keeps the store, and is gone
            for rank, said in zip(self.others, found, strict=True):
                sign = Sign.of(said)
                # of checks, not of seconds: a machine that sleeps, or Ctrl-Z, stops all of them together
                self.silent[rank] = self.silent.get(rank, 0) + 1 if sign == self.signs[rank] else 0
                self.signs[rank] = sign
            self.answers += 1

    def lost(self) -> str | None:
        """The sentence on a process that is lost."""
        for rank, sign in list(self.signs.items()):
            if sign.beat == DONE:
                continue
            who = f"the process of rank {rank} ({sign.pid} on {sign.host})"
            how = ending(sign.pid, self.launcher) if here(sign) else None
            if how is not None:
                return f"{who} {how}, so that this one of rank {self.rank} cannot go on"
            if max(self.silent.get(rank, 0), 0 if rank else self.unanswered) >= SILENT:
                return (f"{who} has given no sign of life for {BEAT * SILENT} s, {state(sign)}, so that this one of "
                        f"rank {self.rank} cannot go on")
        return None

    def reason(self, error: BaseException) -> str | None:
        """Which process is lost, where an error is that of a collective without it."""
        of_others = isinstance(error, dist.DistError) or type(error) is RuntimeError and BROKEN.search(str(error))
        if self.thread is None or not of_others:
            return None
        for _ in range(GRACE * 10):            # the system may take a moment to know that the other has ended
            if found := self.lost():
                self.ended.set()
                return found
            self.ended.wait(0.1)
        return None


def dismiss_lightnings() -> None:
    """End Lightning's observer of the processes it started: it would kill this one, whatever that is writing."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer" and hasattr(thread, "_child_processes"):
            thread._child_processes = []


def ending(pid: int, launcher: Any) -> str | None:
    """How a process of this machine has ended; None if it has not, or if the system does not say."""
    code = next((one.poll() for one in getattr(launcher, "procs", ()) if one.pid == pid), None)
    if code is None:
        fields = stat(pid)
        if fields is None:
            return "has ended" if Path("/proc/self/stat").exists() else None
        if fields[0] not in "ZX":
            return None
        status = int(fields[-1])               # as waitpid gives it
        code = -(status & 127) if status & 127 else status >> 8
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with status {code}"


def table() -> str:
    """Which table of processes this one is in: two machines may have one name, and a machine several containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return "unknown"


def here(sign: Sign) -> bool:
    """Whether this process sees the one that has left a sign."""
    return (sign.host, sign.table) == (socket.gethostname(), table())


def state(sign: Sign) -> str:
    fields = stat(sign.pid) if here(sign) else None
    return "stopped by SIGSTOP or the like" if fields and fields[0] in "Tt" else "because it or its machine hangs"


def stat(pid: int) -> list[str] | None:
    """What Linux says of a process, from its state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
