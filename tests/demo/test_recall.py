"""The demo's task is what it says: recall, with noise only while training."""

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lasertri.cli import app
from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import (
    NOISE_ID,
    SYMBOLS,
    TRIGGER_ID,
    recall_positions,
    samples,
    sequences,
)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_trigger_is_followed_by_the_sequences_answer_or_by_noise(alpha):
    drawn = sequences(400, np.random.default_rng(0), alpha=alpha)
    trigger = drawn[:, :-1] == TRIGGER_ID
    followers = [set(row[1:][mask].tolist()) for row, mask in zip(drawn, trigger, strict=True)]
    assert max(len(f - {NOISE_ID}) for f in followers) == 1
    noise = (drawn[:, 1:][trigger] == NOISE_ID).float().mean().item()
    assert noise == pytest.approx(alpha, abs=0.03)
    assert not (drawn[:, 1:][~trigger] == NOISE_ID).any()


def test_recall_is_asked_from_the_second_trigger_on():
    drawn = sequences(50, np.random.default_rng(1), alpha=0.0)
    for row, asked in zip(drawn, recall_positions(drawn), strict=True):
        triggers = (row[:-1] == TRIGGER_ID).nonzero().flatten().tolist()
        assert asked.nonzero().flatten().tolist() == triggers[1:]


def test_every_sample_can_be_answered_from_its_prompt():
    for sample in samples(100, seed=0):
        words = sample.prompt.split()
        assert words[-1] == "?"
        assert words[words.index("?") + 1] == sample.completion


def test_seeds_decide_and_do_not_overlap():
    assert samples(50, seed=1) == samples(50, seed=1)
    assert not {s.prompt for s in samples(500, seed=1)} & {s.prompt for s in samples(500, seed=2)}


def test_the_packaged_model_is_small_and_reads_one_token_a_symbol():
    assert sum(p.stat().st_size for p in MODEL_DIR.iterdir()) <= 2 << 20
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL_DIR), AutoTokenizer.from_pretrained(MODEL_DIR)
    assert model.config.model_type == "gptj"
    assert tokenizer(" ".join(SYMBOLS))["input_ids"] == list(range(len(SYMBOLS)))


def test_the_demo_shows_a_truncation_and_then_a_step():
    shown = CliRunner().invoke(app, ["demo"])
    assert shown.exit_code == 0, shown.output
    truncated, _, stepped = shown.stdout.partition("Why this works")
    assert "truncated to rank" in truncated
    assert "held-out difference +52" in truncated
    assert "a step of all 4 MLP layers" in stepped
    assert "accuracy 100.0%" in stepped
