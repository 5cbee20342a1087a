"""Runs side by side, from the `adaptation.json` that each left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lasertri.data.files import parsed_json
from lasertri.errors import LasertriError
from lasertri.result.adaptation import SUMMARY_NAME
from lasertri.result.report import page, require_report
from lasertri.result.summary import describe, gain, loss_change, loss_of, nats
from lasertri.support.shown import failure

COLUMNS = ("run", "edit", "held out", "baseline", "edited", "difference, points", "loss", "KL", "seconds")


def read_run(folder: Path) -> dict[str, Any]:
    """What `Adaptation.to_dict` gave, from the folder that it was saved in.

    Raises:
        LasertriError: there is none.
    """
    path = folder / SUMMARY_NAME
    try:
        result = parsed_json(path.read_text(encoding="utf-8"), path, expected="what lasertri adapt measured")
    except OSError as error:
        raise LasertriError(
            f"{path}: expected a folder that lasertri adapt -o wrote, but {failure(error)}; name such a folder"
        ) from error
    except UnicodeDecodeError as error:
        raise LasertriError(f"{path}: expected UTF-8 text ({error.reason} at byte {error.start})") from error
    return dict(result) if isinstance(result, dict) else {}


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """The figures that tell runs apart, in the order given.

    Returns:
        `runs`, and whether they have the `same_samples` held out, as far as their figures tell.

    Raises:
        LasertriError: a folder is no run's, or another lasertri wrote it.
    """
    runs = []
    for folder, name in zip(folders, _names(folders), strict=True):
        try:
            runs.append({"run": name, "folder": str(folder), **_figures(read_run(folder))})
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise LasertriError(
                f"{folder / SUMMARY_NAME}: expected what this lasertri writes, but its {error} is missing or another; "
                "adapt again"
            ) from error
    return {"runs": runs, "same_samples": _same_samples(runs)}


def _names(folders: Sequence[Path]) -> list[str]:
    """The last names of their paths, where those tell them apart."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    held_out, rounds = result["held_out"], [result, *result["further"]]
    edited = held_out is not None and held_out["edited"] is not None
    effects = [found["side_effects"] for found in rounds if found["side_effects"] is not None]
    return {
        "model": result["model"],
        "files": result["files"],
        "settings": result["settings"],
        "edit": result["edit"],
        "matrices": result["matrices"],
        "further": sum(found["edit"] is not None for found in result["further"]),
        "reason": result["reason"],
        "refused": result["refused"],
        "held_out": held_out,
        "difference": gain(held_out) / 100 if edited else None,
        "loss_difference": loss_change(held_out) if edited else None,
        "kl": effects[-1]["kl"] if effects else None,
        "seconds": float(result["seconds"]),
    }


def _same_samples(runs: Sequence[dict[str, Any]]) -> bool:
    """Whether files, number and right answers agree, and of one model the loss without an edit, too.

    A refined adapter's is with the adapter as it was: that says nothing here.
    """
    measured = [run for run in runs if run["held_out"] is not None]
    before = {id(run): run["held_out"]["baseline"] for run in measured}
    bare = [run for run in measured if run["edit"] is None or run["edit"]["kind"] != "refine"]
    losses = {run["model"]: loss_of(before[id(run)])[1] or math.inf for run in bare}
    told = {(*run["files"], before[id(run)]["n"], before[id(run)]["majority_rate"]) for run in measured}
    return len(told) <= 1 and all(
        math.isclose(loss_of(before[id(run)])[1] or math.inf, losses[run["model"]], rel_tol=1e-3) for run in bare
    )


def rows(compared: dict[str, Any]) -> list[list[str]]:
    """What `compare` gave as a table's cells, under `COLUMNS`."""
    return [_cells(run) for run in compared["runs"]]


def _cells(run: dict[str, Any]) -> list[str]:
    edit = _short(run["edit"]) + (f", and {run['further']} more" if run["further"] else "")
    ends = ["–" if run["kl"] is None else f"{run['kl']:.3g}", f"{run['seconds']:.1f}"]
    held_out = run["held_out"]
    if held_out is None:
        return [run["run"], edit, *["–"] * 5, *ends]
    before, after = held_out["baseline"], held_out["edited"]
    counted = [run["run"], edit, f"{before['n']:,}", f"{before['accuracy']:.1%}"]
    if after is None:
        return [*counted, *["–"] * 2, nats(loss_of(before)[1]), *ends]
    low, high = (100 * bound for bound in held_out["interval"])
    difference = f"{100 * run['difference']:+.1f} [{low:.1f}, {high:.1f}]"
    loss = f"{nats(loss_of(before)[1])} → {nats(loss_of(after)[1])}"
    return [*counted, f"{after['accuracy']:.1%}", difference, loss, *ends]


def _short(edit: dict[str, Any] | None) -> str:
    """An edit by what tells it from others."""
    if edit is None:
        return "no edit"
    if edit["kind"] == "truncate":
        return f"{edit['target']}, K = {edit['blocks']}, ρ = {edit['rho']:g}"
    how = f", {edit['direction']}, rank {edit['rank']}" if edit["kind"] == "step" else ""
    return f"{edit['kind']}{how}, size {edit['size']:g}"


def notes(compared: dict[str, Any]) -> list[str]:
    """What a reader has to know besides."""
    told = [f"{run['run']}: {run['refused']}" for run in compared["runs"] if run["refused"]]
    if not compared["same_samples"]:
        told.append("not all runs have the same samples held out: compare their differences, not their accuracies")
    return told


def render_comparison(compared: dict[str, Any]) -> str:
    """What `compare` gave as a page.

    Raises:
        LasertriError: the extra `report` is not installed.
    """
    require_report()
    from lasertri.result.figures import differences

    edited = {run["run"]: run["held_out"] for run in compared["runs"] if run["difference"] is not None}
    return page(
        "compare.html.j2",
        {"difference": differences(edited) if edited else []},
        runs=compared["runs"],
        describe=describe,
        columns=COLUMNS,
        rows=rows(compared),
        notes=notes(compared),
    )
