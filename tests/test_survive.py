"""The short form of benchmarks/survive.py: one misfortune of each kind, and the same weights, curve and report."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks")
def test_a_run_survives_one_misfortune_of_each_kind():
    done = subprocess.run([sys.executable, "benchmarks/survive.py", "--short"], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "5 of 5 survived" in done.stdout
