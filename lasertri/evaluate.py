"""How well a model answers: accuracy, balanced accuracy, log loss, and whether it gives one answer to everything."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lasertri.encode import EncodedSamples
from lasertri.errors import LasertriError


@dataclass(frozen=True)
class Measurement:
    """What was measured on one set of samples.

    Attributes:
        accuracy: share of samples answered rightly.
        majority_rate: accuracy of giving the most frequent right answer to everything.
        balanced_accuracy: mean recall over the labels; None where samples do not share one label set.
        log_loss: negative log-likelihood of the right answers in nats, summed over tokens, averaged over samples.
        collapsed: one answer takes at least 95 % of the predictions, and (where labels are shared) balanced
            accuracy is at most 1/C + 0.05.
        n: number of samples.
        correct: `[n]` bool, sample by sample.
    """

    accuracy: float
    majority_rate: float
    balanced_accuracy: float | None
    log_loss: float
    collapsed: bool
    n: int
    correct: np.ndarray = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, object]:
        """The figures, without the sample-by-sample record."""
        figures = {name: value for name, value in vars(self).items() if name != "correct"}
        return figures | {"log_loss": self.log_loss if math.isfinite(self.log_loss) else None}  # JSON has no infinity


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: EncodedSamples,
    *,
    normalize: bool = False,
    may_fail: bool = False,
    progress: str | None = None,
) -> Measurement:
    """Measure a model as it is.

    Args:
        normalize: divide a choice's log-probability by its number of characters before choosing.
        may_fail: count a sample with NaN for probabilities as answered wrongly, at infinite loss, instead of raising.
        progress: name of a progress bar, if one is wanted.

    Raises:
        LasertriError: the model gave NaN instead of probabilities.
    """
    log_probs, matches, strings = _read(model, samples, progress)
    failed = np.isnan(log_probs)
    if failed.any() and not may_fail:
        raise LasertriError("expected log-probabilities, came NaN; check the model's weights and dtype")
    log_probs[failed] = -np.inf
    predictions: list[object] = []
    correct, gold_log_probs, start = [], [], 0
    for sample in samples.samples:
        mine = slice(start, start + len(sample.answers))
        if sample.choices:
            lengths = [len(choice) if normalize else 1 for choice in sample.choices]
            chosen = int(np.argmax(log_probs[mine] / lengths))
            predictions.append(sample.choices[chosen])
            correct.append(chosen == sample.gold and not failed[mine].any())
        else:
            predictions.append(strings[start])
            correct.append(bool(matches[start] and not failed[start]))
        gold_log_probs.append(log_probs[start + sample.gold])
        start = mine.stop
    return _measurement(samples, predictions, np.array(correct), float(-np.mean(gold_log_probs)))


def _read(
    model: nn.Module, samples: EncodedSamples, progress: str | None
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """Per answer: summed log-probability, whether a greedy choice gives it, and the tokens that choice gives."""
    count = sum(map(len, samples.answers))
    log_probs, matches = np.zeros(count), np.ones(count, dtype=bool)
    strings: list[tuple[int, ...]] = [()] * count
    for batch in tqdm(samples.batches, progress, disable=progress is None):
        token_log_probs, greedy = (values.cpu().numpy() for values in batch.read(model))
        answer, token = batch.answer.cpu().numpy(), batch.token.cpu().numpy()
        np.add.at(log_probs, answer, token_log_probs)
        np.logical_and.at(matches, answer, greedy == token)
        for a, predicted in zip(answer, greedy, strict=True):
            strings[a] += (int(predicted),)
    return log_probs, matches, strings


def _measurement(
    samples: EncodedSamples, predictions: list[object], correct: np.ndarray, log_loss: float
) -> Measurement:
    gold = [sample.answers[sample.gold] for sample in samples.samples]
    shared = len({frozenset(sample.choices) for sample in samples.samples}) == 1 and bool(samples.samples[0].choices)
    balanced = None
    if shared:
        recalls = [correct[[g == label for g in gold]].mean() for label in sorted(set(gold))]
        balanced = float(np.mean(recalls))
    top = Counter(predictions).most_common(1)[0][1] / len(predictions)
    chance = 1 / len(samples.samples[0].choices) if shared else 0.0
    return Measurement(
        accuracy=float(correct.mean()),
        majority_rate=Counter(gold).most_common(1)[0][1] / len(gold),
        balanced_accuracy=balanced,
        log_loss=log_loss,
        collapsed=top >= 0.95 and (balanced is None or balanced <= chance + 0.05),
        n=len(correct),
        correct=correct,
    )
