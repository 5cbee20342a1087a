import itertools

import oracle
import pytest
import torch
from spectra import gapped, gaussian
from torch.nn.functional import linear

from lasertri import LasertriError, Partition, block_svd, linear_blocks, reduce_blocks, score_blocks
from lasertri.ops import project_blocks
from lasertri.ops.blocks import retained_rank
from lasertri.ops.products import PANEL_ELEMENTS

SHAPES = [(1, 7), (7, 1), (13, 13), (17, 31), (31, 17), (6, 97), (97, 6)]
SHAPES_AND_BLOCKS = [(shape, blocks) for shape in SHAPES for blocks in (1, 3, 4, 16) if blocks <= shape[0]]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
RATIOS = (0.5, 1.0, 0.0, 0.7, 0.5)


def truncations(weight, blocks, ratios=RATIOS):
    return [
        oracle.reduction(weight, [retained_rank(min(len(block), weight.shape[1]), ratio) for block in blocks], blocks)
        for ratio in ratios
    ]


def assert_outputs(stack, x, weight, bias, blocks, ratios=RATIOS):
    """At most twice as far from the FP64 outputs as what is done otherwise: an edited weight in the model's dtype."""
    assert stack.shape == (len(ratios), *x.shape[:-1], len(weight))
    assert stack.dtype == x.dtype
    for got, truncated in zip(stack, truncations(weight, blocks, ratios), strict=True):
        exact = linear(x.double(), truncated, None if bias is None else bias.double())
        edited = linear(x, truncated.to(x.dtype), bias)
        fp64 = 1e-13 * float(exact.norm())  # there "exact" is the edited weight itself
        assert float((got - exact).norm()) <= 2 * max(float((edited - exact).norm()), fp64)


@pytest.mark.parametrize(("shape", "blocks"), SHAPES_AND_BLOCKS)
def test_outputs_are_those_of_each_truncated_weight(shape, blocks, backend):
    weight, x, bias = gapped(*shape, seed=1), gaussian(5, shape[1], seed=2), gaussian(shape[0], seed=3)
    stack = linear_blocks(x, weight, bias, ratios=RATIOS, blocks=blocks, backend=backend)
    assert_outputs(stack, x, weight, bias, oracle.row_lists(shape[0], blocks))


@pytest.mark.parametrize("shape", [(67, 131), (131, 67)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_every_dtype_is_as_close_as_an_edited_weight(dtype, shape, biased, backend):
    weight, x = gapped(*shape, dtype=dtype), gaussian(3, 7, shape[1], seed=2, dtype=dtype)
    bias = 100 * gaussian(shape[0], seed=3, dtype=dtype) if biased else None
    stack = linear_blocks(x, weight, bias, ratios=RATIOS, blocks=3, backend=backend)
    assert_outputs(stack, x, weight, bias, oracle.row_lists(shape[0], 3))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_known_projections_are_used_and_change_nothing(dtype, ordered, backend):
    weight, x, bias = gapped(31, 7, dtype=dtype), gaussian(5, 7, dtype=dtype), gaussian(31, dtype=dtype)
    order = torch.randperm(31, generator=torch.Generator().manual_seed(3)) if ordered else None
    partition = Partition((0, 9, 26, 31), order)  # tall blocks, and one that is not
    factors = block_svd(weight, blocks=partition, backend=backend)
    projected = project_blocks(weight, factors)
    rows = torch.arange(31) if order is None else order
    clusters = [rows[a:b].tolist() for a, b in itertools.pairwise(partition.offsets)]
    stack = linear_blocks(x, weight, bias, ratios=RATIOS, factors=factors, projected=projected, backend=backend)
    assert_outputs(stack, x, weight, bias, clusters)
    if backend != "reference":
        nothing = torch.zeros_like(projected)
        zero = linear_blocks(x, weight, ratios=0.5, factors=factors, projected=nothing, backend=backend)
        assert not zero.any()


@pytest.mark.parametrize(
    ("offsets", "columns"),
    [((0, 2, 9, 12), 20), ((0, 2, 9, 12), 5), ((0, 1, 2, 12), 3), ((0, 5, 10, 12), 5)],
    ids=["all wide", "one taller than wide", "one-row blocks and a tall one", "as tall as wide"],
)
def test_clusters_of_unequal_height_go_back_to_the_rows_they_came_from(offsets, columns, backend):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    weight, x, bias = gapped(12, columns, seed=4), gaussian(3, columns), gaussian(12)
    stack = linear_blocks(x, weight, bias, ratios=RATIOS, blocks=Partition(offsets, order), backend=backend)
    clusters = [order[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert_outputs(stack, x, weight, bias, clusters)


@pytest.mark.parametrize("panel", [1, 100])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_visiting_the_weight_in_panels_changes_nothing(panel, shape, monkeypatch):
    monkeypatch.setitem(PANEL_ELEMENTS, "cpu", panel)
    weight, x = gapped(*shape), gaussian(4, shape[1])
    stack = linear_blocks(x, weight, ratios=RATIOS, blocks=2, backend="gram")
    assert_outputs(stack, x, weight, None, oracle.row_lists(shape[0], 2))


def test_a_scalar_gives_one_output_and_a_sequence_a_stack(backend):
    weight, x = gapped(8, 9), gaussian(2, 3, 9)
    one = linear_blocks(x, weight, ranks=2, blocks=2, backend=backend)
    several = linear_blocks(x, weight, ranks=[2], blocks=2, backend=backend)
    assert one.shape == (2, 3, 8)
    assert torch.equal(several[0], one)


@pytest.mark.parametrize("view", [lambda t: t.mT.contiguous().mT, lambda t: torch.stack([t, t], dim=-1)[..., 0]])
def test_strides_do_not_matter_and_nothing_is_differentiated(view, backend):
    weight, x = gapped(12, 17), gaussian(5, 17)
    parameter = torch.nn.Parameter(view(weight))
    stack = linear_blocks(view(x).requires_grad_(), parameter, ratios=RATIOS, blocks=3, backend=backend)
    assert_outputs(stack, x, weight, None, oracle.row_lists(12, 3))
    assert not stack.requires_grad


def test_no_activations_give_no_outputs(backend):
    assert linear_blocks(torch.zeros(0, 9), gapped(6, 9).float(), ranks=[1, 2], backend=backend).shape == (2, 0, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 7)}, r"x \[\.\.\., 8\].*got x \[3, 7\]"),
        ({"x": torch.ones(3, 8, dtype=torch.int64)}, "x in torch.float32.*got torch.int64"),
        ({"weight": torch.ones(2, 12, 8)}, r"two dimensions.*\[2, 12, 8\]"),
        ({"bias": torch.ones(12, dtype=torch.complex64)}, "bias in torch.float32 or .* got torch.complex64"),
        ({"factors": torch.ones(4)}, "BlockFactors that block_svd returned, got Tensor"),
        ({"bias": torch.ones(8)}, r"bias \[12\].*got \[8\]"),
        ({"projected": torch.ones(12, 7)}, r"projected \[12, 8\].*got \[12, 7\]"),
        (
            {"projected": torch.ones(12, 8, dtype=torch.bfloat16)},
            "torch.float32 or torch.float64, got .*bfloat16",
        ),
        ({"ranks": 9}, "ranks from 0 to 8, got 9"),
        ({"backend": "magma"}, "got 'magma'"),
        ({"factors": block_svd(torch.ones(4, 8))}, r"factors of this weight \[12, 8\]|partition of 12 rows"),
    ],
)
def test_what_does_not_fit_is_an_error_saying_what_came(weight, change, message):
    arguments = {"x": torch.ones(3, 8), "weight": weight, "ranks": 1} | change
    with pytest.raises(LasertriError, match=message):
        linear_blocks(**arguments)


def test_autocast_around_an_op_casts_nothing_within(backend):
    weight, x = gapped(64, 256, dtype=torch.float32), gaussian(5, 256, dtype=torch.float32)
    for call in (
        lambda: linear_blocks(x, weight, ranks=16, blocks=2, backend=backend),
        lambda: reduce_blocks(weight, ranks=16, blocks=2, precision="float32", backend=backend),
        lambda: score_blocks(weight, weight, blocks=2, backend=backend).grad,
    ):
        with torch.autocast("cpu", torch.bfloat16):
            inside = call()
        assert torch.equal(inside, call())


NEW = pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 and later have this interface"
)


@pytest.mark.parametrize("choose", ["medium", pytest.param("tf32", marks=NEW), pytest.param("general", marks=NEW)])
def test_a_precision_that_the_program_chose_for_its_own_products_is_not_ours(monkeypatch, choose):
    """By either of torch's interfaces; once the newer is used, the older one fails where it is asked."""
    from lasertri.ops import gram

    matmuls = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    seen, weight, x = [], gapped(12, 20, dtype=torch.float32), gaussian(5, 20, dtype=torch.float32)
    original = gram.linear_blocks
    monkeypatch.setattr(gram, "linear_blocks", lambda *a: seen.append(precisions()) or original(*a))

    def precisions():
        found = [getattr(matmul, "fp32_precision", None) for matmul in matmuls]
        return found if any(found) else torch.get_float32_matmul_precision()

    try:
        if choose == "medium":
            torch.set_float32_matmul_precision("medium")
        elif choose == "tf32":
            for matmul in matmuls:
                matmul.fp32_precision = "tf32"
        else:
            torch.backends.fp32_precision = "tf32"
        chosen = precisions()
        linear_blocks(x, weight, ranks=3, backend="gram")
        assert precisions() == chosen
    finally:
        if choose != "medium":
            torch.backends.fp32_precision = "none"
            for matmul in matmuls:
                matmul.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
    assert seen in (["highest"], [["ieee", "ieee"]])
