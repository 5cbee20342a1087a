"""Rows clustered by the subspace they share."""

import itertools

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spectra import gaussian, generator, orthonormal

from lasertri import LasertriError, Partition, reduce_blocks
from lasertri.ops.subspaces import _fill_empty, _start, subspace_partition


def clusters(partition):
    order = torch.arange(partition.rows) if partition.order is None else partition.order
    return [order[a:b].tolist() for a, b in itertools.pairwise(partition.offsets)]


def subspace_residual(weight, partition, dimension):
    """Sum of squared distances of the rows to their cluster's best subspace: what the clustering makes small."""
    rows = clusters(partition)
    return oracle.residuals(weight, [dimension] * len(rows), rows) ** 2


def planted(heights, columns, dimension, *, noise=0.0, seed=0):
    """Rows of several subspaces, shuffled, and which rows each has."""
    parts = [
        gaussian(height, dimension, seed=seed + 2 * j) @ orthonormal(columns, dimension, seed + 2 * j + 1).mT
        for j, height in enumerate(heights)
    ]
    shuffle = torch.randperm(sum(heights), generator=torch.Generator().manual_seed(seed))
    weight = torch.cat(parts)[shuffle] + noise * gaussian(sum(heights), columns, seed=seed + 99)
    came_from = torch.arange(len(heights)).repeat_interleave(torch.tensor(heights))[shuffle]
    return weight, [(came_from == j).nonzero().flatten().tolist() for j in range(len(heights))]


def awkward(rows, columns, kind, seed):
    weight = gaussian(rows, columns, seed=seed)
    if kind == "duplicated rows":
        weight = weight[torch.arange(rows) % max(1, rows // 3)]
    return torch.zeros_like(weight) if kind == "zero" else weight


@pytest.mark.parametrize(
    ("heights", "columns", "dimension"),
    [((20, 20, 20), 12, 1), ((9, 30, 17), 12, 2), ((13, 13), 40, 3), ((40, 25, 31, 18), 10, 2)],
    ids=["lines", "uneven", "wide", "tall"],
)
@pytest.mark.parametrize("noise", [0, 1e-3], ids=["exact", "noisy"])
def test_planted_subspaces_are_found(heights, columns, dimension, noise):
    weight, expected = planted(heights, columns, dimension, noise=noise)
    partition = subspace_partition(weight, blocks=len(heights), dimension=dimension, restarts=8)
    assert sorted(clusters(partition)) == sorted(expected)
    consecutive = subspace_residual(weight, Partition.consecutive(len(weight), len(heights)), dimension)
    assert subspace_residual(weight, partition, dimension) <= (1e-13 + noise**2) * consecutive * 100


@pytest.mark.parametrize("restarts", [1, 4])
@pytest.mark.parametrize(("shape", "dimension"), [((200, 20), 2), ((150, 200), 3)], ids=["tall", "wide"])
def test_more_iterations_and_more_restarts_never_leave_more(shape, dimension, restarts):
    weight = gaussian(*shape)
    options = {"blocks": 4, "dimension": dimension, "restarts": restarts}
    partitions = [subspace_partition(weight, iterations=i, **options) for i in range(12)]
    history = [subspace_residual(weight, partition, dimension) for partition in partitions]
    assert all(after <= before for before, after in itertools.pairwise(history))
    assert len(set(history)) > 3, "the test's own premise: it takes several iterations"


def test_a_settled_partition_has_every_row_in_its_nearest_subspace():
    weight, dimension = gaussian(61, 13), 3
    rows = clusters(subspace_partition(weight, blocks=4, dimension=dimension))
    bases = [torch.linalg.svd(weight[r], full_matrices=False).Vh[:dimension] for r in rows]
    left = torch.stack([(weight - weight @ b.mT @ b).square().sum(-1) for b in bases], dim=-1)
    for j, r in enumerate(rows):
        torch.testing.assert_close(left[r, j], left[r].amin(-1), rtol=1e-6, atol=1e-12)


@given(st.data())
def test_any_shape_gives_blocks_that_are_no_worse_than_consecutive_ones(data):
    rows, columns = data.draw(st.sampled_from([(1, 1), (1, 5), (2, 7), (7, 2), (13, 5), (5, 13), (17, 17)]))
    blocks, dimension = data.draw(st.integers(1, rows)), data.draw(st.integers(0, max(rows, columns) + 2))
    kind, seed = data.draw(st.sampled_from(["gaussian", "duplicated rows", "zero"])), data.draw(st.integers(0, 9))
    weight = awkward(rows, columns, kind, seed)
    partition = subspace_partition(weight, blocks=blocks, dimension=dimension, seed=seed, restarts=3)
    parts = clusters(partition)
    assert len(parts) == blocks
    assert sorted(itertools.chain(*parts)) == list(range(rows))
    assert all(part == sorted(part) for part in parts)
    consecutive = subspace_residual(weight, Partition.consecutive(rows, blocks), dimension)
    assert subspace_residual(weight, partition, dimension) <= consecutive
    again = subspace_partition(weight, blocks=blocks, dimension=dimension, seed=seed, restarts=3)
    assert clusters(again) == parts


def test_a_cluster_that_loses_its_rows_takes_the_worst_fitted_one():
    weight = torch.tensor([[90.0, 0], [90, 0], [1, 0.1], [0.2, 1], [0, 90], [0, 90]])
    partition = subspace_partition(weight, blocks=3, dimension=1, restarts=1, iterations=1)
    assert clusters(partition) == [[0, 1, 2], [3], [4, 5]]


@pytest.mark.parametrize(
    ("labels", "distances", "filled"),
    [([0, 1, 1], [9, 1, 2], [0, 1, 2]), ([1, 1, 1], [1, 3, 2], [1, 0, 2]), ([0, 1, 1, 1], [0, 0, 0, 0], [0, 2, 3, 1])],
)
def test_only_clusters_of_several_rows_spare_one(labels, distances, filled):
    blocks = max(filled) + 1
    assert _fill_empty(torch.tensor(labels), torch.tensor(distances).double(), blocks).tolist() == filled


def test_more_clusters_than_different_rows_each_have_a_row():
    weight = gaussian(4, 7)[torch.arange(13) % 4]
    partition = subspace_partition(weight, blocks=6, dimension=1)
    assert partition.blocks == 6
    assert _start(weight, 6, 1, generator(0)).unique().tolist() == list(range(6))
    assert subspace_residual(weight, partition, 1) < 1e-20 < subspace_residual(weight, Partition.consecutive(13, 6), 1)


def test_it_beats_consecutive_blocks_where_there_is_something_to_find():
    weight, _ = planted((30, 30, 30), 16, 4, noise=0.3)
    partition = subspace_partition(weight, blocks=3, dimension=4)
    consecutive = subspace_residual(weight, Partition.consecutive(90, 3), 4)
    assert subspace_residual(weight, partition, 4) < 0.6 * consecutive


def test_consecutive_blocks_that_are_the_answer_stay():
    weight = torch.cat([gaussian(6, 2, seed=j) @ orthonormal(9, 2, 50 + j).mT for j in range(3)])
    weight[:16] += 1e-3 * gaussian(16, 9, seed=99)
    weight[16] = 0  # fitted alike by all
    partition = subspace_partition(weight, blocks=3, dimension=2, restarts=1)
    assert (partition.offsets, partition.order.tolist()) == ((0, 6, 12, 18), list(range(18)))


def test_seeds_are_starts_of_their_own_and_leave_the_global_one_alone():
    weight = gaussian(61, 13)
    state = torch.get_rng_state()
    found = {
        str(clusters(subspace_partition(weight, blocks=6, dimension=2, seed=seed, restarts=2))) for seed in range(6)
    }
    assert len(found) > 1
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_dtype_is_clustered_as_its_fp64_values_are(dtype):
    weight = gaussian(31, 12, dtype=dtype)
    stored, exact = (subspace_partition(w, blocks=4, dimension=2) for w in (weight, weight.double()))
    assert clusters(stored) == clusters(exact)


@pytest.mark.parametrize("shape", [(41, 12), (23, 60)], ids=["tall", "wide"])
@pytest.mark.parametrize("dimension", [0, 2])
def test_truncating_the_clusters_errs_by_the_residual(shape, dimension, backend):
    weight = gaussian(*shape)
    partition = subspace_partition(weight, blocks=4, dimension=dimension)
    reduced = reduce_blocks(weight, ranks=dimension, blocks=partition, backend=backend)
    error = float((weight - reduced).square().sum())
    assert error == pytest.approx(subspace_residual(weight, partition, dimension), rel=1e-10)


def test_with_nothing_to_choose_between_the_blocks_are_consecutive():
    weight = gaussian(11, 5)
    assert subspace_partition(weight, blocks=3, dimension=0).offsets == (0, 4, 8, 11)
    assert subspace_partition(weight, blocks=1, dimension=2).offsets == (0, 11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 13}, "between 1 and 12 blocks"),
        ({"dimension": -1}, "expected dimension to be an integer of at least 0, got -1"),
        ({"dimension": 1.5}, "expected dimension .*, got 1.5"),
        ({"restarts": 0}, "expected restarts .* at least 1, got 0"),
        ({"iterations": -1}, "expected iterations .* at least 0, got -1"),
        ({"weight": torch.ones(2, 3, 4)}, r"expected a weight \[rows, columns\].*got \[2, 3, 4\]"),
        ({"weight": torch.ones(3, 4, dtype=torch.int32)}, "torch.int32"),
        ({"weight": torch.full((3, 4), torch.nan)}, "NaN or Inf in `weight`"),
    ],
)
def test_what_cannot_be_clustered_is_an_error(weight, options, message):
    with pytest.raises(LasertriError, match=message):
        subspace_partition(**{"weight": weight, "blocks": 2, "dimension": 1, **options})
