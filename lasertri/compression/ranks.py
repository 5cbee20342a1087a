"""One budget over many blocks, spent where a byte saves most error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Priced:
    """A block of a weight matrix with what its ranks are worth and cost.

    Attributes:
        errors: what every singular value's removal costs, `[r]`, descending.
        rank: bytes of one more rank, (b + n) numbers.
        whole: bytes of the block as it is, b n numbers, with which no error is left.
    """

    errors: Tensor
    rank: int
    whole: int


def cheapest_ranks(blocks: Sequence[Priced], budget: int) -> list[int | None]:
    """The rank of every block that leaves least error over all, within so many bytes; None for a block left whole.

    More ranks of one block save ever less, so the best of all steps at any price is next, greedily: one more rank, or
    the block whole, once that saves more a byte. Only the last steps that no longer fit can be worse than the best.
    """
    steps = sorted(
        (step for i, block in enumerate(blocks) for step in _steps(i, block)), key=lambda step: step[0], reverse=True
    )
    ranks: list[int | None] = [0] * len(blocks)
    full: set[int] = set()  # blocks whose next step did not fit
    for _, i, rank, cost in steps:
        if i in full:
            continue
        if cost > budget:
            full.add(i)
        else:
            budget -= cost
            ranks[i] = rank
    rest = ((float(e), i, k) for i in full for k, e in enumerate(blocks[i].errors.tolist()) if k >= (ranks[i] or 0))
    for error, i, k in sorted(rest, key=lambda step: step[0] / blocks[step[1]].rank, reverse=True):
        block = blocks[i]
        if error > 0 and ranks[i] == k and block.rank <= budget and (k + 1) * block.rank < block.whole:
            budget -= block.rank
            ranks[i] = k + 1
    return ranks


def _steps(i: int, block: Priced) -> list[tuple[float, int, int | None, int]]:
    """What each step of a block saves a byte, the block, the rank it leads to and its cost, the best first."""
    errors = block.errors.tolist()
    left = [*block.errors.flip(0).cumsum(0).flip(0).tolist(), 0.0]  # error at every rank
    steps: list[tuple[float, int, int | None, int]] = []
    for k, error in enumerate(errors):
        rest = block.whole - k * block.rank
        if error <= 0 or (k + 1) * block.rank >= block.whole or error / block.rank < left[k] / rest:
            break
        steps.append((error / block.rank, i, k + 1, block.rank))
    rank = len(steps)
    if left[rank] > 0:
        rest = block.whole - rank * block.rank
        steps.append((left[rank] / rest, i, None, rest))
    return steps
