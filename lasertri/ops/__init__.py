"""Tensors in, tensors out: factor, score and reduce weight matrices block by block."""

from lasertri.ops.backends import use_backend
from lasertri.ops.blocks import BlockFactors, BlockScores, Partition
from lasertri.ops.functional import DTYPES, block_svd, linear_blocks, project_blocks, reduce_blocks, score_blocks

__all__ = [
    "DTYPES",
    "BlockFactors",
    "BlockScores",
    "Partition",
    "block_svd",
    "linear_blocks",
    "project_blocks",
    "reduce_blocks",
    "score_blocks",
    "use_backend",
]
