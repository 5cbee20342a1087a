"""Adapt a pretrained transformer to a task by truncating one weight matrix, without training it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lasertri.errors import LasertriError
from lasertri.version import __version__

if TYPE_CHECKING:
    from lasertri.compression import Compression, compress
    from lasertri.data.files import Fields, as_samples
    from lasertri.data.papers.registry import task_samples
    from lasertri.data.sample import Sample
    from lasertri.edit.edit import Edit
    from lasertri.measure.objective import Objective
    from lasertri.method import adapt
    from lasertri.model.checkpoint import save
    from lasertri.model.loading import load, load_model, load_tokenizer
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

_MODULES = {  # of names that are imported when first used: the ops wait for torch, the others for transformers too
    "lasertri.compression": ("Compression", "compress"),
    "lasertri.data.files": ("Fields", "as_samples"),
    "lasertri.data.papers.registry": ("task_samples",),
    "lasertri.data.sample": ("Sample",),
    "lasertri.edit.edit": ("Edit",),
    "lasertri.measure.objective": ("Objective",),
    "lasertri.method": ("adapt",),
    "lasertri.model.checkpoint": ("save",),
    "lasertri.model.loading": ("load", "load_model", "load_tokenizer"),
    "lasertri.ops": (
        *("BlockFactors", "BlockScores", "Partition", "block_svd", "linear_blocks"),
        *("reduce_blocks", "score_blocks", "use_backend"),
    ),
    "lasertri.result.adaptation": ("Adaptation",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
