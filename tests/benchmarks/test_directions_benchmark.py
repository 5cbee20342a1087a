"""The recipes of `bench_directions` that the product has are what the product makes."""

import sys
from pathlib import Path

import pytest
import torch

from lasertri.ops import lowrank_blocks, whiten_blocks

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks that are modules of a package
from benchmarks import bench_directions as bench


@pytest.mark.parametrize("tokens", [9, 31])
def test_the_products_own_recipes(tokens):
    torch.manual_seed(0)
    inputs, deltas = torch.randn(tokens, 17), torch.randn(tokens, 13)
    layer = bench.Layer(bench.Side.of(inputs), bench.Side.of(deltas))
    whitened = whiten_blocks(deltas, inputs, rank=4, damping=0.1)
    left, right = layer.step(bench.Recipe(rank=8))
    torch.testing.assert_close(left @ right, whitened.left.float() @ whitened.right[0].float(), atol=1e-5, rtol=1e-4)
    plain = lowrank_blocks(deltas.mT @ inputs, rank=4)
    left, right = layer.step(bench.Recipe(powers=(0, 0), rank=8))
    torch.testing.assert_close(left @ right, plain.left.float() @ plain.right[0].float(), atol=1e-3, rtol=1e-4)
