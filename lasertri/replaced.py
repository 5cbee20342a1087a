"""Trials with the truncated weight in place: of experts, and of models whose forward pass cannot be replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from lasertri.edit import Edit, replaced
from lasertri.encode import EncodedSamples
from lasertri.evaluate import Readings
from lasertri.factors import FactorStore
from lasertri.ops import reduce_blocks
from lasertri.replay import Plan, Replay, recorded
from lasertri.strategies import Candidate
from lasertri.targets import Target


def read_replaced(
    model: nn.Module,
    candidates: Sequence[Candidate],
    numbers: Sequence[int],
    chosen: Sequence[int],
    samples: EncodedSamples,
    factors: FactorStore,
    plans: Mapping[Target, Plan],
    readings: Readings,
    beside: Readings,
    advance: Callable[[int], object],
) -> None:
    """Read the chosen samples' answers under `candidates[i]` into `readings[i]` for every number i.

    Args:
        plans: of the targets before which the model can be replayed.
        beside: `beside[i]` takes the baseline's, from the same batches.
    """
    by_target: dict[Target, list[int]] = {}
    for i in numbers:
        by_target.setdefault(candidates[i].target, []).append(i)
    for target, mine in by_target.items():
        plan = plans.get(target)
        for batch in samples.batches(chosen):
            with recorded(model, batch, [plan] if plan else []) as recording:
                baseline = batch.read(model)
            for i in mine:
                with replaced(target, model, _truncated(candidates[i], model, factors)):
                    found = Replay(batch, recording, plan, 1).read(model) if plan else batch.read(model)
                readings[i].record(batch, *found)
                beside[i].record(batch, *baseline)
                advance(len(batch.entry))


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
