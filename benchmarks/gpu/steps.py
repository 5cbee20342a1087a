"""What comes before the figures: build the extension, run the tests that a GPU adds, compile every kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-o", "addopts=--strict-markers", "-m", "gpu"]


def build_extension() -> str:
    """Build it in this checkout; without nvcc, its CPU library alone."""
    cuda = shutil.which("nvcc") is not None or "NVCC" in os.environ
    variable = "LASERTRI_BUILD_CUDA" if cuda else "LASERTRI_BUILD_CPU"
    outcome = _run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], 300, {variable: "1"})
    if not outcome.startswith("done"):
        return outcome
    return "done" if cuda else "not built for CUDA: no nvcc on the PATH"


def run_tests(folder: str, *, seconds: float, interpreted: bool = False) -> str:
    """The tests marked `gpu` in a folder."""
    return _run([*PYTEST, folder], seconds, {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if interpreted else {})


def sanitize(*, seconds: float) -> str:
    """compute-sanitizer over each kernel and the extension at small sizes, where it is installed."""
    if shutil.which("compute-sanitizer") is None:
        return "not run: no compute-sanitizer on the PATH"
    command = ["compute-sanitizer", "--report-api-errors", "no", "--error-exitcode", "9"]
    # torch's allocator would hand out parts of larger blocks, and hide what is written beyond one
    return _run([*command, *PYTEST, "tests/gpu/test_sanitized.py"], seconds, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def compile_kernels(output: Path, *, seconds: float) -> str:
    """Registers, spills and tensor-core instructions of every kernel."""
    command = [sys.executable, "-W", "ignore", "benchmarks/kernel_resources.py", "-o", str(output)]
    return _run(command, seconds, {}).split("; written to")[0]


def _run(command: list[str], seconds: float, variables: dict[str, str]) -> str:
    """Whether it succeeded within the time, and the last line it printed."""
    print("$", " ".join(command), flush=True)
    dropped = ("TRITON_INTERPRET", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"PYTHONPATH": str(ROOT)} | variables
    limit = None if seconds == float("inf") else seconds
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired as late:
        lines = _lines(late.stdout, late.stderr)
        print("\n".join(lines[-40:]), flush=True)
        outcome = f"not finished in the {seconds:.0f} s there were; give it more --minutes"
        outcome += f" (the last of it: {lines[-1]})" if lines else ""
    else:
        lines = _lines(done.stdout, done.stderr)
        if done.returncode:
            print("\n".join(lines[-40:]), flush=True)
        said = f", {lines[-1]}" if lines else ""
        outcome = f"done{said}" if done.returncode == 0 else f"FAILED with {done.returncode}{said}"
    print(outcome, flush=True)
    return outcome


def _lines(*streams: str | bytes | None) -> list[str]:
    """What was printed; what a step printed before it was stopped comes as bytes."""
    texts = [stream.decode(errors="replace") if isinstance(stream, bytes) else stream or "" for stream in streams]
    return [line.strip(" =") for text in texts for line in text.splitlines() if line.strip()]
