"""What a model is adapted to: a list of `Sample`s, from files or from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral

from lasertri.errors import LasertriError

MASK = "<mask>"  # in a prompt: where a masked language model's answer stands


@dataclass(frozen=True)
class Sample:
    """One question: a prompt with choices and the right one's index, or with the text that should follow.

    Args:
        prompt: the text before the answer; for a masked language model `MASK` in it stands for the answer.
        completion: the right text; accuracy is a greedy match of its tokens.
        choices: the possible answers instead; accuracy is the highest summed log-probability.
        label: index of the right choice.
        group: samples that share it (paraphrases of a fact, answers to a question) stay on one side of a split.
        source: where it came from ("train.jsonl:17"), for messages.
    """

    prompt: str
    completion: str | None = None
    choices: tuple[str, ...] = ()
    label: int | None = None
    group: str | None = None
    source: str = field(default="a sample", compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.choices, str):
            raise LasertriError(f"{self.source}, choices: expected a list of texts, came the text {self.choices!r}")
        object.__setattr__(self, "choices", tuple(self.choices))
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise LasertriError(f"{self.source}, prompt: expected text, came {self.prompt!r}")
        if (self.completion is None) == (not self.choices):
            raise LasertriError(f"{self.source}: expected either choices with a label or a completion")
        if self.completion is not None:
            _expect_text(self.completion, f"{self.source}, completion")
            return
        for choice in self.choices:
            _expect_text(choice, f"{self.source}, choices")
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise LasertriError(
                f"{self.source}, choices: expected at least two different ones, came {list(self.choices)}"
            )
        whole = isinstance(self.label, Integral) and not isinstance(self.label, bool)
        if not whole or not 0 <= int(self.label or 0) < len(self.choices):
            raise LasertriError(
                f"{self.source}, label: expected an index from 0 to {len(self.choices) - 1}, came {self.label!r}"
            )

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers whose probability is read: every choice, or the completion."""
        return self.choices or (str(self.completion),)

    @property
    def gold(self) -> int:
        """Index of the right one of `answers`."""
        return self.label or 0


def group_names(samples: Sequence[Sample]) -> list[str]:
    """The group of every sample; where it names none, samples of one prompt are one."""
    return [f"prompt {s.prompt}" if s.group is None else f"group {s.group}" for s in samples]


def _expect_text(value: object, place: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise LasertriError(f"{place}: expected text, came {value!r}")
