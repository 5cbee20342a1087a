"""The model of tensor cores against sums whose result is known, and what the backend's promises are worth under it."""

import numpy as np
import pytest
import tensor_cores
from tensor_cores import cut, half, product, rounded, tf32, tf32x3


def row(*values):
    return np.array([values])


def added(*values, start=0.0, pairs=4):
    """These values summed to a number."""
    return product(row(*values), np.ones((len(values), 1)), np.full((1, 1), start), pairs).item()


@pytest.mark.parametrize("arithmetic", [tf32, tf32x3, half])
def test_integers_are_exact(arithmetic):
    left, right = np.random.default_rng(0).integers(-9, 10, (2, 8, 8)).astype(float)
    assert np.array_equal(arithmetic(left, right), left @ right)


def test_operands_have_eleven_bits():
    assert rounded(row(1 + 2**-10, 1 + 2**-11, -1 - 2**-11, 1 + 2**-12), 11).tolist() == [
        [1 + 2**-10, 1 + 2**-10, -1 - 2**-10, 1]
    ]
    assert cut(row(1 + 2**-10, 1 + 2**-11, -1 - 2**-11), 11).tolist() == [[1 + 2**-10, 1, -1]]
    one, more = row(1.0), np.array([[1 + 2**-12]])
    assert tf32(one, more) == 1
    assert tf32x3(one, more) == 1 + 2**-12


def test_what_is_shifted_out_is_cut_off():
    assert added(2.0**-23, start=1.0) == 1 + 2**-23
    assert added(2.0**-24, start=1.0) == 1
    assert added(2.0**-24, 2.0**-24, start=1.0) == 1 + 2**-23, "a step keeps a bit more than FP32"
    assert added(2.0**-24, 2.0**-24, start=1.0, pairs=1) == 1, "but the sum does not"
    assert added(*[2.0**-25] * 4, start=1.0) == 1, "one bit, not two"


def test_sums_are_cut_towards_zero_where_fp32_rounds_to_nearest():
    assert added(1.5 * 2.0**-23, start=1.0) == 1 + 2**-23
    assert added(-1.5 * 2.0**-23, start=-1.0) == -1 - 2**-23
    assert np.float32(1) + np.float32(1.5 * 2.0**-23) == 1 + 2**-22


def test_errors_grow_with_the_length_of_the_sum_unless_the_operands_are_what_is_inexact():
    errors = {name: [tensor_cores.error(name, terms) for terms in (128, 1024)] for name in ("tf32", "tf32x3", "half")}
    assert errors["tf32x3"][1] > 5 * errors["tf32x3"][0]
    assert errors["half"][1] > 5 * errors["half"][0]
    assert errors["tf32"][1] < 2 * errors["tf32"][0]
