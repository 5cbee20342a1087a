"""What `compress` did to a model, matrix by matrix, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lasertri.measure.side_effects import SideEffects
from lasertri.model.targets import Target
from lasertri.support.journal import NOTHING, Journal


@dataclass(frozen=True)
class CompressedMatrix:
    """What became of one weight matrix.

    Attributes:
        ranks: retained rank of every block; None for a block that is left as it was.
        parameters: numbers of the weight before and after.
        squares: Σ a² of the weight, and of what was lost.
        outputs: of whitened factors the same of the outputs on the text.
    """

    target: Target
    ranks: Sequence[int | None]
    parameters: tuple[int, int]
    squares: tuple[float, float]
    outputs: tuple[float, float] | None = None

    @property
    def factored(self) -> bool:
        return any(rank is not None for rank in self.ranks)

    @property
    def error(self) -> float:
        """Frobenius norm of the difference over that of the weight."""
        return _root_share(*self.squares)

    @property
    def output_error(self) -> float | None:
        """Norm of the outputs' difference on the text over that of the outputs; None of plain factors."""
        return None if self.outputs is None else _root_share(*self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Its figures, ready for JSON."""
        return {
            "target": str(self.target),
            "shape": list(self.target.shape),
            "ranks": list(self.ranks),
            "parameters": dict(zip(("before", "after"), self.parameters, strict=True)),
            "relative_error": self.error,
            "relative_output_error": self.output_error,
        }


@dataclass(frozen=True)
class Compression:
    """What `compress` did to a model.

    Attributes:
        factors: how they were made, "whitened" or "plain".
        matrices: every target, factored or left as it was.
        parameters: of the whole model, before and after.
        bytes: likewise.
        side_effects: on the part of the text that was held out; None where no text was run.
        journal: of what took long, to be deleted when the model is saved.
    """

    factors: str
    matrices: Sequence[CompressedMatrix]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    side_effects: SideEffects | None
    journal: Journal = field(default=NOTHING, repr=False, compare=False)

    @property
    def count(self) -> int:
        """How many matrices are factored."""
        return sum(matrix.factored for matrix in self.matrices)

    @property
    def error(self) -> float:
        """Relative error of all targets taken as one."""
        whole, lost = (sum(parts) for parts in zip(*(matrix.squares for matrix in self.matrices), strict=True))
        return _root_share(whole, lost)

    def to_dict(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        return {
            "factors": self.factors,
            "targets": len(self.matrices),
            "factored": self.count,
            "parameters": dict(zip(("before", "after"), self.parameters, strict=True)),
            "bytes": dict(zip(("before", "after"), self.bytes, strict=True)),
            "relative_error": self.error,
            "side_effects": None if self.side_effects is None else self.side_effects.to_dict(),
            "matrices": [matrix.to_dict() for matrix in self.matrices],
        }

    def __str__(self) -> str:
        width = max(len(str(matrix.target)) for matrix in self.matrices)
        lines = [f"{'matrix':{width}} {'shape':>13} {'rank':>11} {'parameters':>23} {'error':>7} {'outputs':>7}"]
        for matrix in self.matrices:
            shape, (before, after) = "×".join(map(str, matrix.target.shape)), matrix.parameters
            sizes = f"{before:11,} {after:11,}" if matrix.factored else f"{before:11,} {'':11}"
            errors = [matrix.error, matrix.output_error] if matrix.factored else []
            shown = " ".join(f"{error:7.4f}" for error in errors if error is not None)
            lines.append(f"{matrix.target!s:{width}} {shape:>13} {_described(matrix.ranks):>11} {sizes} {shown}")
        parameters, sizes = ("{:,} -> {:,}".format(*pair) for pair in (self.parameters, self.bytes))
        return "\n".join(
            [
                *lines,
                f"{self.count} of {len(self.matrices)} matrices factored; the others are as they were",
                f"model: {parameters} parameters, {sizes} bytes",
                "what it does to text was not measured" if self.side_effects is None else str(self.side_effects),
            ]
        )


def _root_share(whole: float, lost: float) -> float:
    return (lost / whole) ** 0.5 if whole else 0.0


def _described(ranks: Sequence[int | None]) -> str:
    kept = [rank for rank in ranks if rank is not None]
    if not kept:
        return "as it was"
    low, high = min(kept), max(kept)
    return (str(low) if low == high else f"{low}–{high}") + ("" if len(kept) == len(ranks) else " or whole")
