"""The compiled extension on the CPU: what the backend tests, which run on it too, do not ask."""

import subprocess
import sys

import oracle
import pytest
import torch
from spectra import gapped, gaussian, power_law, spiked, stacked

from lasertri import LasertriError, block_svd, reduce_blocks, score_blocks
from lasertri.ops import extension
from lasertri.ops.backends import choose_backend
from lasertri.ops.reference import gradient_floor

CPU = torch.device("cpu")
OBSTACLE = extension.why_not(CPU)
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=f"THE EXTENSION IS NOT TESTED: {OBSTACLE}")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
BOUND = 1 << 30


def factor(blocks, method="gram", fp64=True):
    return torch.ops.lasertri.factor_blocks(blocks, method, fp64, BOUND)


@pytest.fixture
def spy(monkeypatch):
    """The `(method, blocks)` of every call of the op from here on."""
    seen, original = [], extension.factor_blocks

    def factor_blocks(blocks, method, *rest):
        seen.append((method, len(blocks)))
        return original(blocks, method, *rest)

    monkeypatch.setattr(extension, "factor_blocks", factor_blocks)
    return seen


@pytest.fixture
def failing(monkeypatch):
    """Make the op report a status for one block of one method's batches."""

    def fail(method, index, bits):
        original = extension.factor_blocks

        def factor_blocks(blocks, asked, *rest):
            basis, sigma, status = original(blocks, asked, *rest)
            if asked == method:
                status[index] = bits
            return basis, sigma, status

        monkeypatch.setattr(extension, "factor_blocks", factor_blocks)

    return fail


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 7, 12), (3, 12, 7), (1, 5, 5), (0, 4, 6), (2, 0, 6), (2, 4, 0)])
@pytest.mark.parametrize("method", ["gram", "direct"])
@pytest.mark.parametrize("fp64", [True, False])
def test_opcheck(dtype, shape, method, fp64):
    blocks = gaussian(*shape, dtype=dtype) if 0 not in shape else torch.zeros(shape, dtype=dtype)
    torch.library.opcheck(torch.ops.lasertri.factor_blocks.default, (blocks, method, fp64, BOUND))


@pytest.mark.parametrize("method", ["gram", "direct"])
@pytest.mark.parametrize("shape", [(0, 4, 6), (2, 0, 6), (2, 4, 0)])
def test_nothing_in_gives_nothing_out(shape, method):
    basis, sigma, status = factor(torch.zeros(shape), method)
    length = min(shape[1:])
    assert basis.shape == (shape[0], shape[1], length)
    assert sigma.shape == (shape[0], length)
    assert status.tolist() == [0] * shape[0]


@pytest.mark.parametrize("method", ["gram", "direct"])
@pytest.mark.parametrize("fp64", [True, False])
@pytest.mark.parametrize("shape", [(3, 7, 12), (3, 12, 7), (3, 12, 12), (1, 300, 500)])
def test_the_op_gives_left_singular_vectors_and_their_norms(shape, method, fp64):
    blocks = gapped(*shape)
    basis, sigma, status = factor(blocks, method, fp64)
    assert basis.dtype == sigma.dtype == (torch.float64 if fp64 else torch.float32)
    assert not status.any()
    unit = 1e-10 if fp64 else 1e-4
    expected = torch.linalg.svdvals(blocks)
    torch.testing.assert_close(sigma.double().sort(descending=True).values, expected, rtol=unit, atol=unit)
    identity = torch.eye(sigma.shape[-1], dtype=torch.float64).expand(len(blocks), -1, -1)
    torch.testing.assert_close(basis.double().mT @ basis.double(), identity, rtol=0, atol=unit)
    torch.testing.assert_close((basis.double().mT @ blocks).norm(dim=-1), sigma.double(), rtol=unit, atol=unit)


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_long_side_of_several_panels_is_one_matrix(blocks, dtype):
    weight = gapped(16, 70_000, dtype=dtype).repeat(blocks, 1)
    factors = block_svd(weight, blocks=blocks, backend="cuda")
    expected = torch.linalg.svdvals(weight[:16].double())
    torch.testing.assert_close(factors.sigma, expected.expand(blocks, -1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("condition", [1e6, 1e7])
@pytest.mark.parametrize(("rows", "columns"), [(96, 384), (384, 96), (128, 128)])
def test_auto_is_as_accurate_as_an_svd_where_a_block_is_ill_conditioned(condition, rows, columns):
    weight = power_law(rows, columns, condition=condition, seed=2)
    grad = gaussian(rows, columns, seed=3)
    sigma, slope = oracle.scores(weight, grad, [list(range(rows))])
    smallest = torch.arange(sigma.shape[-1]) >= sigma.shape[-1] * 9 // 10
    asked = smallest & (sigma > 1.01 * gradient_floor(sigma, min(rows, columns)))[0]

    def errors(method):
        factors = block_svd(weight, backend="cuda", method=method)
        scores = score_blocks(weight, grad, factors=factors, backend="cuda")
        grads = (scores.grad - slope).abs()[0, asked] / slope.square().mean().sqrt()
        return float((factors.sigma / sigma - 1).abs().max()), grads

    sigma_error, grad_errors = errors("auto")
    assert sigma_error <= 1e-8
    assert sigma_error <= errors("gram")[0] / 10, "the Gram matrix alone loses much more"
    if asked.any():
        assert float(grad_errors.median()) <= 1e-6
        assert float(grad_errors.median()) <= float(errors("gram")[1].median()) / 10
    assert (errors("auto")[0], errors("auto")[1].tolist()) == (errors("direct")[0], errors("direct")[1].tolist())


def test_scores_without_factors_are_as_accurate():
    weight, grad = power_law(96, 384, condition=1e6), gaussian(96, 384, seed=3)
    _, slope = oracle.scores(weight, grad, [list(range(96))])
    error = (score_blocks(weight, grad, backend="cuda").grad - slope).abs()[0, -9:]
    assert float((error / slope.square().mean().sqrt()).median()) <= 1e-6


def test_only_the_blocks_that_the_gram_matrix_does_not_resolve_are_factored_again(spy):
    flat, graded = gaussian(64, 256), power_law(64, 256, condition=1e7)
    weight = torch.cat([flat, graded, flat])
    factors = block_svd(weight, blocks=3, backend="cuda")
    assert spy == [("gram", 3), ("direct", 1)]
    assert torch.equal(factors.basis[0], block_svd(weight, blocks=3, backend="cuda", method="gram").basis[0])
    expected = torch.linalg.svdvals(graded)
    torch.testing.assert_close(factors.sigma[1], expected, rtol=1e-8, atol=0)


def test_a_method_asked_for_by_name_is_the_only_one_used(spy):
    for method in ("gram", "direct"):
        block_svd(power_law(64, 256, condition=1e7), backend="cuda", method=method)
    assert spy == [("gram", 1), ("direct", 1)]


@pytest.mark.parametrize("make", [gaussian, spiked, power_law])
@pytest.mark.parametrize(("rows", "columns"), [(64, 192), (192, 64), (128, 128), (512, 512)])
def test_up_to_condition_1e4_no_block_is_factored_again(make, rows, columns, spy):
    for seed in range(3):
        block_svd(stacked(make, rows, columns, 2, seed=seed), blocks=2, backend="cuda")
    assert spy == [("gram", 2)] * 3


@pytest.mark.parametrize("weight", [torch.zeros(6, 9), torch.ones(6, 9), torch.eye(3, 9).repeat(2, 1)])
def test_zeros_below_the_gradient_floor_are_no_reason_to_factor_again(weight, spy):
    block_svd(weight, backend="cuda")
    assert spy == [("gram", 1)]


def test_guarded_fp32_returns_graded_blocks_to_fp64(spy):
    flat, graded = gaussian(64, 256), power_law(64, 256, condition=1e4)
    weight = torch.cat([flat, graded])
    stack = reduce_blocks(weight, ratios=[0.5], blocks=2, precision="float32", backend="cuda")
    assert spy == [("gram", 2), ("gram", 1)]
    exact = reduce_blocks(weight, ratios=[0.5], blocks=2, backend="reference")
    torch.testing.assert_close(stack[:, 64:], exact[:, 64:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["gram", "direct"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(2, 12, 20), (2, 12, 3)])
def test_a_value_that_is_not_finite_is_an_error_naming_block_and_matrix(method, value, shape):
    weight = gapped(*shape)
    weight[1, 5, 2] = value
    with pytest.raises(LasertriError, match=r"got NaN or Inf in block 1 of `weight` \(matrix 1\)"):
        block_svd(weight, blocks=3, backend="cuda", method=method)


def test_a_value_whose_square_overflows_is_an_error_for_the_gram_matrix_alone():
    weight = gapped(6, 9) * 1e200
    with pytest.raises(
        LasertriError, match=r"values whose squares torch\.float64 can hold, got larger ones in block 0"
    ):
        block_svd(weight, backend="cuda")
    sigma = block_svd(weight, backend="cuda", method="direct").sigma
    torch.testing.assert_close(sigma[0], torch.linalg.svdvals(weight), rtol=1e-9, atol=0)


@pytest.fixture
def no_svd_converges(monkeypatch):
    def svd(*_, **__):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", svd)


@pytest.mark.parametrize(("method", "what"), [("gram", "eigensolver"), ("direct", "SVD")])
def test_a_solver_that_does_not_converge_is_an_error_naming_the_block(method, what, failing, no_svd_converges):
    failing(method, 4, 2)
    with pytest.raises(LasertriError, match=rf"the {what} did not converge in block 1 of `weight` \(matrix 1\)"):
        block_svd(gapped(2, 12, 20), blocks=3, backend="cuda", method=method)


def test_an_svd_that_does_not_converge_is_made_again_by_qr_iteration(failing):
    failing("direct", 4, 2)
    weight = gapped(2, 12, 20)
    factors = block_svd(weight, blocks=3, backend="cuda", method="direct")
    for matrix, one in zip(weight, factors.sigma, strict=True):
        expected, _ = oracle.scores(matrix, matrix, oracle.row_lists(12, 3))
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(factors.basis.mT @ factors.basis, torch.eye(4).double().expand(2, 3, 4, 4))


def test_a_second_factorisation_that_fails_names_the_block_of_the_first(failing, no_svd_converges):
    failing("direct", 0, 2)
    weight = torch.cat([gaussian(64, 256), power_law(64, 256, condition=1e7)])
    with pytest.raises(LasertriError, match=r"the SVD did not converge in block 1 of `weight`"):
        block_svd(weight, blocks=2, backend="cuda")


@pytest.mark.parametrize(
    ("blocks", "method", "message"),
    [
        (torch.ones(2, 3, 4, dtype=torch.int64), "gram", "expected blocks in float32, float64.*got Long; convert"),
        (torch.ones(2, 3, 4, dtype=torch.complex64), "gram", "expected blocks in float32.*got ComplexFloat"),
        (torch.ones(3, 4), "gram", r"expected blocks \[B, short side, long side\], got 2 dimensions"),
        (torch.ones(2, 3, 4), "auto", "expected the method 'gram' or 'direct', got 'auto'"),
    ],
)
def test_what_the_op_cannot_take_is_an_error_saying_what_came(blocks, method, message):
    with pytest.raises(RuntimeError, match=message):
        factor(blocks, method)


def test_another_device_is_an_error_saying_which_it_has():
    meta = torch.ones(2, 3, 4, device="meta")
    with pytest.raises(LasertriError, match="cannot run on meta: its libraries are for CPU and CUDA tensors, got meta"):
        extension.factor_blocks(meta, "gram", True, BOUND)
    with pytest.raises(LasertriError, match="'cuda' cannot run on meta: its libraries"):
        choose_backend("cuda", meta.device)


@pytest.mark.parametrize("blocks", [1, 8])
@pytest.mark.parametrize("method", ["gram", "direct"])
def test_threads_do_not_matter_and_repetition_gives_the_same_bits(blocks, method):
    weight = stacked(gapped, 96, 160, blocks)
    threads = torch.get_num_threads()
    first = block_svd(weight, blocks=blocks, backend="cuda", method=method)
    again = block_svd(weight, blocks=blocks, backend="cuda", method=method)
    assert torch.equal(first.basis, again.basis)
    assert torch.equal(first.sigma, again.sigma)
    try:
        torch.set_num_threads(1)
        alone = block_svd(weight, blocks=blocks, backend="cuda", method=method)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(alone.sigma, first.sigma, rtol=1e-10, atol=0)
    projections = (f.basis[..., :8] @ f.basis[..., :8].mT for f in (first, alone))
    torch.testing.assert_close(*projections, rtol=0, atol=1e-10)


@pytest.mark.parametrize("blocks", [1, 8])
def test_inference_mode_makes_no_difference(blocks):
    weight = stacked(gapped, 32, 40, blocks)
    expected = block_svd(weight, blocks=blocks, backend="cuda")
    with torch.inference_mode():
        inside = block_svd(weight.clone(), blocks=blocks, backend="cuda")
    assert torch.equal(inside.basis, expected.basis)


def test_compiled_code_calls_the_op_as_eager_code_does():
    torch._dynamo.reset()
    blocks = gapped(2, 5, 9)
    function = torch.compile(lambda x: factor(x * 2)[1], fullgraph=True, backend="aot_eager")
    assert torch.equal(function(blocks), factor(blocks * 2)[1])


def test_the_library_is_loaded_when_first_used():
    program = """
import torch, lasertri
def loaded():
    return "lasertri/_cpu.so" in open("/proc/self/maps").read()
assert not loaded()
lasertri.block_svd(torch.eye(3), backend="gram")
assert not loaded()
lasertri.block_svd(torch.eye(3), backend="cuda")
assert loaded()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
