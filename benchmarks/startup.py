"""How long until `ssl-zoo --help` answers, as a ratio to importing Lightning's command line: interleaved, medians."""

import statistics
import subprocess
import sys
import time

from record import record

COMMANDS = {"ssl-zoo --help": [sys.executable, "-m", "ssl_zoo", "--help"],
            "ssl-zoo fit --help": [sys.executable, "-m", "ssl_zoo", "fit", "--help"],
            "import pytorch_lightning.cli": [sys.executable, "-c", "import pytorch_lightning.cli"]}

times: dict[str, list[float]] = {name: [] for name in COMMANDS}
for _ in range(6):
    for name, command in COMMANDS.items():
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times[name].append(time.perf_counter() - start)
medians = {name: statistics.median(runs[1:]) for name, runs in times.items()}   # the first warms the disk's cache
base = medians["import pytorch_lightning.cli"]
record("startup", {name: {"seconds": round(value, 2), "ratio": round(value / base, 2)}
                   for name, value in medians.items()})
