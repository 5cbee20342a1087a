"""A model before and after its edits on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lasertri.edit.edit import Edit, all_applied
from lasertri.measure.evaluate import evaluate
from lasertri.measure.measurement import Measurement
from lasertri.measure.protocol import Samples
from lasertri.measure.significance import loss_interval, paired_interval, verdict
from lasertri.support.journal import NOTHING, Journal


@dataclass(frozen=True)
class Comparison:
    """Both measurements, with the model really edited, and what the edits change.

    Attributes:
        interval: 95 %, of the difference in accuracy; None without an edit.
        loss_interval: 95 %, of the difference in what a step lowers, see `Measurement.losses`; None without an edit,
            and where it cannot be told.
    """

    baseline: Measurement
    edited: Measurement | None = None
    interval: tuple[float, float] | None = None
    loss_interval: tuple[float, float] | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        edits: Sequence[Edit],
        samples: Samples,
        *,
        baseline: Measurement | None = None,
        normalize: bool = False,
        may_fail: bool = False,
        progress: bool = False,
        journal: Journal = NOTHING,
    ) -> Comparison:
        """Evaluate the model, then the model with these edits, if there are any.

        Args:
            baseline: the model's measurement, where that is known already.
            may_fail: of the edited model, see `evaluate`.
            journal: of these edits.

        Raises:
            NotFiniteError: a model gave NaN.
        """
        if baseline is None:
            baseline = evaluate(
                model,
                samples,
                normalize=normalize,
                progress="baseline" if progress else None,
                journal=journal.under("baseline"),
            )
        if not edits:
            return cls(baseline)
        with journal.under("edited").within(all_applied(edits, model)) as here:
            edited = evaluate(
                model,
                samples,
                normalize=normalize,
                may_fail=may_fail,
                progress="edited" if progress else None,
                journal=here,
            )
        return cls(
            baseline,
            edited,
            paired_interval(baseline.correct, edited.correct, samples.groups),
            loss_interval(baseline.losses, edited.losses, samples.groups),
        )

    @property
    def verdict(self) -> str | None:
        """ "helps", "hurts" or "inconclusive", in accuracy; None without an edit."""
        return None if self.interval is None else verdict(self.interval)

    def to_dict(self) -> dict[str, object]:
        return {
            "baseline": self.baseline.to_dict(),
            "edited": None if self.edited is None else self.edited.to_dict(),
            "interval": self.interval,
            "loss_interval": self.loss_interval,
            "verdict": self.verdict,
        }
