"""Every sample with what the model gave for it, without the edits and with them, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lasertri.edit.comparison import Comparison
from lasertri.measure.measurement import Measurement
from lasertri.measure.protocol import Samples


def answer_rows(comparison: Comparison, samples: Samples) -> Iterator[dict[str, Any]]:
    """A row for every sample, in their order: prompt, right answer, and of each model answer, score and loss.

    Samples of an `Objective` have a number in place of prompt and answers. Without an edit `after` is None.
    """
    asked = samples.questions
    for i in range(len(samples)):
        row: dict[str, Any] = {"prompt": asked[i], "answer": samples.strata[i]} if asked else {"sample": i}
        yield row | {"before": _of(comparison.baseline, i), "after": _of(comparison.edited, i)}


def _of(measured: Measurement | None, i: int) -> dict[str, Any] | None:
    if measured is None:
        return None
    loss = float(measured.losses[i])
    figures = {"score": float(measured.correct[i]), "loss": loss if math.isfinite(loss) else None}
    return ({"given": measured.given[i]} if measured.given else {}) | figures
