"""A strategy turns scores into candidates; the loop in `method.py` measures whatever it yields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lasertri.ops.blocks import Partition, lengths, retained_rank
from lasertri.score import Scores
from lasertri.targets import Target


@dataclass(frozen=True)
class Candidate:
    """A target, its number of row blocks K, and the ratio ρ every block retains.

    Attributes:
        clustered: the blocks are K linear subspaces of one dimension, not consecutive rows.
    """

    target: Target
    blocks: int
    ratio: float
    clustered: bool = False

    @property
    def dimension(self) -> int | None:
        """Rank of every cluster, d = int(min(m // K, n) ρ); None for consecutive rows."""
        rows, columns = self.target.shape
        return retained_rank(min(rows // self.blocks, columns), self.ratio) if self.clustered else None

    @property
    def ranks(self) -> tuple[int, ...]:
        """Retained rank of every block, `int(min(b, n) ρ)`; of a cluster at most its dimension."""
        if self.dimension is not None:
            return (self.dimension,) * self.blocks
        partition = Partition.consecutive(self.target.shape[0], self.blocks)
        return tuple(retained_rank(length, self.ratio) for length in lengths(partition.offsets, self.target.shape[1]))

    def to_dict(self) -> dict[str, object]:
        """How a candidate is named in reports; `rank` is that of the tallest block."""
        return {
            "target": str(self.target),
            "layer": self.target.layer,
            "role": self.target.role,
            "blocks": self.blocks,
            "rank": max(self.ranks),
            "rho": self.ratio,
            "clustered": self.clustered,
        }

    @property
    def effect(self) -> tuple[object, ...]:
        """Equal for candidates that are the same edit: small matrices repeat ranks, and zero is zero at any K."""
        return (self.target, self.blocks, self.ranks, self.clustered) if any(self.ranks) else (self.target,)


def target_scores(scores: Scores, ratios: Sequence[float], score: str) -> dict[Target, float]:
    """Every target's score: its best over the grid of K and ρ, highest first."""
    best: dict[Target, float] = {}
    for (target, _), block_scores in scores.items():
        tail = float(block_scores.tail(ratios=ratios, score=score).max())
        best[target] = max(tail, best.get(target, tail))
    return dict(sorted(best.items(), key=lambda item: -item[1]))


def gradient_guided(
    ranking: Sequence[Target], *, count: int, block_counts: Sequence[int], ratios: Sequence[float]
) -> Iterator[Candidate]:
    """The whole grid of the `count` best targets (Algorithm 1 of arXiv 2510.20800)."""
    for target in ranking[:count]:
        for blocks in sorted(block_counts):
            for ratio in sorted(ratios, reverse=True):
                yield Candidate(target, blocks, ratio)


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """One candidate for every different edit: the one with the larger ρ, then the smaller K; ρ = 1 edits nothing."""
    kept: dict[tuple[object, ...], Candidate] = {}
    for candidate in sorted((c for c in candidates if c.ratio < 1), key=lambda c: (-c.ratio, c.blocks)):
        kept.setdefault(candidate.effect, candidate)
    chosen = set(kept.values())
    return [candidate for candidate in candidates if candidate in chosen]
