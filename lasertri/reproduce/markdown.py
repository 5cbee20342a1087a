"""A table as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lasertri.reproduce.accounting import UNEXPLAINED, UNEXPLAINED_TRIALS
from lasertri.reproduce.plan import BASELINE
from lasertri.reproduce.table import Row

Cells = dict[str, Callable[[Row], str]]

NONE = "–"
NOTES = (
    "accuracy: in percent, on the test part; majority: what one answer throughout would get; change: in points from "
    "the unedited model, with its 95 % interval",
    "trials: candidates requested / different / measured to the end",
    "seconds: of the whole column, factors and test part included; speedup: the seconds of our own laser column over "
    "them, where both ran under the same conditions",
    "forwards: passes of one sample by the papers' count, in which SVDs are free, at this number of samples; by count: "
    "the laser column's over them",
)
OPTIMAL = "optimal-clustering: the paper does not say on which samples; here on 100"
CACHED = (
    "factors were kept on disk, so a column's seconds depend on what ran before it; with LASERTRI_CACHE=off each makes "
    "its own"
)


def as_markdown(table: dict[str, Any]) -> str:
    """The whole table: what it was run with, every column of every task, averages, notes."""
    rules, rows, published = table["rules"], table["rows"], table["published"]
    parts = [f"# Table {table['table']} of Compress to Impress (arXiv 2510.20800), run again", _origin(table)]
    if rules["samples"]:
        parts.append(
            f"**A try-out on the first {rules['samples']:,} samples of every task: not the papers' protocol.**"
        )
    parts.append(rows_as_markdown(rows, published))
    averages = [row for row in table["averages"] if row["tasks"] > 1]
    if averages:
        parts += ["Averages over the finished tasks (published: over the same):", _grid(_averages(published), averages)]
    notes = [*NOTES, *([CACHED] if table["factor_cache"] else [])]
    notes += [_unexplained(row) for row in rows if (published, row["column"]) in UNEXPLAINED and "error" not in row]
    notes += [OPTIMAL for row in rows if row["column"] == "optimal-clustering"]
    notes += [f"failed: {row['task']}: {row['error']}" for row in rows if "error" in row]
    parts.append("\n".join(f"- {note}" for note in dict.fromkeys(notes)))
    return "\n\n".join(parts) + "\n"


def rows_as_markdown(rows: Sequence[Row], published: str | None) -> str:
    """Some rows of a table, without the published figures where there are none."""
    cells: Cells = {
        "task": lambda row: row["task"],
        "column": lambda row: row["column"],
        "accuracy": _accuracy,
        "published": lambda row: _number(row["published_accuracy"]),
        "majority": lambda row: _number(row.get("majority")),
        "change": _change,
        "trials": lambda row: " / ".join(f"{n:,}" for n in row.get("trials") or ()) or NONE,
        "seconds": lambda row: _number(row.get("seconds")),
        "speedup": lambda row: _times(row.get("speedup")),
        "forwards": lambda row: _number(row.get("forwards"), ",.0f"),
        "by count": lambda row: _times(row.get("counted_speedup")),
        "published speedup": lambda row: _times(row["published_speedup"]),
    }
    return _grid(_without_published(cells, published), rows)


def _averages(published: str | None) -> Cells:
    cells: Cells = {
        "column": lambda row: row["column"],
        "tasks": lambda row: str(row["tasks"]),
        "change": lambda row: _number(row["change"], "+.2f"),
        "published": lambda row: _number(row["published_change"], "+.2f"),
        "from laser": lambda row: _number(row["change_from_laser"], "+.2f"),
        "published from laser": lambda row: _number(row["published_change_from_laser"], "+.2f"),
        "speedup": lambda row: _times(row["speedup"]),
        "by count": lambda row: _times(row["counted_speedup"]),
        "published speedup": lambda row: _times(row["published_speedup"]),
    }
    return _without_published(cells, published)


def _without_published(cells: Cells, published: str | None) -> Cells:
    return {name: cell for name, cell in cells.items() if published or not name.startswith("published")}


def _origin(table: dict[str, Any]) -> str:
    rules, versions = table["rules"], table["environment"]
    named = [
        f"{name} {value}"
        for name, value in rules.items()
        if name not in ("model", "samples") and value not in (None, "")
    ]
    used = [f"{name} {versions[name]}" for name in ("lasertri", "torch", "transformers")]
    beside = f"published: {table['published']}" if table["published"] else "no published figures of this model"
    return f"{rules['model']}: " + ", ".join([*named, *table["devices"], *used]) + f"; {beside}"


def _accuracy(row: Row) -> str:
    if "error" in row:
        return "failed"
    return _number(row["accuracy"]) + (" (one answer)" if row["collapsed"] else "")


def _change(row: Row) -> str:
    if "error" in row or row["column"] == BASELINE:
        return NONE
    if row["interval"] is None:
        return "no edit"
    low, high = row["interval"]
    return f"{row['change']:+.1f} [{low:+.1f}, {high:+.1f}]"


def _unexplained(row: Row) -> str:
    return (
        f"{row['column']}: the published speedup implies {UNEXPLAINED_TRIALS} trials, which the paper does not "
        f"explain; {row['trials'][0]} are asked for here"
    )


def _number(value: float | None, form: str = ".1f") -> str:
    return NONE if value is None else format(value, form)


def _times(value: float | None) -> str:
    """As the paper prints speedups."""
    return NONE if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def _grid(cells: Cells, rows: Sequence[Row]) -> str:
    lines = [list(cells), ["---"] * len(cells), *([cell(row) for cell in cells.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
