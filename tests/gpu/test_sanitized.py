"""Small runs of every kernel and of the extension, for compute-sanitizer to watch."""

import pytest
import torch
from spectra import gapped, gaussian

from lasertri import block_svd, linear_blocks, reduce_blocks, score_blocks
from lasertri.ops.backends import BACKENDS


@pytest.mark.parametrize("shape", [(19, 37), (37, 19)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ops_of_awkward_shapes(shape, dtype, backend):
    weight, grad = gapped(*shape, dtype=dtype).cuda(), gaussian(*shape, dtype=dtype).cuda()
    for method in BACKENDS[backend].methods:
        factors = block_svd(weight, blocks=3, backend=backend, method=method)
        scores = score_blocks(weight, grad, factors=factors, backend=backend)
        assert scores.grad.isfinite().all()
    assert score_blocks(weight, grad, blocks=3, backend=backend).grad.isfinite().all()
    for precision in ("float64", "float32"):
        stack = reduce_blocks(weight, ratios=[0.3, 0.7, 1.0], blocks=3, backend=backend, precision=precision)
        assert stack.isfinite().all()
    x = gaussian(5, shape[1], dtype=dtype).cuda()
    assert linear_blocks(x, weight, ratios=[0.3, 0.7], blocks=3, backend=backend).isfinite().all()
