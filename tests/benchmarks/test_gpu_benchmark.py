"""The GPU command where there is no GPU: it says so, and its rehearsal checks every result and times none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from marks import slow

ROOT = Path(__file__).parents[2]
REHEARSAL = """
import importlib
import sys
from pathlib import Path
import torch
from benchmarks.gpu import report
from benchmarks.gpu.session import Session
session = Session(torch.device("cpu"))
folder, *parts = sys.argv[1:]
for part in parts:
    importlib.import_module(f"benchmarks.gpu.{part}").measure(session)
assert not session.faults, session.faults
print(*{row["part"] for row in session.rows}, sep="\\n")
assert not any(row["seconds"] for row in session.rows)
report.write(session, {"device": "none"}, {"tests": "not run"}, Path(folder))
"""


def run(*command, **variables):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without CUDA")
def test_without_a_gpu_it_says_what_to_do():
    done = run(sys.executable, "-m", "benchmarks.gpu")
    assert done.returncode == 2
    assert done.stderr == "expected a CUDA device, torch sees none; --no-gpu runs the parts that need none\n"


@pytest.mark.parametrize(
    ("parts", "measured"),
    [
        ("ceilings laser", {"laser"}),
        slow("ceilings kernels laser ops", {"kernels", "laser", "block_svd", "score_blocks", "reduce_blocks"}),
    ],
)
def test_its_rehearsal_checks_every_result_and_times_none(tmp_path, parts, measured):
    done = run(sys.executable, "-c", REHEARSAL, str(tmp_path), *parts.split(), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    assert set(done.stdout.splitlines()) >= measured
    report = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "nothing was measured" in report
    assert "0 figures measured" in report
