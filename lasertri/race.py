"""Samples come in stages, and a candidate that the leader beats beyond doubt is measured no further."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from lasertri.tasks import Sample

STAGES = (0.1, 0.2, 0.4, 0.7, 1.0)  # shares of the samples seen when candidates are compared
LEVEL = 0.01


def stages(samples: Sequence[Sample], *, seed: int = 0) -> list[list[int]]:
    """Indices of the samples of every stage, in a seeded order that spreads the right answers evenly."""
    generator, n = np.random.default_rng(seed), len(samples)
    answers = [sample.answers[sample.gold] for sample in samples]
    place = np.empty(n)
    for answer in sorted(set(answers)):
        mine = generator.permutation([i for i in range(n) if answers[i] == answer])
        place[mine] = (np.arange(len(mine)) + generator.random()) / len(mine)
    order = np.argsort(place, kind="stable")
    parts = np.split(order, [round(n * share) for share in STAGES[:-1]])
    return [part.tolist() for part in parts if len(part)]


def beaten(correct: np.ndarray, leader: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Which candidates lose to the leader by an exact one-sided sign test over groups, `[candidates]`.

    Args:
        correct: `[candidates, n]`, on the samples seen so far.
        leader: `[n]`, of the one that leads on them.
        groups: `[n]`, equal for samples that are not independent.
    """
    _, group = np.unique(list(groups), return_inverse=True)
    sums = np.zeros((len(correct), group.max() + 1), dtype=int)
    np.add.at(sums.T, group, (correct.astype(int) - leader).T)
    won, lost = (sums > 0).sum(axis=1), (sums < 0).sum(axis=1)
    return np.array([_at_most(int(w), int(w + m)) <= LEVEL for w, m in zip(won, lost, strict=True)])


def _at_most(won: int, decided: int) -> float:
    """Chance of no more heads than that among so many fair coins."""
    return sum(comb(decided, k) for k in range(won + 1)) / 2**decided
