"""Build, test and measure on the GPU at hand, aiming at eight minutes: python -m benchmarks.gpu

Results go to benchmarks/results/<device>/, each the moment it is there; what tells most comes first. With --no-gpu
everything that needs none is run and every benchmark is rehearsed at a toy size with its correctness checks; no time is
taken, and the report says what was not measured.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

RESULTS = Path(__file__).parents[1] / "results"
# Shares of the time: until the last case is begun; of what is left then, for the tests of the device.
MEASURING, TESTING = 0.6, 0.6


def main(
    no_gpu: Annotated[bool, typer.Option("--no-gpu", help="Rehearse on the CPU; measure nothing.")] = False,
    minutes: Annotated[float, typer.Option(min=1, help="For all of it; what it does not suffice for is listed.")] = 8.0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the results.")] = None,
) -> None:
    """Prove and measure the accelerated backends."""
    start = time.monotonic()
    if no_gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported
    sys.path.insert(0, str(RESULTS.parent))  # the other benchmarks import each other from there
    import torch
    from record import machine_record

    from benchmarks.gpu import ceilings, eigen, kernels, laser, ops, report, steps, whitening
    from benchmarks.gpu.session import Session

    if not no_gpu and not torch.cuda.is_available():
        typer.echo("expected a CUDA device, torch sees none; --no-gpu runs the parts that need none", err=True)
        raise typer.Exit(2)
    device = torch.device("cpu" if no_gpu else "cuda")
    name = "no-gpu" if no_gpu else re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower())
    folder = output or RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    machine = machine_record() | ({} if no_gpu else {"driver": _driver(), "cuda": torch.version.cuda})
    log = folder / "rows.jsonl"
    log.unlink(missing_ok=True)
    session = Session(device, start + 60 * minutes * MEASURING, log)
    end = float("inf") if no_gpu else start + 60 * minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `finally` runs
    if no_gpu:
        session.skip("every time and ratio", "no GPU; benchmarks were rehearsed and their results checked")
    try:
        with ThreadPoolExecutor(1) as pool:  # a compiler needs no GPU
            building = pool.submit(steps.build_extension)
            session.attempt("ceilings", functools.partial(ceilings.measure, session))
            session.did("extension", building.result())
        # each checks a result before it times it: the first cases say if all is well
        for part in (whitening, eigen, ops, laser, kernels):
            session.attempt(part.__name__.rsplit(".", 1)[-1], functools.partial(part.measure, session))
        if not no_gpu:
            session.did("tests of the device", steps.run_tests("tests/gpu", seconds=_left(end) * TESTING))
        session.did("tests of the kernels", steps.run_tests("tests/kernels", interpreted=no_gpu, seconds=_left(end)))
        session.did("sanitizer", "not run: no GPU" if no_gpu else steps.sanitize(seconds=_left(end)))
        compiled = steps.compile_kernels(folder / "kernel_resources.json", seconds=_left(end))
        session.did("kernels compiled", compiled)
    finally:  # an interrupt keeps what was measured
        print((report.write(session, machine, folder) / "gpu.md").read_text(encoding="utf-8"))
    proven = all(result.startswith(("done", "not run")) for result in session.steps.values())
    sys.exit(0 if proven and not session.faults else 1)


def _left(end: float) -> float:
    return max(0.0, end - time.monotonic())


def _driver() -> str | None:
    """Of the NVIDIA kernel module."""
    try:
        found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\S+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found and found.group(1)


if __name__ == "__main__":
    typer.run(main)
