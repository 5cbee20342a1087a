"""A result in a few lines of text, made from `Adaptation.to_dict()`."""

from __future__ import annotations

from typing import Any

from lasertri.language.asking import Asked
from lasertri.measure.measurement import none_right
from lasertri.measure.side_effects import described


def summarize(result: dict[str, Any]) -> str:
    """What was measured, what was edited, and whether it helps on held-out samples."""
    lines = found(result)
    for name, comparison in compared(result).items():
        lines += [name, *(f"  {row}" for row in measurements(comparison))]
    return "\n".join(lines + concluded(result))


def found(result: dict[str, Any]) -> list[str]:
    """How the model was asked, what was tried, and which edit came of it."""
    lines = questions(result) + searched(result)
    if result["edit"] is not None:
        lines += [f"edit: {describe(result['edit'], result['matrices'])}", f"  accepted: {result['reason']}"]
    else:
        lines += ["no edit", f"  {result['reason']}"]
    if result["rejected"] is not None:
        lines.append(f"  best rejected: {describe(result['rejected'])}")
    for further in result["further"]:
        what = "no further edit" if further["edit"] is None else f"further edit: {describe(further['edit'])}"
        lines += [what, f"  {further['reason']}"]
    return lines


def compared(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The model before and after, by which samples."""
    made = "" if result["edit"] is None or kind(result) == "truncate" else ", which the edit was made from"
    confirming = "" if result["edit"] is not None else ", edited as the best rejected"
    return {
        f"{name.replace('_', '-')}, {result[name]['baseline']['n']} samples{note}": result[name]
        for name, note in (("calibration", made), ("confirmation", confirming), ("held_out", ""))
        if result[name] is not None
    }


def figures(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The same as a table: its columns, as far as something stands in them, and its rows."""
    texts = {
        "accuracy": "accuracy" if result["baseline"]["majority_rate"] is not None else "score",
        "balanced_accuracy": "balanced",
        "majority_rate": "majority",
        "log_loss": "log loss",
        "choice_log_loss": "among the choices",
    }
    shown = [name for name in texts if result["baseline"][name] is not None or name == "log_loss"]
    rows = [
        [
            samples if model == "baseline" else "",
            model + (", COLLAPSED to one answer" if comparison[model]["collapsed"] else ""),
            *(_cell(name, comparison[model][name]) for name in shown),
        ]
        for samples, comparison in compared(result).items()
        for model in ("baseline", "edited")
        if comparison[model] is not None
    ]
    return ["samples", "model", *(texts[name] for name in shown)], rows


def _cell(name: str, value: float | None) -> str:
    if name.endswith("loss"):
        return nats(value)
    return "–" if value is None else f"{value:.1%}"


def concluded(result: dict[str, Any]) -> list[str]:
    """What the edits change on held-out samples and beside the task, and the seconds it took."""
    lines = [] if result["refused"] is None else [result["refused"]]
    lines += differences(result["held_out"])
    if result["side_effects"] is not None:
        lines.append(aside([result, *result["further"]]))
    phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result["seconds_by_phase"].items())
    return [*lines, f"{result['seconds']:.1f} s ({phases})"]


def brief(result: dict[str, Any]) -> str:
    """The edit and the held-out difference."""
    edit = "no edit" if result["edit"] is None else describe(result["edit"], result["matrices"])
    return "; ".join([edit, *differences(result["held_out"])[:1]])


def headline(result: dict[str, Any]) -> str:
    """What came out, in the figure that counts."""
    held_out = result["held_out"]
    if result["edit"] is None:
        right = not result["trials"] and result["baseline"]["accuracy"] == 1
        return "No edit: the baseline is already right everywhere" if right else "No edit"
    if held_out is None:
        return "An edit, without held-out figures"
    low, high = (100 * bound for bound in held_out["interval"])
    return f"{gain(held_out):+.1f} points [{low:.1f}, {high:.1f}] on {held_out['baseline']['n']:,} held-out samples"


def questions(result: dict[str, Any]) -> list[str]:
    """How the first sample was asked; and where the model is never right, what it gave instead."""
    lines = [] if result["asked"] is None else [f"asked so: {Asked(**result['asked'])}"]
    if result["instead"]:
        lines.append(f"WARNING: {none_right(result['baseline']['n'], result['instead'])}")
    return lines


def kind(result: dict[str, Any]) -> str:
    """Which kind of edit was looked for: "truncate", "step" or "shrink"."""
    return str(result["settings"]["edit"])


def searched(result: dict[str, Any]) -> list[str]:
    """What was scored and tried."""
    trials, candidates = result["trials"], result["candidates"]
    if not trials:
        return ["nothing was tried"]
    if kind(result) == "truncate":
        return [
            _scored(result["scores"]),
            f"measured {candidates['measured']} candidates ({candidates['requested']} requested, "
            f"{candidates['distinct']} distinct, {candidates['finished']} to the end)",
        ]
    sizes = [trial["size"] for trial in trials]
    several = len({trial["direction"] for trial in trials})
    return [
        f"measured {len(trials)} sizes, {min(sizes):g} to {max(sizes):g}"
        + (f", of {several} directions" if several > 1 else "")
        + ", each on samples that took no part in making it"
    ]


def _scored(scores: list[dict[str, Any]]) -> str:
    if not any(entry["score"] for entry in scores):
        return f"tried all of {len(scores)} matrices, unscored"
    return f"scored {len(scores)} matrices, best " + ", ".join(entry["target"] for entry in scores[:3])


def describe(edit: dict[str, Any], matrices: int | None = None) -> str:
    """One candidate in words.

    Args:
        matrices: how many it changes, where that is known and more than one.
    """
    if edit["kind"] == "truncate":
        rows = "clusters of rows" if edit["clustered"] else "row blocks"
        parts = "one block" if edit["blocks"] == 1 else f"{edit['blocks']} {rows}"
        return f"{edit['target']}, {parts} truncated to rank {edit['rank']} (ρ = {edit['rho']:g})"
    layers = "" if matrices is None else f" of {matrices} linear layer{'s' * (matrices != 1)}"
    far = f"as far as would save {edit['size']:g} times the loss at first order"
    if edit["kind"] == "refine":
        where = layers.replace(" of", " in", 1)
        return f"singular values of an adapter of rank {edit['rank']}{where} moved against their gradients, {far}"
    if edit["kind"] == "shrink":
        return f"singular values{layers} moved against their gradients, {far}"
    return f"a step{layers} down the {edit['direction']} gradient, rank {edit['rank']}, {far}"


def measurements(comparison: dict[str, Any]) -> list[str]:
    """A line for the baseline, and one for the edited model if there is one."""
    return [
        f"{name:8} {measurement(comparison[name])}" for name in ("baseline", "edited") if comparison[name] is not None
    ]


def measurement(measured: dict[str, Any]) -> str:
    """Accuracy beside what giving one answer to everything would get; of an `Objective` its score and loss."""
    balanced, among_choices = measured["balanced_accuracy"], measured["choice_log_loss"]
    if measured["majority_rate"] is None:
        return f"score {measured['accuracy']:6.1%}, loss {nats(measured['log_loss'])}"
    return (
        f"accuracy {measured['accuracy']:6.1%} (majority {measured['majority_rate']:.1%})"
        + ("" if balanced is None else f", balanced {balanced:.1%}")
        + f", log loss {nats(measured['log_loss'])}"
        + ("" if among_choices is None else f", among the choices {nats(among_choices)}")
        + (", COLLAPSED to one answer" if measured["collapsed"] else "")
    )


def differences(comparison: dict[str, Any] | None) -> list[str]:
    """What the edits change, with intervals: in accuracy, and in the loss that a step lowers."""
    if comparison is None or comparison["interval"] is None:
        return []
    low, high = (100 * bound for bound in comparison["interval"])
    lines = [f"held-out difference {gain(comparison):+.1f} points [{low:+.1f}, {high:+.1f}]: {comparison['verdict']}"]
    change = loss_change(comparison)
    if change is not None:
        low, high = comparison["loss_interval"]
        lines.append(f"  in {loss_of(comparison['edited'])[0]} {change:+.3f} [{low:+.3f}, {high:+.3f}]")
    return lines


def gain(comparison: dict[str, Any]) -> float:
    """Of the edited model over the baseline, in points of accuracy."""
    return 100 * float(comparison["edited"]["accuracy"] - comparison["baseline"]["accuracy"])


def loss_change(comparison: dict[str, Any]) -> float | None:
    """How far the edits change what a step lowers; None where that has no interval."""
    (_, before), (_, after) = (loss_of(comparison[name]) for name in ("baseline", "edited"))
    return None if None in (before, after, comparison["loss_interval"]) else float(after - before)


def loss_of(measured: dict[str, Any]) -> tuple[str, Any]:
    """What a step lowers: its name and how much it is, None if infinite."""
    if measured["choice_log_loss"] is not None:
        return "log loss among the choices", measured["choice_log_loss"]
    return "loss" if measured["majority_rate"] is None else "log loss", measured["log_loss"]


def aside(rounds: list[dict[str, Any]]) -> str:
    """What the last edit, with those before it, does to the predictions on neutral text."""
    effects = next(found["side_effects"] for found in reversed(rounds) if found["side_effects"] is not None)
    return f"on {effects['tokens']} tokens of neutral text: {described(effects)}"


def nats(loss: float | None) -> str:
    """A mean loss, which one impossible answer makes infinite."""
    return "infinite" if loss is None else f"{loss:.3f}"
