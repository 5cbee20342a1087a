"""A `Trial`: a candidate with what was measured. And what makes one: a runner, and the readings it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lasertri.edit.candidate import Candidate
from lasertri.measure.measurement import Measurement
from lasertri.measure.protocol import Advance, SampleReadings, Samples
from lasertri.model.targets import Target
from lasertri.support.sharing import Share


@dataclass(frozen=True)
class Trial:
    """A candidate and its measurement on the calibration samples, or on those it saw before it was dropped.

    Attributes:
        seconds: its share of the batches it ran in.
        gain: `[n]`, of all calibration samples: score minus that of the baseline beside it, which is 1 for an answer
            won and -1 for one lost; 0 where not measured.
    """

    candidate: Candidate
    measurement: Measurement
    seconds: float
    gain: np.ndarray = field(repr=False, compare=False)

    @property
    def finished(self) -> bool:
        """Whether it was measured on every sample."""
        return self.measurement.n == len(self.gain)

    def to_dict(self) -> dict[str, object]:
        return self.candidate.to_dict() | self.measurement.to_dict() | {"seconds": self.seconds}


@dataclass(frozen=True)
class TrialReadings:
    """What the model gave under every candidate, and without.

    Attributes:
        edited: `[candidates, …]`.
        beside: `[candidates, …]`, the unedited model in the same batches as each candidate, so under the same rounding.
        baseline: `[…]`, the unedited model in an ordinary forward pass.
    """

    edited: SampleReadings
    beside: SampleReadings
    baseline: SampleReadings

    @classmethod
    def empty(cls, samples: Samples, candidates: int) -> TrialReadings:
        """Nothing read yet."""
        return cls(samples.readings(candidates), samples.readings(candidates), samples.readings())

    def update(self, numbers: Sequence[int], other: TrialReadings) -> None:
        """Take over what the other has read: its candidates are those of these numbers here."""
        self.baseline.update(other.baseline)
        for theirs, mine in enumerate(numbers):
            self.edited[mine].update(other.edited[theirs])
            self.beside[mine].update(other.beside[theirs])


class Runner(Protocol):
    """A way to try candidates; it knows the model, the samples and the factors."""

    def run(
        self, candidates: Sequence[Candidate], part: Sequence[int], advance: Advance, share: Share
    ) -> TrialReadings:
        """Read these samples under these candidates; `advance` is told how much was read, as of `Samples.work`.

        Args:
            share: of this work what is done. All that is read is read in the batches that one process would make.
        """


def by_target(candidates: Sequence[Candidate]) -> dict[Target, list[int]]:
    """Numbers of the candidates of every target."""
    numbers: dict[Target, list[int]] = {}
    for number, candidate in enumerate(candidates):
        numbers.setdefault(candidate.target, []).append(number)
    return numbers
