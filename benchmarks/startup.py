"""How long the commands take to answer, as a ratio to importing Lightning's command line: interleaved, medians.

Seconds are of CPU, so that other work on the machine changes them little.
"""

import os
import statistics
import subprocess
import sys

from record import record

HELP = ("--help", "--version", "recipes", "evaluate --help", "export --help", "preview --help", "fit --help")
WRONG = ("evaluate resnet18 --outptu x", "evaluate nowhere.ckpt", "fti")
COMMANDS = {"import pytorch_lightning.cli": [sys.executable, "-c", "import pytorch_lightning.cli"]} | {
    f"ssl-zoo {words}": [sys.executable, "-m", "ssl_zoo", *words.split()] for words in HELP + WRONG}


def seconds(command: list[str]) -> float:
    before = os.times()
    subprocess.run(command, check=False, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


times: dict[str, list[float]] = {name: [] for name in COMMANDS}
for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 6):
    for name, command in COMMANDS.items():
        times[name].append(seconds(command))
medians = {name: statistics.median(runs[1:] or runs) for name, runs in times.items()}   # the first fills caches
base = medians["import pytorch_lightning.cli"]
record("startup", {name: {"seconds": round(value, 2), "ratio": round(value / base, 2)}
                   for name, value in medians.items()})
