"""Two tasks of BIG-bench (arXiv 2206.04615): does one belief follow from another, and facts of Wikidata."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lasertri.data.files import PlacedRow
from lasertri.data.papers.form import Form
from lasertri.data.papers.source import Source, value_of
from lasertri.data.sample import Sample
from lasertri.errors import LasertriError
from lasertri.support.shown import shown


def _source(config: str) -> Source:
    return Source(
        repository="tasksource/bigbench",
        config=config,
        splits=("validation", "train"),
        columns=("inputs", "targets"),
        editions=((f"{config}/task.json",), ("task.json",)),
        url=f"https://github.com/google/BIG-bench/tree/main/bigbench/benchmark_tasks/{config}",
    )


EPISTEMIC, WIKIDATA = _source("epistemic_reasoning"), _source("qa_wikidata")
RELATIONS = ("entailment", "non-entailment")
GENERATED = 10  # tokens


def epistemic_samples(splits: Sequence[Sequence[PlacedRow]], form: Form) -> Iterator[Sample]:
    """One sample for every example, 741 of 2,000 entailment.

    Answering "entailment" throughout is 37.05 % right, "non-entailment" 62.95 %: the papers' baselines (37.1) and their
    best gain (+24.6, from 38.3 to 62.9).
    """
    for placed in _rows(splits, EPISTEMIC):
        [answer, *others] = _answers(placed)
        if others or answer not in RELATIONS:
            raise LasertriError(f"{placed[0]}: expected one of {list(RELATIONS)}, got {[answer, *others]}")
        yield Sample(_prompt(placed), choices=RELATIONS, label=RELATIONS.index(answer), source=placed[0])


def wikidata_samples(splits: Sequence[Sequence[PlacedRow]], form: Form) -> Iterator[Sample]:
    """One sample for every example with a single answer, right where what follows has it."""
    for placed in _rows(splits, WIKIDATA):
        [answer, *others] = _answers(placed)
        if not others:
            yield form.free_text(_prompt(placed), answer, window=GENERATED, source=placed[0])


def _rows(splits: Sequence[Sequence[PlacedRow]], source: Source) -> Iterator[PlacedRow]:
    """All rows; every task's file is called task.json, and says which one it is."""
    for place, row in (placed for split in splits for placed in split):
        if row.get("name", source.config) != source.config:
            raise LasertriError(f"{place}: expected the task {source.config}, got {shown(row['name'])}")
        yield place, row


def _prompt(placed: PlacedRow) -> str:
    """The hub's input as it is; of task.json, its parts put together as BIG-bench does."""
    if "inputs" in placed[1]:
        return value_of(placed, "inputs", str).strip()
    row = {"task_prefix": "", "example_input_prefix": "\nQ: ", "example_output_prefix": "\nA: "} | placed[1]
    parts = (
        row["task_prefix"],
        row["example_input_prefix"],
        value_of(placed, "input", str),
        row["example_output_prefix"],
    )
    return "".join(parts).strip()


def _answers(placed: PlacedRow) -> list[str]:
    place, row = placed
    if "targets" in row:
        answers = row["targets"]
    elif "target_scores" in row:
        answers = [answer for answer, score in value_of(placed, "target_scores", dict).items() if score == 1]
    else:
        answers = row.get("target")
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise LasertriError(f"{place}: expected a target with texts, got {shown(answers)} in {shown(sorted(row))}")
    return answers
