"""A budget over blocks is spent as the best of all ways to spend it."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lasertri.compression.ranks import Priced, cheapest_ranks

spectra = st.lists(st.integers(0, 50), min_size=1, max_size=4).map(lambda values: sorted(values, reverse=True))


def priced(errors, columns=3):
    errors = torch.tensor(errors, dtype=torch.float64)
    return Priced(errors, rank=len(errors) + columns, whole=len(errors) * columns)


def outcome(blocks, ranks):
    """Error left, and bytes spent."""
    left = sum(float(b.errors[k:].sum()) for b, k in zip(blocks, ranks, strict=True) if k is not None)
    return left, sum(b.whole if k is None else k * b.rank for b, k in zip(blocks, ranks, strict=True))


def ways(block):
    return [None, *(k for k in range(len(block.errors) + 1) if k * block.rank < block.whole)]


@given(st.lists(spectra, min_size=1, max_size=3), st.integers(0, 40), st.integers(1, 8))
def test_no_other_way_within_the_budget_is_better_by_more_than_one_step(lists, budget, columns):
    blocks = [priced(errors, columns) for errors in lists]
    ranks = cheapest_ranks(blocks, budget)
    left, spent = outcome(blocks, ranks)
    assert spent <= budget
    assert all(k is None or k == 0 or k * b.rank < b.whole for b, k in zip(blocks, ranks, strict=True))
    best = min(
        outcome(blocks, other)[0]
        for other in itertools.product(*map(ways, blocks))
        if outcome(blocks, other)[1] <= budget
    )
    # of Lagrange: what fits is optimal for its own size, and the rest of the budget holds less than one step
    largest = max(float(b.errors.sum()) for b in blocks)
    assert best <= left <= best + largest


def test_ranks_go_where_a_byte_saves_most():
    strong, weak = priced([9.0, 4.0, 1.0, 0.1], columns=40), priced([3.0, 2.0, 0.0, 0.0], columns=40)
    assert cheapest_ranks([strong, weak], 44) == [1, 0]
    assert cheapest_ranks([strong, weak], 3 * 44) == [2, 1]
    assert cheapest_ranks([strong, weak], 4 * 44) == [2, 2]
    assert cheapest_ranks([strong, weak], 1000) == [None, 2]  # what is lost of the second is nothing


def test_bytes_count_and_not_ranks():
    short, long = priced([4.0, 4.0], columns=100), priced([5.0, 5.0], columns=1000)
    assert cheapest_ranks([long, short], 2 * 102) == [0, None]


def test_a_flat_block_stays_whole_before_it_is_cut_near_its_full_rank():
    flat = priced([1.0, 1.0, 1.0, 1.0], columns=4)  # four ranks cost twice the block
    assert cheapest_ranks([flat], 16) == [None]
    assert cheapest_ranks([flat], 15) == [1]


@pytest.mark.parametrize("budget", [0, 5])
def test_nothing_to_spend_or_to_lose_is_rank_zero(budget):
    assert cheapest_ranks([priced([0.0, 0.0]), priced([1.0, 0.0])], budget)[0] == 0
    assert cheapest_ranks([], budget) == []
