"""Singular values of every block multiplied."""

import itertools

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spectra import gapped, gaussian

from lasertri import LasertriError, Partition, block_svd, scale_blocks, score_blocks
from lasertri.ops.products import PANEL_ELEMENTS

SHAPES = [(1, 1), (1, 7), (7, 1), (13, 13), (17, 31), (31, 17), (6, 97), (97, 6)]
SHAPES_AND_BLOCKS = [(shape, blocks) for shape in SHAPES for blocks in (1, 3, 4, 16) if blocks <= shape[0]]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def exactly(weight, scales, blocks):
    """By one plain FP64 SVD of each block."""
    out = torch.full(weight.shape, torch.nan, dtype=torch.float64)
    for block, s in zip(blocks, scales, strict=True):
        u, sigma, vh = torch.linalg.svd(weight[list(block)].double(), full_matrices=False)
        out[list(block)] = (u * sigma * s[: len(sigma)].double()) @ vh
    return out


def scales_of(factors, seed=5):
    return 1 + 0.5 * gaussian(*factors.sigma.shape, seed=seed).clamp(-1, 1)


def assert_scaled(got, weight, scales, blocks, *, precision="float64"):
    """The FP64 result to the last unit that the dtype, or the precision asked for, has."""
    assert (got.shape, got.dtype) == (weight.shape, weight.dtype)
    expected = exactly(weight, scales, blocks)
    unit = 1e-9 if weight.dtype == torch.float64 else torch.finfo(weight.dtype).eps
    absolute = 1e-9 if precision == "float64" else 8 * torch.finfo(torch.float32).eps
    absolute = absolute * float(torch.linalg.matrix_norm(weight.double(), 2)) + torch.finfo(weight.dtype).tiny
    torch.testing.assert_close(got.double(), expected, rtol=unit, atol=absolute)


@pytest.mark.parametrize(("shape", "blocks"), SHAPES_AND_BLOCKS)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_singular_values_are_multiplied_block_by_block(shape, blocks, precision, backend):
    weight = gapped(*shape, seed=1)
    factors = block_svd(weight, blocks=blocks, backend=backend)
    scales = scales_of(factors)
    got = scale_blocks(weight, scales, factors=factors, precision=precision, backend=backend)
    assert_scaled(got, weight, scales, oracle.row_lists(shape[0], blocks), precision=precision)


@pytest.mark.parametrize("shape", [(11, 29), (29, 11)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_rounded_once(dtype, shape, backend):
    weight = gapped(*shape, dtype=dtype)
    factors = block_svd(weight, blocks=3, backend=backend)
    scales = scales_of(factors)
    got = scale_blocks(weight, scales, factors=factors, backend=backend)
    assert_scaled(got, weight, scales, oracle.row_lists(shape[0], 3))


@pytest.mark.parametrize("columns", [20, 5])
@pytest.mark.parametrize("offsets", [(0, 2, 9, 12), (0, 1, 2, 12), (0, 5, 10, 12)])
def test_clusters_of_unequal_height_go_back_to_the_rows_they_came_from(offsets, columns, backend):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    weight = gapped(12, columns, seed=4)
    factors = block_svd(weight, blocks=Partition(offsets, order), backend=backend)
    scales = scales_of(factors)
    got = scale_blocks(weight, scales, factors=factors, backend=backend)
    assert_scaled(got, weight, scales, [order[a:b].tolist() for a, b in itertools.pairwise(offsets)])


def test_leading_dimensions_are_a_stack_of_matrices(backend):
    weight = gapped(2, 3, 10, 14)
    factors = block_svd(weight, blocks=4, backend=backend)
    scales = scales_of(factors)
    got = scale_blocks(weight, scales, factors=factors, backend=backend)
    for i in itertools.product(range(2), range(3)):
        assert_scaled(got[i], weight[i], scales[i], oracle.row_lists(10, 4))
    none = block_svd(weight[:0], blocks=4, backend=backend)
    assert scale_blocks(weight[:0], none.sigma, factors=none, backend=backend).shape == (0, 3, 10, 14)


@given(st.data())
def test_any_shape_and_partition_and_scales(data):
    rows, columns = (data.draw(st.sampled_from([1, 2, 3, 5, 7, 11, 13, 17])) for _ in range(2))
    blocks, dtype = data.draw(st.integers(1, rows)), data.draw(st.sampled_from(DTYPES))
    weight = gapped(rows, columns, seed=data.draw(st.integers(0, 99)), dtype=dtype)
    factors = block_svd(weight, blocks=blocks)
    scales = data.draw(st.sampled_from([0.0, 1.0, 3.0])) * scales_of(factors, seed=data.draw(st.integers(0, 99)))
    assert_scaled(scale_blocks(weight, scales, factors=factors), weight, scales, oracle.row_lists(rows, blocks))


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_of_one_return_the_weight_bit_for_bit(dtype, precision):
    weight = gaussian(12, 20, dtype=dtype)
    factors = block_svd(weight, blocks=3)
    got = scale_blocks(weight, torch.ones_like(factors.sigma), factors=factors, precision=precision, backend="gram")
    assert torch.equal(got, weight)
    assert got.data_ptr() != weight.data_ptr()


def test_a_step_of_the_singular_values_lowers_the_loss_as_predicted(backend):
    weight, slope = gapped(8, 12), gaussian(8, 12)
    factors = block_svd(weight, blocks=2, backend=backend)
    scores = score_blocks(weight, slope, factors=factors, backend=backend)
    step = 1e-3 * scores.sigma * scores.grad
    got = scale_blocks(weight, 1 - step, factors=factors, backend=backend)
    predicted = -float((step * scores.sigma * scores.grad).sum())
    assert float((slope * (got - weight)).sum()) == pytest.approx(predicted, rel=1e-9)  # the loss is linear here


@pytest.mark.parametrize("panel", [1, 100])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_visiting_the_long_side_in_panels_changes_nothing(panel, shape, monkeypatch):
    monkeypatch.setitem(PANEL_ELEMENTS, "cpu", panel)
    weight = gapped(*shape)
    factors = block_svd(weight, blocks=2)
    scales = scales_of(factors)
    got = scale_blocks(weight, scales, factors=factors, backend="gram")
    assert_scaled(got, weight, scales, oracle.row_lists(shape[0], 2))


@pytest.mark.parametrize("view", [lambda t: t.mT.contiguous().mT, lambda t: torch.stack([t, t], dim=-1)[..., 0]])
def test_strides_do_not_matter_and_nothing_is_differentiated(view, backend):
    weight = gapped(12, 17)
    factors = block_svd(weight, blocks=3, backend=backend)
    scales = scales_of(factors)
    given_weight = torch.nn.Parameter(view(weight.clone()))
    got = scale_blocks(given_weight, view(scales).requires_grad_(), factors=factors, backend=backend)
    assert_scaled(got, weight, scales, oracle.row_lists(12, 3))
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": torch.ones(3, 5)}, r"scales \[3, 4\].*got \[3, 5\]"),
        ({"scales": 0.5}, "scales in torch.float32.*got float"),
        ({"scales": torch.ones(3, 4, dtype=torch.int64)}, "scales in torch.float32.*got torch.int64"),
        ({"scales": torch.full((3, 4), torch.nan)}, "NaN or Inf in `scales`"),
        ({"weight": torch.full((12, 8), torch.nan)}, "NaN or Inf in `weight`"),
        ({"weight": torch.ones(12, 9)}, r"factors of this weight \[12, 9\]"),
        ({"factors": None}, "BlockFactors that block_svd returned, got NoneType"),
        ({"precision": "tf32"}, "got 'tf32'"),
        ({"backend": "magma"}, "got 'magma'"),
    ],
)
def test_what_does_not_fit_is_an_error_saying_what_it_got(weight, change, message):
    given_arguments = {"weight": weight, "scales": torch.ones(3, 4), "factors": block_svd(weight, blocks=3)}
    with pytest.raises(LasertriError, match=message):
        scale_blocks(**(given_arguments | change))
