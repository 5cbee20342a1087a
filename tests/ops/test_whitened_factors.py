"""Factors weighted by the inputs' second moments: truncation with the least error of the outputs."""

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra import gapped, gaussian

from lasertri import (
    LasertriError,
    Partition,
    block_svd,
    linear_blocks,
    reduce_blocks,
    scale_blocks,
    score_blocks,
)
from lasertri.ops import gram, library, reference
from lasertri.ops.pairs import truncated_factors

SHAPES = [(1, 1), (1, 7), (7, 1), (13, 13), (17, 31), (31, 17)]
OFFSETS = [0, 3, 7, 10]


def moment_of(columns, seed=0, tokens=None, *lead):
    """XᵀX of tokens whose features differ in scale by a hundred."""
    tokens = 3 * columns if tokens is None else tokens
    x = gaussian(*lead, tokens, columns, seed=seed) * torch.logspace(0, -2, columns, dtype=torch.float64)
    return x.mT @ x


def error(weight, reduced, moment, damping=0.01):
    """‖(A − A_k) (C + λ)^½‖."""
    return float(((weight.double() - reduced.double()) @ oracle.moment_root(moment, damping)).norm())


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_block_is_the_best_of_its_rank_for_these_inputs(shape, blocks, backend):
    if blocks > shape[0]:
        pytest.skip("more blocks than rows")
    weight, moment, rows = gapped(*shape, seed=1), moment_of(shape[1]), oracle.row_lists(shape[0], blocks)
    for rank in range(min(len(rows[-1]), shape[1]) + 1):
        found = reduce_blocks(weight, ranks=rank, blocks=blocks, inputs=moment, backend=backend)
        expected = oracle.whitened_reduction(weight, moment, 0.01, [rank] * blocks, rows)
        least = error(weight, expected, moment)
        assert error(weight, found, moment) == pytest.approx(least, rel=1e-6, abs=1e-8 * float(weight.norm()))
        if rank < min(shape) and blocks == 1:  # gapped
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@settings(max_examples=25)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    rank=st.integers(0, 12),
    tokens=st.integers(1, 20),
    damping=st.floats(1e-4, 10),
    seed=st.integers(0, 99),
)
def test_no_plain_truncation_and_no_other_matrix_of_the_rank_is_better(rows, columns, rank, tokens, damping, seed):
    weight, moment = gaussian(rows, columns, seed=seed), moment_of(columns, seed, tokens)
    rank = min(rank, rows, columns)
    found = reduce_blocks(weight, ranks=rank, inputs=moment, damping=damping)
    sigma = torch.linalg.svdvals(weight @ oracle.moment_root(moment, damping))
    small = 1e-6 * float(sigma[0])
    assert error(weight, found, moment, damping) == pytest.approx(float(sigma[rank:].norm()), rel=1e-6, abs=small)
    assert torch.linalg.matrix_rank(found, atol=1e-9, rtol=1e-9) <= rank
    plain = reduce_blocks(weight, ranks=rank)
    assert error(weight, found, moment, damping) <= error(weight, plain, moment, damping) + small
    changed = found * (1 + 1e-3 * gaussian(rows, 1, seed=seed + 1))  # rows scaled: of the same rank
    assert error(weight, found, moment, damping) <= error(weight, changed, moment, damping) + small


@pytest.mark.parametrize("shape", [(11, 17), (17, 11)])
def test_inputs_that_are_all_alike_give_the_plain_truncation(shape, backend):
    weight = gapped(*shape)
    stack = reduce_blocks(weight, ranks=[2, 5], inputs=torch.eye(shape[1]), backend=backend)
    torch.testing.assert_close(stack, reduce_blocks(weight, ranks=[2, 5], backend=backend), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(11, 17), (17, 11)])
def test_moments_of_zero_are_as_good_as_none(shape, backend):
    weight = gapped(*shape)
    found = reduce_blocks(weight, ranks=3, inputs=torch.zeros(shape[1], shape[1]), backend=backend)
    torch.testing.assert_close(found, reduce_blocks(weight, ranks=3, backend=backend), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_the_scale_of_the_moments_does_not_matter(scale, backend):
    weight, moment = gapped(11, 17), moment_of(17)
    one, other = (reduce_blocks(weight, ranks=3, inputs=c, backend=backend) for c in (moment, scale * moment))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(11, 17), (17, 11)])
def test_full_rank_returns_the_weight(shape, dtype, backend):
    weight = gaussian(*shape, dtype=dtype)
    kept = reduce_blocks(weight, ratios=1.0, inputs=moment_of(shape[1]), backend=backend)
    torch.testing.assert_close(kept, weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_weights_and_moments_are_widened_not_rounded_again(dtype, backend):
    """A BF16 moment has negative eigenvalues beyond its damping: they count as zero."""
    x = gaussian(10, 17)
    weight, moment = gapped(11, 17, dtype=dtype), (x.mT @ x).to(dtype)
    lowest = torch.linalg.eigvalsh(moment.double()).min()
    assert (lowest < -1e-4 * moment.diagonal().mean()) == (dtype == torch.bfloat16), "the test's own premise"
    found = reduce_blocks(weight, ranks=4, inputs=moment, damping=1e-4, backend=backend)
    expected = oracle.whitened_reduction(weight, moment, 1e-4, [4], [range(11)])
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_the_factors_are_those_of_the_weighted_blocks_in_a_stack_with_an_order(backend):
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    partition = Partition(tuple(OFFSETS), order)
    for columns in (3, 13):
        weight, moments = gapped(2, 10, columns, seed=3), moment_of(columns, 1, None, 2)
        factors = block_svd(weight, blocks=partition, inputs=moments, backend=backend)
        assert (factors.side, factors.whitened) == ("left", True)
        for i in range(2):
            for j, rows in enumerate(order.split([3, 4, 3])):
                whitened = weight[i][rows] @ oracle.moment_root(moments[i], 0.01)
                length = min(len(rows), columns)
                u, sigma = factors.basis[i, j, : len(rows), :length], factors.sigma[i, j, :length]
                torch.testing.assert_close(sigma, torch.linalg.svdvals(whitened), rtol=1e-8, atol=1e-9)
                torch.testing.assert_close(u.mT @ u, torch.eye(length, dtype=torch.float64), rtol=0, atol=1e-10)
                crossed = u.mT @ whitened @ whitened.mT @ u
                torch.testing.assert_close(crossed, torch.diag(sigma.square()), rtol=1e-8, atol=1e-8)
        stack = reduce_blocks(weight, ranks=2, factors=factors, backend=backend)
        for i in range(2):
            rows = [part.tolist() for part in order.split([3, 4, 3])]
            expected = oracle.whitened_reduction(weight[i], moments[i], 0.01, [2] * 3, rows)
            assert error(weight[i], stack[i], moments[i]) == pytest.approx(error(weight[i], expected, moments[i]))


def test_one_moment_serves_a_whole_stack(backend):
    weight, moment = gapped(3, 8, 5), moment_of(5)
    shared = reduce_blocks(weight, ranks=2, inputs=moment, backend=backend)
    each = reduce_blocks(weight, ranks=2, inputs=moment.expand(3, 5, 5), backend=backend)
    torch.testing.assert_close(shared, each, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(11, 17), (17, 11)])
def test_outputs_and_thin_factors_are_those_of_the_truncated_weight(shape, backend):
    weight, x = gapped(*shape), gaussian(5, shape[1])
    factors = block_svd(weight, blocks=3, inputs=moment_of(shape[1]), backend=backend)
    truncated = reduce_blocks(weight, ranks=2, factors=factors, backend=backend)
    outputs = linear_blocks(x, weight, ranks=2, factors=factors, backend=backend)
    torch.testing.assert_close(outputs, x @ truncated.mT, rtol=0, atol=1e-9)
    pairs = truncated_factors(weight, factors, [2, 2, 2])
    torch.testing.assert_close(torch.cat([left @ right for left, right in pairs]), truncated, rtol=0, atol=1e-9)


@pytest.mark.parametrize("tokens", [3, 40])
def test_every_root_squares_to_the_damped_moment(tokens):
    moment = moment_of(17, tokens=tokens)
    damped = moment + 0.01 * moment.trace() / 17 * torch.eye(17)
    for backend in (reference, gram):
        root = backend.moment_root(moment, 0.01)
        torch.testing.assert_close(root @ root.mT, damped, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(10, 13), (10, 3), (2, 10, 6)])
def test_opcheck(shape, backend):
    weight, moment = gapped(*shape, dtype=torch.float32), moment_of(shape[-1]).float()
    torch.library.opcheck(library.block_svd, (weight, OFFSETS, None, backend, "auto", moment, 0.01))


def test_whitened_factors_do_not_score_or_scale(weight):
    factors = block_svd(weight, inputs=moment_of(8))
    for call in (
        lambda: score_blocks(weight, weight, factors=factors),
        lambda: scale_blocks(weight, factors.sigma, factors=factors),
    ):
        with pytest.raises(LasertriError, match="got whitened ones; call block_svd without inputs"):
            call()


@pytest.mark.parametrize(
    ("inputs", "damping", "message"),
    [
        (torch.eye(7), 0.01, r"expected inputs \[8, 8\] on cpu, .*, got \[7, 7\]"),
        (torch.ones(30, 8), 0.01, r"got \[30, 8\]"),
        (torch.eye(8, dtype=torch.int64), 0.01, "expected inputs in"),
        (torch.eye(8), 0.0, "expected a damping above 0, got 0.0"),
        (-torch.eye(8), 0.01, "negative squares on its diagonal"),
        (torch.full((8, 8), torch.nan), 0.01, "NaN or Inf in `inputs`"),
    ],
)
def test_moments_that_cannot_be_used_are_errors(weight, inputs, damping, message):
    with pytest.raises(LasertriError, match=message):
        block_svd(weight, inputs=inputs, damping=damping)
