"""The GPU command where there is no GPU: it says so, and its rehearsal checks every result and times none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from marks import slow

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks that are modules of a package
from benchmarks.gpu import steps, whitening
from benchmarks.gpu.session import Session
from lasertri.ops import whiten

ROOT = Path(__file__).parents[2]

REHEARSAL = """
import importlib
import sys
from pathlib import Path
import torch
from benchmarks.gpu import report
from benchmarks.gpu.session import Session
folder, *parts = sys.argv[1:]
session = Session(torch.device("cpu"), log=Path(folder) / "rows.jsonl")
for part in parts:
    importlib.import_module(f"benchmarks.gpu.{part}").measure(session)
assert not session.faults, session.faults
print(*{row["part"] for row in session.rows}, sep="\\n")
assert not any(row["seconds"] for row in session.rows)
session.did("tests", "not run")
report.write(session, {"device": "none"}, Path(folder))
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
        slow(
            "ceilings eigen kernels laser ops whitening",
            {"kernels", "laser", "block_svd", "score_blocks", "reduce_blocks", "whiten_blocks", "eigenvectors"},
        ),
    ],
)
def test_its_rehearsal_checks_every_result_and_times_none(tmp_path, parts, measured):
    done = run(sys.executable, "-c", REHEARSAL, str(tmp_path), *parts.split(), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    assert {line.removeprefix("measured ") for line in done.stdout.splitlines()} >= measured
    report = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "nothing was measured" in report
    assert "0 figures measured" in report
    logged = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {entry["part"] for entry in logged if "part" in entry} >= measured
    assert logged[-1] == {"step": "tests", "outcome": "not run"}


def test_what_is_exact_is_not_whitened_by_products(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("by products")

    monkeypatch.setattr(whiten, "BY_PRODUCTS", {"cpu"})  # as on a GPU
    monkeypatch.setattr(whiten, "whiten_by_products", fail)
    monkeypatch.setattr(whitening, "REHEARSED_SHAPE", (50, 40, 40))
    session = Session(torch.device("cpu"), log=tmp_path / "rows.jsonl")
    whitening.measure(session)
    assert [row["route"] for row in session.rows] == ["b: eigh"]
    assert "by products" in str(session.faults)


def test_what_is_there_is_written_at_once_and_by_the_end_even_if_it_is_cut_off(tmp_path):
    script = """
import sys, time
from pathlib import Path
from benchmarks.gpu import __main__ as main, ceilings, report, steps
steps.build_extension = lambda: "done"
def cut_off(session):
    session.add("laser", "case", "route", None)
    print("begun", flush=True)
    time.sleep(60)
ceilings.measure = cut_off
sys.argv[1:] = ["--no-gpu", "-o", sys.argv[1]]
main.typer.run(main.main)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while not process.stdout.readline().startswith("begun"):
            pass
        logged = (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8")
        process.terminate()
        process.communicate(timeout=60)
    assert '"part": "laser"' in logged
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))["rows"]


def test_a_step_that_is_stopped_for_the_time_says_what_it_printed_last():
    outcome = steps._run([sys.executable, "-c", "import time; print('half way', flush=True); time.sleep(60)"], 3, {})
    assert outcome == "not finished in the 3 s there were; give it more --minutes (the last of it: half way)"


def test_steps_find_the_package_without_an_installation():
    outcome = steps._run(
        [sys.executable, "-S", "-c", "import importlib.util as u; print(u.find_spec('lasertri'))"], 60, {}
    )
    assert outcome.startswith("done, ModuleSpec")
