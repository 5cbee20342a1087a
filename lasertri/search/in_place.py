"""Trials with the truncated weight in place: where a projection, or a replay, is not possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lasertri.edit.candidate import Candidate
from lasertri.edit.edit import Edit, replaced
from lasertri.factors.store import FactorStore
from lasertri.measure.protocol import SampleReadings
from lasertri.model.targets import Target
from lasertri.ops import reduce_blocks
from lasertri.search.replay import Plan, Replay, recorded


def read_replaced(
    model: nn.Module,
    candidates: Sequence[Candidate],
    numbers: Sequence[int],
    chosen: Sequence[int],
    samples: Any,
    factors: FactorStore,
    plans: Mapping[Target, Plan],
    readings: SampleReadings[Any],
    beside: SampleReadings[Any],
    advance: Callable[[int], object],
) -> SampleReadings[Any]:
    """Read the chosen samples' answers under `candidates[i]` into `readings[i]` for every number i.

    Args:
        plans: of the targets before which the model can be replayed.
        beside: `beside[i]` takes the baseline's, from the same batches.

    Returns:
        The baseline's own readings.
    """
    baseline: SampleReadings[Any] = samples.readings()
    by_target: dict[Target, list[int]] = {}
    for i in numbers:
        by_target.setdefault(candidates[i].target, []).append(i)
    if by_target.keys() - plans.keys():
        baseline.read(model, samples, chosen)
    recordings = []
    if by_target.keys() & plans.keys():
        for batch in samples.batches(chosen):
            with recorded(model, batch, [plans[target] for target in by_target if target in plans]) as recording:
                baseline.record(batch, *batch.read(model))
            recordings.append((batch, recording))
    for target, mine in by_target.items():
        for i in mine:
            with replaced(target, model, _truncated(candidates[i], model, factors)):
                if target not in plans:
                    readings[i].read(model, samples, chosen, advance)
                    continue
                for batch, recording in recordings:
                    readings[i].record(batch, *Replay(batch, recording, plans[target], 1).read(model))
                    advance(len(batch.entry))
    for i in numbers:
        beside[i].update(baseline)
    return baseline


def _truncated(candidate: Candidate, model: nn.Module, factors: FactorStore) -> Tensor:
    """The target's weight under a candidate, in its dtype and on its device."""
    if candidate.compat:
        return Edit.build(candidate, model, factors).weight
    target, dimension = candidate.target, candidate.dimension
    return reduce_blocks(
        target.view(target.parameter(model)),
        **({"ratios": candidate.ratio} if dimension is None else {"ranks": dimension}),
        factors=factors.of(*candidate.factors),
        backend=factors.backend,
    )
