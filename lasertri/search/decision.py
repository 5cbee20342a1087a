"""Which trial wins, and whether its edit is accepted.

The best of 200 candidates beats the baseline on 100 samples by several points with no effect at all, so the winner
must pass a joint test over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lasertri.measure.measurement import Measurement
from lasertri.measure.significance import LEVEL, max_t_p_value
from lasertri.search.trials import Trial


@dataclass(frozen=True)
class Decision:
    """The accepted trial, or the best one that was rejected; one of them is None.

    Attributes:
        p_value: of the joint test for that trial.
        reason: why it was accepted or rejected, in one sentence.
    """

    accepted: Trial | None
    rejected: Trial | None
    p_value: float
    reason: str


def decide(
    trials: Sequence[Trial], baseline: Measurement, groups: Sequence[str], *, accept: str = "test", seed: int = 0
) -> Decision:
    """Take the winner if it passes.

    The winner has the highest accuracy, then the lower log loss, the larger ρ, the smaller K, the earlier layer.

    Args:
        trials: all that were measured; one that a race dropped cannot win, but counts in the test by what it saw.
            (Its T needs no scaling up to all samples: it is free of scale.)
        groups: the calibration samples' groups.
        accept: "test" asks that the winner neither lowers balanced accuracy nor collapses, and that the joint test
            gives p ≤ 0.05; "best" only that it beats the baseline.
    """
    finished = [trial for trial in trials if trial.finished]
    eligible = [t for t in finished if accept == "best" or t.measurement.sound_beside(baseline)]
    winner = max(eligible or finished, key=_quality)
    p_value = max_t_p_value(np.array([trial.gain for trial in trials]), trials.index(winner), groups, seed=seed)
    measured = winner.measurement
    if not eligible:
        accepted, reason = False, "every candidate lowers balanced accuracy or collapses to one answer"
    elif (measured.accuracy, -measured.log_loss) <= (baseline.accuracy, -baseline.log_loss):
        accepted, reason = False, "no candidate beats the baseline"
    elif accept == "best":
        accepted, reason = True, "the best candidate beats the baseline (no test asked for)"
    else:
        accepted = p_value <= LEVEL
        reason = (
            f"the joint test over {len(trials)} candidates gives p = {p_value:.4f}, "
            + ("at most" if accepted else "above")
            + f" {LEVEL}"
        )
    return Decision(winner if accepted else None, None if accepted else winner, p_value, reason)


def _quality(trial: Trial) -> tuple[float, ...]:
    candidate, measured = trial.candidate, trial.measurement
    return measured.accuracy, -measured.log_loss, candidate.ratio, -candidate.blocks, -candidate.target.layer
