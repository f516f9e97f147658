"""Writes a benchmark's figures to results/, with what they depend on."""

import json
import os
from pathlib import Path
from typing import Any

from ssl_zoo import provenance

ROOT = Path(__file__).parents[1]
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile")   # with which products take a fraction of the time


def data(name: str) -> Path:
    """A pack of real images, from the folder that SSL_ZOO_DATA names."""
    path = Path(os.environ.get("SSL_ZOO_DATA", ROOT.parent / "shared" / "data")) / name
    if not path.is_file():
        raise SystemExit(f"no {name} in {path.parent}: set SSL_ZOO_DATA to the folder that holds it")
    return path


def commit() -> str:
    return (provenance.package_code()["commit"] or "")[:7]


def source() -> dict[str, Any]:
    """Where a figure comes from: what a record says of itself, and a run of one that others add to."""
    made = provenance.provenance()
    flags = next((line.split() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("flags")), [])
    machine = made["machine"] | {"instructions": [name for name in INSTRUCTIONS if name in flags]}
    return {"date": made["date"], "command": made["command"], "machine": machine,      # no folder of this machine's
            "versions": {"ssl_zoo": made["ssl_zoo"]["version"], **made["packages"]}, "commit": commit(),
            "clean": made["ssl_zoo"]["clean"]}


def record(name: str, figures: Any) -> None:
    result = {"figures": figures, **source()}
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{json.dumps(figures, indent=2)}\nwritten to {path.relative_to(ROOT)}")
