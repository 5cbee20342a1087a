"""What LASER's tasks need beyond a template: which rows are asked, and a gold string looked for in an answer."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

LABELS = ("REFUTES", "SUPPORTS")  # by name, or as 0 and 1
PROFESSIONS = {11, 20, 5, 12, 26, 1, 14, 21}  # the dataset's numbers of journalist, poet, … in LASER's choice of eight


def counterfact_prompts(rows: Dataset) -> Dataset:
    """Three docs of a record: its statement and two paraphrases, in one group."""
    docs: list[dict[str, object]] = []
    for row in rows:
        fact = row["requested_rewrite"]
        prompts = (fact["prompt"].format(fact["subject"]), *row["paraphrase_prompts"])
        answer = {"target": fact["target_true"]["str"], "group": row["case_id"]}
        docs.extend({"prompt": prompt} | answer for prompt in prompts)
    return Dataset.from_list(docs)


def fever_claims(rows: Dataset) -> Dataset:
    """Every claim once, without those that are undecided or labelled both ways."""
    labels: dict[str, set[str]] = {}
    for row in rows:
        label = row["label"]
        labels.setdefault(row["claim"].strip(), set()).add(LABELS[label] if label in (0, 1) else label)
    decided = [(claim, *found) for claim, found in labels.items() if len(found) == 1 and found <= set(LABELS)]
    return Dataset.from_list([{"claim": claim, "label": label} for claim, label in decided])


def eight_professions(rows: Dataset) -> Dataset:
    """The biographies of LASER's eight professions."""
    return rows.filter(lambda row: row["profession"] in PROFESSIONS)


def truthfulqa_statements(rows: Dataset) -> Dataset:
    """A doc for every answer of a question, all in one group."""
    docs: list[dict[str, object]] = []
    for row in rows:
        question = {"question": row["question"], "group": row["question"]}
        answers = zip(row["mc2_targets"]["choices"], row["mc2_targets"]["labels"], strict=True)
        docs.extend(question | {"answer": answer, "label": label} for answer, label in answers)
    return Dataset.from_list(docs)


def single_targets(rows: Dataset) -> Dataset:
    """The rows with one right answer."""
    return rows.filter(lambda row: len(row["targets"]) == 1)


def contains(references: Sequence[str], predictions: Sequence[str]) -> float:
    """1 where the right text occurs in the generated one, in any case of letters."""
    [reference], [prediction] = references, predictions
    return float(reference.strip().lower() in prediction.lower())
