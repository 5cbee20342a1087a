"""The answers of all samples in three index spaces, and the way from tokens to answers to samples."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from lasertri.data.sample import Sample
from lasertri.language.asking import Answer


class AnswerTable:
    """Three index spaces: S samples; their A answers, one sample after the other; and the E tokens of those answers.

    An array over one of them has it as its last axis. Axes before it, such as one for several models, stay.

    Attributes:
        first_answer: `[S]`, where a sample's answers begin among all answers.
        first_token: `[A]`, where an answer's tokens begin among all tokens.
        tokens: `[E]`, the tokens themselves.
        sample_of: `[A]`, the sample that an answer belongs to.
        characters: `[A]`, the length of an answer as text.
        gold: `[S]`, the right answer's index among all answers.
        free: `[S]`, whether a sample is a completion, which has no other answers to choose from.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        answers: Sequence[Sequence[Answer]],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.samples, self.answers = samples, [answer for those in answers for answer in those]
        self.tokens = np.array([token for answer in self.answers for token in answer.tokens])
        self.first_answer = _starts([len(those) for those in answers])
        self.first_token = _starts([len(answer.tokens) for answer in self.answers])
        self.sample_of = np.repeat(np.arange(len(answers)), [len(those) for those in answers])
        self.characters = np.array([len(text) for sample in samples for text in sample.answers])
        self.gold = self.first_answer + [sample.gold for sample in samples]
        self.free = np.array([not sample.choices for sample in samples])
        self._tokenizer = tokenizer
        # trials give the same tokens again and again
        self._decode, self._read_back = functools.cache(self._decoded), functools.cache(self._round_trip)

    def answers_of(self, sample: int) -> range:
        """Indices of a sample's answers."""
        return range(self.first_answer[sample], self.first_answer[sample] + len(self.samples[sample].answers))

    def answer_of(self, tokens: np.ndarray) -> np.ndarray:
        """Index of the answer that each of these tokens belongs to."""
        return np.searchsorted(self.first_token, tokens, side="right") - 1

    def per_answer(self, values: np.ndarray, combine: np.ufunc = np.add) -> np.ndarray:
        """`[…, E]` to `[…, A]`: the values of an answer's tokens, combined."""
        return combine.reduceat(values, self.first_token, axis=-1)

    def per_sample(self, values: np.ndarray, combine: np.ufunc) -> np.ndarray:
        """`[…, A]` to `[…, S]`: the values of a sample's answers, combined."""
        return combine.reduceat(values, self.first_answer, axis=-1)

    def best(self, scores: np.ndarray) -> np.ndarray:
        """`[…, A]` to `[…, S]`: index among all answers of each sample's highest, the first of equal ones."""
        highest = self.per_sample(scores, np.maximum)[..., self.sample_of]
        index = np.arange(len(self.answers))
        return self.per_sample(np.where(scores == highest, index, len(index)), np.minimum)

    def texts(self, tokens: np.ndarray, sample: int) -> np.ndarray:
        """`[…, E]` of tokens to `[…]`: what those in the place of a sample's first answer read."""
        start, length = self.first_token[self.first_answer[sample]], len(self.answers[self.first_answer[sample]].tokens)
        mine = tokens[..., start : start + length]
        texts = [self._decode(tuple(row)) for row in mine.reshape(-1, length).tolist()]
        return np.array(texts, dtype=object).reshape(mine.shape[:-1])

    def accepts(self, sample: int, text: str) -> bool:
        """See `Sample.accepts`; as it is, or both as the tokenizer reads them back ("well-known": "well - known")."""
        asked = self.samples[sample]
        unknown = self._tokenizer.unk_token_id in self.answers[self.first_answer[sample]].tokens  # as is any other
        return asked.accepts(text) or (not unknown and asked.accepts(text, self._read_back))

    def _decoded(self, tokens: tuple[int, ...]) -> str:
        return str(self._tokenizer.decode(list(tokens)))

    def _round_trip(self, text: str) -> str:
        tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


def _starts(lengths: Sequence[int]) -> np.ndarray:
    """Where each of these begins if they stand end to end."""
    return np.cumsum([0, *lengths])[:-1]
