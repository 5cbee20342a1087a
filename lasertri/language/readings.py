"""What a language model gave for every answer token of its samples, and what that makes of each sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from lasertri.data.sample import Sample
from lasertri.errors import LasertriError
from lasertri.language.generation import written
from lasertri.measure.measurement import Measurement
from lasertri.measure.protocol import SampleBatch

if TYPE_CHECKING:
    from lasertri.language.samples import EncodedSamples


@dataclass(frozen=True)
class Readings:
    """What a model, or several at once, gave for every token of the samples' answers.

    Attributes:
        log_probs: `[…, E]`, FP64; NaN where nothing was read.
        greedy: `[…, E]`, the most probable token in its place.
        written: `[…, S]`, the text after the prompt, empty where none was written.
    """

    log_probs: np.ndarray
    greedy: np.ndarray
    written: np.ndarray

    @classmethod
    def empty(cls, samples: EncodedSamples, *models: int) -> Readings:
        """Nothing read yet, of one model or of an array of them."""
        shape = *models, len(samples.tokens)
        return cls(np.full(shape, np.nan), np.full(shape, -1), np.full((*models, len(samples)), "", dtype=object))

    def read(
        self,
        model: nn.Module,
        samples: EncodedSamples,
        chosen: Sequence[int] | None = None,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Keep all that a model gives for the chosen samples (for all); `advance` is told how many tokens that were."""
        for batch in samples.batches(chosen):
            self.record(batch, *batch.read(model))
            advance(len(batch.entry))
        for i, text in written(model, samples, chosen):
            self.written[i] = text
            advance(samples.samples[i].window)

    def record(self, batch: SampleBatch, log_probs: Tensor, greedy: Tensor) -> None:
        """Keep what a batch gave, `[…, N]` each."""
        entry = batch.entry.cpu().numpy()
        self.log_probs[..., entry] = log_probs.cpu().numpy()
        self.greedy[..., entry] = greedy.cpu().numpy()

    def update(self, other: Readings) -> None:
        """Take over what the other has read."""
        read, wrote = other.greedy >= 0, other.written != ""
        self.log_probs[read], self.greedy[read] = other.log_probs[read], other.greedy[read]
        self.written[wrote] = other.written[wrote]

    def __getitem__(self, model: int | Sequence[int]) -> Readings:
        return Readings(self.log_probs[model], self.greedy[model], self.written[model])

    def check(self) -> None:
        """Raise if a probability is NaN."""
        if np.isnan(self.log_probs).any():
            raise LasertriError("expected log-probabilities, got NaN; check the model's weights and dtype")

    def outcomes(
        self, samples: EncodedSamples, chosen: Sequence[int] | None = None, *, normalize: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whether each sample was answered rightly `[…, S]`, and the right answer's log-probability `[…, S]`."""
        _, correct, gold = self._judged(samples, range(len(samples)) if chosen is None else chosen, normalize)
        return correct, gold

    def measure(
        self, samples: EncodedSamples, chosen: Sequence[int] | None = None, *, normalize: bool = False
    ) -> Measurement:
        """Measure one model on the chosen samples (on all), all of which were read."""
        indices = range(len(samples)) if chosen is None else chosen
        given, correct, gold = self._judged(samples, indices, normalize)
        predictions = [
            self._texts(samples, i).item() if samples.free[i] else samples.samples[i].choices[answer]
            for i, answer in zip(indices, given.tolist(), strict=True)
        ]
        return _measurement([samples.samples[i] for i in indices], predictions, correct, float(-gold.mean()))

    def _judged(
        self, samples: EncodedSamples, chosen: Sequence[int], normalize: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`[…, chosen]` each: the choice taken, whether the answer is right, and the right one's log-probability.

        Of equally probable choices the first is taken. A sample with NaN among its answers is answered wrongly.
        """
        log_probs = np.add.reduceat(self.log_probs, samples.token_starts, axis=-1)
        failed = np.isnan(log_probs)
        log_probs = np.where(failed, -np.inf, log_probs)
        scores = log_probs / samples.characters if normalize else log_probs
        best = scores == np.maximum.reduceat(scores, samples.starts, axis=-1)[..., samples.owner]
        numbers = np.arange(len(samples.owner))
        taken = np.minimum.reduceat(np.where(best, numbers, len(numbers)), samples.starts, axis=-1)
        same = np.logical_and.reduceat(self.greedy == samples.tokens, samples.token_starts, axis=-1)[..., samples.gold]
        right = np.where(samples.free, same, taken == samples.gold)[..., chosen]
        for place, i in enumerate(chosen):
            sample = samples.samples[i]
            if sample.match == "tokens":
                continue
            accepted = np.vectorize(sample.accepts, otypes=[bool])(self._texts(samples, i))
            right[..., place] = accepted if sample.window else accepted | right[..., place]
        right &= ~np.logical_or.reduceat(failed, samples.starts, axis=-1)[..., chosen]
        return (taken - samples.starts)[..., chosen], right, log_probs[..., samples.gold[chosen]]

    def _texts(self, samples: EncodedSamples, sample: int) -> np.ndarray:
        """What was given for a completion, `[…]` of text: what was written, or its most probable tokens."""
        if samples.samples[sample].window:
            return self.written[..., sample]
        start = samples.token_starts[samples.starts[sample]]
        tokens = self.greedy[..., start : start + len(samples.answers[sample][0].tokens)]
        texts = [samples.text(row) for row in tokens.reshape(-1, tokens.shape[-1]).tolist()]
        return np.array(texts, dtype=object).reshape(tokens.shape[:-1])


def _measurement(
    samples: Sequence[Sample], predictions: list[str], correct: np.ndarray, log_loss: float
) -> Measurement:
    gold = [sample.answers[sample.gold] for sample in samples]
    shared = len({frozenset(sample.choices) for sample in samples}) == 1 and bool(samples[0].choices)
    balanced = None
    if shared:
        _, label = np.unique(gold, return_inverse=True)
        balanced = float(np.mean(np.bincount(label, correct) / np.bincount(label)))
    top, count = Counter(predictions).most_common(1)[0]
    one_answer = count >= 0.95 * len(predictions)
    if balanced is None:
        undeserved = correct[[prediction == top for prediction in predictions]].mean() < 0.95
    else:
        undeserved = balanced <= 1 / len(samples[0].choices) + 0.05
    return Measurement(
        accuracy=float(correct.mean()),
        majority_rate=Counter(gold).most_common(1)[0][1] / len(gold),
        balanced_accuracy=balanced,
        log_loss=log_loss,
        collapsed=one_answer and bool(undeserved),
        n=len(correct),
        correct=correct,
    )
