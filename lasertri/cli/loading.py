"""Models as commands load them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from lasertri.support.options import Option

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loading:
    """How a model is loaded."""

    revision: Annotated[str | None, Option("Branch, tag or commit on the hub.", section="Model")] = None
    dtype: Annotated[str, Option("auto is the checkpoint's own.", section="Model", names=DTYPES)] = "auto"
    device: Annotated[str | None, Option("Where to run; CUDA if torch has it.", section="Model")] = None

    def load(self, model: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A model and its tokenizer, without the progress bars of transformers."""
        from transformers.utils import logging as transformers_logging

        from lasertri.model.loading import load_model, load_tokenizer

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        loaded = load_model(model, revision=self.revision, dtype=self.dtype, device=self.device)
        return loaded, load_tokenizer(model, revision=self.revision)
