"""Calibration and held-out samples never overlap, and groups stay together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasertri import LasertriError, Sample
from lasertri.data.split import split_samples


def numbered(count, group_size=None):
    return [Sample(f"prompt {i}", "x", group=str(i // group_size) if group_size else None) for i in range(count)]


def test_defaults_take_a_hundred_and_hold_out_the_rest():
    split = split_samples(numbered(1000))
    assert (len(split.calibration), len(split.held_out)) == (100, 900)


@given(count=st.integers(60, 300), group_size=st.integers(1, 7), wanted=st.integers(30, 150), seed=st.integers(0, 9))
def test_nothing_is_lost_shared_or_torn(count, group_size, wanted, seed):
    samples = numbered(count, group_size)
    split = split_samples(samples, calibration=wanted, seed=seed)
    assert sorted(s.prompt for s in split.calibration + split.held_out) == sorted(s.prompt for s in samples)
    assert not {s.group for s in split.calibration} & {s.group for s in split.held_out}
    assert len(split.calibration) <= min(wanted, count // 2)


def test_the_seed_decides():
    samples = numbered(200)
    assert split_samples(samples, seed=1) == split_samples(samples, seed=1) != split_samples(samples, seed=2)


def test_half_of_few_rows_and_a_limit_on_many():
    assert len(split_samples(numbered(41)).calibration) == 20
    assert len(split_samples(numbered(500), held_out_limit=30).held_out) == 30


def test_a_held_out_set_lets_all_rows_calibrate():
    split = split_samples(numbered(50), held_out=[Sample(f"other {i}", "x") for i in range(8)])
    assert (len(split.calibration), len(split.held_out)) == (50, 8)


@pytest.mark.parametrize("samples", [numbered(39), numbered(100, 99)])
def test_too_few_calibration_samples(samples):
    with pytest.raises(LasertriError, match="expected at least 20 calibration samples"):
        split_samples(samples)


@pytest.mark.parametrize("size", [10, None])
def test_a_group_or_a_prompt_on_both_sides_is_refused(size):
    with pytest.raises(LasertriError, match="other groups and prompts.*on both sides"):
        split_samples(numbered(40, size), held_out=numbered(10, size))


def test_samples_of_one_prompt_stay_together():
    split = split_samples(numbered(60) * 2)
    assert not {s.prompt for s in split.calibration} & {s.prompt for s in split.held_out}
