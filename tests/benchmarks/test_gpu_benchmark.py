"""The GPU command where there is no GPU: it says so, and its rehearsal checks every result and times none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
REHEARSAL = """
import sys
from pathlib import Path
import torch
from benchmarks.gpu import ceilings, kernels, laser, ops, report
from benchmarks.gpu.session import Session
session = Session(torch.device("cpu"))
for part in (ceilings, kernels, laser, ops):
    part.measure(session)
assert not session.faults, session.faults
assert {row["part"] for row in session.rows} >= {"kernels", "laser", "block_svd", "score_blocks", "reduce_blocks"}
assert not any(row["seconds"] for row in session.rows)
report.write(session, {"device": "none"}, {"tests": "not run"}, Path(sys.argv[1]))
"""


def run(*command, **variables):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_without_a_gpu_it_says_what_to_do():
    done = run(sys.executable, "-m", "benchmarks.gpu")
    assert done.returncode == 2
    assert done.stderr == "expected a CUDA device, torch sees none; --no-gpu runs the parts that need none\n"


def test_its_rehearsal_checks_every_result_and_times_none(tmp_path):
    done = run(sys.executable, "-c", REHEARSAL, str(tmp_path), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    report = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "nothing was measured" in report
    assert "0 figures measured" in report
