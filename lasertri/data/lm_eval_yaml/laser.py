"""LASER's tasks as docs of lm_eval: what `lasertri.data.papers` makes of a dataset's rows, in the form of LASER's code.

A doc has a `prompt`, and as its `target` a text, or the index of one of its `choices`; docs of one row share a `group`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from datasets import Dataset

from lasertri.data.files import PlacedRow
from lasertri.data.papers.form import Form
from lasertri.data.papers.registry import TASKS


def _docs(task: str, rows: Dataset) -> Dataset:
    """What a task makes of these rows, as those of the last split that it reads."""
    placed = [(f"row {i}", row) for i, row in enumerate(rows, 1)]
    splits: list[list[PlacedRow]] = [*([] for _ in TASKS[task].source.splits[1:]), placed]
    docs: list[dict[str, object]] = []
    for sample in TASKS[task].samples(splits, Form(laser=True)):
        doc: dict[str, object] = {"prompt": sample.prompt, "target": sample.completion}
        if sample.choices:
            doc |= {"choices": sample.choices, "target": sample.label}
        if sample.group is not None:
            doc["group"] = sample.group
        docs.append(doc)
    return Dataset.from_list(docs)


counterfact = functools.partial(_docs, "counterfact")
hotpotqa = functools.partial(_docs, "hotpotqa")
fever = functools.partial(_docs, "fever")
bios_gender = functools.partial(_docs, "bios-gender")
bios_profession = functools.partial(_docs, "bios-profession")
truthfulqa = functools.partial(_docs, "truthfulqa")
epistemic_reasoning = functools.partial(_docs, "epistemic-reasoning")
qa_wikidata = functools.partial(_docs, "qa-wikidata")


def contains(references: Sequence[str], predictions: Sequence[str]) -> float:
    """1 where the right text occurs in the generated one, in any case of letters."""
    [reference], [prediction] = references, predictions
    return float(reference.strip().lower() in prediction.lower())
