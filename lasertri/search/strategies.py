"""A strategy turns scores into candidates; the loop in `method.py` measures whatever it yields."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table is read by --help, which waits for no torch
    from lasertri.edit.candidate import Candidate
    from lasertri.model.targets import Target

logger = logging.getLogger(__name__)

LASER_RATIOS = (0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.01, 0.005)


@dataclass(frozen=True)
class Strategy:
    """Which samples score and measure, and which grid is measured: a column of the papers' tables.

    Attributes:
        gradients: samples that score the targets, "standard" (the first fifth of the rows) or "100" (the `calibration`
            setting's number); None measures every target.
        evaluation: samples that measure the candidates, likewise.
        several_blocks: whether every K of the grid is tried, or K = 1 alone.
        clustered: whether the blocks are subspaces that the rows are assigned to, not consecutive rows.
        ratios: its grid of ρ.
        roles: of the targets that are tried by default.
        most: candidates that are measured in a race, those that promise most; None measures the whole grid.
    """

    gradients: str | None
    evaluation: str
    several_blocks: bool = False
    clustered: bool = False
    ratios: tuple[float, ...] = LASER_RATIOS
    roles: tuple[str, ...] = ("fc_in", "fc_out")
    most: int | None = None

    def candidates(
        self,
        ranking: Sequence[Target],
        *,
        count: int,
        block_counts: Sequence[int],
        ratios: Sequence[float],
        compat: bool = False,
    ) -> Iterator[Candidate]:
        """The whole grid of the `count` best targets (Algorithm 1 of arXiv 2510.20800), or of all (LASER)."""
        from lasertri.edit.candidate import Candidate

        for target in ranking if self.gradients is None else ranking[:count]:
            for blocks in sorted(block_counts) if self.several_blocks else (1,):
                for ratio in sorted(ratios, reverse=True):
                    yield Candidate(target, blocks, ratio, self.clustered, compat)


DEFAULT = "clustering-100-grads-100-eval"
STRATEGIES = {
    "laser": Strategy(None, "standard"),
    "laser-grads": Strategy("standard", "standard"),
    "laser-100-eval": Strategy(None, "100"),
    "laser-100-grads": Strategy("100", "standard"),
    "laser-100-grads-100-eval": Strategy("100", "100"),
    "clustering-laser": Strategy(None, "standard", several_blocks=True),
    "clustering-100-grads-std-eval": Strategy("100", "standard", several_blocks=True),
    # the paper's 9 ratios and ρ = 0, and a gated MLP's third matrix
    DEFAULT: Strategy(
        "100", "100", several_blocks=True, ratios=(*LASER_RATIOS, 0.0), roles=("fc_in", "fc_up", "fc_out"), most=32
    ),
    "optimal-clustering": Strategy("100", "100", several_blocks=True, clustered=True),
}


def fitting(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those with a row to every block; a warning says how many others there are."""
    fits = [candidate for candidate in candidates if candidate.blocks <= candidate.target.shape[0]]
    if len(fits) < len(candidates):
        logger.warning("%d candidates are left out: they have more blocks than rows", len(candidates) - len(fits))
    return fits


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """One candidate for every different edit: the one with the larger ρ, then the smaller K; ρ = 1 edits nothing."""
    kept: dict[tuple[object, ...], Candidate] = {}
    for candidate in sorted((c for c in candidates if c.ratio < 1), key=lambda c: (-c.ratio, c.blocks)):
        kept.setdefault(candidate.effect, candidate)
    chosen = set(kept.values())
    return [candidate for candidate in candidates if candidate in chosen]
