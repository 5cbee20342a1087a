import itertools

import oracle
import pytest
import torch
from spectra import gapped, gaussian, power_law, spiked, stacked

from lasertri import LasertriError, Partition, block_svd, reduce_blocks, score_blocks

SHAPES = [(1, 1), (1, 7), (7, 1), (13, 13), (17, 31), (31, 17), (6, 97), (97, 6)]
SHAPES_AND_BLOCKS = [(shape, blocks) for shape in SHAPES for blocks in (1, 3, 4, 16) if blocks <= shape[0]]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def assert_factors(weight, factors, blocks):
    """σ is the SVD's, and Q spans what it should: Qᵀ Q = I, and Q Qᵀ A (or A Q Qᵀ) gives A back."""
    expected, _ = oracle.scores(weight, weight, blocks)
    scale = expected.max()
    torch.testing.assert_close(factors.sigma, expected, rtol=1e-9, atol=1e-9 * float(scale))
    assert (factors.sigma.diff(dim=-1) <= 0).all()
    for j, block in enumerate(blocks):
        a = weight[block].double()
        r = min(a.shape)
        q = factors.basis[j, : len(block) if factors.side == "left" else a.shape[1], :r]
        torch.testing.assert_close(q.mT @ q, torch.eye(r, dtype=torch.float64), rtol=0, atol=1e-12)
        coordinates = q.mT @ a if factors.side == "left" else (a @ q).mT
        torch.testing.assert_close(coordinates.norm(dim=-1), factors.sigma[j, :r], rtol=1e-9, atol=1e-12 * float(scale))
        crossed = coordinates @ coordinates.mT  # σ² on the diagonal: the vectors are the singular ones
        torch.testing.assert_close(
            crossed, torch.diag(factors.sigma[j, :r].square()), rtol=1e-9, atol=1e-12 * float(scale) ** 2
        )


@pytest.mark.parametrize(("shape", "blocks"), SHAPES_AND_BLOCKS)
def test_factors_are_those_of_each_block(shape, blocks, backend):
    weight = gapped(*shape, seed=1)
    factors = block_svd(weight, blocks=blocks, backend=backend)
    assert_factors(weight, factors, oracle.row_lists(shape[0], blocks))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_factored_in_fp64(dtype, backend):
    weight = gapped(11, 29, dtype=dtype)
    factors = block_svd(weight, blocks=3, backend=backend)
    assert factors.sigma.dtype == factors.basis.dtype == torch.float64
    assert_factors(weight, factors, oracle.row_lists(11, 3))


@pytest.mark.parametrize("make", [gaussian, spiked, power_law])
@pytest.mark.parametrize(("rows", "columns"), [(64, 192), (192, 64), (96, 96)])
@pytest.mark.parametrize("blocks", [1, 4])
def test_sigma_keeps_nine_digits_up_to_condition_1e4(make, rows, columns, blocks, backend):
    weight = stacked(make, rows, columns, blocks, seed=3)
    expected, _ = oracle.scores(weight, weight, oracle.row_lists(rows, blocks))
    assert float(expected[:, 0].max() / expected.min()) <= 1.001e4, "the test's own premise"
    sigma = block_svd(weight, blocks=blocks, backend=backend).sigma
    assert float((sigma / expected - 1).abs().max()) <= 1e-9


@pytest.mark.parametrize(
    ("offsets", "columns"),
    [((0, 2, 9, 12), 20), ((0, 2, 9, 12), 5), ((0, 1, 2, 12), 3), ((0, 5, 10, 12), 5)],
    ids=["all wide", "one taller than wide", "one-row blocks and a tall one", "as tall as wide"],
)
def test_clusters_of_unequal_height_take_their_rows_from_the_order(offsets, columns, backend):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    partition = Partition(offsets, order)
    weight = gapped(12, columns, seed=4)
    factors = block_svd(weight, blocks=partition, backend=backend)
    clusters = [order[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert_factors(weight, factors, clusters)
    assert factors.lengths == tuple(min(len(cluster), columns) for cluster in clusters)
    for j, length in enumerate(factors.lengths):
        assert not factors.sigma[j, length:].any(), "padding is zero"


def test_leading_dimensions_are_a_stack_of_matrices(backend):
    weight = gapped(2, 3, 10, 14)
    factors = block_svd(weight, blocks=4, backend=backend)
    assert factors.sigma.shape == (2, 3, 4, 3)
    assert factors.basis.shape == (2, 3, 4, 3, 3)
    for i in range(2):
        for j in range(3):
            one = factors._replace(basis=factors.basis[i, j], sigma=factors.sigma[i, j])
            assert_factors(weight[i, j], one, oracle.row_lists(10, 4))


def test_an_empty_stack_has_empty_factors(backend):
    factors = block_svd(torch.zeros(0, 6, 9), blocks=2, backend=backend)
    assert factors.sigma.shape == (0, 2, 3)
    assert factors.basis.shape == (0, 2, 3, 3)


@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.mT.contiguous().mT,
        lambda w: torch.stack([w, w], dim=-1)[..., 0],
        lambda w: w.flip(0).flip(0),
        lambda w: torch.nn.functional.pad(w, (2, 3))[:, 2:-3],
        lambda w: torch.nn.Parameter(w),
    ],
    ids=["transposed", "strided", "flipped", "slice", "parameter"],
)
def test_strides_do_not_matter_and_a_parameter_is_detached(view, backend):
    weight = gapped(12, 17)
    factors = block_svd(view(weight), blocks=3, backend=backend)
    assert_factors(weight, factors, oracle.row_lists(12, 3))
    assert not factors.sigma.requires_grad
    assert not factors.basis.requires_grad


DEGENERATE = {
    "zero": (torch.zeros(6, 9), [0.0] * 6),
    "rank one": (torch.ones(6, 9), [54**0.5] + [0.0] * 5),
    "zero rows": (torch.cat([torch.eye(3, 9) * 2, torch.zeros(3, 9)]), [2.0] * 3 + [0.0] * 3),
    "all sigma equal": (torch.eye(6, 9) * 5, [5.0] * 6),
    "duplicated rows": (torch.eye(3, 9).repeat(2, 1), [2**0.5] * 3 + [0.0] * 3),
    "tall and zero columns": (torch.eye(9, 6)[:, :6] * torch.tensor([1.0, 1, 1, 0, 0, 0]), [1.0] * 3 + [0.0] * 3),
    "one element": (torch.tensor([[-3.0]]), [3.0]),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_matrices_have_finite_factors(name, backend):
    weight, expected = DEGENERATE[name]
    factors = block_svd(weight, backend=backend)
    torch.testing.assert_close(factors.sigma[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-7)
    q = factors.basis[0]
    torch.testing.assert_close(q.mT @ q, torch.eye(q.shape[-1], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_scale_of_a_weight_does_not_matter(scale, backend):
    weight = gapped(9, 14, dtype=torch.float32).double() * scale
    expected, _ = oracle.scores(weight, weight, [list(range(9))])
    torch.testing.assert_close(block_svd(weight, backend=backend).sigma, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_an_error_naming_the_weight(weight, value, backend):
    weight[3, 5] = value
    with pytest.raises(LasertriError, match=r"NaN or Inf in (block 0 of )?`weight`"):
        block_svd(weight, backend=backend)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.ones(4, 4, dtype=torch.int64), "got torch.int64"),
        (torch.ones(4, 4, dtype=torch.complex64), "got torch.complex64"),
        ([[1.0]], "got list"),
        (torch.ones(4), r"\[\.\.\., rows, columns\].*got \[4\]"),
        (torch.tensor(1.0), r"got \[\]"),
        (torch.ones(0, 4), r"both positive, got \[0, 4\]"),
        (torch.ones(4, 0), r"both positive, got \[4, 0\]"),
        (torch.ones(3, 4, 0), r"both positive, got \[3, 4, 0\]"),
    ],
)
def test_what_is_no_weight_is_an_error_saying_what_came(bad, message):
    with pytest.raises(LasertriError, match=message):
        block_svd(bad)


def test_more_blocks_than_rows_is_an_error(weight):
    with pytest.raises(LasertriError, match="between 1 and 12 blocks"):
        block_svd(weight, blocks=13)


def test_a_partition_of_another_number_of_rows_is_an_error(weight):
    with pytest.raises(LasertriError, match="partition of 12 rows, got one of 10"):
        block_svd(weight, blocks=Partition.consecutive(10, 2))


def test_an_unknown_backend_is_an_error_listing_those_that_exist(weight):
    with pytest.raises(LasertriError, match=r"'auto', 'reference', 'gram'.*got 'magma'"):
        block_svd(weight, backend="magma")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_a_backend_that_cannot_run_says_why():
    from lasertri.ops.backends import choose_backend

    with pytest.raises(LasertriError, match=r"'gram' cannot run on cuda: torch sees no CUDA device"):
        choose_backend("gram", torch.device("cuda"))


@pytest.mark.parametrize(("scale", "got"), [(1e200, "larger"), (1e-170, "smaller")])
def test_squares_that_fp64_cannot_hold_are_refused_by_the_gram_matrix_and_named(scale, got, backend):
    if backend == "reference":
        pytest.skip("it squares nothing")
    weight = gapped(12, 20)
    weight[10:] *= scale  # block 4 of five: 3, 3, 2, 2 and 2 rows
    for call in (
        lambda **o: block_svd(weight, **o),
        lambda **o: score_blocks(weight, weight.sign(), **o),
        lambda **o: reduce_blocks(weight, ranks=1, **o),
        lambda **o: reduce_blocks(weight, ranks=1, precision="float32", **o),
    ):
        with pytest.raises(LasertriError, match=f"got {got} ones in block 4 of `weight`.*; scale them, or use"):
            call(blocks=5, backend=backend)
