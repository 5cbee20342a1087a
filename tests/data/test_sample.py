"""A sample as a text to read, and where it is from."""

import pytest

from lasertri import LasertriError, Sample
from lasertri.data.sample import files_of


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (Sample("The capital of France is", "Paris"), "The capital of France is Paris"),
        (Sample("Q: 1 + 1?\nA: ", choices=("3", "2"), label=1), "Q: 1 + 1?\nA: 2"),
        (Sample('The opposite of "hot" is "', "cold", delimiter=""), 'The opposite of "hot" is "cold'),
        (Sample("Paris is the <mask> of France.", "capital"), "Paris is the capital of France."),
    ],
)
def test_its_text_is_the_prompt_with_the_right_answer(sample, text):
    assert sample.text == text


@pytest.mark.parametrize("choices", [5, "yes", True], ids=str)
def test_choices_that_are_no_list_are_refused(choices):
    with pytest.raises(LasertriError, match=f"a sample, choices: expected a list of texts, got {choices!r}"):
        Sample("Is it?", choices=choices, label=0)


def test_files_are_named_where_samples_say_a_line_of_one():
    sources = ["a b.jsonl:17", "a b.jsonl:18", "row 3", "C:/data/x.csv:2"]
    samples = [Sample("p", completion="c", source=source) for source in sources]
    assert files_of([*samples, object()]) == ["a b.jsonl", "C:/data/x.csv"]
