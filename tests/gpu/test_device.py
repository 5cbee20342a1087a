"""Streams, devices and memory: how the backends behave among other work on a GPU."""

import pytest
import torch
from spectra import gapped, gaussian

from lasertri import block_svd, reduce_blocks, score_blocks
from lasertri.ops.backends import BACKENDS


def test_ops_wait_for_the_work_of_the_current_stream(backend):
    """The weight is still being made when the op is called: on the same stream, so it must be waited for."""
    expected = block_svd(gapped(96, 160).cuda(), blocks=4, backend=backend).sigma
    stream = torch.cuda.Stream()
    ready = gapped(96, 160).cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        weight = torch.full_like(ready, torch.nan)
        torch.cuda._sleep(50_000_000)
        weight.copy_(ready)
        sigma = block_svd(weight, blocks=4, backend=backend).sigma
        stack = reduce_blocks(weight, ratios=0.5, blocks=4, backend=backend)
    stream.synchronize()
    torch.testing.assert_close(sigma, expected)
    assert stack.isfinite().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_ops_run_on_the_device_of_their_tensors(backend):
    weight, grad = gapped(96, 160).to("cuda:1"), gaussian(96, 160).to("cuda:1")
    with torch.cuda.device(0):
        scores = score_blocks(weight, grad, blocks=4, backend=backend)
        stack = reduce_blocks(weight, ratios=0.5, blocks=4, backend=backend)
    assert scores.grad.device == stack.device == weight.device
    reference = score_blocks(weight.cpu(), grad.cpu(), blocks=4, backend="reference")
    torch.testing.assert_close(scores.grad.cpu(), reference.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("rows", "columns", "blocks"), [(2048, 8192, 8), (8192, 2048, 1)])
def test_memory_stays_within_what_is_announced(rows, columns, blocks, backend):
    if backend == "reference":
        pytest.skip("an SVD of this size takes minutes, and nobody chooses it for its memory")
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator, device="cuda").bfloat16()
    grad = torch.randn(rows, columns, generator=generator, device="cuda").bfloat16()
    block_svd(weight[:64], backend=backend)  # handles and workspaces of libraries are not counted
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    factors = block_svd(weight, blocks=blocks, backend=backend)
    score_blocks(weight, grad, factors=factors, backend=backend)
    allowed = BACKENDS[backend].module.workspace_bytes(blocks, rows // blocks, columns, weight.device)
    kept = factors.basis.nbytes + factors.sigma.nbytes
    assert torch.cuda.max_memory_allocated() - before <= allowed + kept


def test_ranks_outlive_their_place_in_the_cache_where_another_stream_reads_them():
    if BACKENDS["triton"].why_not(torch.device("cuda")) is not None:
        pytest.skip("needs the triton backend")
    from lasertri.ops.kernels.prefix_product import _kept, prefix_product

    left, right = gaussian(1, 64, 32).cuda(), gaussian(1, 32, 64).cuda()
    expected, out = torch.empty(2, 1, 64, 64).double().cuda(), torch.empty(2, 1, 64, 64).double().cuda()
    _kept.cache_clear()
    prefix_product(left, right, [7, 20], expected, compute=torch.float64)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        prefix_product(left, right, [7, 20], out, compute=torch.float64)
    _kept.cache_clear()
    others = [torch.zeros(2, 2, dtype=torch.int32, device="cuda") for _ in range(64)]  # one would be given its memory
    torch.cuda.synchronize()
    assert len(others) == 64
    assert torch.equal(out, expected)
