"""A `Candidate` is a target, how its rows are split, and how much of each block is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lasertri.edit.reading import field_of
from lasertri.model.targets import Target
from lasertri.ops.blocks import Partition, lengths, retained_rank
from lasertri.ops.laser import laser_rank
from lasertri.support.shown import shown


@dataclass(frozen=True)
class Candidate:
    """A target, its number of row blocks K, and the ratio ρ every block retains.

    Attributes:
        clustered: the blocks are K linear subspaces of one dimension, not consecutive rows.
        compat: truncated as LASER's code does it, see `ops.laser`; of one block alone.
    """

    target: Target
    blocks: int
    ratio: float
    clustered: bool = False
    compat: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Candidate:
        """What an edit's description says, once it is known to be possible."""
        target, blocks = Target.from_dict(field_of(config, "target", dict)), field_of(config, "blocks", int)
        clustered, compat = field_of(config, "clustered", bool), field_of(config, "compat", bool)
        ratio = field_of(config, "ratio", int, float)
        rows, _ = target.shape
        if not 1 <= blocks <= (1 if compat else rows) or not 0 <= ratio <= 1 or (clustered and compat):
            raise ValueError(f"{shown(blocks)} blocks of {rows} rows at a ratio of {shown(ratio)}")
        return cls(target, blocks, ratio, clustered, compat)

    @property
    def dimension(self) -> int | None:
        """Rank of every cluster, d = int(min(m // K, n) ρ); None for consecutive rows."""
        rows, columns = self.target.shape
        return retained_rank(min(rows // self.blocks, columns), self.ratio) if self.clustered else None

    @property
    def factors_key(self) -> tuple[Target, int, int | None]:
        """What a `FactorStore` knows its factors by: target, blocks, dimension."""
        return self.target, self.blocks, self.dimension

    @property
    def ranks(self) -> tuple[int, ...]:
        """Retained rank of every block, `int(min(b, n) ρ)`; of a cluster at most its dimension."""
        if self.compat:
            return (laser_rank(min(self.target.shape), self.ratio),)
        if self.dimension is not None:
            return (self.dimension,) * self.blocks
        partition = Partition.consecutive(self.target.shape[0], self.blocks)
        return tuple(retained_rank(length, self.ratio) for length in lengths(partition.offsets, self.target.shape[1]))

    def to_dict(self) -> dict[str, object]:
        """How a candidate is named in reports; `rank` is that of the tallest block."""
        return {
            "kind": "truncate",
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
        return (
            (self.target, self.blocks, self.ranks, self.clustered, self.compat) if any(self.ranks) else (self.target,)
        )
