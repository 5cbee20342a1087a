"""Bias in Bios (arXiv 1901.09451): a person's gender, or profession, from a biography."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lasertri.data.files import PlacedRow
from lasertri.data.papers.form import Form, ended
from lasertri.data.papers.source import Source, index_of, value_of
from lasertri.data.sample import MASK, Sample

SOURCE = Source(
    repository="LabHC/bias_in_bios",
    config="default",
    splits=("dev",),
    columns=("hard_text", "profession", "gender"),
    editions=(("dev.jsonl",), ("**/dev*.parquet",)),
    url="https://huggingface.co/datasets/LabHC/bias_in_bios",
)
GENDERS = ("male", "female")
PROFESSIONS = (
    *("accountant", "architect", "attorney", "chiropractor", "comedian", "composer", "dentist", "dietitian", "dj"),
    *("filmmaker", "interior_designer", "journalist", "model", "nurse", "painter", "paralegal", "pastor"),
    *("personal_trainer", "photographer", "physician", "poet", "professor", "psychologist", "rapper"),
    *("software_engineer", "surgeon", "teacher", "yoga_teacher"),
)
ONE_TOKEN = ("journalist", "poet", "composer", "model", "teacher", "architect", "painter", "professor")
LAST = 50  # tokens of a biography that a masked model sees


def gender_samples(splits: Sequence[Sequence[PlacedRow]], form: Form) -> Iterator[Sample]:
    """One sample for every biography; where the paper prints "The person is" its code asks for the gender."""
    ending = f"This person is {MASK}." if form.masked else "The gender of this person is"
    for placed in splits[0]:
        prompt = f"{_biography(placed, form)} Is the person in this text a male or female? {ending}"
        label = index_of(placed, "gender", GENDERS)
        yield Sample(prompt, choices=GENDERS, label=label, source=placed[0])


def profession_samples(splits: Sequence[Sequence[PlacedRow]], form: Form) -> Iterator[Sample]:
    """The biographies of the eight professions that are one token in every model of the papers."""
    question = "What is the profession of the person in this text? The profession of this person is"
    if form.masked:
        question = f"The profession of the person in the text is called {MASK}."
    for placed in splits[0]:
        profession = PROFESSIONS[index_of(placed, "profession", PROFESSIONS)]
        if profession in ONE_TOKEN:
            prompt = f"{_biography(placed, form)} {question}"
            yield Sample(prompt, choices=ONE_TOKEN, label=ONE_TOKEN.index(profession), source=placed[0])


def _biography(placed: PlacedRow, form: Form) -> str:
    text = value_of(placed, "hard_text", str)
    return f"Consider the following text: {ended(form.last(text, LAST) if form.masked else text)}"
