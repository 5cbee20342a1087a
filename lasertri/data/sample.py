"""What a model is adapted to: a list of `Sample`s, from files or from Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral

from lasertri.errors import LasertriError
from lasertri.support.shown import shown

MASK = "<mask>"  # in a prompt: where a masked model fills the answer in; at its end where a prompt has none
FEWEST = 20  # samples that calibrate: below this an edit that helps cannot be told from luck
MATCHES = ("tokens", "text", "contains", "contains-with-prompt")


@dataclass(frozen=True)
class Sample:
    """One question: a prompt with choices and the right one's index, or with the text that should follow.

    Args:
        prompt: the text before the answer; for a masked language model `MASK` in it stands for the answer.
        completion: the right text; `match` says when it counts as given.
        choices: the possible answers instead; accuracy is the highest summed log-probability.
        label: index of the right choice.
        group: samples that share it (paraphrases of a fact, answers to a question) stay on one side of a split.
        match: "tokens": the most probable tokens are the completion's. "text": they read like it, case and outer white
            space aside. "contains": it is found, case aside, in the text that the model writes after the prompt.
            "contains-with-prompt": it is found in the prompt or that text, which is how LASER's code counts; for
            comparison alone, since a prompt that holds the answer is always right.
        window: how many tokens the model writes, greedily, where an answer is looked for in them.
        delimiter: stands between prompt and answer exactly as it is; None leaves the delimiter to the run.
        as_lm_eval: the first tokens of the answer are those that lm-evaluation-harness takes for it, which counts the
            prompt's own, even where prompt and answer merge.
        source: where it came from ("train.jsonl:17"), for messages.
    """

    prompt: str
    completion: str | None = None
    choices: tuple[str, ...] = ()
    label: int | None = None
    group: str | None = None
    match: str = "tokens"
    window: int = 0
    delimiter: str | None = None
    as_lm_eval: bool = False
    source: str = field(default="a sample", compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.choices, str) or not isinstance(self.choices, Iterable):
            raise LasertriError(f"{self.source}, choices: expected a list of texts, got {shown(self.choices)}")
        object.__setattr__(self, "choices", tuple(self.choices))
        _expect_text(self.prompt, f"{self.source}, prompt")
        if (self.completion is None) == (not self.choices):
            raise LasertriError(f"{self.source}: expected either choices with a label or a completion")
        check_match(self.match, self.window, self.source)
        if self.delimiter is not None:
            _expect_unicode(self.delimiter, f"{self.source}, delimiter")
        if self.completion is not None:
            _expect_text(self.completion, f"{self.source}, completion")
            return
        if self.match != "tokens":
            raise LasertriError(f"{self.source}, match: expected a completion for {self.match!r}, got choices")
        for choice in self.choices:
            _expect_text(choice, f"{self.source}, choices")
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise LasertriError(
                f"{self.source}, choices: expected at least two different ones, got {shown(list(self.choices))}"
            )
        whole = isinstance(self.label, Integral) and not isinstance(self.label, bool)
        if not whole or not 0 <= int(self.label or 0) < len(self.choices):
            raise LasertriError(
                f"{self.source}, label: expected an index from 0 to {len(self.choices) - 1}, got {shown(self.label)}"
            )

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers whose probability is read: every choice, or the completion."""
        return self.choices or (str(self.completion),)

    @property
    def gold(self) -> int:
        """Index of the right one of `answers`."""
        return self.label or 0

    @property
    def text(self) -> str:
        """The prompt with its right answer, as a text to read."""
        answer = self.answers[self.gold]
        if MASK in self.prompt:
            return self.prompt.replace(MASK, answer)
        space = " " if self.delimiter is None and not self.prompt[-1:].isspace() else self.delimiter or ""
        return self.prompt + space + answer

    def accepts(self, text: str, read_back: Callable[[str], str] = str) -> bool:
        """Whether a text that a model gave counts as the completion, by any rule but "tokens".

        Args:
            read_back: a text -> as it is compared.
        """
        if self.match == "contains-with-prompt":
            text = f"{self.prompt.rstrip()} {text.strip()}"
        right, given = (read_back(each).strip().casefold() for each in (str(self.completion), text))
        return right == given if self.match == "text" else bool(right) and right in given


def group_names(samples: Sequence[Sample]) -> list[str]:
    """The group of every sample; where it names none, samples of one prompt are one."""
    return [f"prompt {s.prompt}" if s.group is None else f"group {s.group}" for s in samples]


def files_of(samples: Iterable[object]) -> list[str]:
    """The files that samples were read from, where their source says line or row of one."""
    found = (re.fullmatch(r"(.+):\d+", str(getattr(sample, "source", ""))) for sample in samples)
    return list(dict.fromkeys(place[1] for place in found if place))


def check_match(match: str, window: int, place: str) -> None:
    """Raise if this is no rule for completions; a rule that looks into a text needs to know how long it is."""
    if match not in MATCHES:
        raise LasertriError(f"{place}, match: expected one of {list(MATCHES)}, got {shown(match)}")
    whole = isinstance(window, Integral) and not isinstance(window, bool)
    if not whole or (window < 1 if match.startswith("contains") else window != 0):
        wanted = "a number of tokens to write, such as 10" if match.startswith("contains") else "0, no text is written"
        raise LasertriError(f"{place}, window: expected {wanted}, with match {match!r}, got {shown(window)}")


def _expect_text(value: object, place: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise LasertriError(f"{place}: expected text, got {shown(value)}")
    _expect_unicode(value, place)


def _expect_unicode(value: object, place: str) -> None:
    """A text that tokenizers take: JSON may hold half of a character that UTF-16 writes as two."""
    if not isinstance(value, str):
        raise LasertriError(f"{place}: expected text, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise LasertriError(f"{place}: expected Unicode text, got the lone surrogate {half!r} in it") from error
