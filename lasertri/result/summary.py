"""A result in a few lines of text, made from `Adaptation.to_dict()`."""

from __future__ import annotations

from typing import Any


def summarize(result: dict[str, Any]) -> str:
    """What was measured, what was edited, and whether it helps on held-out samples."""
    candidates, held_out = result["candidates"], result["held_out"]
    lines = [
        _scored(result["scores"]),
        f"measured {candidates['measured']} candidates ({candidates['requested']} requested, "
        f"{candidates['distinct']} distinct, {candidates['finished']} to the end)",
    ]
    if result["edit"] is not None:
        lines += [f"edit: {describe(result['edit'])}", f"  accepted: {result['reason']}"]
    else:
        lines += ["no edit", f"  {result['reason']}", f"  best rejected: {describe(result['rejected'])}"]
    for found in result["further"]:
        what = "no further edit" if found["edit"] is None else f"further edit: {describe(found['edit'])}"
        lines += [what, f"  {found['reason']}"]
    for name in ("calibration", "held_out"):
        lines.append(f"{name.replace('_', '-')}, {result[name]['baseline']['n']} samples")
        lines += [f"  {row}" for row in measurements(result[name])]
    if held_out["interval"] is not None:
        low, high = (100 * bound for bound in held_out["interval"])
        gain = 100 * (held_out["edited"]["accuracy"] - held_out["baseline"]["accuracy"])
        lines.append(f"held-out difference {gain:+.1f} points [{low:+.1f}, {high:+.1f}]: {held_out['verdict']}")
    phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result["seconds_by_phase"].items())
    lines.append(f"{result['seconds']:.1f} s ({phases})")
    return "\n".join(lines)


def _scored(scores: list[dict[str, Any]]) -> str:
    if not any(entry["score"] for entry in scores):
        return f"tried all of {len(scores)} matrices, unscored"
    return f"scored {len(scores)} matrices, best " + ", ".join(entry["target"] for entry in scores[:3])


def describe(edit: dict[str, Any]) -> str:
    """One candidate in words."""
    kind = "clusters of rows" if edit["clustered"] else "row blocks"
    parts = "one block" if edit["blocks"] == 1 else f"{edit['blocks']} {kind}"
    return f"{edit['target']}, {parts} truncated to rank {edit['rank']} (ρ = {edit['rho']:g})"


def measurements(comparison: dict[str, Any]) -> list[str]:
    """A line for the baseline, and one for the edited model if there is one."""
    return [
        f"{name:8} {measurement(comparison[name])}" for name in ("baseline", "edited") if comparison[name] is not None
    ]


def measurement(measured: dict[str, Any]) -> str:
    """Accuracy beside what giving one answer to everything would get; of an `Objective` its score and loss."""
    balanced = measured["balanced_accuracy"]
    if measured["majority_rate"] is None:
        return f"score {measured['accuracy']:6.1%}, loss {loss(measured)}"
    return (
        f"accuracy {measured['accuracy']:6.1%} (majority {measured['majority_rate']:.1%})"
        + ("" if balanced is None else f", balanced {balanced:.1%}")
        + f", log loss {loss(measured)}"
        + (", COLLAPSED to one answer" if measured["collapsed"] else "")
    )


def loss(measured: dict[str, Any]) -> str:
    """A mean loss, which one impossible answer makes infinite."""
    return "infinite" if measured["log_loss"] is None else f"{measured['log_loss']:.3f}"
