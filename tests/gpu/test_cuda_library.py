"""What only the CUDA library does: batches within a bound, two eigensolvers, Jacobi, strided input."""

import oracle
import pytest
import torch
from spectra import gapped, gaussian, power_law

from lasertri import LasertriError, block_svd
from lasertri.ops import extension

MISSING = extension.why_not(torch.device("cuda"))
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"NOT TESTED: {MISSING}")


@pytest.mark.parametrize("shape", [(5, 17, 70), (5, 70, 17), (5, 33, 33), (3, 1100, 1200), (1, 64, 4096)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("workspace", [1, 1 << 31], ids=["one block at a time", "all at once"])
@pytest.mark.parametrize("turned", [False, True], ids=["rows contiguous", "columns contiguous"])
@pytest.mark.parametrize("method", ["gram", "direct"])
def test_factors_are_those_of_each_block(shape, dtype, workspace, turned, method):
    if shape[1] > 1000 and (dtype != torch.float32 or (method == "direct" and workspace == 1)):
        pytest.skip("takes long, and small shapes have shown it")
    blocks = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    given = blocks.mT.contiguous().cuda().mT if turned else blocks.cuda()
    basis, sigma, status = extension.factor_blocks(given, method, True, workspace)
    assert not status.any()
    expected = torch.linalg.svdvals(blocks.double())
    torch.testing.assert_close(sigma.cpu().sort(descending=True).values, expected, rtol=1e-6, atol=1e-9)
    product = basis.mT @ basis
    torch.testing.assert_close(product, torch.eye(len(product[0])).to(product).expand_as(product), rtol=0, atol=1e-10)
    torch.testing.assert_close((basis.mT @ given.double()).norm(dim=-1), sigma, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("fp64", [True, False])
@pytest.mark.parametrize("turned", [False, True], ids=["rows contiguous", "columns contiguous"])
def test_blocks_of_several_panels(fp64, turned):
    """Sixteen of 16 x 70,000: beyond 2^24 values a panel holds 65,536 columns."""
    block = gapped(16, 70_000, dtype=torch.bfloat16)
    blocks = torch.stack([block * 2**-i for i in range(16)]).cuda()
    basis, sigma, status = extension.factor_blocks(
        blocks.mT.contiguous().mT if turned else blocks, "gram", fp64, 1 << 31
    )
    assert not status.any()
    exact = torch.linalg.svdvals(block.double())
    expected = torch.stack([exact * 2**-i for i in range(16)])
    unit = 1e-9 if fp64 else 1e-4
    torch.testing.assert_close(sigma.cpu().double().sort(descending=True).values, expected, rtol=unit, atol=0)
    product = basis.mT @ basis
    torch.testing.assert_close(product, torch.eye(16).to(product).expand_as(product), rtol=0, atol=unit)


def test_fp32_is_fp32_and_not_tf32():
    blocks = gaussian(4, 128, 1024, dtype=torch.float32)
    sigma = extension.factor_blocks(blocks.cuda(), "gram", False, 1 << 31)[1].cpu().sort(descending=True).values
    torch.testing.assert_close(sigma.double(), torch.linalg.svdvals(blocks.double()), rtol=1e-5, atol=0)


def test_ill_conditioned_blocks_are_factored_again():
    weight = torch.cat([gaussian(64, 256), power_law(64, 256, condition=1e6)]).cuda()
    sigma = block_svd(weight, blocks=2, backend="cuda").sigma.cpu()
    expected, _ = oracle.scores(weight.cpu(), weight.cpu(), oracle.row_lists(128, 2))
    # Jacobi's method is exact to some units of the largest, which at this condition are 1e-7 of the smallest
    torch.testing.assert_close(sigma, expected, rtol=1e-8, atol=1e-12 * float(expected.max()))


@pytest.mark.parametrize("method", ["gram", "direct"])
def test_a_value_that_is_not_finite_names_block_and_matrix(method):
    weight = gapped(2, 12, 20).cuda()
    weight[1, 5, 2] = float("nan")
    with pytest.raises(LasertriError, match=r"NaN or Inf in block 1 of `weight` \(matrix 1\)"):
        block_svd(weight, blocks=3, backend="cuda", method=method)


@pytest.mark.parametrize("method", ["gram", "direct"])
@pytest.mark.parametrize("workspace", [1, 1 << 31], ids=["one block at a time", "all at once"])
def test_each_block_s_status_is_its_own(method, workspace):
    blocks = gapped(5, 12, 20)
    blocks[3, 5, 2] = float("nan")
    basis, sigma, status = extension.factor_blocks(blocks.cuda(), method, True, workspace)
    assert status.tolist() == [0, 0, 0, 1, 0]
    assert basis.isfinite().all()
    expected = torch.linalg.svdvals(blocks[[0, 1, 2, 4]])
    torch.testing.assert_close(sigma[[0, 1, 2, 4]].cpu().sort(descending=True).values, expected, rtol=1e-9, atol=0)


def test_repetition_gives_the_same_bits_on_a_side_stream_too():
    blocks = gaussian(8, 96, 512).cuda()
    first = extension.factor_blocks(blocks, "gram", True, 1 << 31)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        again = extension.factor_blocks(blocks, "gram", True, 1 << 31)
        torch.cuda.current_stream().synchronize()
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
