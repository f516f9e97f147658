"""Two processes that the tests share: to start them costs seconds, to let them form a group milliseconds."""

import io
import multiprocessing
import os
import uuid
import warnings
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta

import torch
import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_only

PROCESSES = 2
HANGING = 1800   # seconds; only for hangs, since a busy machine takes minutes


class TwoProcesses:
    """Calls a test module's function(rank, *arguments) on two processes at once, which form a gloo group for it."""

    def __init__(self, folder):
        self.folder = folder
        # forks of a process that has only imported: a fork of this one would inherit locks of autograd's threads
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["pytorch_lightning", "torchvision"])
        self.pools = [ProcessPoolExecutor(1, server) for _ in range(PROCESSES)]   # so that each keeps its rank

    def __call__(self, function, *arguments):
        """What each process returns, by rank."""
        meeting = self.folder / uuid.uuid4().hex
        calls = [pool.submit(in_a_group, rank, meeting, function, arguments) for rank, pool in enumerate(self.pools)]
        return [torch.load(io.BytesIO(call.result(HANGING)), weights_only=False) for call in calls]

    def end(self):
        for pool in self.pools:
            for process in list((pool._processes or {}).values()):   # one that hangs would keep the tests from ending
                process.kill()
            pool.shutdown()


def in_a_group(rank, meeting, function, arguments):
    """The bytes of what `function` returns; nothing that it sets stays for the next call."""
    torch.set_num_threads(1)
    environment = dict(os.environ)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES,
                            timeout=timedelta(seconds=HANGING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = io.BytesIO()
            torch.save(function(rank, *arguments), file)
            return file.getvalue()
    finally:
        dist.destroy_process_group()
        os.environ.clear()
        os.environ.update(environment)
        rank_zero_only.rank = rank
