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
from lasertri.support.memory import as_memory_allows, halves

logger = logging.getLogger(__name__)

Layer = TypeVar("Layer")
Group = Sequence[Target]  # of layers that share their inputs

DIRECTIONS = ("whitened", "plain")
RANKS = {"plain": 16, "whitened": 64}  # of all folds' steps together; the whitened gradient's spectrum is flat
FIRST_SIZE = {"plain": 0.5, "whitened": 2.0}  # predicted decrease, as a share of the loss
SHORTER = 0.5  # the best plain step beside the best whitened one, as a rule
DAMPING = 0.1
STACKED = {"cuda": 4}  # groups that are made together, 1 elsewhere: a GPU is slow at one small problem after the other


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
    factors, slopes = dict[Target, tuple[Tensor, Tensor]](), dict[Target, float]()
    groups = list(_sharing({target: own for target, own in tokens.items() if len(own)}))
    find = functools.partial(_found, tokens, direction, rank, backend)
    for _, found in as_memory_allows(_alike(groups, tokens), find, _smaller, what="the step of one layer"):
        for target, left, right, rise in found:
            factors[target] = left, right
            slopes[target] = rise / samples
    if groups and not factors:
        raise NotConvergedError(
            f"expected a step of {groups[0][0]} or another layer, but no eigensolver and no SVD converges on one; "
            f"take another direction than {direction} (--direction)"
        )
    made = [target for target in tokens if target in factors]
    return {target: factors[target] for target in made}, {target: slopes[target] for target in made}


def _found(
    tokens: Mapping[Target, Tokens], direction: str, rank: int, backend: str, stack: Sequence[Group]
) -> list[tuple[Target, Tensor, Tensor, float]]:
    """Of groups of one shape the two factors of every layer, and what their product with the gradient sums up to.

    Without those, of which a warning tells, that no solver converges on.
    """
    make = {"plain": _plain, "whitened": _whitened}[direction]
    inputs = _stacked([tokens[group[0]].inputs for group in stack])
    layers = list(zip(*stack, strict=True))  # of every group the first, of every group the second, …
    deltas = [_stacked([tokens[target].deltas for target in own]) for own in layers]

    def factors(name: str, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        own = [delta.to(device) for delta in deltas]
        found = make(inputs.to(device), own, min(rank, inputs.shape[-2]), name)  # an expert may have fewer tokens
        return [(left.to(inputs.device), right.to(inputs.device)) for left, right in found]

    try:  # a stack is not worth a slower solver: one of it may need that
        alone = len(stack) == 1
        pairs = converging(factors, backend, inputs.device) if alone else factors(backend, inputs.device)
    except NotConvergedError as error:
        smaller = _smaller(stack)
        if not smaller:
            logger.warning("%s is left out of the step: %s", stack[0][0], error)
        return [found for part in smaller for found in _found(tokens, direction, rank, backend, part)]
    rises = [
        ((delta.to(left.dtype) @ left) * (inputs.to(right.dtype) @ right.mT)).sum((-2, -1)).tolist()
        for delta, (left, right) in zip(deltas, pairs, strict=True)
    ]
    return [
        found
        for own, (left, right), rise in zip(layers, pairs, rises, strict=True)
        for found in zip(own, left, right, rise, strict=True)
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


def _alike(groups: Sequence[Group], tokens: Mapping[Target, Tokens]) -> Iterator[Sequence[Group]]:
    """Groups in stacks of equal shapes."""
    stacks: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        sides = [tokens[group[0]].inputs[0], *(tokens[target].deltas[0] for target in group)]
        kind = sides[0].device, len(tokens[group[0]]), *((side.shape[1], side.dtype) for side in sides)
        stacks.setdefault(kind, []).append(group)
    for (device, *_), stack in stacks.items():
        most = STACKED.get(device.type, 1)
        yield from (stack[start : start + most] for start in range(0, len(stack), most))


def _stacked(pieces: Sequence[Sequence[Tensor]]) -> Tensor:
    """What several layers have in pieces `[t, size]`, as `[layers, T, size]`."""
    return torch.cat([piece for own in pieces for piece in own]).unflatten(0, (len(pieces), -1))


def _smaller(stack: Sequence[Group]) -> list[Sequence[Group]]:
    """Two stacks of half the groups, or of half of one group; none of one layer."""
    return list(halves(stack)) if len(stack) > 1 else [[half] for half in halves(stack[0])]


def _plain(inputs: Tensor, deltas: Sequence[Tensor], rank: int, backend: str) -> Iterator[tuple[Tensor, Tensor]]:
    for delta in deltas:
        gradient = weight_gradient(delta, inputs)
        own = min(rank, *gradient.shape[-2:])
        found = lowrank_blocks(gradient, rank=own, backend=backend, precision="float32")
        yield found.left, found.right.squeeze(-3)


def _whitened(inputs: Tensor, deltas: Sequence[Tensor], rank: int, backend: str) -> Iterator[tuple[Tensor, Tensor]]:
    offsets = torch.tensor([0, *(delta.shape[-1] for delta in deltas)]).cumsum(0).tolist()
    partition = Partition(tuple(offsets))
    together = torch.cat(list(deltas), dim=-1)
    possible = min(rank, max(delta.shape[-1] for delta in deltas), inputs.shape[-1])
    found = whiten_blocks(
        together, inputs, rank=possible, blocks=partition, damping=DAMPING, backend=backend, precision="float32"
    )
    for j, delta in enumerate(deltas):
        own = min(possible, delta.shape[-1])
        yield found.left[..., offsets[j] : offsets[j + 1], :own], found.right[..., j, :own, :]
