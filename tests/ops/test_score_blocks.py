import itertools

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spectra import gapped, gaussian, orthonormal, power_law, spiked, stacked

from lasertri import LasertriError, Partition, block_svd, score_blocks
from lasertri.ops.blocks import BlockScores

SHAPES = [(1, 1), (1, 7), (7, 1), (13, 13), (17, 31), (31, 17), (6, 97), (97, 6)]
SHAPES_AND_BLOCKS = [(shape, blocks) for shape in SHAPES for blocks in (1, 3, 4, 16) if blocks <= shape[0]]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def assert_scores(scores, weight, grad, blocks):
    sigma, slope = oracle.scores(weight, grad, blocks)
    torch.testing.assert_close(scores.sigma, sigma, rtol=1e-9, atol=1e-9 * float(sigma.max()))
    torch.testing.assert_close(scores.grad, slope, rtol=0, atol=1e-8 * float(slope.square().mean().sqrt()))


@pytest.mark.parametrize(("shape", "blocks"), SHAPES_AND_BLOCKS)
def test_scores_are_those_of_each_block(shape, blocks, backend):
    weight, grad = gapped(*shape, seed=1), gaussian(*shape, seed=2)
    scores = score_blocks(weight, grad, blocks=blocks, backend=backend)
    assert_scores(scores, weight, grad, oracle.row_lists(shape[0], blocks))


@pytest.mark.parametrize(("rows", "columns"), [(5, 8), (8, 5), (6, 6)])
def test_grad_is_what_autograd_finds_through_sigma(rows, columns, backend):
    u, v = orthonormal(rows, min(rows, columns), 5), orthonormal(columns, min(rows, columns), 6)
    sigma = torch.logspace(1, -1, min(rows, columns), dtype=torch.float64, requires_grad=True)
    weight = (u * sigma) @ v.mT
    weight.retain_grad()
    (weight * gaussian(rows, columns, seed=7)).sum().tanh().backward()  # any loss of the weight
    scores = score_blocks(weight, weight.grad, backend=backend)
    torch.testing.assert_close(scores.grad[0], sigma.grad, rtol=0, atol=1e-10 * float(sigma.grad.abs().max()))


def test_grad_is_the_slope_of_the_loss_as_one_sigma_moves(backend):
    weight, grad = gapped(5, 8), gaussian(5, 8, seed=8)
    u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
    scores = score_blocks(weight, grad, backend=backend)
    for i in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[i] = 1e-4
        up, down = ((u * s) @ vh for s in (sigma + step, sigma - step))
        slope = ((grad * up).sum() - (grad * down).sum()) / 2e-4
        assert float(scores.grad[0, i]) == pytest.approx(float(slope), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("grad_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_and_gradient_of_any_dtype_are_taken_exactly_as_stored(dtype, grad_dtype, backend):
    weight, grad = gapped(11, 29, dtype=dtype), gaussian(11, 29, seed=3, dtype=grad_dtype)
    scores = score_blocks(weight, grad, blocks=3, backend=backend)
    assert scores.sigma.dtype == scores.grad.dtype == torch.float64
    assert_scores(scores, weight, grad, oracle.row_lists(11, 3))


@pytest.mark.parametrize("make", [gaussian, spiked, power_law])
@pytest.mark.parametrize(("rows", "columns"), [(96, 384), (384, 96), (128, 128)])
@pytest.mark.parametrize("blocks", [1, 4])
def test_small_sigma_gradients_keep_six_digits_up_to_condition_1e4(make, rows, columns, blocks, backend):
    weight, grad = stacked(make, rows, columns, blocks, seed=5), gaussian(rows, columns, seed=4)
    sigma, expected = oracle.scores(weight, grad, oracle.row_lists(rows, blocks))
    assert float(sigma[:, 0].max() / sigma.min()) <= 1.001e4, "the test's own premise"
    error = (score_blocks(weight, grad, blocks=blocks, backend=backend).grad - expected).abs()
    smallest = max(1, sigma.shape[-1] // 10)
    relative = error[:, -smallest:] / expected.square().mean(-1, keepdim=True).sqrt()
    assert float(relative.median()) <= 1e-6


@pytest.mark.parametrize(
    ("offsets", "columns"),
    [((0, 2, 9, 12), 20), ((0, 2, 9, 12), 5), ((0, 1, 2, 12), 3), ((0, 5, 10, 12), 5)],
    ids=["all wide", "one taller than wide", "one-row blocks and a tall one", "as tall as wide"],
)
@pytest.mark.parametrize("reuse", [False, True], ids=["factored here", "factors given"])
def test_clusters_of_unequal_height_take_their_rows_from_the_order(offsets, columns, reuse, backend):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    partition = Partition(offsets, order)
    weight, grad = gapped(12, columns, seed=4), gaussian(12, columns, seed=5)
    factors = block_svd(weight, blocks=partition, backend=backend) if reuse else None
    scores = score_blocks(weight, grad, blocks=partition, factors=factors, backend=backend)
    clusters = [order[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert_scores(scores, weight, grad, clusters)
    assert scores.lengths == tuple(min(len(cluster), columns) for cluster in clusters)


@pytest.mark.parametrize("reuse", [False, True], ids=["factored here", "factors given"])
def test_leading_dimensions_are_a_stack_of_matrices(reuse, backend):
    weight, grad = gapped(2, 3, 10, 14), gaussian(2, 3, 10, 14)
    factors = block_svd(weight, blocks=4, backend=backend) if reuse else None
    scores = score_blocks(weight, grad, blocks=4, factors=factors, backend=backend)
    assert scores.grad.shape == (2, 3, 4, 3)
    tails = scores.tail([1, 2])
    assert tails.shape == (2, 2, 3)
    for i in range(2):
        for j in range(3):
            one = BlockScores(scores.sigma[i, j], scores.grad[i, j])
            assert_scores(one, weight[i, j], grad[i, j], oracle.row_lists(10, 4))


def test_an_empty_stack_has_empty_scores(backend):
    scores = score_blocks(torch.zeros(0, 6, 9), torch.zeros(0, 6, 9), blocks=2, backend=backend)
    assert scores.grad.shape == (0, 2, 3)
    assert scores.tail([0, 1]).shape == (2, 0)


def test_strides_do_not_matter_and_a_parameter_is_detached(backend):
    weight, grad = gapped(12, 17), gaussian(12, 17)
    parameter = torch.nn.Parameter(weight.mT.contiguous().mT)
    scores = score_blocks(parameter, torch.stack([grad, grad], -1)[..., 0], blocks=3, backend=backend)
    assert_scores(scores, weight, grad, oracle.row_lists(12, 3))
    assert not scores.grad.requires_grad


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_factors_given_from_either_backend_give_the_same_scores(shape, backend):
    weight, grad = gapped(*shape), gaussian(*shape)
    blocks = oracle.row_lists(shape[0], 3)
    for source in ("reference", "gram"):
        factors = block_svd(weight, blocks=3, backend=source)
        assert_scores(score_blocks(weight, grad, factors=factors, backend=backend), weight, grad, blocks)


@given(st.floats(-10, 10), st.floats(-10, 10), st.integers(0, 50))
def test_scores_are_linear_in_the_gradient(left, right, seed):
    weight = gapped(7, 10)
    factors = block_svd(weight, blocks=2)
    one, two = gaussian(7, 10, seed=seed), gaussian(7, 10, seed=seed + 1)
    separate = [score_blocks(weight, g, factors=factors).grad for g in (one, two)]
    together = score_blocks(weight, left * one + right * two, factors=factors).grad
    torch.testing.assert_close(together, left * separate[0] + right * separate[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize("blocks", [1, 3])
def test_taylor_tail_is_the_inner_product_of_gradient_and_what_is_removed(shape, blocks, backend):
    weight, grad = gapped(*shape), gaussian(*shape)
    rows = oracle.row_lists(shape[0], blocks)
    scores = score_blocks(weight, grad, blocks=blocks, backend=backend)
    for rank in range(min(shape[0] // blocks, shape[1])):
        removed = weight - oracle.reduction(weight, [rank] * blocks, rows)
        assert float(scores.tail(rank)) == pytest.approx(float((grad * removed).sum()), rel=1e-8, abs=1e-9)


def test_shrinking_where_taylor_is_positive_lowers_a_loss(backend):
    weight = gapped(8, 12)
    removed = weight - oracle.reduction(weight, [3], [list(range(8))])

    def loss(w):  # least at the truncated weight; its gradient at the weight is what is removed
        return ((w - (weight - removed)) ** 2).sum() / 2

    scores = score_blocks(weight, removed, backend=backend)
    assert float(scores.tail(3)) > 0
    assert float(loss(weight - 0.1 * removed)) < float(loss(weight))


def test_paper_tail_sums_positive_gradients_only():
    scores = BlockScores(torch.tensor([[3.0, 2, 1], [6.0, 5, 0]]), torch.tensor([[1.0, -2, 4], [-1.0, 7, 0]]), (3, 2))
    assert scores.tail([0, 1, 2, 3], score="paper").tolist() == [12, 11, 4, 0]
    assert scores.tail([0, 1, 2, 3], score="taylor").tolist() == [32, 35, 4, 0]
    assert scores.tail(ratios=[0.5]).tolist() == [35]  # keeps 1 of 3, and 1 of 2
    assert scores.tail(1).shape == ()
    assert scores.tail([1, 0, 1]).tolist() == [35, 32, 35]


def test_unknown_score_is_an_error_listing_those_that_exist():
    with pytest.raises(LasertriError, match=r"'paper', 'taylor'.*got 'magnitude'"):
        BlockScores(torch.ones(1, 2), torch.ones(1, 2)).tail(1, score="magnitude")


def test_scores_are_a_pair_by_name_and_by_place():
    sigma, grad = scores = BlockScores(torch.ones(1, 2), torch.zeros(1, 2))
    assert scores.sigma is sigma
    assert scores.grad is grad


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(6, 9),
        torch.ones(6, 9),
        torch.cat([torch.eye(3, 9), torch.zeros(3, 9)]),
        torch.eye(3, 9).repeat(2, 1),
        gapped(6, 3, dtype=torch.float32) @ gapped(3, 9, dtype=torch.float32),
    ],
    ids=["zero", "rank one", "zero rows", "duplicated rows", "rank three"],
)
@pytest.mark.parametrize("turn", [False, True], ids=["wide", "tall"])
def test_unresolved_sigma_have_gradient_zero_and_resolved_ones_do_not(weight, turn, backend):
    weight = weight.mT if turn else weight
    grad = gaussian(*weight.shape, seed=9)
    true_rank = int(torch.linalg.matrix_rank(weight.double(), rtol=1e-6))
    scores = score_blocks(weight, grad, backend=backend)
    assert scores.grad[0, :true_rank].all()
    assert not scores.grad[0, true_rank:].any()
    basis_free = grad.flatten() @ weight.double().flatten()
    assert float(scores.tail(0)) == pytest.approx(float(basis_free), rel=1e-6, abs=1e-9)


def test_one_element_has_its_sign_in_the_gradient(backend):
    scores = score_blocks(torch.tensor([[-3.0]]), torch.tensor([[2.0]]), backend=backend)
    assert (float(scores.sigma), float(scores.grad)) == (3.0, -2.0)  # shrinking σ raises the entry from -3


def test_equal_sigma_have_a_finite_gradient_and_a_basis_free_sum(backend):
    weight, grad = torch.eye(6, 9) * 5, gaussian(6, 9)
    scores = score_blocks(weight, grad, backend=backend)
    assert float(scores.tail(0)) == pytest.approx(float((grad * weight).sum()), rel=1e-12)


@pytest.mark.parametrize("name", ["weight", "grad"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_an_error_naming_the_tensor(weight, name, value, backend):
    tensors = {"weight": weight, "grad": weight.clone()}
    tensors[name][3, 5] = value
    with pytest.raises(LasertriError, match=f"NaN or Inf in `{name}`"):
        score_blocks(**tensors, backend=backend)


@pytest.mark.parametrize(
    ("grad", "got"),
    [
        (torch.ones(8, 12), r"gradient like the weight, \[12, 8\].*got \[8, 12\]"),
        (torch.ones(1, 12, 8), r"gradient like the weight, \[12, 8\].*got \[1, 12, 8\]"),
        (torch.ones(12, 8, dtype=torch.int32), "grad in torch.float32.*got torch.int32"),
    ],
)
def test_a_gradient_unlike_the_weight_is_an_error(weight, grad, got):
    with pytest.raises(LasertriError, match=got):
        score_blocks(weight, grad)


@pytest.mark.parametrize("shape", [(12, 9), (10, 8), (2, 12, 8)])
def test_factors_of_another_weight_are_an_error(weight, shape):
    factors = block_svd(gapped(*shape), blocks=3)
    with pytest.raises(LasertriError, match=r"factors of this weight \[12, 8\]|partition of 12 rows"):
        score_blocks(weight, weight, factors=factors)


def test_an_unknown_backend_is_an_error(weight):
    with pytest.raises(LasertriError, match="got 'magma'"):
        score_blocks(weight, weight, backend="magma")


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)], ids=["wide", "tall"])
def test_factors_may_be_kept_in_fp32(shape, backend):
    weight, grad = gapped(*shape), gaussian(*shape)
    factors = block_svd(weight, blocks=2)
    narrow = factors._replace(basis=factors.basis.float(), sigma=factors.sigma.float())
    expected, found = (score_blocks(weight, grad, factors=own, backend=backend) for own in (factors, narrow))
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-6)
