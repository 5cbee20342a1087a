"""The record of `bench_edits` as a picture: `python -m benchmarks.edits.picture` writes docs/images/edits.svg.

Every draw of every task is a line from the accuracy of the model as it is to that of the adapted one, with the 95 %
interval of the gain. A draw in which no edit was accepted is the first point alone.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.edits.rows import Row
from benchmarks.record import RESULTS

MODEL = "SmolLM2-135M-Instruct"
NAMES = {  # as the README calls them, in its order
    "counterfact": "CounterFact",
    "antonyms": "antonyms",
    "translation_en-fr": "English to French, words",
    "larger_animal": "larger animal (two choices)",
    "sentiment": "sentiment (two choices)",
    "implicatures": "what is implied (two choices)",
    "sports_understanding": "plausible sports (two choices)",
    "truthfulqa": "TruthfulQA (two choices)",
}
BEFORE, AFTER, TEXT, LINES = "#6e7781", "#0a58ca", "#1f2328", "#d0d7de"
STEP = {"fmt": "o", "color": AFTER, "markersize": 4.5, "elinewidth": 2}


def main(
    record: Annotated[Path, typer.Option(help="One JSON row a line.")] = RESULTS / "bench_edits.jsonl",
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = RESULTS.parents[1] / "docs/images/edits.svg",
) -> None:
    """Draw it."""
    plt.rcParams.update({"svg.hashsalt": "lasertri", "font.size": 10, "text.color": TEXT, "axes.edgecolor": LINES})
    drawn, of = io.StringIO(), f"of a record with SHA-256 {hashlib.sha256(record.read_bytes()).hexdigest()}"
    picture(steps(record)).savefig(drawn, format="svg", metadata={"Date": None, "Description": of})
    out.write_text("".join(line.rstrip() + "\n" for line in drawn.getvalue().splitlines()), encoding="utf-8")


def steps(record: Path) -> dict[str, list[Row]]:
    """The rows of each task's steps, in FP32, draw by draw."""
    rows = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    found = [row for row in rows if (row["model"], row["method"], row["dtype"]) == (MODEL, "step", "float32")]
    return {task: sorted((r for r in found if r["task"] == task), key=lambda r: r["seed"]) for task in NAMES}


def picture(tasks: dict[str, list[Row]]) -> Figure:
    """One band a task, on a white ground of its own: it is read in a dark page as in a light one."""
    figure, axes = plt.subplots(figsize=(8, 5.6), layout="constrained", facecolor="white")
    place, ticks, ends = 0.0, [], []
    for rows in tasks.values():
        for number, row in enumerate(rows):
            _draw(axes, place + number, row)
        ticks.append(place + (len(rows) - 1) / 2)
        ends.append(place + len(rows))
        place += len(rows) + 1
    for end in ends[:-1]:
        axes.axhline(end, color=LINES, linewidth=0.8)
    axes.set_yticks(ticks, [NAMES[task] for task in tasks], color=TEXT)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", color=LINES, labelcolor=TEXT)
    axes.set(xlim=(0, 100), ylim=(place - 1, -1))
    axes.set_xlabel("held-out accuracy, %", color=TEXT)
    axes.xaxis.grid(color=LINES, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.plot([], [], "o", color=BEFORE, markersize=4.5, label="the model as it is")
    axes.errorbar([], [], xerr=[], label="after one step, 95 % interval of the gain", **STEP)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _draw(axes: Axes, place: float, row: Row) -> None:
    before, after = 100 * row["baseline"]["accuracy"], 100 * row["held_out"]["accuracy"]
    axes.plot(before, place, "o", color=BEFORE, markersize=4.5, zorder=3)
    if not row["accepted"]:
        return
    low, high = (before + 100 * bound for bound in row["held_out"]["accuracy_interval"])
    axes.plot([before, after], [place, place], color=AFTER, linewidth=1, alpha=0.5)
    axes.errorbar(after, place, xerr=[[after - low], [high - after]], **STEP)


if __name__ == "__main__":
    typer.run(main)
