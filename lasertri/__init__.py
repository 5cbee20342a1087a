"""Adapt a pretrained transformer to a task from one gradient, without training it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lasertri.errors import LasertriError
from lasertri.version import __version__

if TYPE_CHECKING:
    from lasertri.compression.compress import compress
    from lasertri.compression.result import Compression
    from lasertri.data.files import Fields, as_samples
    from lasertri.data.papers.registry import task_samples
    from lasertri.data.sample import Sample
    from lasertri.edit.edit import Edit
    from lasertri.edit.shrink import Shrink
    from lasertri.edit.step import Step
    from lasertri.edit.truncation import Truncation
    from lasertri.measure.objective import Objective
    from lasertri.method import adapt, refine
    from lasertri.model.checkpoint import save
    from lasertri.model.loading import load, load_model, load_tokenizer
    from lasertri.ops import (
        BlockFactors,
        BlockScores,
        LowRank,
        Partition,
        block_svd,
        linear_blocks,
        lowrank_blocks,
        reduce_blocks,
        scale_blocks,
        score_blocks,
        use_backend,
        whiten_blocks,
        whiten_moments,
    )
    from lasertri.result.adaptation import Adaptation

__all__ = [
    "Adaptation",
    "BlockFactors",
    "BlockScores",
    "Compression",
    "Edit",
    "Fields",
    "LasertriError",
    "LowRank",
    "Objective",
    "Partition",
    "Sample",
    "Shrink",
    "Step",
    "Truncation",
    "__version__",
    "adapt",
    "as_samples",
    "block_svd",
    "compress",
    "linear_blocks",
    "load",
    "load_model",
    "load_tokenizer",
    "lowrank_blocks",
    "reduce_blocks",
    "refine",
    "save",
    "scale_blocks",
    "score_blocks",
    "task_samples",
    "use_backend",
    "whiten_blocks",
    "whiten_moments",
]

_MODULES = {  # of names that are imported when first used, for torch and transformers are slow to import
    "Adaptation": "lasertri.result.adaptation",
    "Compression": "lasertri.compression.result",
    "Edit": "lasertri.edit.edit",
    "Fields": "lasertri.data.files",
    "Objective": "lasertri.measure.objective",
    "Sample": "lasertri.data.sample",
    "Shrink": "lasertri.edit.shrink",
    "Step": "lasertri.edit.step",
    "Truncation": "lasertri.edit.truncation",
    "adapt": "lasertri.method",
    "as_samples": "lasertri.data.files",
    "compress": "lasertri.compression.compress",
    "load": "lasertri.model.loading",
    "load_model": "lasertri.model.loading",
    "load_tokenizer": "lasertri.model.loading",
    "refine": "lasertri.method",
    "save": "lasertri.model.checkpoint",
    "task_samples": "lasertri.data.papers.registry",
}  # all others are of the ops


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("lasertri.ops")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "lasertri.ops")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
