"""How to adapt: every option of the method, with the papers' defaults."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from lasertri.data.split import FEWEST
from lasertri.errors import LasertriError
from lasertri.ops.backends import BACKENDS
from lasertri.ops.blocks import TAIL_SCORES
from lasertri.search.strategies import DEFAULT, STRATEGIES, Strategy

BLOCK_COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Settings:
    """How to adapt.

    Args:
        strategy: a name in `strategies.STRATEGIES`: which samples score and measure, and which grid is measured.
        targets: regular expression for module paths; by default the MLP matrices of every layer.
        count: how many targets, best score first, are measured (the papers' q).
        ratios: retained ratios ρ; by default the strategy's.
        blocks: numbers of row blocks K.
        svd: "exact", or "laser-compat", LASER's randomised SVD and rounding of ranks, for strategies of one block.
        scoring_blocks: the K that targets are ranked at; the others are factored once targets are chosen.
        calibration: most samples used for gradients and trials; at most half of them unless others are held out.
        held_out_limit: most samples held out.
        score: "taylor" or "paper", see `BlockScores.tail`.
        accept: "test" takes an edit only if a joint test over all candidates gives p ≤ 0.05; "best" takes the
            best one that beats the baseline, as the papers do.
        race: stop measuring a candidate that the leading one beats beyond doubt, see `race.py`.
        max_edits: most edits, found one after the other, each on the model with those before it.
        normalize: divide a choice's log-probability by its characters.
        delimiter: stands between prompt and answer where neither has white space.
        chat: put prompts into the tokenizer's chat template as the user's turn, with answers as the model's.
        seed: of the split and of the test.
        batch_size: rows run through the model at once.
        backend: of the ops, "auto" or one that `lasertri info` lists.
        memory_budget: bytes for FP64 workspace and kept factors.
        progress: show progress bars on standard error.
    """

    strategy: str = DEFAULT
    targets: str | None = None
    count: int = 5
    ratios: tuple[float, ...] = ()
    blocks: tuple[int, ...] = ()
    svd: str = "exact"
    scoring_blocks: int = 8
    calibration: int = 100
    held_out_limit: int = 2000
    score: str = "taylor"
    accept: str = "test"
    race: bool = True
    max_edits: int = 1
    normalize: bool = False
    delimiter: str = " "
    chat: bool = False
    seed: int = 0
    batch_size: int = 16
    backend: str = "auto"
    memory_budget: int = 4 << 30
    progress: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise LasertriError(f"expected strategy among {list(STRATEGIES)}, got {self.strategy!r}")
        for name in ("ratios", "blocks"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, Iterable) else (value,))
        object.__setattr__(self, "ratios", self.ratios or self.plan.ratios)
        own = BLOCK_COUNTS if self.plan.several_blocks else (1,)
        if len(own) == 1 and self.blocks not in ((), own):
            raise LasertriError(
                f"expected no blocks with strategy {self.strategy}, which tries K = 1, got {self.blocks}"
            )
        object.__setattr__(self, "blocks", self.blocks or own)
        try:
            re.compile(self.targets or "")
        except re.error as error:
            raise LasertriError(
                f"expected a regular expression for the targets, got {self.targets!r}: {error}"
            ) from error
        for name in (
            "count",
            "scoring_blocks",
            "max_edits",
            "calibration",
            "held_out_limit",
            "batch_size",
            "memory_budget",
        ):
            if getattr(self, name) < 1:
                raise LasertriError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.calibration < FEWEST:
            raise LasertriError(f"expected at least {FEWEST} calibration samples, got {self.calibration}")
        if not all(0 <= ratio <= 1 for ratio in self.ratios):
            raise LasertriError(f"expected retained ratios from 0 to 1, got {list(self.ratios)}")
        if not any(ratio < 1 for ratio in self.ratios):
            raise LasertriError(
                f"expected a retained ratio below 1, at which something is left out, got {list(self.ratios)}"
            )
        if not all(blocks >= 1 for blocks in self.blocks):
            raise LasertriError(f"expected numbers of blocks of at least 1, got {list(self.blocks)}")
        for name, known in (
            ("score", tuple(TAIL_SCORES)),
            ("accept", ("test", "best")),
            ("svd", ("exact", "laser-compat")),
            ("backend", ("auto", *BACKENDS)),
        ):
            if getattr(self, name) not in known:
                raise LasertriError(f"expected {name} among {list(known)}, got {getattr(self, name)!r}")

        if self.svd == "laser-compat" and self.plan.several_blocks:
            single = [name for name, strategy in STRATEGIES.items() if not strategy.several_blocks]
            raise LasertriError(f"expected svd 'exact' with {self.strategy}; 'laser-compat' goes with {single}")

    @property
    def plan(self) -> Strategy:
        """The strategy itself."""
        return STRATEGIES[self.strategy]

    def to_dict(self) -> dict[str, Any]:
        """What a reader needs to repeat the run."""
        return {name: value for name, value in asdict(self).items() if name != "progress"}
