"""What a model writes after a prompt, for samples whose answer is looked for in it: greedily, whatever its settings.

A masked model fills all its masks at once, as LASER has it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from lasertri.model.loading import model_kind

if TYPE_CHECKING:
    from lasertri.language.samples import EncodedSamples


def written(
    model: nn.Module, samples: EncodedSamples, chosen: Iterable[int] | None = None
) -> Iterator[tuple[int, str]]:
    """The text after the prompt of each of these samples (of all) that asks for one, with the sample's index.

    The model must be in evaluation mode.
    """
    asking = [i for i in (samples.prompts if chosen is None else chosen) if i in samples.prompts]
    windows = {i: samples.samples[i].window for i in asking}
    order = sorted(asking, key=lambda i: (windows[i], len(samples.prompts[i])))
    kind = model_kind(model)
    for window, group in itertools.groupby(order, key=windows.__getitem__):
        mine = list(group)
        for start in range(0, len(mine), samples.batch_size):
            batch = mine[start : start + samples.batch_size]
            prompts = [torch.tensor(samples.prompts[i], device=samples.device) for i in batch]
            if kind == "masked":
                texts = _filled(model, prompts, samples)
            else:
                side, pad = ("left", 0) if kind == "causal" else ("right", samples.pad)
                texts = _continued(model, prompts, window, _ends(model, samples), side=side, pad=pad)
            for i, tokens in zip(batch, texts, strict=True):
                yield i, str(samples.tokenizer.decode(tokens))


@torch.no_grad()
def _continued(
    model: Any, prompts: list[Tensor], window: int, ends: Sequence[int], *, side: str, pad: int
) -> Iterator[list[int]]:
    """The most probable next token again and again, up to `window` of them or to one that ends the text."""
    ids, mask = _padded(prompts, side, pad)
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=window,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
    with _without_settings(model):
        sequences = model.generate(ids, attention_mask=mask, generation_config=greedy)
    # a decoder of its own begins with a token that is not written
    written_from = 1 if side == "right" else ids.shape[1]
    for row in sequences[:, written_from:].tolist():
        yield list(itertools.takewhile(lambda token: token not in ends, row))


@torch.no_grad()
def _filled(model: Any, prompts: list[Tensor], samples: EncodedSamples) -> Iterator[list[int]]:
    """The most probable token for every mask, each without knowing the others."""
    ids, mask = _padded(prompts, "right", samples.pad)
    best = model(input_ids=ids, attention_mask=mask).logits.argmax(-1)
    for row, masked in zip(best, ids == samples.tokenizer.mask_token_id, strict=True):
        yield row[masked.to(row.device)].tolist()


def _padded(prompts: list[Tensor], side: str, pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, `[B, T]` each."""
    make = functools.partial(pad_sequence, batch_first=True, padding_side=side)
    return make(prompts, padding_value=pad), make([torch.ones_like(prompt) for prompt in prompts])


def _ends(model: nn.Module, samples: EncodedSamples) -> list[int]:
    """The tokens that end a text: the model's, which may be several, else the tokenizer's."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = samples.tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


@contextmanager
def _without_settings(model: Any) -> Iterator[None]:
    """Within, the model has none of its own: `generate` takes from them whatever it is not told."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
