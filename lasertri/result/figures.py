"""The report's pictures, each made from `Adaptation.to_dict()`; imports matplotlib, which may be missing.

A picture is drawn in the colours of `PALETTE` for a light page and written with their names, which the page gives
values for light and dark. Those of lines stand apart for colour-blind readers, too.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from lasertri.result.summary import loss_change, loss_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = {  # by name: on a light page, on a dark one
    "page": ("#fdfdfe", "#16181c"),
    "ink": ("#1e2125", "#e7e9ec"),
    "soft": ("#565c64", "#a4abb5"),
    "line": ("#d9dce1", "#3a3f47"),
    "flag": ("#b00020", "#ff8a80"),
    "s1": ("#3978ee", "#5390e6"),
    "s2": ("#5f3e1a", "#de512b"),
    "s3": ("#2b9f82", "#55e9d3"),
    "s4": ("#820b74", "#af466b"),
    "s5": ("#9b8e09", "#f3d112"),
    "s6": ("#320cef", "#8d27fb"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}  # with how text writes them
STYLE: dict[Any, Any] = {
    **{"svg.fonttype": "none", "font.size": 10, "axes.titlesize": 10},
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), LIGHT["ink"]),
    **{"axes.edgecolor": LIGHT["soft"], "axes.facecolor": "none", "grid.color": LIGHT["line"]},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
}
LEAST = 1e-3  # of the largest of a line: smaller singular values are not drawn
WIDTH = 3.7  # inches: what a telephone shows unscaled


def as_svg(figure: Figure, name: str) -> str:
    """A picture as it stands in a page: its text as text, its colours by name.

    Args:
        name: of no other picture of the page; what the picture refers to is named by it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r'<g id="[^"]*"', "<g", buffer.getvalue())  # to which nothing refers
    for name, color in LIGHT.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg[svg.index("<svg") :]


def series(names: Sequence[Any]) -> dict[Any, tuple[str, str]]:
    """A colour of `PALETTE` and a marker for each of these; so many of each that no two have both in common."""
    markers = list(MARKERS)
    return {
        name: (SERIES[i % len(SERIES)], markers[(i + i // len(SERIES)) % len(markers)]) for i, name in enumerate(names)
    }


@matplotlib.rc_context(STYLE)
def heat_map(result: dict[str, Any]) -> Figure:
    """Score of every matrix, layer by role, of experts the best; measured targets carry a dot."""
    layers = sorted({entry["layer"] for entry in result["scores"]})
    roles = sorted({entry["role"] for entry in result["scores"]})
    grid = [[math.nan] * len(layers) for _ in roles]
    for entry in reversed(result["scores"]):  # the best last: of experts it is shown
        grid[roles.index(entry["role"])][layers.index(entry["layer"])] = entry["score"]
    measured = {(trial["layer"], trial["role"]) for trial in result["trials"]}
    figure = Figure(figsize=(max(WIDTH, 1.9 + 0.27 * len(layers)), 1.1 + 0.27 * len(roles)), layout="constrained")
    axes = figure.subplots()
    limit = max(abs(entry["score"]) for entry in result["scores"]) or 1.0
    image = axes.pcolormesh(grid, cmap="RdBu", vmin=-limit, vmax=limit, edgecolors=LIGHT["page"], linewidth=1)
    for layer, role in measured:
        place = layers.index(layer) + 0.5, roles.index(role) + 0.5
        axes.plot(*place, "o", color="black", markersize=5, markeredgecolor="white", markeredgewidth=0.8)
    axes.invert_yaxis()
    axes.set_xticks([x + 0.5 for x in range(len(layers))], [str(layer) for layer in layers], fontsize=8)
    axes.set_yticks([y + 0.5 for y in range(len(roles))], roles)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(f"layer{_stacks(result)}")
    unit = "paper's sum" if result["settings"]["score"] == "paper" else "nats"
    bar = figure.colorbar(image, ax=axes, label=f"score, {unit}", aspect=10)
    bar.outline.set_visible(False)
    return figure


def _stacks(result: dict[str, Any]) -> str:
    """Where layers are counted through, as an encoder-decoder's are: which come first."""
    layers = sorted((e for e in result["scores"] if e["layer"] >= 0), key=lambda entry: entry["layer"])
    stacks = list(dict.fromkeys(re.split(r"\.\d+\.", entry["target"])[0] for entry in layers))
    return f" of {', then '.join(stacks)}" if len(stacks) > 1 else ""


@matplotlib.rc_context(STYLE)
def curves(result: dict[str, Any]) -> list[Figure]:
    """Accuracy against ρ, a picture for each measured target, a line for each K.

    What a race dropped is off the line, hollow, with the number of samples that it saw.
    """
    limits = _limits(result)
    return [_curve(result, target, limits) for target in dict.fromkeys(trial["target"] for trial in result["trials"])]


def _limits(result: dict[str, Any]) -> tuple[float, float]:
    """Of an axis that shows every accuracy, and some ten points at least: less is noise."""
    every = [result["baseline"]["accuracy"], *(trial["accuracy"] for trial in result["trials"])]
    span = max(every) - min(every)
    margin = max(0.08 * span, (0.1 - span) / 2)
    return min(every) - margin, max(every) + margin


def _curve(result: dict[str, Any], target: str, limits: tuple[float, float]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.subplots()
    ratios, counts = (sorted(result["settings"][name]) for name in ("ratios", "blocks"))
    mine = [trial for trial in result["trials"] if trial["target"] == target]
    chosen = result["edit"] or result["rejected"]
    for number, (blocks, (color, marker)) in enumerate(series(counts).items()):
        aside = 0.22 * (number - (len(counts) - 1) / 2)  # so that equal ones do not hide each other
        look: dict[str, Any] = {"color": LIGHT[color], "marker": marker, "markersize": 4.5}
        tried = sorted((t["rho"], t["accuracy"], t["n"]) for t in mine if t["blocks"] == blocks)
        places = [ratios.index(rho) + aside for rho, _, _ in tried]
        whole = [n == result["baseline"]["n"] for _, _, n in tried]
        line = [accuracy if all_seen else math.nan for (_, accuracy, _), all_seen in zip(tried, whole, strict=True)]
        axes.plot(places, line, linewidth=1.2, **look)
        for x, (rho, accuracy, n), all_seen in zip(places, tried, whole, strict=True):
            if not all_seen:
                axes.plot(x, accuracy, markerfacecolor=LIGHT["page"], **look)
                lift = -10 if number % 2 else 4
                axes.annotate(
                    str(n), (x, accuracy), (0, lift), textcoords="offset points", ha="center", fontsize=6.5,
                    color=LIGHT["soft"],
                )  # fmt: skip
            if chosen is not None and (chosen["target"], chosen["blocks"], chosen["rho"]) == (target, blocks, rho):
                axes.plot(x, accuracy, "*", color=LIGHT["ink"], markersize=13, zorder=4)
    axes.axhline(result["baseline"]["accuracy"], color=LIGHT["soft"], linestyle="--", linewidth=1)
    axes.set_ylim(limits)
    axes.set_xlim(-0.6, len(ratios) - 0.4)
    axes.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios], fontsize=8, rotation=45)
    axes.set_title(_end(target, 44))
    axes.set_xlabel("retained ratio ρ")
    axes.set_ylabel("calibration accuracy")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y")
    return figure


def _end(name: str, most: int) -> str:
    """A name, or what there is room for: its end tells more."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


@matplotlib.rc_context(STYLE)
def sizes(result: dict[str, Any]) -> list[Figure]:
    """Cross-fitted loss, then accuracy, against the size of the edit, one line for each direction."""
    name, loss = loss_of(result["baseline"])
    of_loss, axes = _size_panel(result, "loss", loss)
    axes.set_ylabel(f"{name}, nats")
    highest = max((trial["loss"] for trial in result["trials"] if trial["loss"] is not None), default=0)
    if loss is not None and highest > 2 * loss:
        axes.set_ylim(top=2 * loss)  # what ruins the model would flatten the rest
    of_accuracy, axes = _size_panel(result, "accuracy", result["baseline"]["accuracy"])
    axes.set_ylabel("accuracy")
    axes.set_ylim(_limits(result))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return [of_loss, of_accuracy]


def _size_panel(result: dict[str, Any], name: str, baseline: float | None) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.subplots()
    for direction, (color, marker) in series(directions(result)).items():
        tried = sorted((t["size"], t[name]) for t in result["trials"] if t["direction"] == direction)
        x, y = zip(*tried, strict=True)
        drawn = [math.nan if value is None else value for value in y]
        axes.plot(x, drawn, color=LIGHT[color], marker=marker, markersize=5, linewidth=1.4)
    if baseline is not None:
        axes.axhline(baseline, color=LIGHT["soft"], linestyle="--", linewidth=1)
    chosen = result["edit"] or result["rejected"]
    place = chosen["direction"], chosen["size"]
    value = next(trial[name] for trial in result["trials"] if (trial["direction"], trial["size"]) == place)
    if value is not None:
        axes.plot(chosen["size"], value, "*", color=LIGHT["ink"], markersize=13, zorder=4)
    tried_sizes = sorted({trial["size"] for trial in result["trials"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(tried_sizes, [f"{size:g}" for size in tried_sizes], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("size: decrease predicted at first order,\nas a share of the loss")
    axes.grid()
    return figure, axes


def directions(result: dict[str, Any]) -> list[str]:
    """Those that were tried, in their order."""
    return list(dict.fromkeys(trial["direction"] for trial in result["trials"]))


@matplotlib.rc_context(STYLE)
def spectrum(shown: dict[str, Any]) -> Figure:
    """Singular values of one matrix, largest first: dashed those that it had, and those that the edit makes."""
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    axes = figure.subplots()
    for name, values in shown["values"].items():
        drawn = [value if value > 0 and value >= LEAST * max(values) else math.nan for value in values]
        look: dict[str, Any] = {"color": LIGHT["s1"], "linewidth": 2.2, "marker": ".", "markersize": 4}
        if name == "before":
            look = {"color": LIGHT["soft"], "linewidth": 1.2, "linestyle": "--", "zorder": 3}
        axes.plot(shown["places"], drawn, **look)
    if any(map(any, shown["values"].values())):  # else there is nothing that a logarithm could be taken of
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
    axes.set_title(_end(shown["target"], 44))
    axes.set_xlabel("singular values, from the largest" + _share(shown["change"]))
    axes.grid(axis="y")
    return figure


def _share(change: float | None) -> str:
    return "" if change is None else f"\nchange: {100 * change:.2g} % of the matrix’s norm"


@matplotlib.rc_context(STYLE)
def differences(comparisons: dict[str, dict[str, Any]]) -> list[Figure]:
    """What edits change on held-out samples, with intervals: in accuracy, then in the loss where that has one.

    Args:
        comparisons: by what stands beside each.
    """
    gains = {
        name: (100 * (c["edited"]["accuracy"] - c["baseline"]["accuracy"]), [100 * bound for bound in c["interval"]])
        for name, c in comparisons.items()
    }
    changes = {name: (loss_change(c), c["loss_interval"]) for name, c in comparisons.items()}
    known = {name: (change, ends) for name, (change, ends) in changes.items() if change is not None}
    pictures = [_intervals(gains, "accuracy, edited minus baseline,\npoints")]
    if known:
        [*names] = dict.fromkeys(loss_of(comparisons[name]["edited"])[0] for name in known)
        pictures.append(_intervals(known, f"{' or '.join(names)}, edited minus baseline,\nnats"))
    return pictures


def _intervals(rows: Mapping[str, tuple[float, Sequence[float]]], label: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 0.9 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, (value, ends) in enumerate(rows.values()):
        axes.plot(ends, [y, y], color=LIGHT["s1"], linewidth=3, solid_capstyle="butt")
        axes.plot(value, y, "o", color=LIGHT["s1"], markersize=8)
    axes.axvline(0, color=LIGHT["soft"], linewidth=1)
    axes.set_yticks(range(len(rows)), [_end(name, 20) for name in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{label} (95 % interval)", fontsize=9)
    return figure
