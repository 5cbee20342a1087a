"""One column on one task: all columns of a task share the test part, and calibrate on what is before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.data.papers.registry import described, task_samples
from lasertri.data.sample import Sample
from lasertri.data.split import Split, standard_split
from lasertri.edit.comparison import Comparison
from lasertri.errors import LasertriError
from lasertri.language.samples import EncodedSamples
from lasertri.measure.evaluate import evaluate
from lasertri.method import adapt
from lasertri.model.loading import model_kind
from lasertri.model.targets import find_targets
from lasertri.reproduce.accounting import sample_forwards
from lasertri.reproduce.plan import BASELINE, Plan
from lasertri.search.settings import Settings
from lasertri.support.timing import Clock


@dataclass(frozen=True)
class TaskData:
    """A task's samples: their number, the first fifth to calibrate on, and the test part.

    The test part is the rest, but for samples of a group that the first fifth has too (and for `held_out_limit`).
    """

    size: int
    split: Split[Sample]
    description: str

    @classmethod
    def load(cls, task: str, plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TaskData:
        """Read and split a task, put in the form that goes with the model.

        Raises:
            LasertriError: its data is missing or of another form, or too short.
        """
        found = task_samples(
            task,
            masked=model_kind(model) == "masked",
            data_dir=plan.task_folder(task),
            protocol=plan.protocol,
            tokenizer=tokenizer,
        )
        samples = found[: plan.samples]
        limit = plan.held_out_limit or len(samples)
        split = standard_split(samples, held_out_limit=limit, seed=plan.seed)
        return cls(len(samples), split, described(task, found))


def measure_column(
    column: str,
    plan: Plan,
    data: TaskData,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Everything that was measured, and what the paper's counting makes of it."""
    if column == BASELINE:
        encoded = EncodedSamples(data.split.held_out, model=model, tokenizer=tokenizer, batch_size=plan.batch_size)
        clock = Clock()
        with clock("held-out"):
            comparison = Comparison(evaluate(model, encoded, progress=BASELINE))
        result = {"held_out": comparison.to_dict(), "seconds": clock.seconds["held-out"]}
        return {"samples": data.size, "counted": None, "result": result}
    settings = plan.settings(column)
    own, laser = (sample_forwards(each, _trials(each, model), data.size) for each in (settings, plan.settings("laser")))
    options = replace(settings, held_out_limit=len(data.split.held_out)).keywords
    found = adapt(model, data.split.calibration, held_out=data.split.held_out, tokenizer=tokenizer, **options)
    if found.refused is not None:
        raise LasertriError(found.refused)
    counted = {"forwards": own, "speedup": laser / own}
    return {"samples": data.size, "counted": counted, "result": found.to_dict()}


def _trials(settings: Settings, model: PreTrainedModel) -> int:
    """How many candidates a column asks for."""
    targets = find_targets(model, roles=settings.plan.roles)
    candidates = settings.plan.candidates(
        targets, count=settings.count, block_counts=settings.blocks, ratios=settings.ratios
    )
    return sum(1 for _ in candidates)
