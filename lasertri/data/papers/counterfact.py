"""CounterFact (arXiv 2202.05262): facts to complete, each as a prompt and two paraphrases of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lasertri.data.files import PlacedRow
from lasertri.data.papers.form import Form
from lasertri.data.papers.source import Source, value_of
from lasertri.data.sample import MASK, Sample
from lasertri.errors import LasertriError
from lasertri.support.shown import shown

SOURCE = Source(
    repository="azhx/counterfact",
    config="default",
    splits=("train", "test"),  # a cut of the original; `case_id` restores its order
    columns=("case_id", "requested_rewrite", "paraphrase_prompts"),
    editions=(("counterfact.json",), ("known_1000.json",)),
    url="https://rome.baulab.info/data/dsets/counterfact.json",
)


def samples(splits: Sequence[Sequence[PlacedRow]], form: Form) -> Iterator[Sample]:
    """Three samples for every fact, right where the greedy text is the answer, case aside.

    LASER's code asks for answers of one token (for Llama it searches 10 tokens and the prompt); here every model is
    measured by as many tokens as an answer has.
    """
    rows = [row for split in splits for row in split]
    for number, placed in enumerate(sorted(rows, key=lambda placed: placed[1].get("case_id", 0))):
        place, row = placed
        prompts, answer = _known(placed) if "attribute" in row else _counterfact(placed)
        for prompt in prompts:
            asked = f"{prompt.rstrip()} {MASK}." if form.masked else prompt
            yield Sample(asked, completion=answer, group=f"fact {number}", match="text", source=place)


def _counterfact(placed: PlacedRow) -> tuple[list[str], str]:
    place = placed[0]
    fact = place, value_of(placed, "requested_rewrite", dict)
    answer = place, value_of(fact, "target_true", dict)
    template, subject = value_of(fact, "prompt", str), value_of(fact, "subject", str)
    paraphrases = value_of(placed, "paraphrase_prompts", list)
    if template.count("{}") != 1 or not all(isinstance(text, str) and text.strip() for text in paraphrases):
        raise LasertriError(
            f"{place}: expected a prompt with one {{}} and paraphrases, got {shown(template)}, {shown(paraphrases)}"
        )
    return [template.replace("{}", subject), *paraphrases], value_of(answer, "str", str)


def _known(placed: PlacedRow) -> tuple[list[str], str]:
    """A row of known_1000.json, the facts that GPT-2 XL knows."""
    return [value_of(placed, "prompt", str)], value_of(placed, "attribute", str)
