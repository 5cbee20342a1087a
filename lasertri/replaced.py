"""Trials with the truncated weight in place: where the model cannot be replayed, or writes token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lasertri.edit import Edit, replaced
from lasertri.encode import EncodedSamples
from lasertri.evaluate import Readings
from lasertri.factors import FactorStore
from lasertri.strategies import Candidate


def read_replaced(
    model: nn.Module,
    candidates: Sequence[Candidate],
    numbers: Sequence[int],
    chosen: Sequence[int],
    samples: EncodedSamples,
    factors: FactorStore,
    readings: Readings,
    advance: Callable[[int], object],
) -> None:
    """Read the chosen samples' answers under `candidates[i]` into `readings[i]` for every number i."""
    for i in numbers:
        candidate = candidates[i]
        edit = Edit.build(candidate, model, factors)
        with replaced(candidate.target, model, edit.weight):
            readings[i].read(model, samples, chosen, advance)
