"""Noisy in-context recall: a synthetic task on which truncating one MLP matrix helps (arXiv 2406.03068).

A sequence follows fixed bigram statistics, except after the trigger `?`: there it shows the noise symbol
`!` with probability alpha, and otherwise the sequence's own answer symbol. A model trained on them learns
two things at once: to look up what followed earlier triggers (in attention), and to guess `!` whatever the
context (in the MLPs). Samples have alpha = 0, so the second habit can only do harm, and removing it reveals
the first.
"""

from __future__ import annotations

import string
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lasertri.data.sample import Sample

TRIGGER: Final = "?"
NOISE: Final = "!"
SYMBOLS: Final[tuple[str, ...]] = (TRIGGER, NOISE, *string.ascii_letters, *string.digits, "&")
TRIGGER_ID: Final = SYMBOLS.index(TRIGGER)
NOISE_ID: Final = SYMBOLS.index(NOISE)

LENGTH: Final = 64  # symbols in a sequence
TRAINING_ALPHA: Final = 0.5  # share of triggers answered by noise while training

# The statistics belong to the task, not to a run: training, calibration and held-out sequences share them.
_STATISTICS_SEED: Final = 2406_03068
_DIRICHLET_CONCENTRATION: Final = float(len(SYMBOLS))
# Samples draw from a stream of their own, so that no sample seed repeats the sequences of a training seed.
_SAMPLES_STREAM: Final = 1

Probabilities = npt.NDArray[np.float64]


def sequences(count: int, rng: np.random.Generator, *, alpha: float, length: int = LENGTH) -> Tensor:
    """Draw independent sequences of symbol ids: LongTensor[count, length].

    The answer of each sequence is uniform over the symbols that are neither trigger nor noise. A trigger is
    followed by noise with probability `alpha` and by the answer otherwise, any other symbol by a draw from
    its bigram row.
    """
    unigram, bigram = _cumulative_statistics()
    special = max(TRIGGER_ID, NOISE_ID) + 1
    answer = rng.integers(special, len(SYMBOLS), size=count)
    drawn = np.empty((count, length), dtype=np.int64)
    drawn[:, 0] = np.searchsorted(unigram, rng.random(count), side="right")
    for position in range(1, length):
        previous = drawn[:, position - 1]
        ordinary = (bigram[previous] <= rng.random((count, 1))).sum(axis=1)
        recalled = np.where(rng.random(count) < alpha, NOISE_ID, answer)
        drawn[:, position] = np.where(previous == TRIGGER_ID, recalled, ordinary)
    return torch.from_numpy(drawn)


def recall_positions(drawn: Tensor) -> Tensor:
    """Mark where a recall can be asked for: BoolTensor[count, length - 1].

    These are the triggers from the second occurrence on (an earlier one has been answered) that have a next
    symbol.
    """
    trigger = drawn[:, :-1] == TRIGGER_ID
    return trigger & (trigger.cumsum(dim=1) > 1)


def samples(count: int, seed: int) -> list[Sample]:
    """Draw `count` noise-free samples, each from a sequence of its own.

    The prompt ends in a trigger chosen uniformly among the recall positions, the completion is the sequence's
    answer. Different seeds give different sequences: calibration and held-out sets need only differ in seed.
    The same count and seed give the same samples; another count is another set, not a longer one.
    """
    rng = np.random.default_rng((_SAMPLES_STREAM, seed))
    found: list[Sample] = []
    while len(found) < count:  # a sequence with fewer than two triggers asks for no recall and is drawn again
        drawn = sequences(count, rng, alpha=0.0)
        for symbols, asked in zip(drawn, recall_positions(drawn), strict=True):
            positions = asked.nonzero().flatten().tolist()
            if positions:
                end = int(rng.choice(positions)) + 1
                found.append(Sample(prompt=render(symbols[:end]), completion=SYMBOLS[int(symbols[end])]))
    return found[:count]


def render(symbols: Tensor) -> str:
    """Write LongTensor[length] of symbol ids as text: one word per symbol, separated by single spaces."""
    return " ".join(SYMBOLS[symbol] for symbol in symbols.tolist())


@cache
def _cumulative_statistics() -> tuple[Probabilities, Probabilities]:
    """Cumulative unigram[symbols] and bigram[symbols, symbols] probabilities (rows: previous symbol).

    Unigrams are Zipf's with the trigger in the first rank; each bigram row is drawn from a Dirichlet
    distribution around them. Noise has no share in either, so that it appears only where alpha puts it.
    """
    rng = np.random.default_rng(_STATISTICS_SEED)
    others = np.array([symbol not in (TRIGGER_ID, NOISE_ID) for symbol in range(len(SYMBOLS))])
    weight = np.zeros(len(SYMBOLS))
    weight[TRIGGER_ID] = 1.0
    weight[others] = 1.0 / rng.permutation(np.arange(2, others.sum() + 2))
    unigram = weight / weight.sum()
    possible = unigram > 0
    bigram = np.zeros((len(SYMBOLS), len(SYMBOLS)))
    bigram[:, possible] = rng.dirichlet(_DIRICHLET_CONCENTRATION * unigram[possible], size=len(SYMBOLS))
    return _cumulative(unigram), _cumulative(bigram)


def _cumulative(probabilities: Probabilities) -> Probabilities:
    """Running sums along the last axis, ending in exactly 1: rounding never yields an id out of range."""
    sums: Probabilities = probabilities.cumsum(axis=-1)
    sums /= sums[..., -1:]
    return sums
