import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lasertri import LasertriError, Partition
from lasertri.ops.blocks import BlockScores, block_ranks, equal_blocks, gather, lengths, retained_rank, side_of


@given(st.integers(1, 400).flatmap(lambda rows: st.tuples(st.just(rows), st.integers(1, rows))))
def test_consecutive_blocks_cover_the_rows_and_the_first_ones_are_a_row_taller(rows_and_blocks):
    rows, blocks = rows_and_blocks
    partition = Partition.consecutive(rows, blocks)
    assert list(partition.heights) == [len(part) for part in torch.arange(rows).tensor_split(blocks)]
    assert (partition.rows, partition.blocks) == (rows, blocks)


@pytest.mark.parametrize("blocks", [0, -1, 8])
def test_consecutive_refuses_a_number_of_blocks_that_the_rows_cannot_fill(blocks):
    with pytest.raises(LasertriError, match=f"between 1 and 7 blocks for a matrix of 7 rows, got {blocks}"):
        Partition.consecutive(7, blocks)


@pytest.mark.parametrize("offsets", [(0,), (1, 3), (0, 2, 2), (0, 3, 1)])
def test_partition_refuses_offsets_that_leave_a_block_empty(offsets):
    with pytest.raises(LasertriError, match="offsets that start at 0 and increase"):
        Partition(offsets)


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 1, 3], [0, 1], [-1, 0, 1]])
def test_partition_refuses_an_order_that_is_no_permutation(order):
    with pytest.raises(LasertriError, match="permutation of 3 rows"):
        Partition((0, 2, 3), torch.tensor(order))


@given(st.permutations(range(6)))
def test_partition_accepts_every_permutation(order):
    assert Partition((0, 2, 6), torch.tensor(order)).heights == (2, 4)


@given(st.integers(1, 500), st.floats(0, 1))
def test_retained_rank_is_the_integer_part_of_length_times_ratio(length, ratio):
    rank = retained_rank(length, ratio)
    assert 0 <= rank <= length
    assert rank <= length * ratio < rank + 1


@pytest.mark.parametrize(
    ("length", "ratio", "rank"), [(768, 0.01, 7), (100, 0.29, 28), (4, 0.2, 0), (9, 1, 9), (9, 0, 0)]
)
def test_retained_rank_truncates_as_laser_does(length, ratio, rank):
    assert retained_rank(length, ratio) == rank  # 100 * 0.29 is 28.999…: int(), not round()


def test_lengths_and_side_follow_the_shorter_side_of_each_block():
    assert lengths((0, 3, 10), 5) == (3, 5)
    assert side_of((0, 3, 8), 5) == "left"  # every block is at most as tall as wide
    assert side_of((0, 3, 10), 5) == "right"  # one block is taller


def test_ranks_are_capped_by_the_length_of_each_block_and_keep_their_order():
    assert block_ranks((2, 5), [4, 0, 4, 1], None) == ([[2, 4], [0, 0], [2, 4], [1, 1]], False)
    assert block_ranks((2, 5), 3, None) == ([[2, 3]], True)


def test_ratios_are_taken_of_the_length_of_each_block():
    assert block_ranks((2, 5), None, [0.5, 1.0]) == ([[1, 2], [2, 5]], False)
    assert block_ranks((2, 5), None, 0.0) == ([[0, 0]], True)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_equal_blocks_are_grouped_and_none_is_lost(heights):
    offsets = [0]
    for height in heights:
        offsets.append(offsets[-1] + height)
    groups = list(equal_blocks(offsets))
    assert sorted(j for group in groups for j in group) == list(range(len(heights)))
    assert len(groups) == len(set(heights))
    matrix = torch.arange(offsets[-1] * 2).reshape(-1, 2)
    for group in groups:
        for i, j in enumerate(group):
            assert torch.equal(gather(matrix, offsets, group)[i], matrix[offsets[j] : offsets[j + 1]])


@pytest.mark.parametrize("blocks", [2.0, "2", None])
def test_a_number_of_blocks_that_is_not_whole_is_an_error(blocks):
    with pytest.raises(LasertriError, match="expected between 1 and 12 blocks"):
        Partition.consecutive(12, blocks)


def test_scores_with_another_gradient_keep_the_rest():
    scores = BlockScores(torch.tensor([[2.0, 1.0], [3.0, 0.0]]), torch.ones(2, 2), lengths=(2, 1))
    changed = scores._replace(grad=-scores.grad)
    assert changed.lengths == (2, 1)
    assert torch.equal(changed.sigma, scores.sigma)
    assert torch.equal(changed.grad, -scores.grad)
