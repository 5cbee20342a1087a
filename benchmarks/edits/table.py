"""The record of `bench_edits` as a table, means over seeds: `python -m benchmarks.edits.table FILE…`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.edits.rows import Row

HEADER = (
    *("task", "method", "dtype", "seeds", "accuracy", "gain, points", "> 0, < 0", "loss", "accepted", "shuffled"),
    *("seconds", "forwards", "MiB"),
)


def main(files: Annotated[list[Path], typer.Argument(help="Records, one JSON row a line.")]) -> None:
    """Print it as markdown; "> 0, < 0" counts seeds whose 95 % interval of the gain lies there."""
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if "skipped" not in row:
            groups.setdefault((row["task"], row["method"], row["dtype"]), []).append(row)
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for key, members in groups.items():
        print("| " + " | ".join((*key, *_cells(members))) + " |")


def _cells(rows: Sequence[Row]) -> Iterable[str]:
    before, after = [row["baseline"] for row in rows], [row["held_out"] for row in rows]
    gains = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(after, before, strict=True)]
    lows, highs = zip(*(a["accuracy_interval"] for a in after), strict=True)
    yield str(len(rows))
    yield f"{_mean(100 * b['accuracy'] for b in before):.1f} → {_mean(100 * a['accuracy'] for a in after):.1f}"
    yield f"{_mean(gains):+.1f}" + (f" ({min(gains):+.1f} to {max(gains):+.1f})" if len(gains) > 1 else "")
    yield f"{sum(low > 0 for low in lows)}, {sum(high < 0 for high in highs)}"
    yield f"{_mean(map(_loss, before)):.3f} → {_mean(map(_loss, after)):.3f}"
    yield f"{sum(row['accepted'] for row in rows)} of {len(rows)}" if "accepted" in rows[0] else ""
    controls = [row["control"] for row in rows if row.get("control")]
    yield ", ".join(f"{100 * c['accuracy']:.1f}, {_loss(c):.3f}" for c in controls)
    yield f"{_mean(_seconds(row) for row in rows):.0f}"
    forwards = [row["forward_equivalents"] for row in rows]
    yield "" if None in forwards else f"{_mean(forwards):.1f}"
    yield f"{_mean(row['peak_memory'] / 2**20 for row in rows):.0f}"


def _loss(figures: Row) -> float:
    choice = figures["choice_log_loss"]
    return float(figures["log_loss"] if choice is None else choice)


def _seconds(row: Row) -> float:
    """Of adapting alone: not of measuring, nor of the control."""
    return float(sum(s for phase, s in row["seconds"].items() if phase not in ("held-out", "control", "evaluation")))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


if __name__ == "__main__":
    typer.run(main)
