"""A budget over blocks is spent as the best of all ways to spend it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasertri.compression.ranks import Priced, cheapest_ranks

spectra = st.lists(st.integers(0, 50), min_size=1, max_size=4).map(lambda values: sorted(values, reverse=True))


def priced(squares, columns):
    """A block with these squared singular values, as wide as it says: k (b + n − k) numbers at rank k."""
    left = [float(sum(squares[k:])) for k in range(len(squares) + 1)]
    return Priced(left, [k * (len(squares) + columns - k) for k in range(len(squares) + 1)])


def outcome(blocks, ranks):
    """Error left, and bytes spent."""
    pairs = list(zip(blocks, ranks, strict=True))
    return sum(b.errors[k] for b, k in pairs), sum(b.costs[k] for b, k in pairs)


@given(st.lists(st.tuples(spectra, st.integers(4, 9)), min_size=1, max_size=3), st.integers(0, 80))
def test_no_other_way_within_the_budget_is_better_by_more_than_one_step(lists, budget):
    blocks = [priced(*each) for each in lists]
    left, spent = outcome(blocks, cheapest_ranks(blocks, budget))
    ways = itertools.product(*(range(len(b.errors)) for b in blocks))
    best = min(outcome(blocks, other)[0] for other in ways if outcome(blocks, other)[1] <= budget)
    assert spent <= budget
    assert best <= left <= best + max(b.errors[0] for b in blocks)


@given(spectra, st.integers(4, 9), st.integers(0, 60))
def test_of_one_block_as_many_ranks_are_kept_as_fit_and_are_worth_anything(squares, columns, budget):
    block = priced(squares, columns)
    [rank] = cheapest_ranks([block], budget)
    best = max(k for k, cost in enumerate(block.costs) if cost <= budget)
    assert block.errors[rank] == block.errors[best]


def test_ranks_go_where_a_byte_saves_most():
    strong, weak = priced([9.0, 4.0, 1.0, 0.1], 40), priced([3.0, 2.0, 0.0, 0.0], 40)
    assert strong.costs[:3] == [0, 43, 84]
    assert cheapest_ranks([strong, weak], 43) == [1, 0]
    assert cheapest_ranks([strong, weak], 84 + 43) == [2, 1]
    assert cheapest_ranks([strong, weak], 1000) == [4, 2]  # beyond, nothing is lost of the second


def test_bytes_count_and_not_ranks():
    short, long = priced([4.0, 4.0], 100), priced([5.0, 5.0], 1000)
    assert cheapest_ranks([long, short], 200) == [0, 2]


def test_what_is_left_of_the_budget_goes_into_single_ranks():
    flat = Priced([3.0, 2.0, 1.0, 0.0], [0, 10, 20, 21])  # whole is the only step of the hull
    assert cheapest_ranks([flat], 21) == [3]
    assert cheapest_ranks([flat], 20) == [2]


@pytest.mark.parametrize("budget", [0, 5])
def test_nothing_to_spend_or_to_lose_is_rank_zero(budget):
    assert cheapest_ranks([priced([0.0, 0.0], 4), priced([1.0, 0.0], 4)], budget) == [0, int(budget >= 5)]
    assert cheapest_ranks([], budget) == []
