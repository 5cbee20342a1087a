"""The report's pictures, each made from `Adaptation.to_dict()`; imports matplotlib, which may be missing."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lasertri.result.summary import loss_change, loss_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

COLORS = ("#1b6ca8", "#d1495b", "#edae49", "#2e8b57", "#7b5ea7", "#6b705c")


def heat_map(result: dict[str, Any]) -> Figure:
    """Score of every matrix, layer by role, of experts the best; measured targets carry a dot."""
    layers = sorted({entry["layer"] for entry in result["scores"]})
    roles = sorted({entry["role"] for entry in result["scores"]})
    grid = [[math.nan] * len(layers) for _ in roles]
    for entry in reversed(result["scores"]):  # the best last: of experts it is shown
        grid[roles.index(entry["role"])][layers.index(entry["layer"])] = entry["score"]
    measured = {(trial["layer"], trial["role"]) for trial in result["trials"]}
    figure = Figure(figsize=(max(4.0, 1.8 + 0.45 * len(layers)), 1.3 + 0.45 * len(roles)), layout="constrained")
    axes = figure.subplots()
    limit = max(abs(entry["score"]) for entry in result["scores"]) or 1.0
    image = axes.imshow(grid, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for layer, role in measured:
        axes.plot(layers.index(layer), roles.index(role), "o", color="black", markersize=4)
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_yticks(range(len(roles)), roles)
    axes.set_xlabel(f"layer{_stacks(result)} (a dot: measured)")
    unit = "paper's sum" if result["settings"]["score"] == "paper" else "nats"
    figure.colorbar(image, ax=axes, label=f"score, {unit}")
    return figure


def _stacks(result: dict[str, Any]) -> str:
    """Where layers are counted through, as an encoder-decoder's are: which come first."""
    layers = sorted((e for e in result["scores"] if e["layer"] >= 0), key=lambda entry: entry["layer"])
    stacks = list(dict.fromkeys(re.split(r"\.\d+\.", entry["target"])[0] for entry in layers))
    return f" of {', then '.join(stacks)}" if len(stacks) > 1 else ""


def curves(result: dict[str, Any]) -> Figure:
    """Accuracy against ρ, one panel for each measured target, one line for each K."""
    targets = list(dict.fromkeys(trial["target"] for trial in result["trials"]))
    columns = min(3, len(targets))
    rows = math.ceil(len(targets) / columns)
    figure = Figure(figsize=(4.0 * columns, 2.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    handles: dict[str, Artist] = {}
    for axes, target in zip(panels, targets, strict=False):
        _curve_panel(axes, result, target)
        handles |= {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    for axes in panels[len(targets) :]:
        axes.set_axis_off()
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=7, frameon=False)
    return figure


def _curve_panel(axes: Axes, result: dict[str, Any], target: str) -> None:
    ratios = sorted(result["settings"]["ratios"])
    block_counts = sorted(result["settings"]["blocks"])
    for blocks, color in zip(block_counts, COLORS * len(block_counts), strict=False):
        line = sorted(
            (ratios.index(t["rho"]), t["accuracy"])
            for t in result["trials"]
            if (t["target"], t["blocks"]) == (target, blocks)
        )
        if line:
            x, y = zip(*line, strict=True)
            axes.plot(x, y, "o-", color=color, markersize=3, linewidth=1.2, label=f"K = {blocks}")
    axes.axhline(result["baseline"]["accuracy"], color="#555555", linestyle="--", linewidth=1, label="baseline")
    chosen, name = result["edit"] or result["rejected"], "edit" if result["edit"] else "best rejected"
    if chosen["target"] == target:
        accuracy = next(
            t["accuracy"]
            for t in result["trials"]
            if (t["target"], t["blocks"], t["rho"]) == (target, chosen["blocks"], chosen["rho"])
        )
        axes.plot(ratios.index(chosen["rho"]), accuracy, "*", color="black", markersize=12, label=name)
    axes.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios], rotation=60, fontsize=8)
    axes.set_title(target, fontsize=9)
    axes.set_xlabel("retained ratio ρ", fontsize=8)
    axes.set_ylabel("calibration accuracy", fontsize=8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.25)


def sizes(result: dict[str, Any]) -> Figure:
    """Cross-fitted loss and accuracy against the size of the edit, one line for each direction."""
    name, loss = loss_of(result["baseline"])
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _size_panel(left, result, "loss", loss)
    left.set_ylabel(f"{name}, nats")
    highest = max((trial["loss"] for trial in result["trials"] if trial["loss"] is not None), default=0)
    if loss is not None and highest > 2 * loss:
        left.set_ylim(top=2 * loss)  # what ruins the model would flatten the rest
    _size_panel(right, result, "accuracy", result["baseline"]["accuracy"])
    right.set_ylabel("accuracy")
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _size_panel(axes: Axes, result: dict[str, Any], name: str, baseline: float | None) -> None:
    directions = list(dict.fromkeys(trial["direction"] for trial in result["trials"]))
    for direction, color in zip(directions, COLORS, strict=False):
        tried = sorted((t["size"], t[name]) for t in result["trials"] if t["direction"] == direction)
        x, y = zip(*tried, strict=True)
        drawn = [math.nan if value is None else value for value in y]
        axes.plot(x, drawn, "o-", color=color, markersize=4, linewidth=1.4, label=direction)
    if baseline is not None:
        axes.axhline(baseline, color="#555555", linestyle="--", linewidth=1, label="baseline")
    chosen = result["edit"] or result["rejected"]
    place = chosen["direction"], chosen["size"]
    value = next(trial[name] for trial in result["trials"] if (trial["direction"], trial["size"]) == place)
    if value is not None:
        label = "edit" if result["edit"] else "best rejected"
        axes.plot(chosen["size"], value, "*", color="black", markersize=12, label=label)
    tried_sizes = sorted({trial["size"] for trial in result["trials"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(tried_sizes, [f"{size:g}" for size in tried_sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("size: decrease predicted at first order, as a share of the loss", fontsize=8)
    axes.grid(alpha=0.25)


def difference(comparison: dict[str, Any]) -> Figure:
    """What the edits change on held-out samples, with intervals."""
    before, after = comparison["baseline"], comparison["edited"]
    gain, interval = after["accuracy"] - before["accuracy"], comparison["interval"]
    rows = [("accuracy, edited minus baseline, points", 100 * gain, [100 * bound for bound in interval])]
    change = loss_change(comparison)
    if change is not None:
        rows.append((f"{loss_of(after)[0]}, edited minus baseline, nats", change, comparison["loss_interval"]))
    figure = Figure(figsize=(6.0, 1.3 * len(rows)), layout="constrained")
    for axes, (label, value, ends) in zip(figure.subplots(len(rows), squeeze=False).flat, rows, strict=True):
        axes.plot(ends, [0, 0], color=COLORS[0], linewidth=3, solid_capstyle="butt")
        axes.plot(value, 0, "o", color=COLORS[0], markersize=8)
        axes.axvline(0, color="#555555", linewidth=1)
        axes.set_yticks([])
        axes.set_xlabel(f"held-out {label} (95 % interval)")
    return figure
