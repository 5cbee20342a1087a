"""Models as commands load them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
    model: str, revision: str | None, dtype: str, device: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, without the progress bars of transformers."""
    from transformers.utils import logging as transformers_logging

    from lasertri.model.loading import load_model, load_tokenizer

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    loaded = load_model(model, revision=revision, dtype=dtype, device=device)
    return loaded, load_tokenizer(model, revision=revision)
