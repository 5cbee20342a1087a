"""Adapt a pretrained transformer to a task by truncating one weight matrix, without training it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lasertri.errors import LasertriError
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
from lasertri.tasks import Sample
from lasertri.version import __version__

if TYPE_CHECKING:
    from lasertri.adaptation import Adaptation
    from lasertri.checkpoint import save
    from lasertri.compression import Compression, compress
    from lasertri.edit import Edit
    from lasertri.method import adapt
    from lasertri.models import load, load_model, load_tokenizer
    from lasertri.objective import Objective
    from lasertri.tasks.files import Fields, as_samples
    from lasertri.tasks.named import task_samples

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
    "save",
    "scale_blocks",
    "score_blocks",
    "task_samples",
    "use_backend",
    "whiten_blocks",
    "whiten_moments",
]

_LAZY = {  # these import transformers, which importing the ops should not
    "adapt": "lasertri.method",
    "Adaptation": "lasertri.adaptation",
    "Compression": "lasertri.compression",
    "compress": "lasertri.compression",
    "Edit": "lasertri.edit",
    "load": "lasertri.models",
    "load_model": "lasertri.models",
    "load_tokenizer": "lasertri.models",
    "save": "lasertri.checkpoint",
    "Objective": "lasertri.objective",
    "Fields": "lasertri.tasks.files",
    "as_samples": "lasertri.tasks.files",
    "task_samples": "lasertri.tasks.named",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
