"""A model before and after its edits on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lasertri.edit.edit import Edit, all_applied
from lasertri.measure.evaluate import evaluate
from lasertri.measure.measurement import Measurement
from lasertri.measure.protocol import Samples
from lasertri.measure.significance import paired_interval, verdict


@dataclass(frozen=True)
class Comparison:
    """Both measurements, with the weight really edited, and the 95 % interval of the accuracy difference."""

    baseline: Measurement
    edited: Measurement | None
    interval: tuple[float, float] | None

    @classmethod
    def measure(
        cls,
        model: nn.Module,
        edits: Sequence[Edit],
        samples: Samples,
        *,
        normalize: bool = False,
        progress: bool = False,
    ) -> Comparison:
        """Evaluate the model, then the model with these edits, if there are any."""
        baseline = evaluate(model, samples, normalize=normalize, progress="baseline" if progress else None)
        if not edits:
            return cls(baseline, None, None)
        with all_applied(edits, model):
            edited = evaluate(model, samples, normalize=normalize, progress="edited" if progress else None)
        return cls(baseline, edited, paired_interval(baseline.correct, edited.correct, samples.groups))

    @property
    def verdict(self) -> str | None:
        """ "helps", "hurts" or "inconclusive"; None without an edit."""
        return None if self.interval is None else verdict(self.interval)

    def to_dict(self) -> dict[str, object]:
        return {
            "baseline": self.baseline.to_dict(),
            "edited": None if self.edited is None else self.edited.to_dict(),
            "interval": self.interval,
            "verdict": self.verdict,
        }
