"""The winner alone on fresh samples: one paired test instead of one over every candidate, for two forward passes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from lasertri.edit.comparison import Comparison
from lasertri.edit.truncation import Truncation
from lasertri.errors import NotFiniteError, TooLittleMemoryError
from lasertri.measure.protocol import Samples
from lasertri.measure.significance import max_t_p_value, relief
from lasertri.search.problem import Problem
from lasertri.search.trial import Trial
from lasertri.support.memory import memory_told

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Confirmation:
    """What a winner gives on samples that had no part in choosing it.

    A later round reads the same samples, now with the earlier edit: that was accepted where they spoke for it, which
    makes the next one's gain over it look smaller, not larger.

    Attributes:
        p_value: of a sign-flip test of its gain in accuracy and its relief of the loss.
        independent: number of groups of the samples.
    """

    comparison: Comparison
    p_value: float
    independent: int

    @classmethod
    def of(cls, problem: Problem, samples: Samples, winner: Trial) -> Self | None:
        """Read the samples with the model as it is, and with the winner's edit.

        None, with a warning, where the model gives NaN or Inf for one, or memory does not hold it: the trials are not
        lost for it.
        """
        settings, model = problem.settings, problem.model
        edit = Truncation.build(winner.candidate, model, problem.factors)
        try:
            with memory_told("fresh samples"):
                found = Comparison.of(
                    model,
                    [edit],
                    samples,
                    normalize=settings.normalize,
                    may_fail=True,
                    progress=settings.progress,
                    journal=problem.journal.under("confirmation"),
                )
        except (NotFiniteError, TooLittleMemoryError) as error:
            logger.warning("no confirmation on fresh samples: %s", error)
            return None
        before, after = found.baseline, found.edited or found.baseline
        rows = np.stack([after.correct.astype(float) - before.correct, relief(before.losses, after.losses)])
        p_value = max_t_p_value(rows, [0, 1], samples.groups, seed=settings.seed)
        return cls(found, p_value, len(set(samples.groups)))

    def to_dict(self) -> dict[str, Any]:
        return self.comparison.to_dict() | {"p_value": self.p_value}
