"""Collects what the benchmarks measured, prints it relative to one route, and records it with the machine."""

from __future__ import annotations

import pytest
import torch
from record import machine_record, write_record
from spectra import gaussian, spiked

FIGURES = pytest.StashKey[list[dict[str, object]]]()
MACHINE = pytest.StashKey[dict[str, object]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--spectrum", choices=["gaussian", "spiked"], default="gaussian", help="of the benchmarked weights"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []
    config.stash[MACHINE] = machine_record()


@pytest.fixture(scope="session")
def spectrum(request: pytest.FixtureRequest):
    return {"gaussian": gaussian, "spiked": spiked}[request.config.getoption("--spectrum")]


@pytest.fixture
def figures(request: pytest.FixtureRequest, benchmark) -> None:
    """Keep what the test's benchmark measured."""
    yield
    if benchmark.stats is not None and benchmark.stats.stats.data:  # neither disabled nor interrupted
        stats = benchmark.stats.stats
        times = {"seconds": stats.min, "median": stats.median, "rounds": stats.rounds}
        request.config.stash[FIGURES].append({**benchmark.extra_info, **times})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash[FIGURES]
    if not figures:
        return
    spectrum = config.getoption("--spectrum")
    name = "bench_ops" if spectrum == "gaussian" else f"bench_ops_{spectrum}"
    path = write_record(name, {"spectrum": spectrum, "figures": figures}, machine=config.stash[MACHINE])
    write = terminalreporter.write_line
    write("Best round of each route; median ratio to the rounds of the exact FP32 SVD run in between (its own: noise);")
    write("worst excess over the optimal residual; median distance from the exact truncation")
    header = ("op", "shape", "route", "seconds", "ratio", "excess", "distance")
    write("{:14} {:12} {:22} {:>8} {:>6} {:>9} {:>9}".format(*header))
    for f in sorted(figures, key=lambda f: (f["op"], f["shape"])):  # stable: routes stay in the order measured
        excess, distance = (f"{f[key]:.1e}" if key in f else "" for key in ("excess", "distance"))
        times = f"{f['seconds']:8.3f} {f['relative']:6.2f}"
        write(f"{f['op']:14} {f['shape']:12} {f['route']:22} {times} {excess:>9} {distance:>9}")
    write(f"{torch.get_num_threads()} threads; written to {path}")
