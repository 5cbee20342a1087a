"""Nine real tasks, from a folder that has them as files.

Three of the papers' tasks in folders of their own (`counterfact`, `truthfulqa`, `bigbench_epistemic_reasoning`), and
six others as jsonl in `small_tasks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lasertri import Sample
from lasertri.data.files import as_samples
from lasertri.data.papers.registry import task_samples


@dataclass(frozen=True)
class Task:
    """How a task is read and asked.

    Attributes:
        samples: from the folder of all tasks.
        delimiter: stands between prompt and answer, as `lasertri adapt` takes it.
        closing: ends an answer that is shown as an example.
    """

    samples: Callable[[Path], list[Sample]]
    delimiter: str = " "
    closing: str = ""


def _published(name: str, folder: str | None = None) -> Task:
    return Task(lambda data: task_samples(name, data_dir=data / (folder or name)))


def _small(name: str, delimiter: str = " ", closing: str = "") -> Task:
    return Task(lambda data: as_samples(data / "small_tasks" / f"{name}.jsonl"), delimiter, closing)


TASKS = {
    "counterfact": _published("counterfact"),
    "truthfulqa": _published("truthfulqa"),
    "epistemic-reasoning": _published("epistemic-reasoning", "bigbench_epistemic_reasoning"),
    "antonyms": _small("antonyms", delimiter="", closing='"'),  # a prompt ends in an opening quotation mark
    "implicatures": _small("implicatures"),
    "larger_animal": _small("larger_animal"),
    "sentiment": _small("sentiment"),
    "sports_understanding": _small("sports_understanding"),
    "translation_en-fr": _small("translation_en-fr"),
}
