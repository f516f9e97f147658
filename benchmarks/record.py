"""Writes a benchmark's figures to results/, with what they depend on."""

import json
import os
from pathlib import Path
from typing import Any

from ssl_zoo import provenance

ROOT = Path(__file__).parents[1]


def data(name: str) -> Path:
    """A pack of real images, from the folder that SSL_ZOO_DATA names."""
    path = Path(os.environ.get("SSL_ZOO_DATA", ROOT.parent / "shared" / "data")) / name
    if not path.is_file():
        raise SystemExit(f"no {name} in {path.parent}: set SSL_ZOO_DATA to the folder that holds it")
    return path


def commit() -> str:
    return (provenance.package_code()["commit"] or "")[:7]


def record(name: str, figures: Any) -> None:
    made = provenance.provenance()
    kept = {one: made[one] for one in ("date", "command", "machine")}     # no folder of this machine's
    result = {"figures": figures, **kept, "versions": {"ssl_zoo": made["ssl_zoo"]["version"], **made["packages"]},
              "commit": commit(), "clean": made["ssl_zoo"]["clean"]}
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{json.dumps(figures, indent=2)}\nwritten to {path.relative_to(ROOT)}")
