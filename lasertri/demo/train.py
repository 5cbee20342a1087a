"""Train the demo model from scratch: `python -m lasertri.demo.train`.

A two-layer GPT-J learns noisy in-context recall (`recall.py`, arXiv 2406.03068) on sequences drawn afresh
at every step. GPT-J is the architecture of the LASER papers. Takes about a minute on one CPU core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import typer
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import trange
from transformers import GPTJConfig, GPTJForCausalLM, PreTrainedTokenizerFast

from lasertri.demo import MODEL_DIR
from lasertri.demo.recall import LENGTH, SYMBOLS, TRAINING_ALPHA, recall_positions, sequences

STEPS: Final = 1000
BATCH: Final = 32  # sequences in a step
PEAK_LEARNING_RATE: Final = 3e-3
WEIGHT_DECAY: Final = 1e-4
# GPT-J's 0.02 suits its width of 4,096. At width 64 it leaves attention nearly flat at first: the noise is
# learned at once, the recall not within these steps.
INITIALIZER_RANGE: Final = 0.1
PADDING: Final = "[PAD]"  # never part of a prompt; batching tools ask for one


def train(seed: int) -> GPTJForCausalLM:
    """Train a model whose initial weights and data follow from `seed` alone."""
    torch.manual_seed(seed)
    return fit(GPTJForCausalLM(configuration()), seed)


def fit(
    model: GPTJForCausalLM,
    seed: int,
    *,
    steps: int = STEPS,
    batch: int = BATCH,
    peak_learning_rate: float = PEAK_LEARNING_RATE,
) -> GPTJForCausalLM:
    """Train a model in place, on data that follow from `seed`."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak_learning_rate, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    progress = trange(steps, desc=f"seed {seed}", unit="step")
    for step in progress:
        loss = recall_loss(model, sequences(batch, rng, alpha=TRAINING_ALPHA))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
    return model


def recall_loss(model: GPTJForCausalLM, drawn: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of the symbol after each trigger from its second occurrence on.

    `drawn`: LongTensor[batch, length]. Other positions are left out: the demo is not about their bigrams.
    """
    asked = recall_positions(drawn)
    hidden = model.transformer(input_ids=drawn[:, :-1], use_cache=False).last_hidden_state
    return cross_entropy(model.lm_head(hidden[asked]), drawn[:, 1:][asked])


def configuration(layers: int = 2, width: int = 64, initializer_range: float = INITIALIZER_RANGE) -> GPTJConfig:
    """By default a GPT-J of 0.1 M parameters: small enough to ship, and to train on a CPU."""
    return GPTJConfig(
        vocab_size=len(_vocabulary()),
        n_positions=LENGTH,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        rotary_dim=16,
        initializer_range=initializer_range,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=len(SYMBOLS),
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per symbol, ids in the order of `SYMBOLS`, nothing added around a text.

    A symbol is one character, so splitting into characters lets a completion follow without a space.
    """
    words = Tokenizer(WordLevel(_vocabulary()))
    words.pre_tokenizer = Sequence([WhitespaceSplit(), Split(Regex("."), "isolated")])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PADDING,
        model_max_length=LENGTH,
        # No token types, which is the default: GPT-J would embed them as if they were tokens.
        model_input_names=["input_ids", "attention_mask"],
    )


def _vocabulary() -> dict[str, int]:
    return {word: index for index, word in enumerate((*SYMBOLS, PADDING))}


def main(
    seed: Annotated[int, typer.Option(help="Decides initial weights and training data.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder to write the checkpoint to.")] = MODEL_DIR,
) -> None:
    """Train the demo model and save it with its tokenizer as a Hugging Face folder."""
    # One thread: sums are then in the same order on any number of cores, and matrices this small gain little
    # from more; on a busy machine they lose.
    torch.set_num_threads(1)
    model = train(seed)
    model.save_pretrained(output)
    tokenizer().save_pretrained(output)


if __name__ == "__main__":
    typer.run(main)
