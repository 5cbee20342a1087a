"""What an edit does to other text: divergence and perplexity by hand, and the limit on them."""

import math

import pytest
import torch

from lasertri import LasertriError
from lasertri.measure.side_effects import NextTokens, side_effects

BEFORE = NextTokens(torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]).log(), torch.tensor([0, 2]))
AFTER = NextTokens(torch.tensor([[0.8, 0.2, 0.0], [0.5, 0.25, 0.25]]).log(), torch.tensor([0, 2]))


def test_divergence_and_perplexity_are_those_of_the_formulas():
    found = side_effects(BEFORE, AFTER)
    first = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)  # a token that neither expects counts for nothing
    second = 0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.25)
    assert found.kl == pytest.approx((first + second) / 2)
    assert found.perplexity == pytest.approx((2.0, (1 / (0.8 * 0.25)) ** 0.5))
    assert found.to_dict()["tokens"] == 2
    assert "perplexity 2 before, 2.236 after, on 2 tokens" in str(found)
    assert side_effects(BEFORE, BEFORE).kl == 0


def test_more_divergence_than_allowed_is_an_error():
    found = side_effects(BEFORE, AFTER)
    found.require(None)
    found.require(found.kl)
    with pytest.raises(LasertriError, match=r"mean KL of 0\.1 nats, got mean KL 0\.198"):
        found.require(0.1)


def test_a_model_that_gives_nan_is_beyond_any_limit_and_null_in_json():
    broken = side_effects(BEFORE, NextTokens(torch.full((2, 3), torch.nan), BEFORE.tokens))
    with pytest.raises(LasertriError, match="got mean KL not finite"):
        broken.require(1e9)
    assert broken.to_dict()["kl"] is None
    assert broken.to_dict()["perplexity"] == {"before": pytest.approx(2), "after": None}
