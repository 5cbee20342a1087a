"""Adapt a pretrained transformer to a task by truncating one weight matrix, without training it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lasertri.data.sample import Sample
from lasertri.errors import LasertriError
from lasertri.ops import (
    BlockFactors,
    BlockScores,
    Partition,
    block_svd,
    linear_blocks,
    reduce_blocks,
    score_blocks,
    use_backend,
)
from lasertri.version import __version__

if TYPE_CHECKING:
    from lasertri.compression import Compression, compress
    from lasertri.data.files import Fields, as_samples
    from lasertri.data.papers.registry import task_samples
    from lasertri.edit.edit import Edit
    from lasertri.measure.objective import Objective
    from lasertri.method import adapt
    from lasertri.model.checkpoint import save
    from lasertri.model.loading import load, load_model, load_tokenizer
    from lasertri.result.adaptation import Adaptation

__all__ = [
    "Adaptation",
    "BlockFactors",
    "BlockScores",
    "Compression",
    "Edit",
    "Fields",
    "LasertriError",
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
    "reduce_blocks",
    "save",
    "score_blocks",
    "task_samples",
    "use_backend",
]

_LAZY = {  # these import transformers, which importing the ops should not
    "adapt": "lasertri.method",
    "Adaptation": "lasertri.result.adaptation",
    "Compression": "lasertri.compression",
    "compress": "lasertri.compression",
    "Edit": "lasertri.edit.edit",
    "load": "lasertri.model.loading",
    "load_model": "lasertri.model.loading",
    "load_tokenizer": "lasertri.model.loading",
    "save": "lasertri.model.checkpoint",
    "Objective": "lasertri.measure.objective",
    "Fields": "lasertri.data.files",
    "as_samples": "lasertri.data.files",
    "task_samples": "lasertri.data.papers.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
