"""Every kernel compiles for the GPUs it is meant for, fits them, and uses their tensor cores where meant."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernel_resources.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("resources") / "rows.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", SCRIPT, "-o", path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert path.exists(), done.stdout + done.stderr
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_every_kernel_is_compiled_for_both_generations(rows):
    for capability in (80, 90):
        compiled = {row["kernel"] for row in rows if row["capability"] == capability}
        assert compiled == {"gram", "diagonal", "prefix_product"}


def test_none_spills_or_asks_for_more_than_there_is(rows):
    for row in rows:
        assert row["spilled"] == 0, row
        assert row["registers"] <= 255, row
        assert row["shared"] <= {80: 163, 90: 227}[row["capability"]] * 1024, row


def test_tensor_cores_multiply_everything_but_ieee_fp32(rows):
    instructions = {"float64": "f64", "tf32x3": "tf32", "tf32": "tf32", "half": "16"}
    for row in rows:
        if row["arithmetic"] == "ieee":
            assert row["tensor_core"] == "", row
        else:
            assert instructions[row["arithmetic"]] in row["tensor_core"], row
        if row["capability"] == 90 and row["arithmetic"] in ("tf32x3", "tf32", "half"):
            assert "wgmma" in row["tensor_core"], row
