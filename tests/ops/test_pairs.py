"""Truncations as pairs of thin factors."""

import oracle
import pytest
import torch
from spectra import gapped, gaussian

from lasertri import Partition, block_svd
from lasertri.ops import pairs
from lasertri.ops.pairs import balanced, multiplied, pivoted, singular, truncated_factors

ORDER = torch.randperm(12, generator=torch.Generator().manual_seed(2))
PARTITIONS = [Partition((0, 12)), Partition((0, 2, 9, 12)), Partition((0, 2, 9, 12), ORDER)]


@pytest.mark.parametrize("partition", PARTITIONS, ids=["one block", "blocks", "clusters"])
@pytest.mark.parametrize("columns", [20, 5], ids=["wide", "tall"])
@pytest.mark.parametrize("panel", [1024, 3])
def test_pairs_multiply_to_the_truncation(partition, columns, panel, monkeypatch):
    monkeypatch.setattr(pairs, "PANEL", panel)
    weight = gapped(12, columns, seed=1)
    ranks = [2, 4, 0][: partition.blocks]
    made = list(truncated_factors(weight, block_svd(weight, blocks=partition), ranks))
    assert [left.shape[1] for left, _ in made] == ranks
    order = torch.arange(12) if partition.order is None else partition.order
    expected = oracle.reduction(weight, ranks, [rows.tolist() for rows in order.split(partition.heights)])
    torch.testing.assert_close(multiplied(made, torch.float64, partition.order), expected, rtol=0, atol=1e-12)


def test_a_rank_beyond_a_short_block_keeps_it_whole():
    weight, partition = gapped(12, 20, seed=1), PARTITIONS[1]
    made = list(truncated_factors(weight, block_svd(weight, blocks=partition), [7, 7, 7]))
    assert [left.shape[1] for left, _ in made] == [2, 7, 3]
    torch.testing.assert_close(multiplied(made, torch.float64), weight, rtol=0, atol=1e-12)


def test_factors_of_low_precision_give_pairs_that_are_orthonormal_in_fp64():
    weight = gapped(12, 20, seed=1)
    stored = block_svd(weight)._replace(basis=block_svd(weight).basis.float())
    left, _ = next(truncated_factors(weight, stored, [5]))
    torch.testing.assert_close(left.mT @ left, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-14)


def test_balanced_pairs_have_equal_norms_and_the_same_product():
    u, sigma, vh = torch.linalg.svd(gapped(12, 20, seed=1), full_matrices=False)
    left, right = balanced(u, 1e-9 * sigma[:, None] * vh)
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(left @ right, (u * 1e-9 * sigma) @ vh, rtol=1e-12, atol=1e-22)


def test_balancing_survives_fp16_where_the_plain_factor_does_not():
    u, sigma, vh = torch.linalg.svd(1e-7 * gapped(12, 20, seed=1), full_matrices=False)
    exact = (u * sigma) @ vh

    def stored(left, right):
        return float((left.half().double() @ right.half().double() - exact).norm() / exact.norm())

    assert stored(*balanced(u * sigma, vh)) < 1e-3 < stored(u * sigma, vh)


def test_a_component_of_nothing_stays_nothing():
    left, right = balanced(torch.eye(4)[:, :2], torch.zeros(2, 5))
    assert left.isfinite().all()
    assert not (left @ right).any()


def test_products_are_rounded_once():
    left, right = gaussian(7, 3), gaussian(3, 9)
    assert torch.equal(multiplied([(left, right)], torch.bfloat16), (left @ right).bfloat16())


@pytest.mark.parametrize(("rows", "columns", "rank"), [(13, 7, 5), (7, 13, 5), (7, 7, 7), (5, 9, 0), (1, 3, 1)])
def test_pivoted_rows_make_the_others(rows, columns, rank):
    left, right = 1e6 * gaussian(rows, rank), gaussian(rank, columns, seed=1)
    others, own, order = pivoted(left, right)
    assert (others.shape, own.shape) == ((rows - rank, rank), (rank, columns))
    assert order.sort().values.tolist() == list(range(rows))
    torch.testing.assert_close(torch.cat([own, others @ own]), (left @ right)[order], rtol=1e-9, atol=1e-6)


def test_pivots_are_chosen_so_that_nothing_grows_though_the_first_rows_and_columns_hardly_count():
    left = gaussian(40, 8)
    left[:8] *= 1e-9
    left[:, 7] = left[:, 6] + 1e-9 * left[:, 7]
    others, _, order = pivoted(left, gaussian(8, 11))
    assert others.abs().max() < 10
    assert order[:8].min() >= 8


@pytest.mark.parametrize("shape", [(7, 3, 5), (3, 3, 9), (5, 1, 4)])
def test_the_singular_values_of_a_product(shape):
    rows, rank, columns = shape
    left, right = gaussian(rows, rank, seed=1), gaussian(rank, columns, seed=2)
    u, sigma, vh = singular(left, right)
    assert (u.shape, sigma.shape, vh.shape) == ((rows, rank), (rank,), (rank, columns))
    product = left.double() @ right.double()
    torch.testing.assert_close((u * sigma) @ vh, product, rtol=0, atol=1e-12)
    torch.testing.assert_close(sigma, torch.linalg.svdvals(product)[:rank], rtol=0, atol=1e-12)
