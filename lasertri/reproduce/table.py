"""A table from the columns of a folder: every figure of ours with the published one beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lasertri.data.papers.registry import TASKS
from lasertri.reproduce.plan import BASELINE
from lasertri.reproduce.published import Figure, columns_of, figures
from lasertri.result.summary import describe

Row = dict[str, Any]
Records = Mapping[tuple[str, str], dict[str, Any]]

LASER = "laser"
AVERAGED = (
    *("change", "published_change", "change_from_laser", "published_change_from_laser"),
    *("speedup", "counted_speedup", "published_speedup"),
)


def tabulate(table: int, published: str | None, records: Records) -> dict[str, Any]:
    """All columns of a table that were run, and their averages over tasks.

    Accuracies are in percent, changes in points; what is not known, or was not run, is None.

    Args:
        published: whose published figures stand beside, a key of `published.MODELS`, or None.
        records: of at least one column, by task and column.
    """
    known = figures(table, published) if published else {}
    columns = columns_of(table)
    shown = [(task, column) for task in TASKS for column in columns if (task, column) in records]
    rows = [_published(*place, known) | _measured(*place, records) for place in shown]
    latest = list(records.values())[-1]
    return {
        "table": table,
        "published": published,
        "rules": latest["rules"],
        "environment": latest["environment"],
        "devices": sorted({records[place]["conditions"]["device"] for place in shown}),
        "factor_cache": any(records[place]["conditions"]["factor_cache"] for place in shown),
        "rows": rows,
        "averages": [_average(column, [row for row in rows if row["column"] == column]) for column in columns],
    }


def _published(task: str, column: str, known: dict[tuple[str, str], Figure]) -> Row:
    figure, baseline, laser = (known.get((task, name)) for name in (column, BASELINE, LASER))
    return {
        "published_accuracy": figure and figure.accuracy,
        "published_change": figure and baseline and figure.accuracy - baseline.accuracy,
        "published_change_from_laser": figure and laser and figure.accuracy - laser.accuracy,
        "published_speedup": figure and figure.speedup,
    }


def _measured(task: str, column: str, records: Records) -> Row:
    record, row = records[task, column], Row(task=task, column=column)
    if "error" in record:
        return row | {"error": record["error"]}
    result, laser = record["result"], _result(records, task, LASER)
    held_out, candidates, counted = result["held_out"], result.get("candidates"), record["counted"]
    baseline, edited = held_out["baseline"], held_out["edited"]
    measured = edited or baseline
    row |= {
        "samples": record["samples"],
        "test": measured["n"],
        "accuracy": 100 * measured["accuracy"],
        "majority": 100 * measured["majority_rate"],
        "collapsed": measured["collapsed"],
        "change": 100 * (measured["accuracy"] - baseline["accuracy"]),
        "interval": held_out["interval"] and [100 * bound for bound in held_out["interval"]],
        "edit": edited and describe(result["edit"]),
        "trials": candidates and [candidates[name] for name in ("requested", "distinct", "finished")],
        "seconds": result["seconds"],
        "forwards": counted and counted["forwards"],
        "counted_speedup": counted and counted["speedup"],
        "change_from_laser": None,
        "speedup": None,
    }
    if laser:
        best = laser["held_out"]["edited"] or laser["held_out"]["baseline"]
        row["change_from_laser"] = 100 * (measured["accuracy"] - best["accuracy"])
        if candidates and records[task, LASER]["conditions"] == record["conditions"]:
            row["speedup"] = laser["seconds"] / result["seconds"]
    return row


def _result(records: Records, task: str, column: str) -> dict[str, Any] | None:
    return records.get((task, column), {}).get("result")


def _average(column: str, rows: list[Row]) -> Row:
    """Over the finished tasks, the published ones over the same; None where one of them lacks the figure."""
    done = [row for row in rows if "error" not in row]
    average: Row = {"column": column, "tasks": len(done)}
    for name in AVERAGED:
        values = [row[name] for row in done]
        average[name] = sum(values) / len(values) if values and None not in values else None
    return average
