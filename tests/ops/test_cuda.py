"""The plain-torch backends on a CUDA device, against the same FP64 SVD on the CPU."""

import oracle
import pytest
import torch
from matrices import gapped, gaussian

from lasertri import block_svd, reduce_blocks, score_blocks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("shape", [(17, 31), (31, 17), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_ops_on_cuda_are_those_on_the_cpu(shape, dtype, backend):
    weight, grad = gapped(*shape, dtype=dtype), gaussian(*shape, dtype=dtype)
    rows = oracle.row_lists(shape[0], 3)
    factors = block_svd(weight.cuda(), blocks=3, backend=backend)
    scores = score_blocks(weight.cuda(), grad.cuda(), factors=factors, backend=backend)
    sigma, slope = oracle.scores(weight, grad, rows)
    torch.testing.assert_close(scores.sigma.cpu(), sigma, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scores.grad.cpu(), slope, rtol=1e-6, atol=1e-8)
    reduced = reduce_blocks(weight.cuda(), ratios=0.5, factors=factors, backend=backend)
    assert reduced.is_cuda
    ranks = [int(min(len(block), shape[1]) * 0.5) for block in rows]
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(reduced.cpu().double(), oracle.reduction(weight, ranks, rows), rtol=unit, atol=1e-9)


def test_factors_on_another_device_are_refused():
    weight = gapped(8, 12)
    with pytest.raises(ValueError, match="on cuda:0, came factors"):
        score_blocks(weight.cuda(), weight.cuda(), factors=block_svd(weight))
