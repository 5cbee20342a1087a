"""The directions that a step may take: the gradient of every layer, plain or whitened, at its best rank."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lasertri.edit.step import Step
from lasertri.errors import NotConvergedError
from lasertri.model.targets import Target
from lasertri.ops import Partition, lowrank_blocks, whiten_blocks
from lasertri.ops.converging import converging
from lasertri.search.tokens import Tokens, weight_gradient
from lasertri.support.memory import as_memory_allows

logger = logging.getLogger(__name__)

Layer = TypeVar("Layer")

DIRECTIONS = ("whitened", "plain")
RANKS = {"plain": 16, "whitened": 64}  # of all folds' steps together; the whitened gradient's spectrum is flat
FIRST_SIZE = {"plain": 0.5, "whitened": 2.0}  # predicted decrease, as a share of the loss
SHORTER = 0.5  # the best plain step beside the best whitened one, as a rule
DAMPING = 0.1


def make_step(
    tokens: Mapping[Target, Tokens],
    direction: str,
    *,
    rank: int,
    loss: float,
    samples: int,
    backend: str = "auto",
) -> Step:
    """A step of size 1: at first order it takes all of the loss away.

    Args:
        tokens: of every layer, from the samples that make the step.
        loss: their mean.
        samples: how many they are.
    """
    factors, slopes = steepest(tokens, direction, rank=rank, samples=samples, backend=backend)
    return Step(direction, rank, 1.0, downhill(factors, sum(slopes.values()), loss))


def downhill(factors: Mapping[Layer, tuple[Tensor, ...]], slope: float, loss: float) -> dict[Layer, Any]:
    """The same with the first factor turned and made as long as takes all of the loss away at first order."""
    length = loss / slope if slope > 0 else 0.0  # no gradient is left where all is answered beyond doubt
    return {target: (-length * first, *others) for target, (first, *others) in factors.items()}


def steepest(
    tokens: Mapping[Target, Tokens], direction: str, *, rank: int, samples: int, backend: str = "auto"
) -> tuple[dict[Target, tuple[Tensor, Tensor]], dict[Target, float]]:
    """The factors of a direction uphill, and by how much the mean loss rises along each at first order."""
    factors, slopes = {}, {}
    groups = list(_sharing({target: own for target, own in tokens.items() if len(own)}))
    find = functools.partial(_found, tokens, direction, rank, backend)
    for _, found in as_memory_allows(groups, find, what="the step of one layer"):
        for target, left, right, rise in found:
            factors[target] = left, right
            slopes[target] = rise / samples
    if groups and not factors:
        raise NotConvergedError(
            f"expected a step of {groups[0][0]} or another layer, but no eigensolver and no SVD converges on one; "
            f"take another direction than {direction} (--direction)"
        )
    return factors, slopes


def _found(
    tokens: Mapping[Target, Tokens], direction: str, rank: int, backend: str, members: Sequence[Target]
) -> list[tuple[Target, Tensor, Tensor, float]]:
    """Of layers that share their inputs the two factors, and what their product with the gradient sums up to.

    Without those, of which a warning tells, that no solver converges on.
    """
    make = {"plain": _plain, "whitened": _whitened}[direction]
    inputs = torch.cat(tokens[members[0]].inputs)
    deltas = [torch.cat(tokens[target].deltas) for target in members]

    def factors(name: str, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        own = [delta.to(device) for delta in deltas]
        found = make(inputs.to(device), own, min(rank, len(inputs)), name)  # an expert may have fewer tokens
        return [(left.to(inputs.device), right.to(inputs.device)) for left, right in found]

    try:
        pairs = converging(factors, backend, inputs.device)
    except NotConvergedError as error:
        if len(members) == 1:
            logger.warning("%s is left out of the step: %s", members[0], error)
            return []
        return [found for target in members for found in _found(tokens, direction, rank, backend, [target])]
    return [
        (target, left, right, float(((delta.to(left.dtype) @ left) * (inputs.to(right.dtype) @ right.mT)).sum()))
        for target, delta, (left, right) in zip(members, deltas, pairs, strict=True)
    ]


def _sharing(tokens: Mapping[Target, Tokens]) -> Iterator[list[Target]]:
    """Layers in groups that share their inputs, such as queries, keys and values."""
    groups: list[list[Target]] = []
    for target, own in tokens.items():
        home = next((group for group in groups[-4:] if own.shares_inputs(tokens[group[0]])), None)
        if home is None:
            groups.append([target])
        else:
            home.append(target)
    yield from groups


def _plain(inputs: Tensor, deltas: Sequence[Tensor], rank: int, backend: str) -> Iterator[tuple[Tensor, Tensor]]:
    for delta in deltas:
        gradient = weight_gradient(delta, inputs)
        found = lowrank_blocks(gradient, rank=min(rank, *gradient.shape), backend=backend, precision="float32")
        yield found.left, found.right[0]


def _whitened(inputs: Tensor, deltas: Sequence[Tensor], rank: int, backend: str) -> Iterator[tuple[Tensor, Tensor]]:
    offsets = torch.tensor([0, *(delta.shape[1] for delta in deltas)]).cumsum(0).tolist()
    partition = Partition(tuple(offsets))
    together = torch.cat(list(deltas), dim=1)
    possible = min(rank, max(delta.shape[1] for delta in deltas), inputs.shape[1])
    found = whiten_blocks(
        together, inputs, rank=possible, blocks=partition, damping=DAMPING, backend=backend, precision="float32"
    )
    for j, delta in enumerate(deltas):
        own = min(possible, delta.shape[1])
        yield found.left[offsets[j] : offsets[j + 1], :own], found.right[j, :own]
