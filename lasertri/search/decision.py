"""Which trial wins, and whether its edit is accepted.

The best of 200 candidates beats the baseline on 100 samples by several points with no effect at all, so the winner
must pass a joint test over all of them. Such a test has little power, and what a truncation wins is often less than it
sees: where there are fresh samples, the winner is tried alone on these too, and both tests count
(`benchmarks/bench_decision.py` compares this with others).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

import numpy as np

from lasertri.measure.measurement import Measurement
from lasertri.measure.significance import LEVEL, combined_p_value, max_t_p_value
from lasertri.search.confirmation import Confirmation
from lasertri.search.cross_fit import Fit
from lasertri.search.trial import Trial

Tried = TypeVar("Tried", Trial, Fit)

ROUNDING = 1e-6  # of a loss: a layer without influence has gradients of rounding, and steps that change no more


@dataclass(frozen=True)
class Decision(Generic[Tried]):
    """The accepted trial, or the best one that was rejected; one of them is None, or both where nothing was tried.

    Attributes:
        p_value: of the tests for that trial; None where nothing was tried.
        reason: why it was accepted or rejected, or why nothing was tried, in one sentence.
        confirmation: of that trial, where fresh samples were read.
    """

    accepted: Tried | None
    rejected: Tried | None
    p_value: float | None
    reason: str
    confirmation: Confirmation | None = None

    def refused(self, reason: str) -> Self:
        """The same, but that what was accepted is rejected for this reason."""
        return replace(self, accepted=None, rejected=self.accepted, reason=reason)


def eligible(measurement: Measurement, baseline: Measurement, accept: str) -> bool:
    """Whether a candidate may win at all: with "test" it must neither lower balanced accuracy nor collapse."""
    return accept == "best" or measurement.sound_beside(baseline)


def decide(
    trials: Sequence[Trial],
    baseline: Measurement,
    groups: Sequence[str],
    *,
    accept: str = "test",
    seed: int = 0,
    confirm: Callable[[Trial], Confirmation | None] | None = None,
) -> Decision[Trial]:
    """Take the winner if it passes.

    The winner has the highest accuracy, then the lower log loss, the larger ρ, the smaller K, the earlier layer.

    The joint test is of accuracy, which the winner was chosen by: one of the log loss as well would take edits that
    win no answers. Fresh samples test both. Of two p-values each knows nothing of the other's samples, so
    they combine, however few the fresh samples are.

    Args:
        trials: all that were measured; one that a race dropped cannot win, but counts in the test by what it saw.
            (Its T needs no scaling up to all samples: it is free of scale.)
        groups: the calibration samples' groups.
        accept: "test" asks that the winner is `eligible` and that the joint test, with the confirmation if there is
            one, gives p ≤ 0.05; "best" only that it beats the baseline.
        confirm: tries a winner on fresh samples, if there are any; asked only where the test is to
            decide. Where it has None to say, that test decides alone.
    """
    finished = [trial for trial in trials if trial.finished]
    able = [trial for trial in finished if eligible(trial.measurement, baseline, accept)]
    winner = max(able or finished, key=_quality)
    gains = np.array([trial.gain for trial in trials])
    p_value = max_t_p_value(gains, trials.index(winner), groups, seed=seed)
    measured = winner.measurement
    beats = (measured.accuracy, -measured.log_loss) > (baseline.accuracy, -baseline.log_loss)
    confirmation = confirm(winner) if confirm is not None and able and beats and accept == "test" else None
    if confirmation is None:
        return _decision(winner, bool(able), beats, p_value, len(trials), accept)
    together = combined_p_value([p_value, confirmation.p_value], [len(set(groups)), confirmation.independent])
    accepted, fresh = together <= LEVEL, confirmation.comparison.baseline.n
    reason = (
        f"the joint test over {len(trials)} candidates ({_p(p_value)}) and that of the best alone on {fresh} fresh "
        f"samples, in accuracy or log loss ({_p(confirmation.p_value)}), together give {_p(together)}, "
        f"{_side(accepted)}"
    )
    return Decision(winner if accepted else None, None if accepted else winner, together, reason, confirmation)


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
    beats = loss - winner.loss > ROUNDING * abs(winner.loss)
    return _decision(winner, bool(able), beats, p_value, len(fits), accept, "accuracy")


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
        reason = f"the joint test over {count} candidates gives {_p(p_value)}, {_side(accepted)}"
    return Decision(winner if accepted else None, None if accepted else winner, p_value, reason)


def _p(value: float) -> str:
    return f"p = {value:.4f}" if value >= 5e-5 else "p < 0.0001"


def _side(accepted: bool) -> str:
    return f"{'at most' if accepted else 'above'} {LEVEL}"


def _quality(trial: Trial) -> tuple[float, ...]:
    candidate, measured = trial.candidate, trial.measurement
    return measured.accuracy, -measured.log_loss, candidate.ratio, -candidate.blocks, -candidate.target.layer
