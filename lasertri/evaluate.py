"""How well a model answers: accuracy, balanced accuracy, log loss, and whether it gives one answer to everything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lasertri.errors import LasertriError
from lasertri.samples import SampleBatch, Samples
from lasertri.tasks import Sample

if TYPE_CHECKING:
    from lasertri.encode import EncodedSamples


@dataclass(frozen=True)
class Measurement:
    """What was measured on one set of samples.

    Attributes:
        accuracy: share of samples answered rightly; of an `Objective` the mean score.
        majority_rate: accuracy of giving the most frequent right answer to everything; None where there are no answers.
        balanced_accuracy: mean recall over the labels; None where samples do not share one label set.
        log_loss: negative log-likelihood of the right answers in nats, summed over tokens, averaged over samples; of an
            `Objective` the mean loss.
        collapsed: one answer takes at least 95 % of the predictions, and (where labels are shared) balanced
            accuracy is at most 1/C + 0.05; None where there are no answers.
        n: number of samples.
        correct: `[n]` bool, sample by sample; of an `Objective` the scores, FP64.
    """

    accuracy: float
    majority_rate: float | None
    balanced_accuracy: float | None
    log_loss: float
    collapsed: bool | None
    n: int
    correct: np.ndarray = field(repr=False, compare=False)

    def sound_beside(self, baseline: Measurement) -> bool:
        """Whether it neither lowers balanced accuracy nor collapses."""
        # both are None where labels are not shared
        return not self.collapsed and (self.balanced_accuracy or 0) >= (baseline.balanced_accuracy or 0)

    def to_dict(self) -> dict[str, object]:
        """The figures, without the sample-by-sample record."""
        figures = {name: value for name, value in vars(self).items() if name != "correct"}
        return figures | {"log_loss": self.log_loss if math.isfinite(self.log_loss) else None}  # JSON has no infinity


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: Samples,
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
    readings = samples.readings()
    for batch in tqdm(samples.batches(), progress, disable=progress is None):
        readings.record(batch, *batch.read(model))
    if not may_fail:
        readings.check()
    return readings.measure(samples, normalize=normalize)


@dataclass(frozen=True)
class Readings:
    """What a model, or several at once, gave for every token of the samples' answers.

    Attributes:
        log_probs: `[…, E]`, FP64; NaN where nothing was read.
        greedy: `[…, E]`, the most probable token in its place.
    """

    log_probs: np.ndarray
    greedy: np.ndarray

    @classmethod
    def empty(cls, samples: EncodedSamples, *models: int) -> Readings:
        """Nothing read yet, of one model or of an array of them."""
        shape = *models, len(samples.tokens)
        return cls(np.full(shape, np.nan), np.full(shape, -1))

    def record(self, batch: SampleBatch, log_probs: Tensor, greedy: Tensor) -> None:
        """Keep what a batch gave, `[…, N]` each."""
        entry = batch.entry.cpu().numpy()
        self.log_probs[..., entry] = log_probs.cpu().numpy()
        self.greedy[..., entry] = greedy.cpu().numpy()

    def update(self, other: Readings) -> None:
        """Take over what the other has read."""
        read = other.greedy >= 0
        self.log_probs[read], self.greedy[read] = other.log_probs[read], other.greedy[read]

    def __getitem__(self, model: int | Sequence[int]) -> Readings:
        return Readings(self.log_probs[model], self.greedy[model])

    def check(self) -> None:
        """Raise if a probability is NaN."""
        if np.isnan(self.log_probs).any():
            raise LasertriError("expected log-probabilities, came NaN; check the model's weights and dtype")

    def outcomes(
        self, samples: EncodedSamples, chosen: Sequence[int] | None = None, *, normalize: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whether each sample was answered rightly `[…, S]`, and the right answer's log-probability `[…, S]`."""
        log_probs, matches, failed = self._answers(samples)
        correct, gold = [], []
        for i in range(len(samples)) if chosen is None else chosen:
            sample, start = samples.samples[i], samples.starts[i]
            mine = slice(start, start + len(sample.answers))
            if sample.choices:
                right = _choice(log_probs[..., mine], sample, normalize) == sample.gold
            else:
                right = matches[..., start]
            correct.append(right & ~failed[..., mine].any(axis=-1))
            gold.append(log_probs[..., start + sample.gold])
        return np.stack(correct, axis=-1), np.stack(gold, axis=-1)

    def measure(
        self, samples: EncodedSamples, chosen: Sequence[int] | None = None, *, normalize: bool = False
    ) -> Measurement:
        """Measure one model on the chosen samples (on all), all of which were read."""
        indices = list(range(len(samples)) if chosen is None else chosen)
        correct, gold = self.outcomes(samples, indices, normalize=normalize)
        log_probs, _, _ = self._answers(samples)
        predictions: list[object] = []
        for i in indices:
            sample, start = samples.samples[i], samples.starts[i]
            if sample.choices:
                mine = log_probs[start : start + len(sample.answers)]
                predictions.append(sample.choices[int(_choice(mine, sample, normalize))])
            else:
                first = samples.token_starts[start]
                predictions.append(tuple(self.greedy[first : first + len(samples.answers[i][0].tokens)]))
        return _measurement([samples.samples[i] for i in indices], predictions, correct, float(-gold.mean()))

    def _answers(self, samples: EncodedSamples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per answer `[…, A]`: log-probability, whether a greedy choice gives it, and whether it came as NaN."""
        sums = np.add.reduceat(self.log_probs, samples.token_starts, axis=-1)
        matches = np.logical_and.reduceat(self.greedy == samples.tokens, samples.token_starts, axis=-1)
        failed = np.isnan(sums)
        return np.where(failed, -np.inf, sums), matches, failed


def _choice(log_probs: np.ndarray, sample: Sample, normalize: bool) -> np.ndarray:
    """Index of the most probable choice, `[…, choices]` -> `[…]`."""
    return np.argmax(log_probs / [len(choice) if normalize else 1 for choice in sample.choices], axis=-1)


def _measurement(
    samples: Sequence[Sample], predictions: list[object], correct: np.ndarray, log_loss: float
) -> Measurement:
    gold = [sample.answers[sample.gold] for sample in samples]
    shared = len({frozenset(sample.choices) for sample in samples}) == 1 and bool(samples[0].choices)
    balanced = None
    if shared:
        recalls = [correct[[g == label for g in gold]].mean() for label in sorted(set(gold))]
        balanced = float(np.mean(recalls))
    top = Counter(predictions).most_common(1)[0][1] / len(predictions)
    chance = 1 / len(samples[0].choices) if shared else 0.0
    return Measurement(
        accuracy=float(correct.mean()),
        majority_rate=Counter(gold).most_common(1)[0][1] / len(gold),
        balanced_accuracy=balanced,
        log_loss=log_loss,
        collapsed=top >= 0.95 and (balanced is None or balanced <= chance + 0.05),
        n=len(correct),
        correct=correct,
    )
