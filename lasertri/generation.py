"""What a model writes after a prompt, for samples whose answer is looked for in it: greedily, whatever its settings."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from lasertri.encode import EncodedSamples


def written(
    model: nn.Module, samples: EncodedSamples, chosen: Iterable[int] | None = None
) -> Iterator[tuple[int, str]]:
    """The text after the prompt of each of these samples (of all) that asks for one, with the sample's index.

    The model must be in evaluation mode.
    """
    asking = [i for i in (samples.prompts if chosen is None else chosen) if i in samples.prompts]
    windows = {i: samples.samples[i].window for i in asking}
    order = sorted(asking, key=lambda i: (windows[i], len(samples.prompts[i])))
    for window, group in itertools.groupby(order, key=windows.__getitem__):
        mine, ends = list(group), _ends(model, samples)
        for start in range(0, len(mine), samples.batch_size):
            batch = mine[start : start + samples.batch_size]
            prompts = [torch.tensor(samples.prompts[i], device=samples.device) for i in batch]
            for i, tokens in zip(batch, _continued(model, prompts, window, ends), strict=True):
                yield i, str(samples.tokenizer.decode(tokens))


@torch.no_grad()
def _continued(model: Any, prompts: list[Tensor], window: int, ends: Sequence[int]) -> Iterator[list[int]]:
    """The most probable next token again and again, up to `window` of them or to one that ends the text."""
    left = functools.partial(pad_sequence, batch_first=True, padding_side="left")
    ids, mask = left(prompts), left([torch.ones_like(prompt) for prompt in prompts])
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=window, eos_token_id=list(ends) or None, pad_token_id=0
    )
    with _without_settings(model):
        sequences = model.generate(ids, attention_mask=mask, generation_config=greedy)
    for row in sequences[:, ids.shape[1] :].tolist():
        yield list(itertools.takewhile(lambda token: token not in ends, row))


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
