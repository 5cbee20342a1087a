"""`Round`: what one round of the search found."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from torch import nn

from lasertri.edit.edit import Edit
from lasertri.edit.spectrum import Spectrum
from lasertri.errors import NotConvergedError
from lasertri.measure.measurement import Measurement
from lasertri.measure.side_effects import SideEffects
from lasertri.model.targets import Target
from lasertri.search.cross_fit import Fit
from lasertri.search.decision import Decision
from lasertri.search.trial import Trial
from lasertri.support.events import tell
from lasertri.support.sharing import once

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """What one round found.

    Attributes:
        baseline: of all calibration samples, the model as the round found it.
        ranking: score of every target, highest first, the papers' or the decrease foretold in nats; 0 where all are
            tried.
        requested: number of candidates asked for; some are the same edit.
        trials: every measured candidate.
        decision: the accepted or the best rejected trial, and the joint test.
        edit: the accepted edit, or None.
        different: number of different edits among those requested, where not all of them were tried.
        side_effects: what it does, with the edits before it, to a causal language model's predictions on neutral
            text; of one that was refused for them too.
        spectra: singular values of the matrices that it changes most.
    """

    baseline: Measurement
    ranking: dict[Target, float] = field(repr=False)
    requested: int
    trials: Sequence[Trial] | Sequence[Fit] = field(repr=False)
    decision: Decision[Any]
    edit: Edit | None
    different: int | None = None
    side_effects: SideEffects | None = None
    spectra: Sequence[Spectrum] = ()

    @classmethod
    def untried(cls, baseline: Measurement, reason: str) -> Self:
        """A round that ended before anything was tried."""
        return cls(baseline, {}, 0, [], Decision(None, None, None, reason), None)

    def told(self) -> Self:
        """Itself, once whoever follows the search was told what was decided."""
        long = ("scores", "spectra", "trials")
        tell("round", lambda: {key: own for key, own in self.to_dict().items() if key not in long})
        return self

    def with_spectra(self, model: nn.Module) -> Self:
        """Itself, with its edit's singular values where they can be had; of several processes the first makes them."""
        edit = self.edit
        try:
            return self if edit is None else replace(self, spectra=once(lambda: edit.singular_values(model)))
        except NotConvergedError as error:  # what was found is not lost for it
            logger.warning("no singular values are shown: %s", error)
            return self

    def to_dict(self) -> dict[str, Any]:
        """Everything that was measured, ready for JSON."""
        accepted, rejected, confirmed = self.decision.accepted, self.decision.rejected, self.decision.confirmation
        return {
            "edit": None if accepted is None else accepted.candidate.to_dict(),
            "rejected": None if rejected is None else rejected.to_dict(),
            "p_value": self.decision.p_value,
            "reason": self.decision.reason,
            "side_effects": None if self.side_effects is None else self.side_effects.to_dict(),
            "spectra": [own.to_dict() for own in self.spectra],
            "confirmation": None if confirmed is None else confirmed.to_dict(),
            "candidates": {
                "requested": self.requested,
                "distinct": len(self.trials) if self.different is None else self.different,
                "measured": len(self.trials),
                "finished": sum(trial.finished for trial in self.trials),
            },
            "scores": [
                {"target": str(target), "layer": target.layer, "role": target.role, "score": score}
                for target, score in self.ranking.items()
            ],
            "trials": [trial.to_dict() for trial in self.trials],
        }
