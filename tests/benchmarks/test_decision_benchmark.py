"""The worlds of `bench_decision` are what its docstring says, and what was measured."""

import numpy as np
import pytest

bench = pytest.importorskip("bench_decision")

N, GRID = 20_000, (40, 5)


def world(**truth):
    return bench.world(np.random.default_rng(0), N, GRID, **truth)


def test_the_best_candidate_has_the_gain_asked_for_and_its_neighbours_half_of_it_or_more():
    gains = world(gain=0.06, harm=1.0).gain.mean(axis=1)
    assert gains.max() == pytest.approx(0.06, abs=0.006)
    helps = np.arange(40) % 5 == 0
    assert gains[helps].min() > 0.025
    assert gains[~helps].max() < 0.004


def test_without_an_effect_a_change_is_as_likely_as_its_opposite():
    drawn = world()
    for values in (drawn.gain, drawn.relief):
        assert np.abs(values.mean(axis=1)).max() < 4 * values.std() / np.sqrt(N)


def test_samples_move_together_and_as_far_as_measured():
    drawn, of_one = world(), np.arange(40) % 5 == 0
    apart = np.corrcoef(drawn.relief)
    shared = apart[np.ix_(of_one, of_one)]
    assert shared[0, 1] == pytest.approx(0.43, abs=0.06)
    assert shared[-1, -2] == pytest.approx(0.83, abs=0.06)
    assert np.abs(apart[np.ix_(of_one, ~of_one)]).max() < 0.04
    kurtosis = np.mean((drawn.relief / drawn.relief.std(axis=1, keepdims=True)) ** 4)
    assert kurtosis == pytest.approx(bench.MEASURED["kurtosis of the change of log-probability"], rel=0.2)
    agree = np.corrcoef(drawn.gain[-1], drawn.relief[-1])[0, 1]
    assert agree == pytest.approx(0.25, abs=0.05)


def test_every_rule_gives_a_p_value(monkeypatch):
    monkeypatch.setattr(bench, "FLIPS", 200)
    drawn = bench.world(np.random.default_rng(0), 300, GRID, gain=0.3, harm=1.0)
    found = bench.p_values(drawn)
    assert found["combined", "gain, then both", 200] < 0.01
    assert all(0 < p <= 1 for p in found.values())
