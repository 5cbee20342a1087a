"""Every backend on a CUDA device, against an FP64 SVD on the CPU."""

import oracle
import pytest
import tensor_cores
import torch
from spectra import gapped, gaussian, power_law, spiked, stacked
from torch.nn.functional import linear

from lasertri import LasertriError, block_svd, linear_blocks, reduce_blocks, score_blocks
from lasertri.integrations import laser

SHAPES = [(1, 7), (17, 31), (31, 17), (64, 64), (131, 257), (257, 131)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ops_are_those_on_the_cpu(shape, dtype, backend):
    blocks = min(3, shape[0])
    weight, grad = gapped(*shape, dtype=dtype), gaussian(*shape, dtype=dtype)
    rows = oracle.row_lists(shape[0], blocks)
    sigma, slope = oracle.scores(weight, grad, rows)
    factors = block_svd(weight.cuda(), blocks=blocks, backend=backend)
    given = score_blocks(weight.cuda(), grad.cuda(), factors=factors, backend=backend)
    made = score_blocks(weight.cuda(), grad.cuda(), blocks=blocks, backend=backend)
    for scores in (given, made):
        torch.testing.assert_close(scores.sigma.cpu(), sigma, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(scores.grad.cpu(), slope, rtol=1e-6, atol=1e-8)
    ranks = [int(min(len(block), shape[1]) * 0.5) for block in rows]
    expected = oracle.reduction(weight, ranks, rows)
    for known in (factors, None):
        reduced = reduce_blocks(weight.cuda(), ratios=0.5, blocks=blocks, factors=known, backend=backend)
        assert reduced.device == factors.basis.device
        unit, least = (
            torch.finfo(dtype).eps,
            torch.finfo(dtype).smallest_normal,
        )  # below it numbers stand unit * least apart
        torch.testing.assert_close(reduced.cpu().double(), expected, rtol=unit, atol=max(1e-9, unit * least))
    x, bias = gaussian(9, shape[1], seed=3, dtype=dtype), gaussian(shape[0], seed=4, dtype=dtype)
    outputs = linear_blocks(x.cuda(), weight.cuda(), bias.cuda(), ratios=0.5, factors=factors, backend=backend)
    exact = linear(x.double(), expected, bias.double())
    edited = linear(x, expected.to(dtype), bias)
    allowed = 2 * max(float((edited - exact).norm()), 1e-13 * float(exact.norm()))
    if (backend, dtype) == ("triton", torch.float32):  # tensor cores cut off where plain torch rounds
        allowed = max(allowed, tensor_cores.error("tf32x3", max(ranks)) * float(exact.norm()))
    assert float((outputs.cpu() - exact).norm()) <= allowed


@pytest.mark.parametrize("make", [gaussian, spiked, power_law])
@pytest.mark.parametrize(("rows", "columns"), [(256, 1024), (1024, 256), (1031, 1301)])
@pytest.mark.parametrize("blocks", [1, 4])
def test_the_promises_hold_up_to_condition_1e4(make, rows, columns, blocks, backend):
    weight, grad = stacked(make, rows, columns, blocks, seed=5), gaussian(rows, columns, seed=4)
    sigma, expected = oracle.scores(weight, grad, oracle.row_lists(rows, blocks))
    scores = score_blocks(weight.cuda(), grad.cuda(), blocks=blocks, backend=backend)
    assert float((scores.sigma.cpu() / sigma - 1).abs().max()) <= 1e-9
    smallest = max(1, sigma.shape[-1] // 10)
    error = (scores.grad.cpu() - expected).abs()[:, -smallest:] / expected.square().mean(-1, keepdim=True).sqrt()
    assert float(error.median()) <= 1e-6


@pytest.mark.parametrize("make", [gaussian, power_law])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_truncations_keep_to_the_optimal_residual_with_tf32_allowed(make, precision, backend):
    if (backend, precision) == ("reference", "float32"):
        pytest.skip("an FP32 SVD has no guard, and promises nothing of a graded tail")
    weight, ratios = make(256, 1024), (0.9, 0.5, 0.1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        stack = reduce_blocks(weight.cuda(), ratios=ratios, precision=precision, backend=backend).cpu()
    finally:
        torch.set_float32_matmul_precision(before)
    for reduced, ratio in zip(stack, ratios, strict=True):
        least = oracle.residuals(weight, [int(256 * ratio)], [list(range(256))])
        assert float((weight - reduced).norm()) <= least * (1 + 1e-6)


def test_results_are_the_same_bits_when_computed_again(backend):
    weight, grad = gapped(2, 96, 160, dtype=torch.bfloat16).cuda(), gaussian(2, 96, 160).cuda()
    for call in (
        lambda: block_svd(weight, blocks=3, backend=backend).basis,
        lambda: score_blocks(weight, grad, blocks=3, backend=backend).grad,
        lambda: reduce_blocks(weight, ratios=[0.2, 0.7], blocks=3, backend=backend),
    ):
        first = call()
        assert all(torch.equal(call(), first) for _ in range(3))


def test_factors_on_another_device_are_refused():
    weight = gapped(8, 12)
    with pytest.raises(LasertriError, match="on cuda:0, got factors"):
        score_blocks(weight.cuda(), weight.cuda(), factors=block_svd(weight))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_an_error(value, backend):
    weight = gapped(12, 17).cuda()
    weight[7, 3] = value
    with pytest.raises(LasertriError, match=r"NaN or Inf in .*`weight`"):
        block_svd(weight, blocks=3, backend=backend)


def test_lasers_drop_in_is_exact_and_factors_once(monkeypatch):
    calls, factor = [], laser.block_svd
    monkeypatch.setattr(laser, "block_svd", lambda weight: calls.append(1) or factor(weight))
    laser._factors.cache_clear()
    weight = gapped(64, 160, dtype=torch.float32)
    for ratio in (0.9, 0.5, 0.05):
        reduced = laser.do_low_rank(weight.cuda(), ratio)
        expected = oracle.reduction(weight, [int(64 * ratio)], [list(range(64))])
        torch.testing.assert_close(reduced.detach().cpu().double(), expected, rtol=1e-6, atol=1e-9)
    assert len(calls) == 1
