"""A plain text as a model reads it: cut into windows of tokens, most to learn from, every fourth to measure on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from tokenizers.models import WordLevel, WordPiece
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lasertri.errors import LasertriError
from lasertri.language.asking import decoder_start
from lasertri.language.encoding import Batch, Read, TokenRow, batched
from lasertri.measure.side_effects import NextTokens
from lasertri.model.loading import context_length, model_kind
from lasertri.model.preserve import preserved

WINDOW = 128  # tokens at most
HELD_OUT_TOKENS = 512  # read at about so many places
GRADED = 16  # windows
BEGIN = 20_000  # characters, by which a text is judged
MASK_EVERY = 7  # a masked model predicts every seventh token, about as many as it was trained on

Window = tuple[TokenRow, list[Read]]


class EncodedText:
    """A text tokenised once.

    Attributes:
        calibration: batches of windows of one length each, so that nothing in them is padding.
        graded: some of the same windows, one a batch, with everything that is read: for a loss.
        held_out: the other windows, one a batch, with everything that is read.

    Raises:
        LasertriError: the text has fewer than four windows, or the tokenizer cannot cut it or knows little of it.
    """

    def __init__(
        self, text: str, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16
    ) -> None:
        rest: dict[int, dict[TokenRow, list[Read]]] = {}
        self.held_out, self.graded = list[Batch](), list[Batch]()
        windows, places = list(_windows(text, model, tokenizer)), 0
        if len(windows) < 4:
            raise LasertriError(
                f"expected a text of at least {3 * WINDOW} tokens, to learn from and to measure on, got "
                f"{sum(row.length for row, _ in windows)}; give a longer one"
            )
        for i, (row, reads) in enumerate(windows):
            if i % 4 == 3 and places < HELD_OUT_TOKENS:
                self.held_out.append(Batch.of({row: reads}, 0, model.device))
                places += len(reads)
            else:  # the head runs at one place, for nothing is read
                rest.setdefault(row.length, {})[row] = reads[-1:]
                if len(self.graded) < GRADED:
                    self.graded.append(Batch.of({row: reads}, 0, model.device))
        several = (batched(rows, 0, model.device, rows=batch_size) for rows in rest.values())
        self.calibration = list(itertools.chain.from_iterable(several))

    @torch.no_grad()
    def read(self, model: nn.Module) -> NextTokens:
        """What a model, as it is now, expects at all places of the held-out windows."""
        log_probs, tokens = [], []
        with preserved(model):
            for batch in self.held_out:
                log_probs.append(batch.log_probs(model).cpu())
                tokens.append(batch.token[batch.places[2].argsort()].cpu())  # in the order of the places
        return NextTokens(torch.cat(log_probs), torch.cat(tokens))


def knows(text: str, tokenizer: Any) -> bool:
    """Whether a fast tokenizer has most of a text, as one of a closed list of symbols has not."""
    core, begin = tokenizer.backend_tokenizer, text[:BEGIN]
    unknown = getattr(core.model, "unk_token", None)
    if isinstance(core.model, WordLevel | WordPiece) and core.token_to_id(unknown) is None:
        return False  # it would raise
    ids = tokenizer(begin, add_special_tokens=False)["input_ids"]  # not core.encode, which a call before may truncate
    return len(ids) >= len(begin) // 20 and 2 * ids.count(tokenizer.unk_token_id) < max(len(ids), 1)


def _windows(text: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[Window]:
    """Every window with what is read in it: the next token, a masked one, or of its second half the decoder's next."""
    kind, context = model_kind(model), context_length(model) or WINDOW
    mask: Any = tokenizer.mask_token_id
    if not tokenizer.is_fast or (kind == "masked" and mask is None):
        raise LasertriError(
            f"expected a fast tokenizer, with a mask for a masked model, got {type(tokenizer).__name__}; "
            "pass the model's own"
        )
    if not knows(text, tokenizer):
        raise LasertriError(
            "expected a text that the model can read, got one that its tokenizer has hardly a token for; give one like "
            "what it was trained on (--text)"
        )
    encoded = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    every, closed = encoded["input_ids"], encoded["special_tokens_mask"]
    begin, end = closed.index(0), len(closed) - closed[::-1].index(0)  # between are the text's own tokens
    length = max(2, min(WINDOW, context) - begin - (len(every) - end))
    # return_overflowing_tokens would cut them, but tokenizers 0.23.2 gives up after the second
    for start in range(begin, end, length):
        stop = min(start + length, end)
        ids, own = [*every[:begin], *every[start:stop], *every[end:]], range(begin, begin + stop - start)
        if len(own) < 2:
            continue
        if kind == "causal":
            yield TokenRow.of([tuple(ids)]), [Read(i - 1, ids[i], 0) for i in own if i > 0]
        elif kind == "masked":
            masked = own[::MASK_EVERY]
            row = tuple(mask if i in masked else token for i, token in enumerate(ids))
            yield TokenRow.of([row]), [Read(i, ids[i], 0) for i in masked]
        else:
            second = own[len(own) // 2 :]
            row, tokens = tuple(t for i, t in enumerate(ids) if i not in second), [ids[i] for i in second]
            reads = [Read(i, token, 0) for i, token in enumerate(tokens)]
            yield TokenRow.of([row], (decoder_start(model), *tokens[:-1])), reads
