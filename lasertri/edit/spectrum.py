"""What an edit does to a matrix, as its singular values show it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lasertri.model.targets import Target

MOST = 3  # matrices that an edit of many shows
PLACES = 64  # values of each, about: what a picture shows


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one matrix, at some places.

    Attributes:
        target: the matrix.
        blocks: of its rows; over several, the values are root mean squares, whose squares add up to the matrix's.
        change: norm of what the edit adds to it, as a share of its own; None where it has no numbers of its own.
        places: whose values they are, from 1, the largest.
        values: "before" and "after", or those of the "step" that is added.
    """

    target: str
    blocks: int
    change: float | None
    places: list[int]
    values: dict[str, list[float]]

    @classmethod
    def of(
        cls, target: Target, change: float | None, values: Mapping[str, Tensor], show: Iterable[int] = ()
    ) -> Spectrum:
        """Of all values `[K, r]`, or `[r]` of one block.

        Args:
            show: places that are to be among those shown.
        """
        blocks = {name: torch.atleast_2d(own.double().cpu()) for name, own in values.items()}
        together = {name: own.square().mean(dim=0).sqrt() for name, own in blocks.items()}
        count = min(map(len, together.values()))
        spread = torch.cat([torch.linspace(1, count, PLACES // 2), torch.logspace(0, 1, PLACES // 2, base=count)])
        places = range(1, count + 1) if count <= PLACES else {*spread.round().int().tolist(), *show}
        chosen = sorted(place for place in places if 1 <= place <= count)
        shown = {name: [float(f"{own[i - 1]:.4g}") for i in chosen] for name, own in together.items()}
        return cls(str(target), max(map(len, blocks.values())), change, chosen, shown)

    @classmethod
    def before_and_after(cls, target: Target, before: Tensor, after: Tensor, show: Iterable[int] = ()) -> Spectrum:
        """Where the singular vectors stay, so that each value has its place."""
        change = float((after - before).norm() / before.norm()) if before.any() else 0.0
        return cls.of(target, change, {"before": before, "after": after}, show)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)
