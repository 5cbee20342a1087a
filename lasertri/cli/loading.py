"""Models as commands load them."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLError
from typing import TYPE_CHECKING, Annotated
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from lasertri.support.options import Option
from lasertri.support.paths import names_a_place
from lasertri.support.shown import reason, shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

HUB_SECONDS = 4.0  # to answer
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loading:
    """How a model is loaded."""

    revision: Annotated[str | None, Option("Branch, tag or commit on the hub.", section="Model")] = None
    dtype: Annotated[str, Option("auto is the checkpoint's own.", section="Model", names=DTYPES)] = "auto"
    device: Annotated[str | None, Option("Where to run; CUDA if torch has it.", section="Model")] = None

    def load(
        self, model: str, *, plain: bool = False, tensor_parallel: bool = False
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A model and its tokenizer, without the progress bars of transformers.

        Args:
            plain: whether one with quantised weights is refused.
            tensor_parallel: whether this process loads a part of it.
        """
        logger.info("reading the model %s", shown(model))
        from transformers.utils import logging as transformers_logging

        from lasertri.model.loading import load_model, load_tokenizer

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        _ask_hub_for(model)
        loaded = load_model(
            model,
            revision=self.revision,
            dtype=self.dtype,
            device=self.device,
            plain=plain,
            tensor_parallel=tensor_parallel,
        )
        return loaded, load_tokenizer(model, revision=self.revision)

    def require_parts(self, model: str) -> None:
        """Refuse what processes cannot load parts of, before each tries for itself."""
        from lasertri.model.loading import require_parts

        _ask_hub_for(model)
        require_parts(model, revision=self.revision)


def _ask_hub_for(model: str) -> None:
    """Go on without the hub where it is silent; a folder, or what was meant for one, does not need it."""
    if not (Path(model).exists() or names_a_place(model)):
        _go_offline_where_the_hub_is_silent()


def _go_offline_where_the_hub_is_silent() -> None:
    """With what was downloaded before: its library asks for each file again and again, for a minute in all."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    try:
        with suppress(HTTPError):  # an answer too
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_SECONDS).close()
    except (URLError, TimeoutError) as error:
        if not isinstance(getattr(error, "reason", None), SSLError):  # of certificates its library knows more
            told = reason(error)
            logger.warning(
                "%s does not answer (%s): only what was downloaded before is there", constants.ENDPOINT, told
            )
            constants.HF_HUB_OFFLINE = True
