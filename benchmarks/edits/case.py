"""One model, task and seed: the samples that calibrate and those held out, and what is measured of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.edits.tasks import Task
from lasertri import Sample
from lasertri.data.split import Split
from lasertri.language.encoding import TokenRow
from lasertri.language.samples import EncodedSamples
from lasertri.measure.measurement import Measurement
from lasertri.measure.significance import paired_interval


@dataclass(frozen=True)
class Outcome:
    """What a model gave for samples.

    Attributes:
        measurement: as the product measures; its log loss is over the right answer's tokens.
        answer: `[S]`, log-probability of the right answer's tokens, summed.
        choice: `[S]`, log-probability of the right choice among the choices; None where samples have completions.
    """

    measurement: Measurement
    answer: np.ndarray
    choice: np.ndarray | None

    @property
    def objective(self) -> np.ndarray:
        """`[S]`, what training raises, and what chooses: see `objective`."""
        return self.answer if self.choice is None else self.choice

    @property
    def loss(self) -> float:
        return float(-self.objective.mean())

    def to_dict(self) -> dict[str, object]:
        """Figures, and the record sample by sample."""
        return {
            "accuracy": self.measurement.accuracy,
            "balanced_accuracy": self.measurement.balanced_accuracy,
            "collapsed": self.measurement.collapsed,
            "log_loss": self.measurement.log_loss,
            "choice_log_loss": None if self.choice is None else float(-self.choice.mean()),
            "correct": "".join("01"[int(right)] for right in self.measurement.correct),
            "answer_log_probs": np.round(self.answer, 4).tolist(),
            "choice_log_probs": None if self.choice is None else np.round(self.choice, 4).tolist(),
        }


@dataclass(frozen=True)
class Case:
    """What every method is given."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    split: Split[Sample]
    seed: int

    @functools.cached_property
    def calibration(self) -> EncodedSamples:
        return self.encoded(self.split.calibration)

    @functools.cached_property
    def held_out(self) -> EncodedSamples:
        return self.encoded(self.split.held_out)

    @functools.cached_property
    def baseline(self) -> Outcome:
        """Of the model as it is, held out."""
        return outcome(self.model, self.held_out)

    def encoded(self, samples: Sequence[Sample]) -> EncodedSamples:
        return EncodedSamples(samples, model=self.model, tokenizer=self.tokenizer, delimiter=self.task.delimiter)

    def compared(self, after: Outcome) -> dict[str, object]:
        """An outcome held out, with 95 % intervals of what it is more, or less, than the baseline."""
        before, groups = self.baseline, self.held_out.groups
        return {
            **after.to_dict(),
            "accuracy_interval": paired_interval(before.measurement.correct, after.measurement.correct, groups),
            "log_loss_interval": paired_interval(-before.answer, -after.answer, groups),
            "choice_log_loss_interval": None
            if before.choice is None or after.choice is None
            else paired_interval(-before.choice, -after.choice, groups),
        }


def objective(samples: EncodedSamples) -> str:
    """What is made more probable: the right choice among the choices, or else the tokens of the completion."""
    return "answer" if samples.table.free.any() else "choice"


@torch.no_grad()
def outcome(model: PreTrainedModel, samples: EncodedSamples, chosen: Sequence[int] | None = None) -> Outcome:
    """Measure a model as it is, by what `evaluate` is made of, on the chosen samples (on all)."""
    readings = samples.read(model, chosen)
    _, answer = readings.outcomes(chosen)
    choice = -readings.sample_losses(chosen) if objective(samples) == "choice" else None
    return Outcome(readings.measurement(chosen), answer, choice)


def tokens(samples: EncodedSamples) -> np.ndarray:
    """`[S]`, how many tokens a forward pass runs for every sample."""
    rows = [list(dict.fromkeys(answer.row for answer in answers)) for answers in samples.answers]
    return np.array([TokenRow.of(sequences).length for sequences in rows])
