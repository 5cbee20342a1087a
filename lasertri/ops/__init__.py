"""Tensors in, tensors out: factor, score, reduce and step weight matrices block by block."""

from lasertri.ops.arguments import DTYPES
from lasertri.ops.backends import use_backend
from lasertri.ops.blocks import BlockFactors, BlockScores, LowRank, Partition
from lasertri.ops.functional import (
    block_svd,
    linear_blocks,
    lowrank_blocks,
    project_blocks,
    reduce_blocks,
    scale_blocks,
    score_blocks,
    whiten_blocks,
    whiten_moments,
)
from lasertri.ops.sketch import compress_tokens

__all__ = [
    "DTYPES",
    "BlockFactors",
    "BlockScores",
    "LowRank",
    "Partition",
    "block_svd",
    "compress_tokens",
    "linear_blocks",
    "lowrank_blocks",
    "project_blocks",
    "reduce_blocks",
    "scale_blocks",
    "score_blocks",
    "use_backend",
    "whiten_blocks",
    "whiten_moments",
]
