"""HotPotQA (arXiv 1809.09600) without its context: questions that join two facts, answered from memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lasertri.data.files import PlacedRow
from lasertri.data.papers.form import Form, ended
from lasertri.data.papers.source import Source, value_of
from lasertri.data.sample import Sample

SOURCE = Source(
    repository="hotpotqa/hotpot_qa",
    config="fullwiki",
    splits=("train", "validation"),
    columns=("question", "answer"),
    editions=(
        ("hotpot_train_v1.1.json", "hotpot_dev_fullwiki_v1.json"),
        ("hotpot_train_v1.1.json", "hotpot_dev_distractor_v1.json"),  # the same questions
    ),
    url="https://hotpotqa.github.io",
)
LONGEST = 15  # tokens of an answer with one for the start of a text, and tokens that are generated


def samples(splits: Sequence[Sequence[PlacedRow]], form: Form) -> Iterator[Sample]:
    """As many of the first training rows as validation has, then validation; right where what follows has the answer.

    Answers of more than 14 tokens are left out: LASER's code counts 15 of Llama's with its start token. Here the
    model's own tokenizer counts, so that the number of samples differs a little from model to model.
    """
    train, validation = splits
    for placed in [*train[: len(validation)], *validation]:
        question, answer = value_of(placed, "question", str), value_of(placed, "answer", str).strip()
        if form.length(answer) < LONGEST:
            prompt = f"{ended(question, '?')} The answer is"
            yield form.free_text(prompt, answer, window=LONGEST, source=placed[0])
