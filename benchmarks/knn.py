"""How fast, and in how much memory, are kNN, retrieval and the health measures? One thread, process time, medians.

kNN of 10,000 queries against 50,000 x 512 features of 10 classes, against lightly's knn_predict in its validation's
loop over batches of 512 queries, with a normalised bank prepared beforehand; interleaved. Beside it the 200 nearest by
faiss's flat search, where faiss-cpu is installed, which nothing else needs: it only searches, without a vote. Memory is
what comes to the features while it runs: tensors as torch's profiler counts them, and resident pages of a process of
its own, with what libraries and the allocator keep. Features are normal numbers around a centre for each class, near
enough for errors.

At ImageNet's size the tiles bound the memory; the time of scaled banks in half precision shows how it grows.

    python benchmarks/knn.py             about 4 minutes
    python benchmarks/knn.py --rounds 1  fewer than 5 rounds; nothing is written
"""

import argparse
import contextlib
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from lightly.utils.benchmarking.knn import knn_predict
from record import record
from torch import Tensor

from ssl_zoo.evaluation import nearest as module
from ssl_zoo.evaluation.features import Features
from ssl_zoo.evaluation.health import alignment, feature_std, rankme, similarities, tolerance, uniformity
from ssl_zoo.evaluation.knn import VOTES, knn_classes
from ssl_zoo.evaluation.nearest import SAMPLE, TILE_QUERIES, TILE_ROWS, nearest
from ssl_zoo.evaluation.retrieval import retrieval

ONE = {"knn_instdisc": VOTES["knn_instdisc"]}


def features(images: int, width: int, seed: int, spread: float = 0.1) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (images,), generator=generator)
    centres = spread * torch.randn(10, width, generator=torch.Generator().manual_seed(99))
    return Features(torch.randn(images, width, generator=generator) + centres[labels], labels, torch.arange(images))


def lightly_classes(bank: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """[M, 10], by `bank` [512, N] of unit length."""
    return torch.cat([knn_predict(F.normalize(batch), bank, labels, 10, *ONE["knn_instdisc"])
                      for batch in queries.split(512)])


def candidates(queries: int) -> dict[str, Callable[[], Any]]:
    train, test = features(50_000, 512, 0), features(queries, 512, 1)
    bank = F.normalize(train.x).T.contiguous()
    return {"lightly, one protocol": lambda: lightly_classes(bank, train.labels, test.x),
            "ssl_zoo, one protocol": lambda: knn_classes(train, test, ONE),
            "ssl_zoo, five protocols": lambda: knn_classes(train, test)}


def searches(queries: int) -> dict[str, Callable[[], Tensor]]:
    """The places [M, 200] of the nearest, by faiss if it is installed."""
    bank, test = features(50_000, 512, 0).x, features(queries, 512, 1).x

    def slow() -> Tensor:
        with mock.patch.object(module, "fast_bfloat16", return_value=False):
            return nearest(test, bank, 200)[1]
    found = {"ssl_zoo, the nearest alone": lambda: nearest(test, bank, 200)[1],
             "ssl_zoo, the nearest alone, without bfloat16": slow}
    with contextlib.suppress(ImportError):
        import faiss
        faiss.omp_set_num_threads(1)

        def flat() -> Tensor:
            index = faiss.IndexFlatIP(512)
            index.add(F.normalize(bank).numpy())
            return torch.from_numpy(index.search(F.normalize(test).numpy(), 200)[1])
        found["faiss's flat search"] = flat
    return found


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def speed(rounds: int) -> dict[str, Any]:
    calls = candidates(10_000)
    theirs, ours, _ = (call() for call in calls.values())
    alone = searches(10_000)
    places = [call() for call in alone.values()]
    calls |= alone
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    base = times["lightly, one protocol"]
    both = [torch.isin(one, other).double().mean() for one, other in zip(places[0], places[-1], strict=True)]
    return {"predictions equal": torch.equal(ours["knn_instdisc"][:, 0], theirs[:, 0]),
            "share of the nearest that faiss finds too": round(torch.stack(both).mean().item(), 6),
            "right": (ours["knn_instdisc"][:, 0] == features(10_000, 512, 1).labels).double().mean().item(),
            **{name: {"seconds": round(statistics.median(runs), 2),
                      "ratio": round(statistics.median(run / one for run, one in zip(runs, base, strict=True)), 3)}
               for name, runs in times.items()}}


def tensor_peak(call: Callable[[], Any]) -> int:
    """Bytes of tensors that come to those that exist, at most."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        now += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, now)
    return peak


def resident_peak(call: Callable[[], Any]) -> int:
    """Bytes of pages that come to those in use, at most; what the first call loads is there already."""
    def pages(key: str) -> int:
        return next(1024 * int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                    if line.startswith(key))

    call()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = pages("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")   # the highest number of pages is counted from here
    call()
    return pages("VmHWM") - before


def peaks(name: str) -> dict[str, float]:
    """Megabytes in a process of its own: the order of allocations in this one does not matter."""
    printed = subprocess.run([sys.executable, __file__, "--peaks", name], capture_output=True, text=True, check=True)
    return json.loads(printed.stdout.splitlines()[-1])


def memory() -> dict[str, Any]:
    names = list(candidates(1))
    found = {name: peaks(name) for name in names}
    return {name: {f"{kind}, MB": {"extra": value, "ratio": round(value / found[names[0]][kind], 3)}
                   for kind, value in found[name].items()} for name in names}


def bound(queries: int, images: int, width: int, classes: int) -> float:
    """Megabytes of tensors that kNN by all protocols can need beside the features: its tiles, with their copies."""
    k = max(vote.k for vote in VOTES.values())
    return 1e-6 * sum([
        4 * 4 * images,                                       # the norms of the bank, the places of the sample
        SAMPLE * width * (4 + 4 + 2),                         # the sample, and while it is drawn
        (TILE_QUERIES + TILE_ROWS) * width * (4 + 4 + 2),   # a tile: in single precision, scaled, rough
        TILE_QUERIES * max(TILE_ROWS, SAMPLE) * (2 + 2 + 8),   # their cosines and places
        TILE_QUERIES * (2 * k + TILE_ROWS) * (4 + 4),                   # the nearest so far
        TILE_QUERIES * k * (4 + 4 + 8) * 4,                        # the nearest in order, and their labels
        TILE_QUERIES * classes * 4 * 3,                            # votes
        queries * 5 * 8 * len(VOTES) * 2])                # classes


def imagenet() -> dict[str, Any]:
    """Times and memory of 1,024 queries and a part of the bank, and the bound for the whole."""
    width, queries = 2048, 1024
    bank, test = features(40_000, width, 0), features(queries, width, 1)
    bank = bank._replace(x=bank.x.half(), labels=torch.arange(40_000) % 1000)
    parts = {rows: Features(*(column[:rows] for column in bank)) for rows in (10_000, 20_000, 40_000)}
    times = {rows: statistics.median(seconds(lambda part=part: knn_classes(part, test)) for _ in range(3))
             for rows, part in parts.items()}
    return {"seconds for 1,024 queries and so many rows": {rows: round(t, 2) for rows, t in times.items()},
            "microseconds a row": {rows: round(1e6 * t / rows, 1) for rows, t in times.items()},
            "tensors for 1,024 queries and 40,000 rows, MB": {
                "found": round(tensor_peak(lambda: knn_classes(bank, test)) / 1e6),
                "bound": round(bound(queries, 40_000, width, 1000))},
            "bound for 50,000 queries and 1,281,167 rows, MB": round(bound(50_000, 1_281_167, width, 1000))}


def health() -> dict[str, Any]:
    narrow, wide = features(25_000, 512, 0), features(25_000, 2048, 0)
    view = narrow.x + 0.1 * features(25_000, 512, 1).x
    calls = {"feature_std": lambda: feature_std(narrow.x), "rankme, 2048 wide": lambda: rankme(wide.x),
             "rankme": lambda: rankme(narrow.x), "uniformity": lambda: uniformity(narrow.x),
             "alignment": lambda: alignment(narrow.x, view), "tolerance": lambda: tolerance(narrow.x, narrow.labels),
             "similarities": lambda: similarities(narrow.x, view),
             "retrieval, 1,000 queries": lambda: retrieval(narrow, features(1000, 512, 1))}
    return {name: {"seconds": round(seconds(call), 2), "tensors, MB": round(tensor_peak(call) / 1e6)}
            for name, call in calls.items()}


parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int)
parser.add_argument("--peaks", help=argparse.SUPPRESS)
arguments = parser.parse_args()
torch.set_num_threads(1)
if arguments.peaks:
    call = candidates(2048)[arguments.peaks]
    print(json.dumps({"resident": round(resident_peak(call) / 1e6, 1), "tensors": round(tensor_peak(call) / 1e6, 1)}))
else:
    figures = {"kNN": speed(arguments.rounds or 5), "memory of kNN": memory(), "kNN at ImageNet's size": imagenet(),
               "health of 25,000 x 512 features": health()}
    if arguments.rounds:
        print(json.dumps(figures, indent=2))
    else:
        record("knn", figures)
