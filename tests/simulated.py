"""Answers made by chance, with no effect or a known one."""

import numpy as np


def simulated(rng, *, candidates=40, n=100, effect=0.0):
    """A baseline right half of the time, and candidates that change a fifth of its answers at random."""
    baseline = rng.random(n) < 0.5
    changed = rng.random((candidates, n)) < 0.2
    correct = np.where(changed, rng.random((candidates, n)) < 0.5, baseline)
    correct[0] |= rng.random(n) < effect
    return baseline, correct
