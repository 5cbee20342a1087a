"""Trials with the truncated weight in place: where a projection, or a replay, is not possible."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lasertri.edit.candidate import Candidate
from lasertri.edit.edit import replaced
from lasertri.edit.truncation import Truncation
from lasertri.factors.store import FactorStore
from lasertri.measure.protocol import Advance
from lasertri.model.targets import Target
from lasertri.ops import reduce_blocks
from lasertri.search.replay import Replay, Shortcut, record
from lasertri.search.trial import TrialReadings, by_target
from lasertri.support.memory import as_memory_allows


@dataclass(frozen=True)
class InPlace:
    """Tries any candidate: the weight is exchanged and the samples are read.

    Attributes:
        shortcuts: of the targets before which the model can be replayed.
    """

    model: nn.Module
    samples: Any  # of any kind, but for shortcuts replayable ones, whose batches are of tokens
    factors: FactorStore
    shortcuts: Mapping[Target, Shortcut] = field(default_factory=dict)

    def run(
        self, candidates: Sequence[Candidate], part: Sequence[int], advance: Advance = lambda _: None
    ) -> TrialReadings:
        """See `Runner.run`. The baseline runs once, and stands beside every candidate."""
        readings = TrialReadings.empty(self.samples, len(candidates))
        for _, found in as_memory_allows([list(part)], functools.partial(self._run, candidates, advance)):
            readings.update(range(len(candidates)), found)
        return readings

    def _run(self, candidates: Sequence[Candidate], advance: Advance, part: Sequence[int]) -> TrialReadings:
        model, samples, numbers = self.model, self.samples, by_target(candidates)
        readings = TrialReadings.empty(samples, len(candidates))
        shortcuts = {target: self.shortcuts[target] for target in numbers if target in self.shortcuts}
        if len(shortcuts) < len(numbers):
            readings.baseline.update(samples.read(model, part))
        batches = samples.batches(part) if shortcuts else []
        recordings = [record(model, batch, shortcuts.values()) for batch in batches]
        for recording in recordings:
            readings.baseline.record(recording.batch, *recording.read)
        for target, mine in numbers.items():
            for i in mine:
                with replaced(target, model, self._truncated(candidates[i])):
                    if target not in shortcuts:
                        readings.edited[i].update(samples.read(model, part, advance))
                        continue
                    for recording in recordings:
                        replay = Replay(recording, shortcuts[target], 1)
                        readings.edited[i].record(recording.batch, *replay.read(model))
                        advance(len(recording.batch.entry))
        readings.beside.update(readings.baseline)
        return readings

    def _truncated(self, candidate: Candidate) -> Tensor:
        """The target's weight under a candidate, in its dtype and on its device."""
        if candidate.compat:
            return Truncation.build(candidate, self.model, self.factors).weight
        target, dimension = candidate.target, candidate.dimension
        return reduce_blocks(
            target.view(target.parameter(self.model)),
            **({"ratios": candidate.ratio} if dimension is None else {"ranks": dimension}),
            factors=self.factors.of(*candidate.factors_key),
            backend=self.factors.backend,
        )
