"""A GPT-J of random weights and questions as long as FEVER's: what adapting takes does not depend on what is learnt."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, GPTJConfig, GPTJForCausalLM, PreTrainedTokenizerFast

from lasertri import Sample

VOCABULARY = 50400
PROMPT = "Consider the following claim: {}. Is this claim true or false. The claim is"
CHOICES = (" true", " false")
_FRAME = Whitespace().pre_tokenize_str(PROMPT.format(""))
SHORTEST, LONGEST, MEAN = 30, 60, 40  # tokens of a prompt


def make_model(
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    vocabulary: int = VOCABULARY,
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> GPTJForCausalLM:
    torch.manual_seed(seed)
    config = GPTJConfig(
        vocab_size=vocabulary,
        n_positions=128,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        rotary_dim=min(64, width // heads),
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def make_tokenizer(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """One token a word or punctuation mark: those of the prompt and its choices, then w0, w1, …"""
    frame = dict.fromkeys(["[UNK]", *(word for word, _ in _FRAME), *(choice.strip() for choice in CHOICES)])
    words = [*frame, *(f"w{i}" for i in range(vocabulary - len(frame)))]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", model_input_names=["input_ids", "attention_mask"]
    )


def make_samples(count: int, seed: int = 0, vocabulary: int = VOCABULARY) -> list[Sample]:
    """Two-choice questions on random claims, with random labels; lengths are skewed like those of claims."""
    rng = np.random.default_rng(seed)
    extra = rng.gamma(2.0, (MEAN - SHORTEST) / 2, size=count).round().astype(int)
    lengths = np.minimum(SHORTEST + extra, LONGEST) - len(_FRAME)
    words = vocabulary - len(_FRAME) - 3  # at least as many are in the tokenizer
    return [
        Sample(
            PROMPT.format(" ".join(f"w{i}" for i in rng.integers(words, size=length))),
            choices=CHOICES,
            label=int(rng.integers(2)),
        )
        for length in lengths
    ]
