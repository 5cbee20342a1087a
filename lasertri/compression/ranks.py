"""One budget over many blocks, spent where a byte saves most error."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Priced:
    """A block of a weight matrix with what its ranks leave and cost.

    Attributes:
        errors: what is lost at every rank from 0 on, `[r + 1]`, descending; the last is that of the block as it is.
        costs: bytes at every rank, ascending.
    """

    errors: Sequence[float]
    costs: Sequence[int]


def cheapest_ranks(blocks: Sequence[Priced], budget: int) -> list[int]:
    """The rank of every block that leaves least error over all, within so many bytes.

    Along the lower hull of its errors over its costs a block saves ever less a byte, so the best step of all is next,
    greedily (Lagrange). What then is left of the budget, less than the next step, goes into single ranks.
    """
    steps = sorted(
        (step for i, block in enumerate(blocks) for step in _steps(i, block)), key=lambda step: step[0], reverse=True
    )
    ranks, left, open_ = [0] * len(blocks), budget, set(range(len(blocks)))
    for _, i, rank, cost in steps:
        if i in open_ and cost <= left:
            left -= cost
            ranks[i] = rank
        else:
            open_.discard(i)
    more = [single for i, block in enumerate(blocks) for single in _single(i, ranks[i], block)]
    heapq.heapify(more)
    while more:
        _, i, cost = heapq.heappop(more)
        if cost <= left:
            left -= cost
            ranks[i] += 1
            for single in _single(i, ranks[i], blocks[i]):
                heapq.heappush(more, single)
    return ranks


def _steps(i: int, block: Priced) -> list[tuple[float, int, int, int]]:
    """Along the hull: what each step saves a byte, the block, the rank it leads to and its cost; the best first."""
    hull: list[int] = []

    def slope(a: int, b: int) -> float:
        return (block.errors[a] - block.errors[b]) / (block.costs[b] - block.costs[a])

    for rank in range(len(block.errors)):
        while len(hull) > 1 and slope(hull[-1], rank) >= slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(rank)
    steps = [(slope(a, b), i, b, block.costs[b] - block.costs[a]) for a, b in itertools.pairwise(hull)]
    return [step for step in steps if step[0] > 0]


def _single(i: int, rank: int, block: Priced) -> list[tuple[float, int, int]]:
    """The next rank of a block, as a heap takes it: minus what it saves a byte, the block and its cost."""
    if rank + 1 == len(block.errors) or block.errors[rank] <= block.errors[rank + 1]:
        return []
    cost = block.costs[rank + 1] - block.costs[rank]
    return [((block.errors[rank + 1] - block.errors[rank]) / cost, i, cost)]
