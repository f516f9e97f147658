"""The runs of a comparison: each `ssl-zoo fit` in a process of its own, one after the other."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ssl_zoo.cli.arms import Arm, finished

LOG = "log.txt"      # of all tries of a seed, in its folder
POLL = 0.2           # seconds between two looks at a run
LOCK: list[int] = []   # of the comparison that this process holds


class Failed(Exception):
    """A run that has ended without an encoder, in one sentence."""


@contextmanager
def only_one(output: Path) -> Iterator[None]:
    """Keep two comparisons from training in one folder; a run that has outlived its comparison counts as one.

    The lock is the system's, on a file that the runs have open, too: it goes with the last process that holds it.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file, and a comparison needs a folder: name another")
    output.mkdir(parents=True, exist_ok=True)
    handle = os.open(output / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another ssl-zoo compare, or a run that one has started, works in {output}: wait for it, "
                             "or name another --output") from error
        except OSError:      # some networks' disks have no locks
            pass
        LOCK.append(handle)
        yield
    finally:
        LOCK.clear()
        os.close(handle)


def fit(arm: Arm, seed: int, place: Path, which: str) -> Path:
    """Run a recipe, or go on with it, and return the run's folder.

    Raises:
        Failed: it has left no encoder.
        SystemExit: this process was told to end; the run has saved what it had.
    """
    place.mkdir(parents=True, exist_ok=True)
    arguments = ["fit", "--config", arm.recipe, *arm.options, f"--seed_everything={seed}", "--trainer.logger=CSVLogger",
                 f"--trainer.logger.save_dir={place.parent}", f"--trainer.logger.name={place.name}", "--resume=auto"]
    title = f"{which}: {arm.name}, seed {seed}"
    log = place / LOG
    before = log.stat().st_size if log.exists() else 0
    status = watched([sys.executable, "-m", "ssl_zoo", *arguments], log, title)
    if found := finished(place):
        return found[-1]
    raise Failed(f"{reason(log, before, status)} (all of it: {log})")


def watched(command: Sequence[str], log: Path, title: str) -> int:
    """Run a command, whose output goes to the end of a file, and show its progress; returns its status.

    A signal to this process is handed on once, and the command's end awaited: it has a session of its own, so that
    Ctrl-C does not reach it twice.
    """
    with log.open("ab") as end, log.open("rb") as shown:
        shown.seek(0, os.SEEK_END)
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=end, stderr=subprocess.STDOUT,
                                 start_new_session=True, pass_fds=LOCK)
        with forwarding(child) as asked:
            Screen(title, shown).follow(child)
    if asked:
        print(f"ended by {signal.Signals(asked[0]).name}: the same command goes on", file=sys.stderr)
        sys.exit(128 + asked[0])
    return child.returncode


@contextmanager
def forwarding(child: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Hand signals on to a process; yields those that came. Nothing of it outlives this one."""
    asked: list[int] = []

    def ask(signum: int, frame: object) -> None:
        asked.append(signum)
        with suppress(ProcessLookupError):
            child.send_signal(signum)

    before = {}
    with suppress(ValueError):      # in another thread than the first, which gets no signals
        before = {one: signal.signal(one, ask) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
                  if signal.getsignal(one) != signal.SIG_IGN}      # as nohup has it, and the run inherits it
    try:
        yield asked
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        if child.poll() is None:
            child.kill()
            child.wait()


class Screen:
    """One line with a run's own progress where somebody looks, and otherwise one when it begins and one at its end."""

    def __init__(self, title: str, log: IO[bytes]):
        self.title, self.log, self.line = title, log, ""
        self.seen = sys.stderr.isatty()
        self.since = time.monotonic()

    def follow(self, child: "subprocess.Popen[bytes]") -> None:
        if not self.seen:
            print(self.title, file=sys.stderr, flush=True)
        while child.poll() is None:
            time.sleep(POLL)
            self.show()
        spent = f"{self.title}: {time.monotonic() - self.since:.0f} seconds" + f", status {child.returncode}" * bool(
            child.returncode)
        print("\r\033[K" * self.seen + spent, file=sys.stderr, flush=True)

    def show(self) -> None:
        text = self.log.read().decode(errors="replace").replace("\r", "\n")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines and self.seen:
            self.line = lines[-1]
            width = (os.get_terminal_size(2).columns or 80) - 1
            print("\r\033[K" + f"{self.title}: {self.line}"[:width], end="", file=sys.stderr, flush=True)


def reason(log: Path, before: int, status: int) -> str:
    """Why a run has failed: its own sentence, or the last line that it has printed."""
    with log.open("rb") as file:
        file.seek(before)
        text = file.read().decode(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip() and "SSL_ZOO_DEBUG" not in line]
    sentences = re.findall("ssl-zoo: (.+)", text)        # perhaps behind a progress bar
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}, as where memory is short"
    return (sentences or lines or [f"it ended with status {status} and said nothing"])[-1]
