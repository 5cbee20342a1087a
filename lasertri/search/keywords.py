"""The keywords of `adapt`, for type checkers and editors; written from `Settings` by tests/search/test_keywords.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict


class SettingsKeywords(TypedDict, total=False):
    """The options of `Settings`, none of which needs to be given."""

    edit: Literal["auto", "step", "shrink", "truncate"]
    direction: Literal["auto", "plain", "whitened"]
    rank: int | None
    merge: bool
    strategy: Literal[
        "laser",
        "laser-grads",
        "laser-100-eval",
        "laser-100-grads",
        "laser-100-grads-100-eval",
        "clustering-laser",
        "clustering-100-grads-std-eval",
        "clustering-100-grads-100-eval",
        "optimal-clustering",
        None,
    ]
    targets: str | None
    count: int
    ratios: float | Sequence[float]
    blocks: int | Sequence[int]
    svd: Literal["exact", "laser-compat"]
    scoring_blocks: int | None
    race: bool
    calibration: int
    held_out_limit: int
    confirm: int | None
    score: Literal["fisher", "taylor", "paper"]
    accept: Literal["test", "best"]
    max_kl: float | None
    max_edits: int
    normalize: bool
    delimiter: str
    chat: bool
    seed: int
    batch_size: int
    backend: Literal["auto", "reference", "gram", "triton", "cuda"]
    memory_budget: int | None
    progress: bool
