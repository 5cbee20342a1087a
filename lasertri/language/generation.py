"""What a model writes after a prompt, for samples whose answer is looked for in it: greedily, whatever its settings.

A masked model fills all its masks at once, as LASER has it.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from lasertri.model.loading import model_kind
from lasertri.support.journal import NOTHING, Journal, Record
from lasertri.support.memory import as_memory_allows
from lasertri.support.sharing import ALL, Share

if TYPE_CHECKING:
    from lasertri.language.samples import EncodedSamples


logger = logging.getLogger(__name__)

TRIED = 3  # tokens: the state of some is right for the first alone
CLOSE, CLOSE_IN_HALF = 1e-3, 0.1  # of log-probabilities, relative and in nats
_ALIKE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # what `_padded_alike` found


def written(
    model: nn.Module,
    samples: EncodedSamples,
    chosen: Iterable[int] | None = None,
    journal: Journal = NOTHING,
    share: Share = ALL,
) -> Iterator[tuple[int, str]]:
    """The text after the prompt of each of these samples (of all) that asks for one, with the sample's index.

    The model must be in evaluation mode.

    Args:
        journal, share: see `Samples.read`.
    """
    asking = [i for i in (samples.prompts if chosen is None else chosen) if i in samples.prompts]
    windows = {i: samples.samples[i].window for i in asking}
    order = sorted(asking, key=lambda i: (windows[i], len(samples.prompts[i])))

    def write(batch: list[int]) -> Record:
        window = windows[batch[0]]
        return journal.of(("written", batch), functools.partial(_together, model, samples, batch, window))

    batches = list[list[int]]()
    for _, group in itertools.groupby(order, key=windows.__getitem__):
        mine = list(group)
        batches += [mine[start : start + samples.batch_size] for start in range(0, len(mine), samples.batch_size)]
    for batch, texts in as_memory_allows(share(batches), write):
        for i, tokens in zip(batch, texts, strict=True):
            yield i, str(samples.tokenizer.decode(tokens.tolist()))


def _together(model: nn.Module, samples: EncodedSamples, batch: Sequence[int], window: int) -> list[Tensor]:
    """The tokens of each of these samples' texts."""
    kind, prompts = model_kind(model), [torch.tensor(samples.prompts[i], device=samples.device) for i in batch]
    if kind == "masked":
        texts = _filled(model, prompts, samples)
    else:
        side, pad = ("left", 0) if kind == "causal" else ("right", samples.pad)
        together = [prompts] if _padded_alike(model, prompts, side, pad) else [[prompt] for prompt in prompts]
        write = functools.partial(_continued, model, window=window, ends=_ends(model, samples))
        texts = itertools.chain.from_iterable(write(part, side=side, pad=pad) for part in together)
    return [torch.tensor(tokens, dtype=torch.int64) for tokens in texts]


def _padded_alike(model: nn.Module, prompts: list[Tensor], side: str, pad: int) -> bool:
    """Whether a model writes the same after a prompt that is padded: not where its state has seen the padding.

    It is tried once, on the most padded prompt of the first batch that has any.
    """
    if len({len(prompt) for prompt in prompts}) == 1:
        return True
    if model not in _ALIKE:
        shortest = min(range(len(prompts)), key=lambda i: len(prompts[i]))
        _ALIKE[model] = _close(
            _generated(model, prompts, TRIED, (), side, pad, logits=True), shortest,
            _generated(model, [prompts[shortest]], TRIED, (), side, pad, logits=True),
            CLOSE if next(model.parameters()).dtype.itemsize >= 4 else CLOSE_IN_HALF,
        )  # fmt: skip
        if not _ALIKE[model]:
            logger.warning(
                "%s answers otherwise where its prompt is padded: prompts are continued one by one",
                type(model).__name__,
            )
    return _ALIKE[model]


def _close(among: Any, row: int, alone: Any, close: float) -> bool:
    """Whether the same text was written with the same probabilities, as far as it is the same."""
    for one, other in zip(among.logits, alone.logits, strict=False):
        here, there = (logits.float().log_softmax(-1) for logits in (one[row], other[0]))
        if not torch.allclose(here, there, rtol=close, atol=close, equal_nan=True):
            return False
        if here.argmax() != there.argmax():  # a tie, and all that follows differs for it
            return True
    return True


def _continued(
    model: Any, prompts: list[Tensor], *, window: int, ends: Sequence[int], side: str, pad: int
) -> Iterator[list[int]]:
    """The most probable next token again and again, up to `window` of them or to one that ends the text."""
    sequences = _generated(model, prompts, window, ends, side, pad).sequences
    width = max(map(len, prompts))
    # a decoder of its own begins with a token that is not written
    written_from = 1 if side == "right" else width
    for row in sequences[:, written_from:].tolist():
        yield list(itertools.takewhile(lambda token: token not in ends, row))


@torch.no_grad()
def _generated(
    model: Any, prompts: list[Tensor], window: int, ends: Sequence[int], side: str, pad: int, *, logits: bool = False
) -> Any:
    """What `generate` gives for prompts padded to one length."""
    ids, mask = _padded(prompts, side, pad)
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=window,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        return_dict_in_generate=True,
        output_logits=logits,
    )
    with _without_settings(model):
        return model.generate(ids, attention_mask=mask, generation_config=greedy)


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
