"""Every targeted matrix as factors of the lowest rank that keeps what was asked for, where factors are smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from lasertri.edit.edit import truncated_factors
from lasertri.errors import LasertriError
from lasertri.factored.exchange import exchange, factored, linear_at, pays
from lasertri.factored.layer import FactoredLinear
from lasertri.factors.cache import FactorCache
from lasertri.factors.store import FactorStore
from lasertri.model.targets import Target, find_targets
from lasertri.ops import BlockFactors
from lasertri.ops.blocks import retained_rank
from lasertri.ops.finite import all_finite


@dataclass(frozen=True)
class Retention:
    """How much every block keeps: a share of its squared singular values, or of their number.

    Raises:
        LasertriError: not exactly one was given, or it is no share.
    """

    energy: float | None = None
    rank: float | None = None

    def __post_init__(self) -> None:
        if (self.energy is None) == (self.rank is None):
            raise LasertriError(
                "expected either an energy or a rank, got " + ("neither" if self.rank is None else "both")
            )
        if self.energy is not None and not 0 < self.energy <= 1:
            raise LasertriError(f"expected an energy above 0 and up to 1, got {self.energy}")
        if self.rank is not None and not 0 <= self.rank <= 1:
            raise LasertriError(f"expected a rank as a share from 0 to 1 of min(b, n), got {self.rank}")

    def ranks(self, factors: BlockFactors) -> list[int]:
        """Retained rank of every block."""
        if self.rank is not None:
            return [retained_rank(length, self.rank) for length in factors.lengths]
        energies = factors.sigma.square().cumsum(-1)  # of the k largest, for k = 1, 2, …
        return [
            min(int((kept < self.energy * kept[-1]).sum()) + 1, length) if kept[-1] > 0 else 0
            for kept, length in zip(energies, factors.lengths, strict=True)
        ]


@dataclass(frozen=True)
class CompressedMatrix:
    """What became of one weight matrix.

    Attributes:
        ranks: retained rank of every block; None for a block that is left as it was.
        parameters: numbers of the weight before and after.
        squares: Σ a² of the weight, and of what was lost.
    """

    target: Target
    ranks: Sequence[int | None]
    parameters: tuple[int, int]
    squares: tuple[float, float]

    @property
    def factored(self) -> bool:
        return any(rank is not None for rank in self.ranks)

    @property
    def error(self) -> float:
        """Frobenius norm of the difference over that of the weight."""
        return _error([self])

    def to_dict(self) -> dict[str, Any]:
        """Its figures, ready for JSON."""
        return {
            "target": str(self.target),
            "shape": list(self.target.shape),
            "ranks": list(self.ranks),
            "parameters": dict(zip(("before", "after"), self.parameters, strict=True)),
            "relative_error": self.error,
        }


@dataclass(frozen=True)
class Compression:
    """What `compress` did to a model.

    Attributes:
        matrices: every target, factored or left as it was.
        parameters, bytes: of the whole model, before and after.
    """

    matrices: Sequence[CompressedMatrix]
    parameters: tuple[int, int]
    bytes: tuple[int, int]

    @property
    def count(self) -> int:
        """How many matrices are factored."""
        return sum(matrix.factored for matrix in self.matrices)

    @property
    def error(self) -> float:
        """Relative error of all targets taken as one."""
        return _error(self.matrices)

    def to_dict(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        return {
            "targets": len(self.matrices),
            "factored": self.count,
            "parameters": dict(zip(("before", "after"), self.parameters, strict=True)),
            "bytes": dict(zip(("before", "after"), self.bytes, strict=True)),
            "relative_error": self.error,
            "matrices": [matrix.to_dict() for matrix in self.matrices],
        }

    def __str__(self) -> str:
        width = max(len(str(matrix.target)) for matrix in self.matrices)
        lines = [f"{'matrix':{width}} {'shape':>13} {'rank':>11} {'parameters':>23} {'error':>7}"]
        for matrix in self.matrices:
            shape, (before, after) = "×".join(map(str, matrix.target.shape)), matrix.parameters
            sizes = f"{before:11,} {after:11,}" if matrix.factored else f"{before:11,} {'':11}"
            error = f"{matrix.error:7.4f}" if matrix.factored else ""
            lines.append(f"{matrix.target!s:{width}} {shape:>13} {_described(matrix.ranks):>11} {sizes} {error}")
        parameters, sizes = ("{:,} -> {:,}".format(*pair) for pair in (self.parameters, self.bytes))
        return "\n".join(
            [
                *lines,
                f"{self.count} of {len(self.matrices)} matrices factored; the others are as they were",
                f"model: {parameters} parameters, {sizes} bytes",
                f"relative error {self.error:.4f} over all targets; what that does to answers only measuring tells "
                "(lasertri eval)",
            ]
        )


def compress(
    model: PreTrainedModel,
    *,
    energy: float | None = None,
    rank: float | None = None,
    targets: str | None = None,
    blocks: int = 1,
    memory_budget: int = 4 << 30,
    files: Sequence[Path] = (),
    progress: bool = True,
) -> Compression:
    """Replace weight matrices of a model, in place, by factors of lower rank. `lasertri.save` writes it.

    It looks at no data: whether the model still answers well must be measured. Blocks whose factors would not be
    smaller are left as they are, not truncated, as are experts and the parts of matrices stored as one. The exchange is
    made when all is computed: until then the model, and after a failure, is as it was.

    Args:
        energy: every block keeps the lowest rank with this share of its squared singular values, before rounding to
            the weight's dtype.
        rank: or rank `int(min(b, n) * rank)` of every block.
        targets: regular expression for module paths; by default the MLP matrices of every layer.
        blocks: number K of row blocks.
        memory_budget: bytes for the FP64 workspace of one matrix.
        files: the checkpoint files that the model was loaded from and still equals, if that is known: their checksums
            are remembered beside the factors.

    Raises:
        LasertriError: an option cannot be used, a weight is not finite, or the budget is too small.
    """
    retention, chosen = Retention(energy, rank), find_targets(model, targets)
    for target in chosen:
        if not all_finite(target.parameter(model)):
            raise LasertriError(f"expected finite weights, got NaN or Inf in {target}; check the checkpoint")
    whole = [target for target in chosen if target.is_layer(model)]
    factors = FactorStore(model, whole, [blocks], budget=memory_budget, cache=FactorCache.default(), files=files)
    layers: dict[str, FactoredLinear] = {}
    matrices: list[CompressedMatrix] = []
    for target in tqdm(chosen, "compress", disable=not progress):
        if target not in whole:
            matrices.append(_left(target, model, blocks))
            continue
        layer, matrix = _compressed(model, target, factors.of(target, blocks), retention)
        factors.retain([])  # no other target needs them
        matrices.append(matrix)
        if layer is not None:
            layers[target.module] = layer
    before = _size(model)
    exchange(model, layers)
    return Compression(matrices, *zip(before, _size(model), strict=True))


def _compressed(
    model: PreTrainedModel, target: Target, factors: BlockFactors, retention: Retention
) -> tuple[FactoredLinear | None, CompressedMatrix]:
    """A target's new layer, if factors pay for any of its blocks."""
    weight, ranks = target.view(target.parameter(model)), retention.ranks(factors)
    layer = None
    if any(pays(rank, height, factors.columns) for rank, height in zip(ranks, factors.partition.heights, strict=True)):
        layer = factored(linear_at(model, target.module), truncated_factors(weight, factors, ranks), weight)
    if layer is None:
        return None, _left(target, model, len(ranks))
    squares = float(weight.double().square().sum())
    lost = float((weight.double() - layer.product(torch.float64)).square().sum())
    after = layer.weight.numel() + sum(left.numel() for left in layer.left)
    return layer, CompressedMatrix(target, layer.layout.ranks, (weight.numel(), after), (squares, lost))


def _left(target: Target, model: PreTrainedModel, blocks: int) -> CompressedMatrix:
    """A target that stays as it was."""
    weight = target.view(target.parameter(model))
    return CompressedMatrix(
        target, (None,) * blocks, (weight.numel(),) * 2, (float(weight.double().square().sum()), 0.0)
    )


def _error(matrices: Sequence[CompressedMatrix]) -> float:
    whole, lost = (sum(parts) for parts in zip(*(matrix.squares for matrix in matrices), strict=True))
    return (lost / whole) ** 0.5 if whole else 0.0


def _size(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters and their bytes."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)


def _described(ranks: Sequence[int | None]) -> str:
    kept = [rank for rank in ranks if rank is not None]
    if not kept:
        return "as it was"
    low, high = min(kept), max(kept)
    return (str(low) if low == high else f"{low}–{high}") + ("" if len(kept) == len(ranks) else " or whole")
