"""What an edit does to a text that it was not made for: how far next-token predictions move, and how good they stay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lasertri.errors import LasertriError


@dataclass(frozen=True)
class NextTokens:
    """What a model expected at the places of a text.

    Attributes:
        log_probs: of every token at every place, FP32 `[P, V]`.
        tokens: those that stand there, `[P]`.
    """

    log_probs: Tensor
    tokens: Tensor

    @property
    def perplexity(self) -> float:
        """e to the mean negative log-likelihood of the text's own tokens."""
        own = self.log_probs.gather(-1, self.tokens.unsqueeze(-1))
        return float((-own.double().mean()).exp())


@dataclass(frozen=True)
class SideEffects:
    """What became of a model's predictions on a text.

    Attributes:
        kl: mean Kullback–Leibler divergence of the predictions after from those before, in nats.
        perplexity: before and after.
        tokens: number of places.
    """

    kl: float
    perplexity: tuple[float, float]
    tokens: int

    def beyond(self, max_kl: float | None) -> bool:
        """Whether the predictions moved by more, or to what is not finite."""
        return max_kl is not None and not self.kl <= max_kl

    def require(self, max_kl: float | None) -> None:
        """Raise where the predictions moved by more.

        Raises:
            LasertriError: they did, or are not finite.
        """
        if self.beyond(max_kl):
            raise LasertriError(f"expected at most a mean KL of {max_kl:g} nats, got {self}; change less or allow more")

    def to_dict(self) -> dict[str, object]:
        """The figures, ready for JSON; null where one is not finite."""
        finite = [value if math.isfinite(value) else None for value in (self.kl, *self.perplexity)]
        return {"tokens": self.tokens, "kl": finite[0], "perplexity": {"before": finite[1], "after": finite[2]}}

    def __str__(self) -> str:
        return f"{described(self.to_dict())}, on {self.tokens} tokens of text that took no part"


def described(effects: dict[str, Any]) -> str:
    """The figures of `SideEffects.to_dict` in words."""
    before, after = (_number(effects["perplexity"][name]) for name in ("before", "after"))
    return f"mean KL {_number(effects['kl'])} nats, perplexity {before} before, {after} after"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def side_effects(before: NextTokens, after: NextTokens) -> SideEffects:
    """How far the predictions on one text moved, and what they became worth."""
    kls = []
    for old, new in zip(before.log_probs.split(64), after.log_probs.split(64), strict=True):  # FP64 of a few rows each
        old, new = old.double(), new.double()
        probs = old.exp()
        kls.append(torch.where(probs > 0, probs * (old - new), 0).sum(-1))
    kl = float(torch.cat(kls).mean())
    return SideEffects(kl, (before.perplexity, after.perplexity), len(before.tokens))
