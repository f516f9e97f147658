"""Writes a benchmark's figures to results/, with what they depend on."""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import ssl_zoo

ROOT = Path(__file__).parents[1]


def data(name: str) -> Path:
    """A pack of real images, from the folder that SSL_ZOO_DATA names."""
    path = Path(os.environ.get("SSL_ZOO_DATA", ROOT.parent / "shared" / "data")) / name
    if not path.is_file():
        raise SystemExit(f"no {name} in {path.parent}: set SSL_ZOO_DATA to the folder that holds it")
    return path


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True,
                          text=True).stdout.strip()


def record(name: str, figures: Any) -> None:
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    result = {"figures": figures, "machine": {"cpu": model, "cores": os.cpu_count(), "gpu": device},
              "versions": {"ssl_zoo": ssl_zoo.__version__, "torch": torch.__version__,
                           "python": platform.python_version()}, "commit": commit()}
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{json.dumps(figures, indent=2)}\nwritten to {path.relative_to(ROOT)}")
