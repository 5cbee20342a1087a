"""TruthfulQA (arXiv 2109.07958), taken apart: is this one answer to a question true or false?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lasertri.data.files import PlacedRow
from lasertri.data.papers.form import Form, ended
from lasertri.data.papers.source import Source, value_of
from lasertri.data.sample import Sample
from lasertri.errors import LasertriError

SOURCE = Source(
    repository="truthfulqa/truthful_qa",
    config="multiple_choice",
    splits=("validation",),
    columns=("question", "mc2_targets"),
    editions=(("mc_task.json",), ("TruthfulQA.csv",)),
    url="https://github.com/sylinrl/TruthfulQA",
)


def samples(splits: Sequence[Sequence[PlacedRow]], form: Form) -> Iterator[Sample]:
    """One sample for every answer in a question's mc2 targets, in their order; a question's samples are a group.

    Editions differ: the papers' 5,882 answers are those of the hub's copy (817 questions). The mc_task.json of 2025 has
    6,045 (790 questions); the csv files with 817 and 790 questions list 6,202 and 6,021. LASER's code has no space
    between the answer and the question after it.
    """
    gap = "" if form.laser else " "
    for placed in splits[0]:
        place, row = placed
        question = row.get("question", row.get("Question"))
        if not isinstance(question, str):
            raise LasertriError(f"{place}: expected a field 'question' or 'Question' with text, got {sorted(row)}")
        for answer, label in _from_lists(placed) if "Correct Answers" in row else _targets(placed):
            statement = ended(f"{question} {answer}", marks=".")
            prompt = f"{statement}{gap}Is this statement true or false? This statement is"
            yield Sample(prompt, choices=("false", "true"), label=label, group=f"question {question}", source=place)


def _targets(placed: PlacedRow) -> list[tuple[str, int]]:
    """Answers with 1 where they are true: an object in mc_task.json, two lists in the hub's copy."""
    place, targets = placed[0], value_of(placed, "mc2_targets", dict)
    answers, labels = list(targets), list(targets.values())
    if isinstance(targets.get("choices"), list):
        answers, labels = targets["choices"], value_of((place, targets), "labels", list)
    if not answers or len(answers) != len(labels) or set(labels) - {0, 1}:
        raise LasertriError(f"{place}, mc2_targets: expected answers, each with 0 or 1, got {targets}")
    return list(zip(answers, labels, strict=True))


def _from_lists(placed: PlacedRow) -> list[tuple[str, int]]:
    """Answers of the csv file, each once; one that is in both lists is in neither."""
    right, wrong = (
        [answer.strip() for answer in value_of(placed, f"{kind} Answers", str).split(";") if answer.strip()]
        for kind in ("Correct", "Incorrect")
    )
    both = set(right) & set(wrong)
    answers = dict.fromkeys(right, 1) | dict.fromkeys(wrong, 0)
    return [(answer, label) for answer, label in answers.items() if answer not in both]
