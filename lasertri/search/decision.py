"""Which trial wins, and whether its edit is accepted.

The best of 200 candidates beats the baseline on 100 samples by several points with no effect at all, so the winner
must pass a joint test over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from lasertri.measure.measurement import Measurement
from lasertri.measure.significance import LEVEL, max_t_p_value
from lasertri.search.cross_fit import Fit
from lasertri.search.trial import Trial

Tried = TypeVar("Tried", Trial, Fit)


@dataclass(frozen=True)
class Decision(Generic[Tried]):
    """The accepted trial, or the best one that was rejected; one of them is None.

    Attributes:
        p_value: of the joint test for that trial.
        reason: why it was accepted or rejected, in one sentence.
    """

    accepted: Tried | None
    rejected: Tried | None
    p_value: float
    reason: str


def eligible(measurement: Measurement, baseline: Measurement, accept: str) -> bool:
    """Whether a candidate may win at all: with "test" it must neither lower balanced accuracy nor collapse."""
    return accept == "best" or measurement.sound_beside(baseline)


def decide(
    trials: Sequence[Trial], baseline: Measurement, groups: Sequence[str], *, accept: str = "test", seed: int = 0
) -> Decision[Trial]:
    """Take the winner if it passes.

    The winner has the highest accuracy, then the lower log loss, the larger ρ, the smaller K, the earlier layer.

    Args:
        trials: all that were measured; one that a race dropped cannot win, but counts in the test by what it saw.
            (Its T needs no scaling up to all samples: it is free of scale.)
        groups: the calibration samples' groups.
        accept: "test" asks that the winner is `eligible` and that the joint test gives p ≤ 0.05; "best" only that it
            beats the baseline.
    """
    finished = [trial for trial in trials if trial.finished]
    able = [trial for trial in finished if eligible(trial.measurement, baseline, accept)]
    winner = max(able or finished, key=_quality)
    gains = np.array([trial.gain for trial in trials])
    p_value = max_t_p_value(gains, trials.index(winner), groups, seed=seed)
    measured = winner.measurement
    beats = (measured.accuracy, -measured.log_loss) > (baseline.accuracy, -baseline.log_loss)
    return _decision(winner, bool(able), beats, p_value, len(trials), accept)


def decide_fit(
    fits: Sequence[Fit],
    baseline: Measurement,
    loss: float,
    groups: Sequence[str],
    *,
    accept: str = "test",
    seed: int = 0,
) -> Decision[Fit]:
    """Take the step whose cross-fitted loss is lowest, if it passes.

    Args:
        fits: all that were measured.
        loss: the baseline's, see `Fit.loss`.
        accept: "test" asks that the winner is `eligible` and no less accurate, and that the joint test over every
            fit's gain in accuracy and its relief of the loss gives p ≤ 0.05; "best" only that it lowers the loss.
    """
    able = [fit for fit in fits if eligible(fit.measurement, baseline, accept)]
    if accept == "test":
        able = [fit for fit in able if fit.measurement.accuracy >= baseline.accuracy]
    winner = min(able or fits, key=lambda fit: fit.loss)
    rows = np.array([row for fit in fits for row in (fit.gain, fit.relief)])
    own = 2 * fits.index(winner)
    p_value = max_t_p_value(rows, [own, own + 1], groups, seed=seed)
    return _decision(winner, bool(able), winner.loss < loss, p_value, len(fits), accept, "accuracy")


def _decision(
    winner: Tried,
    able: bool,
    beats: bool,
    p_value: float,
    count: int,
    accept: str,
    lowered: str = "balanced accuracy",
) -> Decision[Tried]:
    if not able:
        accepted, reason = False, f"every candidate lowers {lowered} or collapses to one answer"
    elif not beats:
        accepted, reason = False, "no candidate beats the baseline"
    elif accept == "best":
        accepted, reason = True, "the best candidate beats the baseline (no test asked for)"
    else:
        accepted = p_value <= LEVEL
        reason = (
            f"the joint test over {count} candidates gives p = {p_value:.4f}, "
            + ("at most" if accepted else "above")
            + f" {LEVEL}"
        )
    return Decision(winner if accepted else None, None if accepted else winner, p_value, reason)


def _quality(trial: Trial) -> tuple[float, ...]:
    candidate, measured = trial.candidate, trial.measurement
    return measured.accuracy, -measured.log_loss, candidate.ratio, -candidate.blocks, -candidate.target.layer
