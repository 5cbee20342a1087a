"""A model, not a measurement: what adapting a model of GPT-J-6B's shape should take on an H200, and what bounds it.

`python -m benchmarks.roofline` prints it from the counts of record, with other unit costs where `--cost` names them;
`--count` counts anew, which takes a minute or two on a CPU.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

import typer

from benchmarks.record import RESULTS
from benchmarks.roofline import report
from benchmarks.roofline.costs import COSTS, Cost
from lasertri.errors import LasertriError


def main(
    anew: Annotated[bool, typer.Option("--count", help="Count anew, and write the record.")] = False,
    cost: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, as often as needed; see the table.")] = None,
    sizes: Annotated[int, typer.Option(help="Sizes that a step or shrink tries; bench_edits tried 4 to 9.")] = 5,
) -> None:
    """Print seconds by phase, and what bounds each."""
    path = RESULTS / "roofline.json"
    if anew:
        start = time.perf_counter()
        report.write_counts(path)
        print(f"counted in {time.perf_counter() - start:.0f} s\n")
    costs = COSTS | dict(_cost(given) for given in cost or ())
    print(report.text(report.read_counts(path), costs, sizes))


def _cost(given: str) -> tuple[str, Cost]:
    name, _, value = given.partition("=")
    try:
        return name, replace(COSTS[name], value=float(value), high=None, source="given")
    except (KeyError, ValueError):
        raise LasertriError(f"expected --cost NAME=VALUE with a name of {list(COSTS)}, got {given!r}") from None


if __name__ == "__main__":
    typer.run(main)
