"""The best rank of every block as a product of two thin factors."""

import itertools
import math

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spectra import gapped, gaussian, power_law, spiked, with_spectrum

from lasertri import LasertriError, Partition, lowrank_blocks
from lasertri.ops import gram, krylov

SHAPES = [(1, 1), (1, 7), (7, 1), (13, 13), (17, 31), (31, 17), (6, 97), (97, 6)]
SHAPES_AND_BLOCKS = [(shape, blocks) for shape in SHAPES for blocks in (1, 3, 4, 16) if blocks <= shape[0]]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def assert_best(step, weight, blocks, rank, *, excess=1e-9, precision="float64"):
    """A residual that no factors of this rank could make smaller, the SVD's σ, and √σ on both sides."""
    assert step.left.shape == (len(weight), rank)
    assert step.right.shape == (len(blocks), rank, weight.shape[1])
    assert step.left.dtype == step.right.dtype == torch.promote_types(weight.dtype, torch.float32)
    scale = float(weight.abs().max())
    unit = 16 * max(torch.finfo(step.left.dtype).eps, torch.finfo(getattr(torch, precision)).eps)
    for j, block in enumerate(blocks):
        a = weight[list(block)].double()
        sigma = torch.linalg.svdvals(a)
        kept = sigma[:rank]
        torch.testing.assert_close(
            step.sigma[j, : len(kept)], kept, rtol=excess**0.5, atol=1e-8 * scale + unit * float(sigma[0])
        )
        assert not step.sigma[j, len(kept) :].any(), "padding is zero"
        left, right = step.left[list(block)].double(), step.right[j].double()
        least = float(sigma[rank:].norm())
        assert float((a - left @ right).norm()) <= (1 + excess) * least + unit * float(a.norm())
        for side in (left.norm(dim=0), right.norm(dim=1)):
            torch.testing.assert_close(side, step.sigma[j].sqrt(), rtol=1e-6, atol=2e-3 * math.sqrt(scale))


@pytest.mark.parametrize(("shape", "blocks"), SHAPES_AND_BLOCKS)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_every_block_is_approximated_at_its_best_rank(shape, blocks, precision, backend):
    weight, rows = gapped(*shape, seed=1), oracle.row_lists(shape[0], blocks)
    for rank in {0, 1, min(len(rows[0]), shape[1])}:
        step = lowrank_blocks(weight, rank=rank, blocks=blocks, precision=precision, backend=backend)
        assert_best(step, weight, rows, rank, precision=precision)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(11, 29), (29, 11)])
def test_every_dtype_is_factored_in_fp64(dtype, shape, backend):
    weight = gapped(*shape, dtype=dtype)
    step = lowrank_blocks(weight, rank=3, blocks=3, backend=backend)
    assert step.sigma.dtype == torch.float64
    assert_best(step, weight, oracle.row_lists(shape[0], 3), 3)


@pytest.mark.parametrize("columns", [20, 5])
@pytest.mark.parametrize("offsets", [(0, 2, 9, 12), (0, 1, 2, 12), (0, 5, 10, 12)])
def test_clusters_of_unequal_height_go_back_to_the_rows_they_came_from(offsets, columns, backend):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    weight = gapped(12, columns, seed=4)
    step = lowrank_blocks(weight, rank=2, blocks=Partition(offsets, order), backend=backend)
    assert_best(step, weight, [order[a:b].tolist() for a, b in itertools.pairwise(offsets)], 2)


def test_leading_dimensions_are_a_stack_of_matrices(backend):
    weight = gapped(2, 3, 10, 14)
    stack = lowrank_blocks(weight, rank=2, blocks=4, backend=backend)
    for i in itertools.product(range(2), range(3)):
        assert_best(type(stack)(*(part[i] for part in stack)), weight[i], oracle.row_lists(10, 4), 2)
    assert lowrank_blocks(weight[:0], rank=2, blocks=4, backend=backend).left.shape == (0, 3, 10, 2)


def graded_gradient(rows, columns, tokens):
    """A sum over tokens of which a few matter most, as gradients are."""
    weights = torch.logspace(0, -3, tokens, dtype=torch.float64)
    return (gaussian(rows, tokens, seed=1) * weights) @ gaussian(tokens, columns, seed=2)


LARGE = {
    "gradient": graded_gradient(520, 610, 90),
    "power law": power_law(520, 610, condition=1e3),
    "spiked": spiked(520, 610),
    "of lower rank": graded_gradient(520, 610, 5),
    "steep": with_spectrum(torch.logspace(0, -12, 520), 520, 610),
    "zero": torch.zeros(520, 610, dtype=torch.float64),
}


@pytest.mark.parametrize("turn", [False, True], ids=["wide", "tall"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", LARGE)
def test_a_few_components_of_a_large_matrix_need_no_eigenproblem_of_it(name, precision, turn, monkeypatch):
    monkeypatch.setattr(gram, "block_svd", None)
    weight = LARGE[name].mT if turn else LARGE[name]
    step = lowrank_blocks(weight, rank=8, precision=precision, backend="gram")
    assert_best(step, weight, [range(len(weight))], 8, excess=1e-7, precision=precision)
    again = lowrank_blocks(weight, rank=8, precision=precision, backend="gram")
    assert all(map(torch.equal, step, again))


def test_blocks_of_one_height_share_their_passes():
    weight = torch.stack([LARGE["gradient"], LARGE["power law"]])
    step = lowrank_blocks(weight, rank=4, backend="gram")
    for i in range(2):
        assert_best(type(step)(*(part[i] for part in step)), weight[i], [range(520)], 4, excess=1e-7)


def test_a_flat_spectrum_and_a_large_rank_go_to_the_eigenproblem(monkeypatch):
    assert krylov.leading_vectors(LARGE["spiked"][None], 100, torch.float64) is None
    monkeypatch.setattr(krylov, "SETTLED", 0)
    assert krylov.leading_vectors(gaussian(1, 520, 610), 8, torch.float64) is None
    weight = gaussian(520, 610)
    assert_best(lowrank_blocks(weight, rank=8, backend="gram"), weight, [range(520)], 8)


def test_a_spectrum_that_fp32_does_not_resolve_is_factored_in_fp64():
    """Beside a block that it does resolve, whose factors are as good."""
    steep = with_spectrum(10.0 ** -torch.arange(16.0, dtype=torch.float64), 16, 80)
    weight = torch.cat([steep, gapped(16, 80)])
    step = lowrank_blocks(weight, rank=6, blocks=2, precision="float32", backend="gram")
    assert_best(step, weight, [range(16), range(16, 32)], 6)


@given(st.data())
def test_any_shape_rank_and_scale_has_the_least_residual(data):
    rows, columns = (data.draw(st.sampled_from([1, 2, 3, 5, 7, 11, 13, 17])) for _ in range(2))
    blocks = data.draw(st.integers(1, rows))
    parts = oracle.row_lists(rows, blocks)
    rank = data.draw(st.integers(0, min(len(parts[0]), columns)))
    weight = gaussian(rows, columns, seed=data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        weight = weight[torch.arange(rows) // 2]
    scale = data.draw(st.sampled_from([1e-300, 1e-30, 1.0, 1e30, 1e300]))
    precision = data.draw(st.sampled_from(["float64", "float32"]))
    step = lowrank_blocks(scale * weight, rank=rank, blocks=blocks, precision=precision)
    root = scale**0.5
    unscaled = type(step)(step.left / root, step.right / root, step.sigma / scale)
    assert_best(unscaled, weight, parts, rank, precision=precision)


def test_fp16_holds_both_sides_of_a_gradient_that_a_one_sided_product_would_lose():
    weight = 1e-6 * gapped(12, 20, dtype=torch.float32)
    step = lowrank_blocks(weight, rank=12)
    stored = step.left.half().double() @ step.right[0].half().double()
    assert float((stored - weight).norm()) <= 2e-3 * float(weight.norm())


@pytest.mark.parametrize("view", [lambda t: t.mT.contiguous().mT, lambda t: torch.stack([t, t], dim=-1)[..., 0]])
def test_strides_do_not_matter_and_nothing_is_differentiated(view, backend):
    weight = gapped(12, 17)
    step = lowrank_blocks(torch.nn.Parameter(view(weight)), rank=3, blocks=3, backend=backend)
    assert_best(step, weight, oracle.row_lists(12, 3), 3)
    assert not any(part.requires_grad for part in step)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 5}, "ranks from 0 to 4, got 5"),
        ({"rank": 1.5}, "one rank, an integer, got 1.5"),
        ({"weight": torch.ones(3)}, r"weight \[.*got \[3\]"),
        ({"weight": torch.full((12, 8), torch.inf)}, "NaN or Inf in `weight`"),
        ({"precision": "tf32"}, "got 'tf32'"),
        ({"backend": "magma"}, "got 'magma'"),
    ],
)
def test_what_does_not_fit_is_an_error_saying_what_it_got(weight, change, message):
    with pytest.raises(LasertriError, match=message):
        lowrank_blocks(**({"weight": weight, "rank": 1, "blocks": 3} | change))
