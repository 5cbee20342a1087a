"""No change of the model: some of the calibration samples stand, answered, before every question."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.adapt.plain import Phases
from benchmarks.edits.case import Case, objective, outcome, tokens
from lasertri.errors import LasertriError

SHOTS = 8
GAP = "\n\n"


def few_shot(case: Case) -> dict[str, object]:
    """The first calibration samples, which the split has drawn, before every held-out prompt, if that fits."""
    shots = "".join(f"{_answered(case, i)}{case.task.closing}{GAP}" for i in range(SHOTS))
    asked = [replace(sample, prompt=shots + sample.prompt) for sample in case.split.held_out]
    phases = Phases()
    try:
        encoded = case.encoded(asked)
    except LasertriError as error:  # longer than the model's context
        return {"skipped": str(error)}
    with phases("evaluation"):
        after = outcome(case.model, encoded)
    return {
        "chosen": {"shots": SHOTS},
        "held_out": case.compared(after),
        "objective": objective(encoded),
        "seconds": dict(phases.seconds),
        "forward_equivalents": 0.0,
        "tokens_per_question": float(tokens(encoded).sum() / tokens(case.held_out).sum()),  # relative to the bare one
    }


def _answered(case: Case, i: int) -> str:
    """A calibration sample with its right answer, as its tokens are read."""
    right = case.calibration.answers[i][case.split.calibration[i].gold]
    prompt = right.row[: right.start + 1]
    return str(case.tokenizer.decode([*prompt, *right.tokens], skip_special_tokens=True))
