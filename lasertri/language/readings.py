"""What a language model gave for every answer token of its samples, and what that makes of each sample."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from lasertri.data.sample import Sample
from lasertri.errors import NotFiniteError
from lasertri.language.answer_table import AnswerTable
from lasertri.measure.measurement import Measurement
from lasertri.measure.protocol import SampleBatch

COLLAPSED = 0.95  # share of predictions that one answer takes
EXAMPLES = 3  # of what a model gave where it is never right
UNREAD = -1  # in place of a token


@dataclass(frozen=True)
class Readings:
    """What a model, or several at once, gave for every token of the samples' answers.

    Attributes:
        log_probs: `[…, E]`, FP64; NaN where nothing was read, or where the model gave NaN.
        greedy: `[…, E]`, the most probable token in its place; `UNREAD` where nothing was read.
        written: `[…, S]`, the text after the prompt; empty where none was written.
    """

    table: AnswerTable = field(repr=False)
    log_probs: np.ndarray
    greedy: np.ndarray
    written: np.ndarray

    @classmethod
    def empty(cls, table: AnswerTable, *models: int) -> Readings:
        """Nothing read yet, of one model or of an array of them."""
        shape = *models, len(table.tokens)
        written = np.full((*models, len(table.samples)), "", dtype=object)
        return cls(table, np.full(shape, np.nan), np.full(shape, UNREAD), written)

    def record(self, batch: SampleBatch, log_probs: Tensor, greedy: Tensor) -> None:
        """Keep what a batch gave, `[…, N]` each."""
        entry = batch.entry.cpu().numpy()
        self.log_probs[..., entry] = log_probs.cpu().numpy()
        self.greedy[..., entry] = greedy.cpu().numpy()

    def update(self, other: Readings) -> None:
        """Take over what the other has read."""
        read, wrote = other.greedy != UNREAD, other.written != ""
        np.copyto(self.log_probs, other.log_probs, where=read)
        np.copyto(self.greedy, other.greedy, where=read)
        np.copyto(self.written, other.written, where=wrote)

    def __getstate__(self) -> dict[str, object]:
        """What another process takes over: it has the table."""
        return vars(self) | {"table": None}

    def __getitem__(self, model: int | Sequence[int]) -> Readings:
        return Readings(self.table, self.log_probs[model], self.greedy[model], self.written[model])

    def check(self) -> None:
        """Raise if a probability is NaN, as it is where an output is infinite."""
        failed = np.flatnonzero(np.isnan(self.log_probs))
        if failed.size:
            table = self.table
            samples = list(dict.fromkeys(table.sample_of[table.answer_of(failed)].tolist()))
            first = table.samples[samples[0]]
            more = f" and {len(samples) - 1} more" if len(samples) > 1 else ""
            raise NotFiniteError(
                f"expected finite outputs of the model, got NaN or Inf for {first.source}{more} "
                f"({first.prompt[:60]!r}); leave the row out, or load the model in float32"
            )

    def outcomes(
        self, chosen: Sequence[int] | None = None, *, normalize: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whether each sample was answered rightly `[…, S]`, and the right answer's log-probability `[…, S]`."""
        _, correct, gold = self._judged(self._indices(chosen), normalize)
        return correct, gold

    def sample_losses(self, chosen: Sequence[int] | None = None) -> np.ndarray:
        """What a step lowers, `[…, S]` in nats: minus the right answer's log-probability, of choices among those."""
        table = self.table
        answers = np.nan_to_num(table.per_answer(self.log_probs), nan=-np.inf, neginf=-np.inf)
        together = np.where(table.free, 0.0, table.per_sample(answers, np.logaddexp))
        with np.errstate(invalid="ignore"):  # all choices of a sample may be impossible
            losses = np.nan_to_num(together - answers[..., table.gold], nan=np.inf, posinf=np.inf)
        return losses[..., self._indices(chosen)]

    def measurement(self, chosen: Sequence[int] | None = None, *, normalize: bool = False) -> Measurement:
        """The figures of one model on the chosen samples (on all), all of which were read."""
        indices, table = self._indices(chosen), self.table
        taken, correct, gold = self._judged(indices, normalize)
        predictions = [
            self._text(i).item() if table.free[i] else table.samples[i].choices[answer - table.first_answer[i]]
            for i, answer in zip(indices, taken.tolist(), strict=True)
        ]
        samples, losses = [table.samples[i] for i in indices], self.sample_losses(indices)
        return _measurement(samples, predictions, correct, float(-gold.mean()), losses)

    def _indices(self, chosen: Sequence[int] | None) -> Sequence[int]:
        return range(len(self.table.samples)) if chosen is None else chosen

    def _judged(self, chosen: Sequence[int], normalize: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`[…, chosen]` each: the answer taken, whether it is right, and the log-probability of the right one.

        Of equally probable answers the first is taken. A sample with NaN among its answers is answered wrongly.
        """
        table = self.table
        log_probs = table.per_answer(self.log_probs)
        failed = np.isnan(log_probs)
        log_probs = np.where(failed, -np.inf, log_probs)
        taken = table.best(log_probs / table.characters if normalize else log_probs)
        reproduced = table.per_answer(self.greedy == table.tokens, np.logical_and)[..., table.gold]
        right = np.where(table.free, reproduced, taken == table.gold)[..., chosen]
        for place, i in enumerate(chosen):
            sample = table.samples[i]
            if sample.match == "tokens":
                continue
            accepted = np.vectorize(functools.partial(table.accepts, i), otypes=[bool])(self._text(i))
            right[..., place] = accepted if sample.window else accepted | right[..., place]
        right &= ~table.per_sample(failed, np.logical_or)[..., chosen]
        return taken[..., chosen], right, log_probs[..., table.gold[chosen]]

    def _text(self, sample: int) -> np.ndarray:
        """What was given for a completion, `[…]`: the text that was written, else its most probable tokens'."""
        if self.table.samples[sample].window:
            return self.written[..., sample]
        return self.table.texts(self.greedy, sample)


def _measurement(
    samples: Sequence[Sample], predictions: list[str], correct: np.ndarray, log_loss: float, losses: np.ndarray
) -> Measurement:
    gold = [sample.answers[sample.gold] for sample in samples]
    shared = len({frozenset(sample.choices) for sample in samples}) == 1 and bool(samples[0].choices)
    balanced = None
    if shared:
        _, label = np.unique(gold, return_inverse=True)
        balanced = float(np.mean(np.bincount(label, correct) / np.bincount(label)))
    top, count = Counter(predictions).most_common(1)[0]
    one_answer = count >= COLLAPSED * len(predictions)
    if balanced is None:
        undeserved = correct[[prediction == top for prediction in predictions]].mean() < COLLAPSED
    else:
        undeserved = balanced <= 1 / len(samples[0].choices) + 0.05
    pairs = list(zip(gold, predictions, strict=True))[:EXAMPLES]
    return Measurement(
        accuracy=float(correct.mean()),
        majority_rate=Counter(gold).most_common(1)[0][1] / len(gold),
        balanced_accuracy=balanced,
        log_loss=log_loss,
        collapsed=one_answer and bool(undeserved),
        n=len(correct),
        correct=correct,
        choice_log_loss=float(losses.mean()) if all(sample.choices for sample in samples) else None,
        losses=losses,
        instead=() if correct.any() else pairs,
        given=predictions,
    )
