"""Trials with the truncated weight in place: where the forward pass cannot be replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lasertri.edit import Edit, replaced
from lasertri.factors import FactorStore
from lasertri.samples import SampleReadings, Samples
from lasertri.strategies import Candidate


def read_samples(
    model: nn.Module,
    chosen: Sequence[int],
    samples: Samples,
    readings: SampleReadings[Samples],
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Read the chosen samples under the model as it is; `advance` is told how many entries were read."""
    for batch in samples.batches(chosen):
        readings.record(batch, *batch.read(model))
        advance(len(batch.entry))


def read_replaced(
    model: nn.Module,
    candidates: Sequence[Candidate],
    numbers: Sequence[int],
    chosen: Sequence[int],
    samples: Samples,
    factors: FactorStore,
    readings: SampleReadings[Samples],
    advance: Callable[[int], object],
) -> None:
    """Read the chosen samples under `candidates[i]` into `readings[i]` for every number i."""
    for i in numbers:
        candidate = candidates[i]
        edit = Edit.build(candidate, model, factors)
        with replaced(candidate.target, model, edit.weight):
            read_samples(model, chosen, samples, readings[i], advance)
