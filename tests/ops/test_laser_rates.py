"""LASER's own arithmetic and its randomised SVD."""

import pytest
import torch
from spectra import gaussian, spiked

from lasertri.ops.laser import laser_factors, laser_rank, rank_at_rate

RATES = [1, 2, 4, 6, 8, 9, 9.5, 9.9, 9.95]


def test_ranks_are_those_of_lasers_floating_point():
    assert [rank_at_rate(4096, rate) for rate in RATES] == [3686, 3276, 2457, 1638, 819, 409, 204, 40, 20]
    assert [rank_at_rate(768, rate) for rate in RATES] == [691, 614, 460, 307, 153, 76, 38, 7, 3]
    assert (rank_at_rate(4096, 10), rank_at_rate(4096, 0)) == (0, 4096)


def test_a_ratio_has_the_rank_of_the_rate_that_stands_for_it():
    for length in (4096, 768, 100):
        assert [laser_rank(length, 1 - rate / 10) for rate in RATES] == [rank_at_rate(length, rate) for rate in RATES]
    assert laser_rank(4096, 0.0) == 0
    assert laser_rank(100, 0.01) == 0 != int(100 * 0.01)


def test_the_svd_is_seeded_and_leaves_the_random_state():
    weight = gaussian(40, 20, dtype=torch.float32)
    state = torch.get_rng_state()
    first, again, other = laser_factors(weight, 5), laser_factors(weight, 5), laser_factors(weight, 5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40, 20), (20, 40)])
def test_the_svd_is_near_the_best_of_its_rank(shape, dtype):
    weight = spiked(*shape, dtype=dtype)
    left, right = laser_factors(weight, 5)
    assert (left.shape, right.shape, left.dtype) == ((shape[0], 5), (5, shape[1]), torch.float32)
    optimum = torch.linalg.svdvals(weight.double())[5:].norm()
    assert 0.999 * optimum <= (weight.double() - left.double() @ right.double()).norm() <= 1.2 * optimum


def test_rank_zero_has_factors_of_no_rank():
    left, right = laser_factors(torch.ones(3, 4, dtype=torch.bfloat16), 0)
    assert (left.shape, right.shape, left.dtype, right.dtype) == ((3, 0), (0, 4), torch.float32, torch.float32)
