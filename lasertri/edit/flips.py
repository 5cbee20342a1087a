"""Answers that an edit turned, from wrong to right and from right to wrong: how many, and the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from lasertri.edit.comparison import Comparison
from lasertri.measure.protocol import Samples

EXAMPLES = 5  # of each way
PROMPT, ANSWER = 300, 80  # characters that are kept


@dataclass(frozen=True)
class Flip:
    """One answer that turned.

    Attributes:
        prompt: its end, where it is long.
        right: the right answer.
        before, after: what the model gave without and with the edit.
    """

    prompt: str
    right: str
    before: str
    after: str


@dataclass(frozen=True)
class Flips:
    """The answers that turned one way: how many, and the first of them as examples."""

    count: int
    examples: Sequence[Flip]

    @classmethod
    def both_ways(cls, comparison: Comparison, samples: Samples) -> dict[str, Self] | None:
        """Those "won" and those "lost"; None without an edit, and of samples that have no prompts and answers."""
        before, after = comparison.baseline, comparison.edited
        if after is None or not samples.questions:
            return None
        ways = {"won": after.correct > before.correct, "lost": after.correct < before.correct}

        def flip(i: int) -> Flip:
            prompt = samples.questions[i]
            answers = (samples.strata[i], before.given[i], after.given[i])
            return Flip(
                prompt if len(prompt) <= PROMPT else f"…{prompt[1 - PROMPT :]}",
                *(text if len(text) <= ANSWER else f"{text[: ANSWER - 1]}…" for text in answers),
            )

        return {
            way: cls(int(turned.sum()), [flip(i) for i in turned.nonzero()[0][:EXAMPLES].tolist()])
            for way, turned in ways.items()
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
