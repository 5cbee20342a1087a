"""How long a step, and in which direction: an edit made from some samples is measured on the others.

Never on those that made it, where every edit shines. What is kept is the mean of the edits that were measured so: all
samples have their part in it, and it needs no direction of its own. (Held out it was as good as a step made from all
samples together, or better.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import nn

from lasertri.errors import LasertriError
from lasertri.measure.evaluate import of_all
from lasertri.measure.measurement import Measurement
from lasertri.measure.protocol import Advance, SampleReadings, Samples
from lasertri.measure.significance import relief
from lasertri.search.settings import Settings
from lasertri.support.events import tell
from lasertri.support.journal import NOTHING, Journal
from lasertri.support.sharing import in_each, share

FOLDS = 2
SMALLEST, LARGEST = 2.0**-6, 2.0**8  # where the search ends, whatever the loss does


class Sizeable(Protocol):
    """An edit with a length, of size 1 when it is made: at first order it takes all of the loss away."""

    def scaled(self, factor: float, /) -> Self:
        """The same direction, so many times as long."""

    def averaged(self, others: Sequence[Self], /) -> Self:
        """The mean of this and others."""

    def beside(self, model: nn.Module, /) -> AbstractContextManager[None]:
        """Within, the model answers as with the edit."""

    def to_dict(self) -> dict[str, object]:
        """How it is named in reports."""


@dataclass(frozen=True)
class Sized:
    """An edit before it is made: of which kind, in which direction, of which rank, and how long; see `Step`."""

    kind: str
    direction: str
    rank: int | None
    size: float

    @property
    def effect(self) -> tuple[object, ...]:
        """Equal for candidates that are the same edit."""
        return self.kind, self.direction, self.rank, self.size

    def to_dict(self) -> dict[str, object]:
        return dict(vars(self))


@dataclass(frozen=True)
class Fit:
    """A size, with what it gave on samples that took no part in making the edit.

    Attributes:
        measurement: of all calibration samples, each under the step made from the other folds.
        loss: mean of what a step lowers, see `SampleReadings.sample_losses`.
        gain: `[n]`, score minus the baseline's.
        relief: `[n]`, the baseline's loss minus its own.
    """

    candidate: Sized
    measurement: Measurement
    loss: float
    seconds: float
    gain: np.ndarray = field(repr=False, compare=False)
    relief: np.ndarray = field(repr=False, compare=False)
    finished: bool = True

    def to_dict(self) -> dict[str, object]:
        return (
            self.candidate.to_dict()
            | self.measurement.to_dict()
            | {"loss": self.loss if math.isfinite(self.loss) else None, "seconds": self.seconds}
        )


def folds(strata: Sequence[str], groups: Sequence[str], *, count: int = FOLDS, seed: int = 0) -> list[list[int]]:
    """Indices of the samples of every fold: groups stay together, and right answers are spread evenly."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if len(members) < count:
        raise LasertriError(
            f"expected calibration samples of at least {count} groups, one for every fold, got {len(members)}; bring "
            "samples of more groups, or a larger calibration"
        )
    drawn = [list(members)[i] for i in np.random.default_rng(seed).permutation(len(members))]
    parts: list[list[int]] = [[] for _ in range(count)]
    for group in sorted(drawn, key=lambda g: (-len(members[g]), strata[members[g][0]])):
        min(parts, key=len).extend(members[group])
    return [sorted(part) for part in parts]


class CrossFit:
    """Every fold under an edit made from the other folds.

    Args:
        parts: of every fold, its samples.
        baseline: what the model gave for all samples.
        advance: is told how much was read, as of `Samples.work`.
        journal: of what is measured.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        parts: Sequence[Sequence[int]],
        baseline: SampleReadings,
        settings: Settings,
        *,
        advance: Advance = lambda _: None,
        journal: Journal = NOTHING,
    ) -> None:
        self.model, self.samples, self.parts = model, samples, parts
        self.settings, self.advance, self.journal = settings, advance, journal
        self.scores, _ = baseline.outcomes(normalize=settings.normalize)
        self.losses = baseline.sample_losses()
        self.baseline = baseline.measurement(normalize=settings.normalize)

    def others(self, fold: int) -> tuple[list[int], float]:
        """The samples that are not of a fold, and the baseline's mean loss on them, without its sign."""
        mine = [i for other, part in enumerate(self.parts) if other != fold for i in part]
        return mine, float(np.abs(self.losses[mine]).mean())

    def sizes(self, edits: Sequence[Sizeable], first: float, *, least: float | None = None) -> Iterator[Fit]:
        """Fits from this size on, doubled or halved until the loss has turned on both sides.

        No edit is of size 0: where the first size is no better, those beyond it are left out.

        Args:
            edits: for every fold, an edit of size 1 made from the other folds' samples.
            least: loss of a rival; the first size is the only one where it does not beat that.
        """
        best = self.measure(edits, first)
        yield best
        if least is not None and not best.loss < least:
            return
        for factor in (2.0, 0.5) if best.loss < self.losses.mean() else (0.5,):
            size = first * factor
            while SMALLEST <= size <= LARGEST:
                fit = self.measure(edits, size)
                yield fit
                if fit.loss < best.loss:
                    best = fit
                elif factor > 1 or np.isfinite(best.loss):  # from a ruined model the way down may be long
                    break
                size *= factor
            if best.candidate.size > first:  # smaller ones lie beyond the first, which was worse
                return

    @torch.no_grad()
    def measure(self, edits: Sequence[Sizeable], size: float) -> Fit:
        """Every fold under its edit, at this size."""
        start, readings = self.journal.now(), self.samples.readings()
        named: dict[str, Any] = edits[0].to_dict() | {"size": size}
        advance, mine = of_all(self.advance), share()

        def read() -> SampleReadings:
            readings = self.samples.readings()
            for fold, (edit, part) in enumerate(zip(edits, self.parts, strict=True)):
                with self.journal.under((named, fold)).within(edit.scaled(size).beside(self.model)) as here:
                    readings.update(self.samples.read(self.model, part, advance, here, mine.turned(fold)))
            return readings

        for found in in_each(read):
            readings.update(found)
        scores, _ = readings.outcomes(normalize=self.settings.normalize)
        losses = readings.sample_losses()
        fit = Fit(
            Sized(**named),
            readings.measurement(normalize=self.settings.normalize),
            float(losses.mean()),
            self.journal.now() - start,
            scores.astype(float) - self.scores,
            relief(self.losses, losses),
        )
        tell("trial", fit.to_dict)
        return fit
