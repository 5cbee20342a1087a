"""Words of the block-wise mathematics: `Partition` of the rows, retained ranks, `BlockFactors`, `BlockScores`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lasertri.errors import LasertriError, shown
from lasertri.ops.arguments import check_dense, check_name, is_number, is_whole, several

Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class Partition:
    """How the rows of a matrix are split into K blocks.

    Args:
        offsets: K + 1 increasing row positions, from 0 to the number of rows; block j is rows
            `offsets[j]:offsets[j + 1]`, counted after `order`.
        order: int64 permutation of the rows, shape [rows], or None for rows as they stand.

    Raises:
        LasertriError: a block would be empty, or `order` is not a permutation of the rows.
    """

    offsets: tuple[int, ...]
    order: Tensor | None = None

    def __post_init__(self) -> None:
        offsets = several(self.offsets) or []
        whole = len(offsets) > 1 and all(map(is_whole, offsets)) and offsets[-1] < 2**63
        if not whole or offsets[0] != 0 or min(heights(offsets)) < 1:
            raise LasertriError(
                f"expected offsets that start at 0 and increase, got {shown(self.offsets)}; every block needs a row"
            )
        object.__setattr__(self, "offsets", tuple(map(int, offsets)))
        if self.order is None:
            return
        check_dense("`order`", self.order, (torch.int64,))
        if self.order.shape != (self.rows,) or not torch.equal(self.order.sort().values.cpu(), torch.arange(self.rows)):
            raise LasertriError(f"expected `order` to be a permutation of {self.rows} rows, got {shown(self.order)}")

    @classmethod
    def consecutive(cls, rows: int, blocks: int) -> Partition:
        """K consecutive blocks; where K does not divide the rows, the first blocks get one row more."""
        if not is_whole(blocks) or not 1 <= blocks <= rows:
            raise LasertriError(
                f"expected between 1 and {rows} blocks for a matrix of {rows} rows, got {shown(blocks)}"
            )
        height, longer = divmod(rows, blocks)
        return cls(tuple(j * height + min(j, longer) for j in range(blocks + 1)))

    @property
    def blocks(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> int:
        return self.offsets[-1]

    @property
    def heights(self) -> tuple[int, ...]:
        return heights(self.offsets)


class BlockError(LasertriError):
    """A backend could not factor one block of a batch.

    Its index there, what begins the sentence and what ends it, and of which kind the error is that says it.
    """

    def __init__(self, index: int, cause: str, advice: str = "", kind: type[LasertriError] = LasertriError) -> None:
        super().__init__(f"{cause} in block {index}{advice}")
        self.index, self.cause, self.advice, self.kind = index, cause, advice, kind


def heights(offsets: Sequence[int]) -> tuple[int, ...]:
    """Rows of every block."""
    return tuple(stop - start for start, stop in itertools.pairwise(offsets))


def lengths(offsets: Sequence[int], columns: int) -> tuple[int, ...]:
    """Number of singular values min(b, n) of every block."""
    return tuple(min(height, columns) for height in heights(offsets))


def side_of(offsets: Sequence[int], columns: int, whitened: bool = False) -> Side:
    """The side whose singular vectors are kept: the shorter one of the tallest block, or the outputs' if whitened."""
    return "left" if whitened or max(heights(offsets)) <= columns else "right"


def retained_rank(length: int, ratio: float) -> int:
    """LASER's `r = int(min(m, n) * ρ)` (arXiv 2312.13558, section 3); ρ = 0 keeps nothing."""
    return int(length * ratio)


def equal_blocks(offsets: Sequence[int], *keys: Sequence[object]) -> Iterator[list[int]]:
    """Indices of blocks of one height (and of equal `keys`), which can be computed as one batch."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for j, key in enumerate(zip(heights(offsets), *keys, strict=True)):
        groups.setdefault(key, []).append(j)
    yield from groups.values()


def neighbours(members: Sequence[int]) -> slice | Sequence[int]:
    """The blocks as a slice where each follows the one before, so that indexing makes a view."""
    first, last = members[0], members[-1]
    return slice(first, last + 1) if last - first == len(members) - 1 else members


def gather(matrix: Tensor, offsets: Sequence[int], members: Sequence[int]) -> Tensor:
    """Stack equal blocks of `[…, m, n]` as `[…, len(members), b, n]`; a view where they are neighbours."""
    if isinstance(neighbours(members), slice):
        return matrix[..., offsets[members[0]] : offsets[members[-1] + 1], :].unflatten(-2, (len(members), -1))
    return torch.stack([matrix[..., offsets[j] : offsets[j + 1], :] for j in members], dim=-3)


class BlockFactors(NamedTuple):
    """The short-side half of the SVD of every block, enough to score it and to truncate it at any rank.

    Attributes:
        basis: Q `[…, K, s, r]`, orthonormal columns: left singular vectors U where `side` is "left"
            (s = the tallest block's rows), right singular vectors V where it is "right" (s = columns).
        sigma: singular values `[…, K, r]`, descending. Shorter blocks are padded with zeros.
        partition: the rows each block consists of.
        columns: n of the factored matrix.
        whitened: whether they are of A (C + λ)^½, C the second moment of its inputs; then the side is always "left".
    """

    basis: Tensor
    sigma: Tensor
    partition: Partition
    columns: int
    whitened: bool = False

    @property
    def side(self) -> Side:
        return side_of(self.partition.offsets, self.columns, self.whitened)

    @property
    def lengths(self) -> tuple[int, ...]:
        """True number of singular values of every block, before padding."""
        return lengths(self.partition.offsets, self.columns)


class LowRank(NamedTuple):
    """A low-rank approximation of every block: block j is about `left[rows of block j] @ right[j]`.

    Both sides have √σ, so that both keep their digits in a narrower dtype.

    Attributes:
        left: U √σ `[…, m, r]`, in the rows' own places.
        right: √σ Vᵀ `[…, K, r, n]`.
        sigma: singular values `[…, K, r]`, FP64, descending. Blocks of lower rank are padded with zeros.
    """

    left: Tensor
    right: Tensor
    sigma: Tensor


class _SigmaAndGrad(NamedTuple):
    sigma: Tensor
    grad: Tensor


class BlockScores(_SigmaAndGrad):
    """The named tuple `(sigma, grad)`: singular values and ∂L/∂σ of every block, each `[…, K, r]`.

    σ is descending; shorter blocks are padded with zeros, their true number of values is in `lengths`.
    """

    lengths: tuple[int, ...]

    def __new__(cls, sigma: Tensor, grad: Tensor, lengths: Sequence[int] | None = None) -> BlockScores:
        scores = super().__new__(cls, sigma, grad)
        scores.lengths = tuple(lengths) if lengths is not None else (sigma.shape[-1],) * sigma.shape[-2]
        return scores

    def _replace(self, **changes: Tensor) -> BlockScores:
        """The named tuple's `_replace`, which would lose `lengths`."""
        return BlockScores(**{**self._asdict(), **changes}, lengths=self.lengths)

    def tail(
        self,
        ranks: int | Sequence[int] | None = None,
        *,
        ratios: float | Sequence[float] | None = None,
        score: str = "taylor",
    ) -> Tensor:
        """Score of removing everything beyond a retained rank, summed over blocks; higher is more promising.

        Args:
            ranks: retained rank of every block, one or several.
            ratios: retained ratio ρ instead; each block keeps `int(min(b, n) * ρ)`.
            score: "taylor" Σ_{i>k} σᵢ ∂L/∂σᵢ, the decrease of the loss predicted at first order; or "paper"
                Σ_{i>k} max(0, ∂L/∂σᵢ), the clamped sum of arXiv 2510.20800 with the sign that fits a loss.

        Returns:
            `[…]` for a scalar, `[R, …]` for a sequence.
        """
        check_name("a score", score, sorted(TAIL_SCORES))
        terms = TAIL_SCORES[score](self.sigma, self.grad)
        per_block, scalar = block_ranks(self.lengths, ranks, ratios)
        index = torch.arange(terms.shape[-1], device=terms.device)
        kept = torch.tensor(per_block, device=terms.device).unsqueeze(-1)  # [R, K, 1]
        tails = torch.stack([(terms * (index >= k)).sum(dim=(-2, -1)) for k in kept])
        return tails[0] if scalar else tails


TAIL_SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "taylor": lambda sigma, grad: sigma * grad,
    "paper": lambda sigma, grad: grad.clamp(min=0),
}


def block_ranks(
    lengths: Sequence[int], ranks: int | Sequence[int] | None, ratios: float | Sequence[float] | None
) -> tuple[list[list[int]], bool]:
    """Retained rank of every block for every request, `[R][K]`, and whether one was asked for as a scalar.

    A block with fewer singular values than the rank asked for is kept whole.
    """
    if (ranks is None) == (ratios is None):
        raise LasertriError("expected either `ranks` or `ratios`, got " + ("both" if ranks is not None else "neither"))
    given: Any = ranks if ranks is not None else ratios
    listed = several(given)
    asked: list[Any] = [given] if listed is None else listed
    if not asked:
        raise LasertriError("expected at least one rank or ratio, got an empty sequence")
    for value in asked:
        if ranks is not None and not (is_whole(value) and 0 <= value <= max(lengths)):
            raise LasertriError(f"expected retained ranks from 0 to {max(lengths)}, got {shown(value)}")
        if ratios is not None and not (is_number(value) and 0 <= value <= 1):
            raise LasertriError(f"expected retained ratios from 0 to 1, got {shown(value)}")
    if ranks is not None:
        per_block = [[min(int(rank), length) for length in lengths] for rank in asked]
    else:
        per_block = [[retained_rank(length, float(ratio)) for length in lengths] for ratio in asked]
    return per_block, listed is None
