"""Every kernel, and the ops on them, under Triton's interpreter: in a process of its own, which cannot compile any."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from marks import slow

from lasertri.ops.backends import BACKENDS

TESTS = Path(__file__).parent
LEAST = {"not slow": 50, "slow": 50}  # tests that ran, or the selection is wrong


@pytest.mark.parametrize("marked", ["not slow", slow("slow")])
@pytest.mark.parametrize(
    "selection", [("kernels",), ("ops", "-k", "triton")], ids=["the kernels", "the ops of the triton backend"]
)
def test_interpreted(selection, marked, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    if obstacle := BACKENDS["triton"].why_not(torch.device("cpu")):
        pytest.skip(f"NOT TESTED: {obstacle}")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=--strict-markers",
        TESTS / selection[0],
        *selection[1:],
        "-m",
        marked,
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > LEAST[marked], done.stdout[-2000:]
