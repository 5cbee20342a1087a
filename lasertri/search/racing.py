"""Samples come in stages, and a candidate that the leader beats beyond doubt is measured no further."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, log

import numpy as np

from lasertri.measure.significance import all_binary

STAGES = (0.1, 0.2, 0.4, 0.7, 1.0)  # shares of the samples seen when candidates are compared
LEVEL = 0.01


def stages(strata: Sequence[str], *, seed: int = 0) -> list[list[int]]:
    """Indices of the samples of every stage, in a seeded order that spreads the strata (right answers) evenly."""
    generator, n = np.random.default_rng(seed), len(strata)
    place = np.empty(n)
    for stratum in sorted(set(strata)):
        mine = generator.permutation([i for i in range(n) if strata[i] == stratum])
        place[mine] = (np.arange(len(mine)) + generator.random()) / len(mine)
    order = np.argsort(place, kind="stable")
    parts = np.split(order, [round(n * share) for share in STAGES[:-1]])
    return [part.tolist() for part in parts if len(part)]


def beaten(correct: np.ndarray, leader: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Which candidates lose to the leader, `[candidates]`, by a one-sided test that flips the signs of groups.

    Of right and wrong it is the exact sign test. Real scores may win seldom and much, so there the gain itself is
    tested, over the root of its squared group sums: under random signs it stays above -√(2 ln 1/α) with
    probability 1 - α or more (Hoeffding, 1963).

    Args:
        correct: `[candidates, n]`, right or wrong or a score from 0 to 1, on the samples seen so far.
        leader: `[n]`, of the one that leads on them.
        groups: `[n]`, equal for samples that are not independent.
    """
    _, group = np.unique(list(groups), return_inverse=True)
    sums = np.zeros((len(correct), group.max() + 1))
    np.add.at(sums.T, group, (correct.astype(float) - leader).T)
    if not all_binary(correct, leader):
        scale = np.sqrt(np.square(sums).sum(axis=1))
        return (scale > 0) & (sums.sum(axis=1) <= -np.sqrt(2 * log(1 / LEVEL)) * scale)
    won, lost = (sums > 0).sum(axis=1), (sums < 0).sum(axis=1)
    return np.array([_at_most(int(w), int(w + m)) <= LEVEL for w, m in zip(won, lost, strict=True)])


def _at_most(won: int, decided: int) -> float:
    """Chance of no more heads than that among so many fair coins."""
    return sum(comb(decided, k) for k in range(won + 1)) / 2**decided
