"""The processor's seconds and the memory of a call, measured in a process of its own."""

import ctypes
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

M_MMAP_THRESHOLD = -3   # of glibc: larger blocks go back to the system when they are freed
Cost = tuple[float, int]


def cost(call: Callable[[], object]) -> Cost:
    """The seconds of the faster of two calls, and by how many bytes this process's resident pages rise at most."""
    before, most, running, seconds = resident(), 0, True, []

    def watch() -> None:
        nonlocal most
        while running:
            most = max(most, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    running = False
    watcher.join()
    return min(seconds), most - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def in_a_process(measure: Callable[..., Cost], *arguments: Any) -> Cost:
    """measure(*arguments) on one thread of a fork of this process, which has done nothing but import.

    Seconds and memory come from a fork each. To count memory, what is freed goes back to the system at once; to get it
    anew takes time that a training run does not lose, because glibc keeps memory that was freed once.
    """
    return forked(measure, arguments, returned=False)[0], forked(measure, arguments, returned=True)[1]


def forked(measure: Callable[..., Cost], arguments: tuple[Any, ...], returned: bool) -> Cost:
    ours, theirs = multiprocessing.Pipe()

    def answer() -> None:
        torch.set_num_threads(1)
        if returned:
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2 ** 20)
        theirs.send(measure(*arguments))

    process = multiprocessing.get_context("fork").Process(target=answer)
    process.start()
    found: Cost = ours.recv()
    process.join()
    return found
