"""A model and its tokenizer from the Hugging Face hub or a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lasertri.errors import LasertriError


def load_model(
    name: str | Path, *, revision: str | None = None, dtype: str = "auto", device: str | None = None
) -> PreTrainedModel:
    """Load a causal language model for inference.

    Args:
        name: a hub id or a local folder.
        revision: branch, tag or commit on the hub.
        dtype: "auto" for the checkpoint's own, or "float32", "bfloat16", "float16".
        device: where it runs; by default CUDA where torch has it.

    Raises:
        LasertriError: it is not there, is damaged, or is not a causal language model.
    """
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise LasertriError(f"expected a dtype among auto, float32, bfloat16, float16, came {dtype!r}")
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(chosen)
    except RuntimeError as error:
        raise LasertriError(f"expected a device such as cpu or cuda:0, came {chosen!r}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise LasertriError(f"expected a device torch can use, came {chosen!r}, but torch sees no CUDA device")
    source = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(name, **source)
    except (OSError, ValueError) as error:
        raise LasertriError(
            f"expected a hub id or a folder with a Hugging Face model, came {str(name)!r}: {_first_line(error)}"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise LasertriError(f"{name}: expected a causal language model, came one of type {config.model_type!r}")
    try:
        model = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=dtype, **source)
    except (SafetensorError, OSError) as error:
        raise LasertriError(
            f"{name}: the checkpoint is damaged or incomplete ({_first_line(error)}); download it again"
        ) from error
    model.to(place)  # type: ignore[arg-type]  # its decorator hides the signature
    return model.eval()


def load_tokenizer(name: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model's weights.

    Raises:
        LasertriError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise LasertriError(
            f"expected a tokenizer beside the model, found none at {str(name)!r}; save one there or pass tokenizer=..."
        ) from error


def context_length(model: PreTrainedModel) -> int | None:
    """Most tokens the model reads at once, where its configuration says so."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
