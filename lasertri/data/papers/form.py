"""In which form questions are put: to a decoder or a masked model, corrected or as LASER's code did."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lasertri.data.sample import Sample


@dataclass(frozen=True)
class Form:
    """The form that one task's questions are put in.

    Attributes:
        masked: for a masked model, which fills the answer in.
        laser: with the bugs of LASER's code.
        tokenizer: counts tokens; without one, words are counted.
    """

    masked: bool = False
    laser: bool = False
    tokenizer: PreTrainedTokenizerBase | None = None

    def length(self, text: str) -> int:
        """Number of its tokens, special ones aside."""
        if self.tokenizer is None:
            return len(text.split())
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def last(self, text: str, count: int) -> str:
        """The end of a text, this many tokens long."""
        if self.tokenizer is None:
            return " ".join(text.split()[-count:])
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"][-count:]
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def free_text(self, prompt: str, answer: str, *, window: int, source: str) -> Sample:
        """A sample that is right where `window` generated tokens have the answer; a masked model fills 5 at once.

        LASER's code searched a decoder's prompt as well: an answer which the question names was always right.
        """
        if self.masked:
            window, match = 5, "contains"
        else:
            match = "contains-with-prompt" if self.laser else "contains"
        return Sample(prompt, completion=answer, match=match, window=window, source=source)


def ended(text: str, mark: str = ".", marks: str = ".?") -> str:
    """The text with a mark at its end, unless it ends in one of `marks`."""
    text = text.strip()
    return text if text.endswith(tuple(marks)) else text + mark
