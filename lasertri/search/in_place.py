"""Trials with the truncated weight in place: where a projection, or a replay, is not possible."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lasertri.edit.candidate import Candidate
from lasertri.edit.edit import replaced
from lasertri.edit.truncation import Truncation
from lasertri.factors.store import FactorStore
from lasertri.measure.protocol import Advance
from lasertri.model.parallel import part_like
from lasertri.model.targets import Target
from lasertri.ops import reduce_blocks
from lasertri.search.replay import RecordedBatch, Shortcut
from lasertri.search.trial import TrialReadings, by_target
from lasertri.support.journal import NOTHING, Journal
from lasertri.support.memory import as_memory_allows
from lasertri.support.sharing import ALL, Share


@dataclass(frozen=True)
class InPlace:
    """Tries any candidate: the weight is exchanged and the samples are read.

    Attributes:
        shortcuts: of the targets before which the model can be replayed.
        journal: of these trials.
    """

    model: nn.Module
    samples: Any  # of any kind, but for shortcuts replayable ones, whose batches are of tokens
    factors: FactorStore
    shortcuts: Mapping[Target, Shortcut] = field(default_factory=dict)
    journal: Journal = NOTHING

    def run(
        self,
        candidates: Sequence[Candidate],
        part: Sequence[int],
        advance: Advance = lambda _: None,
        share: Share = ALL,
    ) -> TrialReadings:
        """See `Runner.run`. The baseline runs once, and stands beside every candidate."""
        readings, mine = TrialReadings.empty(self.samples, len(candidates)), share(range(len(candidates)))
        run = functools.partial(self._run, [candidates[i] for i in mine], advance)
        for _, found in as_memory_allows([list(part)] if mine else [], run):
            readings.update(mine, found)
        return readings

    def _run(self, candidates: Sequence[Candidate], advance: Advance, part: Sequence[int]) -> TrialReadings:
        model, samples, numbers = self.model, self.samples, by_target(candidates)
        readings, baseline = TrialReadings.empty(samples, len(candidates)), self.journal.under("baseline")
        shortcuts = {target: self.shortcuts[target] for target in numbers if target in self.shortcuts}
        if len(shortcuts) < len(numbers):
            readings.baseline.update(samples.read(model, part, journal=baseline))
        batches = samples.batches(part) if shortcuts else []
        recorded = [RecordedBatch(model, batch, shortcuts.values()) for batch in batches]
        for each in recorded:
            readings.baseline.record(each.batch, *baseline.of(each.entries, each.read))
        for target, mine in numbers.items():
            for i in mine:
                edited = self._edited(candidates[i], recorded if target in shortcuts else [])
                with self.journal.under(candidates[i]).within(edited) as here:
                    if target not in shortcuts:
                        readings.edited[i].update(samples.read(model, part, advance, here))
                        continue
                    for each in recorded:
                        read = functools.partial(self._replayed, each, shortcuts[target])
                        readings.edited[i].record(each.batch, *here.of(each.entries, read))
                        advance(len(each.entries))
        readings.beside.update(readings.baseline)
        return readings

    @contextmanager
    def _edited(self, candidate: Candidate, recorded: Sequence[RecordedBatch]) -> Iterator[None]:
        """The truncated weight in place within; these batches are recorded with the one that is there before."""
        for each in recorded:
            each.read()
        with replaced(candidate.target, self.model, self._truncated(candidate)):
            yield

    def _replayed(self, recorded: RecordedBatch, shortcut: Shortcut) -> tuple[Tensor, Tensor]:
        return recorded.replay(shortcut, 1).read(self.model)

    def _truncated(self, candidate: Candidate) -> Tensor:
        """The target's weight under a candidate, in its dtype and on its device, or this process's part of it."""
        target, dimension = candidate.target, candidate.dimension
        if candidate.compat:
            weight = Truncation.build(candidate, self.model, self.factors).weight
        else:
            weight = reduce_blocks(
                target.whole(self.model),
                **({"ratios": candidate.ratio} if dimension is None else {"ranks": dimension}),
                factors=self.factors.of(*candidate.factors_key),
                backend=self.factors.backend,
            )
        return part_like(target.parameter(self.model), weight)
