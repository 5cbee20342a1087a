"""`report.html`: the result as pictures, one self-contained file made from `Adaptation.to_dict()`."""

from __future__ import annotations

import importlib.util
import io
import math
import re
from typing import TYPE_CHECKING, Any

from lasertri.errors import LasertriError
from lasertri.result.summary import describe, loss, measurement

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#1b6ca8", "#d1495b", "#edae49", "#2e8b57", "#7b5ea7", "#6b705c")


def report_obstacle() -> str | None:
    """Why no report can be made here, or None."""
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} missing; pip install 'lasertri[report]'" if missing else None


def render(result: dict[str, Any]) -> str:
    """The report as HTML.

    Raises:
        LasertriError: the extra `report` is not installed.
    """
    obstacle = report_obstacle()
    if obstacle:
        raise LasertriError(f"expected what a report needs, but {obstacle}")
    from jinja2 import Environment, PackageLoader

    template = Environment(loader=PackageLoader("lasertri.result", "."), autoescape=True).get_template("report.html.j2")
    return template.render(
        result=result,
        describe=describe,
        measurement=measurement,
        loss=loss,
        heat_map=_svg(_heat_map(result)),
        curves=_svg(_curves(result)),
        difference=_svg(_difference(result)) if result["held_out"]["interval"] else "",
    )


def _heat_map(result: dict[str, Any]) -> Figure:
    """Score of every matrix, layer by role, of experts the best; measured targets carry a dot."""
    from matplotlib.figure import Figure

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
    unit = "nats" if result["settings"]["score"] == "taylor" else "paper's sum"
    figure.colorbar(image, ax=axes, label=f"score, {unit}")
    return figure


def _stacks(result: dict[str, Any]) -> str:
    """Where layers are counted through, as an encoder-decoder's are: which come first."""
    layers = sorted((e for e in result["scores"] if e["layer"] >= 0), key=lambda entry: entry["layer"])
    stacks = list(dict.fromkeys(re.split(r"\.\d+\.", entry["target"])[0] for entry in layers))
    return f" of {', then '.join(stacks)}" if len(stacks) > 1 else ""


def _curves(result: dict[str, Any]) -> Figure:
    """Accuracy against ρ, one panel for each measured target, one line for each K."""
    from matplotlib.figure import Figure

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


def _difference(result: dict[str, Any]) -> Figure:
    """The held-out difference with its interval."""
    from matplotlib.figure import Figure

    held_out = result["held_out"]
    low, high = (100 * bound for bound in held_out["interval"])
    gain = 100 * (held_out["edited"]["accuracy"] - held_out["baseline"]["accuracy"])
    figure = Figure(figsize=(6.0, 1.3), layout="constrained")
    axes = figure.subplots()
    axes.plot([low, high], [0, 0], color=COLORS[0], linewidth=3, solid_capstyle="butt")
    axes.plot(gain, 0, "o", color=COLORS[0], markersize=8)
    axes.axvline(0, color="#555555", linewidth=1)
    axes.set_yticks([])
    axes.set_xlabel("held-out accuracy, edited minus baseline, points (95 % interval)")
    return figure


def _svg(figure: Figure) -> str:
    from markupsafe import Markup

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Markup(buffer.getvalue()[buffer.getvalue().index("<svg") :])
