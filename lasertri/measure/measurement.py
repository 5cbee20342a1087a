"""The figures of one model on samples: accuracy, balanced accuracy, log loss, and whether every answer is the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lasertri.support.shown import shown

UNLISTED = ("correct", "losses", "instead", "given")  # of the figures in JSON


@dataclass(frozen=True)
class Measurement:
    """The figures of one model on one set of samples.

    Attributes:
        accuracy: share of samples answered rightly; of an `Objective` the mean score.
        majority_rate: accuracy of giving the most frequent right answer to everything; None where there are no answers.
        balanced_accuracy: mean recall over the labels; None where samples do not share one label set.
        log_loss: negative log-likelihood of the right answers in nats, summed over tokens, averaged over samples; of an
            `Objective` the mean loss. (LASER divides each by its number of tokens n, and RoBERTa's, by mistake, by
            n + 1.)
        collapsed: one answer takes at least 95 % of the predictions, and balanced accuracy is at most 1/C + 0.05, or
            where samples do not share labels, it is right in less than 95 % of them; None where there are no answers.
        n: number of samples.
        correct: `[n]` bool, sample by sample; of an `Objective` the scores, FP64.
        choice_log_loss: the same of the right choice among a sample's choices alone; None where samples have none.
        losses: `[n]`, what a step lowers, sample by sample: among the choices where there are any.
        instead: where no sample is answered rightly, the right answers of the first ones, each with what was given.
        given: `[n]`, the answers themselves; none of an `Objective`.
    """

    accuracy: float
    majority_rate: float | None
    balanced_accuracy: float | None
    log_loss: float
    collapsed: bool | None
    n: int
    correct: np.ndarray = field(repr=False, compare=False)
    choice_log_loss: float | None = None
    losses: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    instead: Sequence[tuple[str, str]] = field(default=(), repr=False, compare=False)
    given: Sequence[str] = field(default=(), repr=False, compare=False)

    def sound_beside(self, baseline: Measurement) -> bool:
        """Whether it neither lowers balanced accuracy nor collapses."""
        # both are None where labels are not shared
        return not self.collapsed and (self.balanced_accuracy or 0) >= (baseline.balanced_accuracy or 0)

    def to_dict(self) -> dict[str, object]:
        """The figures, without the sample-by-sample record."""
        figures = {name: value for name, value in vars(self).items() if name not in UNLISTED}
        infinite = (name for name, value in figures.items() if isinstance(value, float) and not math.isfinite(value))
        return figures | dict.fromkeys(infinite)  # JSON has no infinity

    @property
    def warning(self) -> str | None:
        """What is to be said of a model that answers nothing rightly, if that is so."""
        return none_right(self.n, self.instead) if self.instead else None


def none_right(n: int, instead: Sequence[tuple[str, str]]) -> str:
    """What is to be said where none of n samples is answered rightly; see `Measurement.instead`."""
    given = ", ".join(f"{shown(given)} for {shown(right)}" for right, given in instead)
    return (
        f"none of {n} samples is answered rightly: the model gave {given}; see whether it is asked as it should be "
        "(--prompt, --delimiter, --match, --chat)"
    )
