"""What a run measured: JSON with the machine's record, a Markdown table, and a plot; and what it did not measure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.session import Session

BASELINES = {"ops": ("a: svd", "b: eigh"), "kernels": ("eager", "compiled"), "laser": ("svd_lowrank, CPU",)}
Row = dict[str, Any]


def write(session: Session, machine: dict[str, object], folder: Path) -> Path:
    """Write `gpu.json`, `gpu.md` and `gpu.png` into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": "gpu",
        "machine": machine,
        "steps": session.steps,
        "ceilings": session.ceilings,
        "rows": session.rows,
        "unmeasured": session.unmeasured,
    }
    (folder / "gpu.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text("\n".join(_markdown(session, machine)) + "\n", encoding="utf-8")
    _plot(_parts(session), folder / "gpu.png")
    return folder


def _parts(session: Session) -> dict[str, dict[str, dict[str, Row]]]:
    """Timed rows by part, case and route."""
    parts: dict[str, dict[str, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in session.rows:
        if row["seconds"]:
            parts[row["part"]][row["case"]][row["route"]] = row
    return parts


def _baselines(part: str) -> tuple[str, ...]:
    return BASELINES.get(part, BASELINES["ops"])


def _markdown(session: Session, machine: dict[str, object]) -> Iterator[str]:
    yield "# Measured on a GPU" if not session.rehearsal else "# A rehearsal without a GPU: nothing was measured"
    yield ""
    yield from (f"- {name}: {value}" for name, value in machine.items())
    yield ""
    yield from (f"- {step}: {outcome}" for step, outcome in session.steps.items())
    if session.ceilings:
        yield ""
        rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in session.ceilings.items())
        yield f"Ceilings, 10¹² bytes or operations a second: {rates}."
    for part, cases in _parts(session).items():
        baselines = _baselines(part)
        yield ""
        yield f"## {part}"
        yield ""
        yield "| case | route | ms | " + " | ".join(f"{name} takes × as long" for name in baselines) + " | of ceiling |"
        yield "|---|---|---:|" + "---:|" * (len(baselines) + 1)
        for case, routes in cases.items():
            for route, row in routes.items():
                ratios = [_times(routes.get(name), row) for name in baselines]
                share = f"{row['ceiling'] / row['seconds']:.0%}" if row.get("ceiling") else ""
                mark = " (one block × K)" if row.get("extrapolated") else ""
                yield f"| {case} | {route}{mark} | {1000 * row['seconds']:.3g} | " + " | ".join([*ratios, share]) + " |"
    checked = sum(row["seconds"] is None for row in session.rows)
    yield ""
    yield f"{len(session.rows) - checked} figures measured, {checked} results checked but not timed."
    if session.unmeasured:
        yield ""
        yield "Not measured:"
        yield ""
        yield from (f"- {line}" for line in session.unmeasured)


def _times(baseline: Row | None, row: Row) -> str:
    return "" if baseline is None or baseline is row else f"{baseline['seconds'] / row['seconds']:.3g}"


def _plot(parts: dict[str, dict[str, dict[str, Row]]], path: Path) -> None:
    """Part by part each route's time over the first baseline that a case has, case by case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    based = {part: [c for c, measured in cases.items() if _base(part, measured)] for part, cases in parts.items()}
    based = {part: cases for part, cases in based.items() if cases}
    if not based:
        return
    heights = [1 + 0.3 * len(cases) for cases in based.values()]
    figure, panels = pyplot.subplots(
        len(based), figsize=(9, sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    for axes, (part, labels) in zip(panels.flat, based.items(), strict=True):
        for route in sorted({route for label in labels for route in parts[part][label]}):
            ratios = [
                _base(part, m) / m[route]["seconds"] if route in m else float("nan")
                for m in map(parts[part].get, labels)
            ]
            axes.plot(ratios, range(len(labels)), "o", label=route)
        axes.set(xscale="log", xlabel=f"times as fast as {_baselines(part)[0]}", title=part)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.axvline(1, color="grey", linewidth=0.8)
        axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _base(part: str, measured: dict[str, Row]) -> float:
    """Seconds of the first baseline that a case has; 0 where it has none."""
    return next((measured[name]["seconds"] for name in _baselines(part) if name in measured), 0.0)
