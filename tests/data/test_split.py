"""Calibration and held-out samples never overlap, and groups stay together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasertri import LasertriError, Sample
from lasertri.data.split import split_samples, standard_split


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


def test_samples_that_confirm_are_those_beyond_the_held_out_part_which_stays_as_it_was():
    samples = numbered(1000)
    before = split_samples(samples, held_out_limit=500)
    assert before.confirm == []
    split = split_samples(samples, held_out_limit=500, confirm=None)
    assert (split.calibration, split.held_out) == (before.calibration, before.held_out)
    assert len(split.confirm) == 200
    assert split_samples(samples, confirm=None).confirm == []  # all the rest is held out
    assert len(split_samples(samples, held_out_limit=500, confirm=50).confirm) == 50


def test_asked_for_they_are_taken_of_the_held_out_part_up_to_half():
    split, before = split_samples(numbered(400), confirm=120), split_samples(numbered(400))
    assert (len(split.calibration), len(split.held_out), len(split.confirm)) == (100, 180, 120)
    assert split.held_out + split.confirm == before.held_out
    assert len(split_samples(numbered(300), confirm=120).confirm) == 100


def test_beside_a_held_out_set_the_rows_that_do_not_calibrate_confirm_but_for_its_groups():
    others = [Sample(f"other {i}", "x") for i in range(8)]
    assert len(split_samples(numbered(250), held_out=others, confirm=None).confirm) == 150
    known = split_samples(numbered(250), held_out=others).calibration
    spare = [sample for sample in numbered(250) if sample not in known]
    split = split_samples(numbered(250), held_out=[*others, spare[0]], confirm=None)
    assert spare[0] not in split.confirm
    assert len(split.confirm) == 149


@given(
    count=st.integers(140, 300),
    size=st.integers(1, 7),
    limit=st.integers(1, 300),
    confirm=st.none() | st.integers(0, 200),
    divide=st.sampled_from([split_samples, standard_split]),
)
def test_no_group_is_in_two_parts(count, size, limit, confirm, divide):
    split = divide(numbered(count, size), held_out_limit=limit, confirm=confirm)
    parts = [{s.group for s in part} for part in (split.calibration, split.held_out, split.confirm)]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert split.held_out
    assert len(split.confirm) <= (200 if confirm is None else confirm)


def test_the_papers_split_confirms_beyond_its_held_out_part_too():
    split = standard_split(numbered(500), held_out_limit=300, confirm=None)
    assert (len(split.calibration), len(split.held_out), len(split.confirm)) == (100, 300, 100)
    assert split.held_out == standard_split(numbered(500), held_out_limit=300).held_out
    assert len(standard_split(numbered(500), confirm=50).held_out) == 350
