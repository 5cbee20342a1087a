"""What comes before the figures: build the extension, run the tests that a GPU adds, compile every kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-o", "addopts=--strict-markers", "-m", "gpu"]


def build_extension(*, cuda: bool) -> str:
    """Build it in this checkout, as the README says."""
    if cuda and shutil.which("nvcc") is None and "CUDA_HOME" not in os.environ:
        return "not built: no nvcc on PATH and no CUDA_HOME"
    variable = "LASERTRI_BUILD_CUDA" if cuda else "LASERTRI_BUILD_CPU"
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return _run(command, {variable: "1"})


def run_tests(*, interpreted: bool) -> str:
    """The tests marked `gpu`; without a GPU, those of the kernels, interpreted."""
    if interpreted:
        return _run([*PYTEST, "tests/kernels"], {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})
    return _run([*PYTEST, "tests/kernels", "tests/gpu"], {})


def sanitize() -> str:
    """compute-sanitizer over each kernel and the extension at small sizes, where it is installed."""
    if shutil.which("compute-sanitizer") is None:
        return "not run: no compute-sanitizer on PATH"
    command = ["compute-sanitizer", "--error-exitcode=9", *PYTEST, "tests/gpu/test_sanitized.py"]
    return _run(command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def compile_kernels(output: Path) -> str:
    """Registers, spills and tensor-core instructions of every kernel."""
    return _run([sys.executable, "-W", "ignore", "benchmarks/kernel_resources.py", "-o", str(output)], {})


def _run(command: list[str], variables: dict[str, str]) -> str:
    """Whether it succeeded, and the last line it printed."""
    print("$", " ".join(command), flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode:
        print("\n".join(lines[-40:]), flush=True)
    outcome = "done" if done.returncode == 0 else f"FAILED with {done.returncode}"
    return f"{outcome}: {lines[-1].strip(' =') if lines else ''}"
