import itertools

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spectra import gapped, gaussian, power_law, spiked, stacked

from lasertri import LasertriError, Partition, block_svd, reduce_blocks
from lasertri.ops import gram, truncate
from lasertri.ops.blocks import retained_rank
from lasertri.ops.products import PANEL_ELEMENTS

SHAPES = [(1, 1), (1, 7), (7, 1), (13, 13), (17, 31), (31, 17), (6, 97), (97, 6)]
SHAPES_AND_BLOCKS = [(shape, blocks) for shape in SHAPES for blocks in (1, 3, 4, 16) if blocks <= shape[0]]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LASER_RATIOS = (0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.01, 0.005)
RATIOS = (1.0, 0.7, 0.5, 0.2, 0.0)


def laser_ranks(ratio, blocks, columns):
    return [retained_rank(min(len(block), columns), ratio) for block in blocks]


def assert_reduced(stack, weight, blocks, ratios=RATIOS):
    """Every truncation is the FP64 one to the last unit its dtype stores."""
    assert stack.shape == (len(ratios), *weight.shape)
    assert stack.dtype == weight.dtype
    unit = 1e-9 if weight.dtype == torch.float64 else torch.finfo(weight.dtype).eps
    absolute = 1e-9 * float(weight.abs().max()) + torch.finfo(weight.dtype).tiny
    for got, ratio in zip(stack, ratios, strict=True):
        expected = oracle.reduction(weight, laser_ranks(ratio, blocks, weight.shape[-1]), blocks)
        torch.testing.assert_close(got.double(), expected, rtol=unit, atol=absolute)


def worst_excess(weight, blocks, **options):
    """Largest relative excess over the optimal residual at LASER's nine ratios."""
    rows = oracle.row_lists(len(weight), blocks)
    stack = reduce_blocks(weight, ratios=LASER_RATIOS, blocks=blocks, **options)
    excess = []
    for reduced, ratio in zip(stack, LASER_RATIOS, strict=True):
        least = oracle.residuals(weight, laser_ranks(ratio, rows, weight.shape[-1]), rows)
        excess.append(float((weight - reduced).double().norm()) / least - 1)
    return max(excess)


@pytest.mark.parametrize(("shape", "blocks"), SHAPES_AND_BLOCKS)
def test_reductions_are_those_of_each_block(shape, blocks, backend):
    weight = gapped(*shape, seed=1)
    stack = reduce_blocks(weight, ratios=RATIOS, blocks=blocks, backend=backend)
    assert_reduced(stack, weight, oracle.row_lists(shape[0], blocks))


@pytest.mark.parametrize("shape", [(11, 29), (29, 11)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_reduced_in_fp64_and_rounded_once(dtype, shape, backend):
    weight = gapped(*shape, dtype=dtype)
    stack = reduce_blocks(weight, ratios=RATIOS, blocks=3, backend=backend)
    assert_reduced(stack, weight, oracle.row_lists(shape[0], 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reuse", [False, True], ids=["factored here", "factors given"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_full_rank_returns_the_weight_bit_for_bit(dtype, reuse, precision, shape):
    weight = gaussian(*shape, dtype=dtype)
    factors = block_svd(weight, blocks=3) if reuse else None
    kept = reduce_blocks(weight, ratios=[0.5, 1.0], blocks=3, factors=factors, precision=precision, backend="gram")
    assert torch.equal(kept[1], weight)
    assert kept[1].data_ptr() != weight.data_ptr()


@pytest.mark.parametrize("reuse", [False, True], ids=["factored here", "factors given"])
def test_full_rank_of_the_reference_is_the_weight_to_fp64_rounding(reuse):
    weight = gaussian(12, 20)
    factors = block_svd(weight, blocks=3) if reuse else None
    kept = reduce_blocks(weight, ratios=1.0, blocks=3, factors=factors, backend="reference")
    torch.testing.assert_close(kept, weight, rtol=0, atol=1e-14)


def test_rank_zero_returns_zeros(backend):
    weight = gaussian(12, 20, dtype=torch.bfloat16)
    assert not reduce_blocks(weight, ranks=0, blocks=3, backend=backend).any()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_ranks_may_repeat_and_come_in_any_order(ranks):
    weight = gapped(6, 9)
    stack = reduce_blocks(weight, ranks=ranks)
    rows = [list(range(6))]
    for got, rank in zip(stack, ranks, strict=True):
        torch.testing.assert_close(got, oracle.reduction(weight, [rank], rows), rtol=0, atol=1e-10)


@pytest.mark.parametrize("asked", [{"ranks": 2}, {"ratios": 0.5}, {"ratios": 1}, {"ratios": 0}])
def test_a_scalar_gives_the_shape_of_the_weight_and_a_sequence_a_stack(asked, backend):
    weight = gapped(8, 9)
    one = reduce_blocks(weight, **asked, blocks=2, backend=backend)
    several = reduce_blocks(weight, **{key: [value] for key, value in asked.items()}, blocks=2, backend=backend)
    assert one.shape == weight.shape
    assert several.shape == (1, *weight.shape)
    rank = asked.get("ranks", int(4 * asked.get("ratios", 0)))
    expected = oracle.reduction(weight, [rank] * 2, oracle.row_lists(8, 2))
    for got in (one, several[0]):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_rank_beyond_a_short_block_keeps_that_block_whole(dtype, backend):
    partition = Partition((0, 2, 9))
    weight = gapped(9, 12, dtype=dtype)
    reduced = reduce_blocks(weight, ranks=4, blocks=partition, backend=backend)
    expected = oracle.reduction(weight, [2, 4], [[0, 1], list(range(2, 9))])
    torch.testing.assert_close(reduced.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-10)


@pytest.mark.parametrize(
    ("offsets", "columns"),
    [((0, 2, 9, 12), 20), ((0, 2, 9, 12), 5), ((0, 1, 2, 12), 3), ((0, 5, 10, 12), 5)],
    ids=["all wide", "one taller than wide", "one-row blocks and a tall one", "as tall as wide"],
)
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("reuse", [False, True], ids=["factored here", "factors given"])
def test_clusters_of_unequal_height_go_back_to_the_rows_they_came_from(offsets, columns, precision, reuse, backend):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    partition = Partition(offsets, order)
    weight = gapped(12, columns, seed=4)
    factors = block_svd(weight, blocks=partition, backend=backend) if reuse else None
    stack = reduce_blocks(
        weight, ratios=RATIOS, blocks=partition, factors=factors, backend=backend, precision=precision
    )
    clusters = [order[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    loose = precision == "float32"  # the storage dtype then promises more than was asked for
    for got, ratio in zip(stack, RATIOS, strict=True):
        expected = oracle.reduction(weight, laser_ranks(ratio, clusters, columns), clusters)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 if loose else 1e-9)


@pytest.mark.parametrize("reuse", [False, True], ids=["factored here", "factors given"])
def test_leading_dimensions_are_a_stack_of_matrices(reuse, backend):
    weight = gapped(2, 3, 10, 14)
    factors = block_svd(weight, blocks=4, backend=backend) if reuse else None
    stack = reduce_blocks(weight, ratios=RATIOS, blocks=4, factors=factors, backend=backend)
    for i in range(2):
        for j in range(3):
            assert_reduced(stack[:, i, j], weight[i, j], oracle.row_lists(10, 4))


def test_an_empty_stack_stays_empty(backend):
    assert reduce_blocks(torch.zeros(0, 6, 9), ranks=[0, 1, 3], blocks=2, backend=backend).shape == (3, 0, 6, 9)


@pytest.mark.parametrize("source", ["reference", "gram"])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_factors_given_from_either_backend_give_the_same_reductions(shape, source, backend):
    weight = gapped(*shape)
    factors = block_svd(weight, blocks=3, backend=source)
    stack = reduce_blocks(weight, ratios=RATIOS, factors=factors, backend=backend)
    assert_reduced(stack, weight, oracle.row_lists(shape[0], 3))


def test_factors_given_are_the_ones_used():
    """Those of another matrix, which no factorisation of this weight would give."""
    weight, other = gapped(6, 9, seed=1), gapped(6, 9, seed=2)
    q = block_svd(other).basis[0, :, :2]
    reduced = reduce_blocks(weight, ranks=2, factors=block_svd(other))
    torch.testing.assert_close(reduced, q @ q.mT @ weight)


@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.mT.contiguous().mT,
        lambda w: torch.stack([w, w], dim=-1)[..., 0],
        lambda w: torch.nn.functional.pad(w, (2, 3))[:, 2:-3],
        lambda w: torch.nn.Parameter(w),
    ],
    ids=["transposed", "strided", "slice", "parameter"],
)
def test_strides_do_not_matter_and_the_input_is_neither_changed_nor_shared(view, backend):
    weight = gapped(12, 17)
    given_weight = view(weight.clone())
    stack = reduce_blocks(given_weight, ratios=RATIOS, blocks=3, backend=backend)
    assert_reduced(stack, weight, oracle.row_lists(12, 3))
    assert not stack.requires_grad
    stack.fill_(7)
    assert torch.equal(given_weight.detach(), weight)


def test_an_expanded_stack_is_reduced_like_a_copied_one(backend):
    weight = gapped(8, 11)
    stack = reduce_blocks(weight.expand(3, 8, 11), ratios=RATIOS, blocks=2, backend=backend)
    for i in range(3):
        assert_reduced(stack[:, i], weight, oracle.row_lists(8, 2))


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(6, 9),
        torch.ones(6, 9),
        torch.cat([torch.eye(3, 9), torch.zeros(3, 9)]),
        torch.eye(6, 9) * 5,
        torch.eye(3, 9).repeat(2, 1),
        torch.tensor([[-3.0]]),
    ],
    ids=["zero", "rank one", "zero rows", "all sigma equal", "duplicated rows", "one element"],
)
@pytest.mark.parametrize("turn", [False, True], ids=["wide", "tall"])
def test_degenerate_matrices_are_reduced_to_the_optimal_residual(weight, turn, precision, backend):
    weight = weight.mT if turn else weight
    length = min(weight.shape)
    stack = reduce_blocks(weight, ranks=range(length + 1), backend=backend, precision=precision)
    for rank, reduced in enumerate(stack):
        least = oracle.residuals(weight, [rank], [list(range(len(weight)))])  # ties: the residual is unique, A_k not
        assert float((weight - reduced).double().norm()) == pytest.approx(
            least, rel=1e-6, abs=1e-6 * (1 + float(weight.norm()))
        )
        assert torch.linalg.matrix_rank(reduced.double(), atol=1e-5) <= rank


@pytest.mark.parametrize("make", [gaussian, spiked, power_law])
@pytest.mark.parametrize(("rows", "columns"), [(64, 192), (192, 64), (96, 96)])
@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_excess_over_the_optimal_residual_is_below_one_in_a_million(make, rows, columns, blocks, precision):
    weight = stacked(make, rows, columns, blocks, seed=3)  # FP64: nothing is lost in storing
    assert -1e-9 <= worst_excess(weight, blocks, precision=precision, backend="gram") <= 1e-6


@pytest.mark.parametrize(("rows", "columns"), [(96, 384), (384, 96)])
def test_the_guard_is_what_keeps_fp32_from_losing_a_graded_tail(rows, columns, monkeypatch):
    weight = power_law(rows, columns, condition=1e4)
    assert worst_excess(weight, 1, precision="float32", backend="gram") <= 1e-6
    monkeypatch.setattr(
        truncate, "resolved_in_fp32", lambda sigma, ranks, short: torch.ones(len(sigma), dtype=torch.bool)
    )
    assert worst_excess(weight, 1, precision="float32", backend="gram") >= 1e-2, "without the guard much is lost"


def spy_on_eigenproblems(monkeypatch):
    """The `(dtype, blocks)` of every factorisation from here on."""
    seen, factor = [], gram.block_svd

    def block_svd(blocks, side, *, dtype, **options):
        seen.append((dtype, len(blocks)))
        return factor(blocks, side, dtype=dtype, **options)

    monkeypatch.setattr(gram, "block_svd", block_svd)
    return seen


def test_a_flat_spectrum_stays_in_fp32(monkeypatch):
    seen = spy_on_eigenproblems(monkeypatch)
    reduce_blocks(gaussian(64, 256), ratios=LASER_RATIOS, precision="float32", backend="gram")
    assert seen == [(torch.float32, 1)]


def test_only_the_blocks_that_fp32_does_not_resolve_return_to_fp64(monkeypatch):
    seen = spy_on_eigenproblems(monkeypatch)
    flat, graded = gaussian(64, 256), power_law(64, 256)
    weight = torch.cat([flat, graded, flat])
    stack = reduce_blocks(weight, ratios=LASER_RATIOS, blocks=3, precision="float32", backend="gram")
    assert seen == [(torch.float32, 3), (torch.float64, 1)]
    in_fp64 = reduce_blocks(weight, ratios=LASER_RATIOS, blocks=3, backend="reference")
    torch.testing.assert_close(stack[:, 64:128], in_fp64[:, 64:128], rtol=0, atol=1e-10)
    assert not torch.allclose(stack[:, :64], in_fp64[:, :64], rtol=0, atol=1e-10), "the others stay in FP32"


def test_ranks_above_the_unresolved_tail_stay_in_fp32(monkeypatch):
    seen = spy_on_eigenproblems(monkeypatch)
    weight = power_law(64, 256)
    reduce_blocks(weight, ranks=[0, 1, 64], precision="float32", backend="gram")
    assert seen == [(torch.float32, 1)]


@pytest.mark.parametrize(("rows", "columns"), [(64, 256), (256, 64)])
def test_fp32_stays_as_close_as_a_plain_fp32_svd(rows, columns, backend):
    """The tolerance is what torch itself loses: a FP32 SVD of the same weight, truncated in FP32."""
    weight = gapped(rows, columns, dtype=torch.float32)
    u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
    stack = reduce_blocks(weight, ranks=[1, 8, 16], precision="float32", backend=backend)
    for rank, reduced in zip((1, 8, 16), stack, strict=True):
        exact = oracle.reduction(weight, [rank], [list(range(rows))])
        plain = (u[:, :rank] * sigma[:rank]) @ vh[:rank]
        assert float((reduced - exact).norm()) <= 10 * float((plain - exact).norm())


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_the_scale_of_a_weight_does_not_matter(scale, precision, backend):
    weight = gapped(9, 14) * scale
    reduced = reduce_blocks(weight, ranks=3, precision=precision, backend=backend)
    expected = oracle.reduction(weight, [3], [list(range(9))])
    torch.testing.assert_close(reduced / scale, expected / scale, rtol=0, atol=1e-5 if precision == "float32" else 1e-9)


@pytest.mark.parametrize("panel", [1, 100, 1000])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (3, 9, 14)])
def test_visiting_the_long_side_in_panels_changes_nothing(panel, shape, monkeypatch):
    monkeypatch.setitem(PANEL_ELEMENTS, "cpu", panel)
    weight = gapped(*shape)
    stack = reduce_blocks(weight, ratios=RATIOS, blocks=2, backend="gram")
    for got, one in zip(
        stack.reshape(5, -1, *shape[-2:]).transpose(0, 1), weight.reshape(-1, *shape[-2:]), strict=True
    ):
        assert_reduced(got, one, oracle.row_lists(shape[-2], 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_an_error_naming_the_weight(weight, value, backend):
    weight[3, 5] = value
    with pytest.raises(LasertriError, match="NaN or Inf in `weight`"):
        reduce_blocks(weight, ranks=1, backend=backend)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either `ranks` or `ratios`, got neither"),
        ({"ranks": 1, "ratios": 0.5}, "either `ranks` or `ratios`, got both"),
        ({"ranks": 9}, "ranks from 0 to 8, got 9"),
        ({"ranks": -1}, "ranks from 0 to 8, got -1"),
        ({"ranks": [1, 9]}, "got 9"),
        ({"ranks": [1.5]}, r"got 1\.5"),
        ({"ranks": []}, "at least one rank or ratio"),
        ({"ranks": 5, "blocks": 3}, "ranks from 0 to 4, got 5"),
        ({"ratios": 1.01}, r"ratios from 0 to 1, got 1\.01"),
        ({"ratios": [-0.1]}, r"got -0\.1"),
        ({"ratios": float("nan")}, "got nan"),
        ({"ratios": []}, "at least one rank or ratio"),
        ({"ranks": 1, "blocks": 13}, "between 1 and 12 blocks"),
        ({"ranks": 1, "blocks": 0}, "between 1 and 12 blocks"),
        ({"ranks": 1, "backend": "magma"}, "got 'magma'"),
        ({"ranks": 1, "precision": "tf32"}, r"\['float64', 'float32'\], got 'tf32'"),
    ],
)
def test_options_that_cannot_be_used_are_errors_saying_what_came(weight, options, message):
    with pytest.raises(LasertriError, match=message):
        reduce_blocks(weight, **options)


@pytest.mark.parametrize("shape", [(12, 9), (10, 8), (2, 12, 8)])
def test_factors_of_another_weight_are_an_error(weight, shape):
    factors = block_svd(gapped(*shape), blocks=3)
    with pytest.raises(LasertriError, match=r"factors of this weight \[12, 8\]|partition of 12 rows"):
        reduce_blocks(weight, ranks=1, factors=factors)


@pytest.mark.parametrize("scale", [1e-23, 1e25])
def test_fp32_squares_that_leave_its_range_are_made_in_fp64(scale):
    weight = (gapped(8, 12) * scale).float()
    reduced = reduce_blocks(weight, ranks=3, precision="float32", backend="gram").double()
    expected = oracle.reduction(weight, [3], [list(range(8))])
    torch.testing.assert_close(reduced / scale, expected / scale, rtol=1e-5, atol=1e-6)


def test_numbers_from_numpy_are_ranks_and_ratios_too():
    weight = gapped(8, 12)
    for asked, plain in (({"ranks": np.int64(3)}, {"ranks": 3}), ({"ratios": np.float32(0.5)}, {"ratios": 0.5})):
        assert torch.equal(reduce_blocks(weight, **asked), reduce_blocks(weight, **plain))
    assert reduce_blocks(weight, ranks=np.array([1, 2])).shape == (2, 8, 12)
    with pytest.raises(LasertriError, match="got 'x'"):
        reduce_blocks(weight, ratios="x")


@pytest.mark.parametrize(
    ("length", "rank", "dtype"),
    [
        (64, 32, torch.float32),
        (64, 33, torch.float64),
        (64, 64, torch.float32),  # nothing is cut
        (70, 60, torch.float64),
        (72, 60, torch.float32),  # (1 - √(64/72)) / (1 + √(64/72)) = 0.029, and 10 √(64 eps) = 0.028
        (512, 63, torch.float32),
    ],
)
@pytest.mark.parametrize("turn", [False, True], ids=["wide", "tall"])
def test_fp32_is_tried_where_a_gaussian_block_would_be_resolved(length, rank, dtype, turn):
    block = torch.ones(1, length, 64) if turn else torch.ones(1, 64, length)
    assert truncate.dtype_to_try(block, [1, rank], "float32") == dtype
    assert truncate.dtype_to_try(block, [1, rank], "float64") == torch.float64
    assert truncate.dtype_to_try(1e13 * block, [1, rank], "float32") == torch.float64
