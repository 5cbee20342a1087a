"""The ops as PyTorch sees them: schemas, fakes, compiled code, and what an import does not do."""

import doctest
import subprocess
import sys

import pytest
import torch
from marks import slow
from spectra import gapped, gaussian

from lasertri import (
    LasertriError,
    Partition,
    block_svd,
    linear_blocks,
    lowrank_blocks,
    reduce_blocks,
    scale_blocks,
    score_blocks,
    whiten_blocks,
    whiten_moments,
)
from lasertri.ops import functional, library

OFFSETS = [0, 3, 7, 10]
ORDER = torch.randperm(10, generator=torch.Generator().manual_seed(0))
SHAPES = {"wide": (10, 13), "tall blocks": (10, 3), "stack": (2, 10, 6)}


@pytest.fixture(params=SHAPES)
def matrix(request):
    return gapped(*SHAPES[request.param], dtype=torch.float32)


@pytest.fixture(params=[None, ORDER], ids=["rows as they stand", "rows in an order"])
def order(request):
    return request.param


def test_opcheck_block_svd(matrix, order, backend):
    torch.library.opcheck(library.block_svd, (matrix, OFFSETS, order, backend, "auto"))


@pytest.mark.parametrize("reuse", [False, True], ids=["factored here", "factors given"])
def test_opcheck_score_blocks(matrix, order, reuse, backend):
    basis, sigma = library.block_svd(matrix, OFFSETS, order, backend, "auto") if reuse else (None, None)
    arguments = (matrix, gaussian(*matrix.shape, dtype=torch.bfloat16), basis, sigma, OFFSETS, order, backend)
    torch.library.opcheck(library.score_blocks, arguments)


@pytest.mark.parametrize("reuse", [False, True], ids=["factored here", "factors given"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_opcheck_reduce_blocks(matrix, order, reuse, precision, backend):
    basis = library.block_svd(matrix, OFFSETS, order, backend, "auto")[0] if reuse else None
    ranks = [1, 2, 1, 3, 3, 3]
    torch.library.opcheck(library.reduce_blocks, (matrix, basis, ranks, OFFSETS, order, backend, precision))


@pytest.mark.parametrize("given", [False, True], ids=["x alone", "all that may be known"])
def test_opcheck_linear_blocks(order, given, backend):
    matrix = gapped(10, 13, dtype=torch.float32)
    basis = library.block_svd(matrix, OFFSETS, order, backend, "auto")[0]
    x = gaussian(4, 13, dtype=torch.bfloat16)
    bias, projected = (torch.ones(10), torch.ones(10, basis.shape[-1])) if given else (None, None)
    arguments = (x, matrix, bias, projected, basis, [1, 2, 1, 3, 3, 3], OFFSETS, order, backend)
    torch.library.opcheck(library.linear_blocks, arguments)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_opcheck_scale_blocks(matrix, order, precision, backend):
    basis, sigma = library.block_svd(matrix, OFFSETS, order, backend, "auto")
    arguments = (matrix, torch.rand_like(sigma), basis, OFFSETS, order, backend, precision)
    torch.library.opcheck(library.scale_blocks, arguments)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_opcheck_lowrank_blocks(matrix, order, precision, backend):
    torch.library.opcheck(library.lowrank_blocks, (matrix, 2, OFFSETS, order, backend, precision))


@pytest.mark.parametrize("shape", [(5, 10, 13), (20, 10, 6)], ids=["few tokens", "many"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_opcheck_whitening(shape, precision, order, backend):
    count, rows, columns = shape
    deltas, x = gaussian(2, count, rows, dtype=torch.float32), gaussian(2, count, columns, dtype=torch.bfloat16)
    options = (3, OFFSETS, order, 0.1, backend, precision)
    torch.library.opcheck(library.whiten_blocks, (deltas, x, *options))
    moments = deltas.mT @ x.float(), deltas.mT @ deltas, x.mT @ x
    torch.library.opcheck(library.whiten_moments, (*moments, *options))


def everything(weight, grad, blocks):
    factors = block_svd(weight, blocks=blocks)
    scores = score_blocks(weight, grad, factors=factors)
    reduced = reduce_blocks(weight, ratios=[0.5, 0.25], factors=factors)
    alone = reduce_blocks(weight * 2, ranks=1, blocks=blocks)
    alone += reduce_blocks(weight, ranks=1, blocks=blocks, inputs=grad.mT @ grad)
    outputs = linear_blocks(grad, weight, ranks=[1, 2], factors=factors) if weight.dim() == 2 else reduced
    shrunk = scale_blocks(weight, 1 - 0.01 * scores.grad, factors=factors)
    whitened = whiten_blocks(weight.mT, grad.mT[..., :5], rank=1, blocks=blocks)
    plain = lowrank_blocks(grad, rank=2, blocks=blocks)
    of_moments = whiten_moments(grad, weight @ weight.mT, grad.mT @ grad, rank=1, blocks=blocks)
    return (
        factors.sigma,
        scores.sigma,
        scores.grad,
        scores.tail([1, 2]),
        reduced.sum(0) + alone,
        outputs,
        shrunk,
        *whitened,
        *plain,
        *of_moments,
    )


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("blocks", [slow(1), 3, slow(Partition((0, 3, 10))), Partition((0, 4, 10), ORDER)], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_compiled_whole_gives_the_eager_result(blocks, shape):
    weight, grad = gapped(*shape, dtype=torch.float32), gaussian(*shape, dtype=torch.float32)
    results = compiled(everything)(weight, grad, blocks)
    for got, expected in zip(results, everything(weight, grad, blocks), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_compiled_code_may_name_a_backend(backend):
    def truncated(weight):
        return reduce_blocks(weight, ranks=2, factors=block_svd(weight, blocks=2, backend=backend), backend=backend)

    weight = gapped(10, 13, dtype=torch.float32)
    assert torch.equal(compiled(truncated)(weight), truncated(weight))
    with pytest.raises(LasertriError, match="got 'magma'"):
        compiled(lambda weight: block_svd(weight, backend="magma").sigma)(weight)


def test_compiled_code_takes_a_parameter_and_returns_no_grad():
    weight = torch.nn.Parameter(gapped(10, 13, dtype=torch.float32))
    results = compiled(everything)(weight, torch.ones(10, 13), 2)
    assert not any(result.requires_grad for result in results[:4])


@pytest.mark.parametrize("name", ["weight", "grad"])
def test_a_value_that_is_not_finite_is_an_error_inside_compiled_code_too(name):
    function = compiled(lambda weight, grad: score_blocks(weight, grad, blocks=2).grad)
    tensors = {"weight": gapped(10, 13), "grad": gaussian(10, 13)}
    assert function(**tensors).isfinite().all()
    tensors[name][0, 0] = torch.nan
    with pytest.raises(LasertriError, match=f"NaN or Inf in `{name}`"):
        function(**tensors)


def test_results_are_the_same_bits_when_computed_again(matrix, backend):
    grad = gaussian(*matrix.shape)
    for call in (
        lambda: block_svd(matrix, blocks=2, backend=backend).basis,
        lambda: score_blocks(matrix, grad, blocks=2, backend=backend).grad,
        lambda: reduce_blocks(matrix, ranks=[1, 2], blocks=2, backend=backend),
    ):
        assert torch.equal(call(), call())


def test_a_first_call_does_not_import_the_compiler():
    program = """
import sys, torch
from lasertri import block_svd, reduce_blocks
reduce_blocks(torch.eye(3), ranks=1, factors=block_svd(torch.eye(3)))
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_examples_of_the_public_ops_run():
    results = doctest.testmod(functional)
    assert results.attempted > 0
    assert results.failed == 0


def test_importing_is_silent_and_touches_neither_cuda_nor_transformers():
    program = """
import sys, torch, lasertri
assert callable(lasertri.score_blocks)
assert not torch.cuda.is_initialized(), "CUDA was initialised"
heavy = {"transformers", "datasets", "triton", "matplotlib"} & set(sys.modules)
assert not heavy, f"imported {heavy}"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
