"""How long does `make quickstart` take on a fresh clone, installation included, and how long the second time?"""

import subprocess
import tempfile
import time

from record import ROOT, record

with tempfile.TemporaryDirectory() as folder:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        printed = subprocess.run(["make", "quickstart"], cwd=folder, check=True, capture_output=True, text=True).stdout
        seconds.append(round(time.perf_counter() - start))
    table = printed[printed.rindex("\n", 0, printed.index("raw pixels")) + 1:printed.index("whole table")]
record("quickstart", {"seconds, with installation": seconds[0], "seconds, installed": seconds[1],
                      "table": [line for line in table.splitlines() if line]})
