"""A model and its tokenizer from the Hugging Face hub or a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lasertri.errors import LasertriError


def load_model(
    name: str | Path, *, revision: str | None = None, dtype: str = "auto", device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype)
    except SafetensorError as error:
        raise LasertriError(f"{name}: the checkpoint is damaged ({error}); download it again") from error
    except (OSError, HFValidationError) as error:
        raise LasertriError(
            f"expected a hub id or a folder with a Hugging Face model, came {str(name)!r}: {_first_line(error)}"
        ) from error
    except ValueError as error:  # a configuration that AutoModelForCausalLM has no class for
        raise LasertriError(f"{name}: expected a causal language model: {_first_line(error)}") from error
    model.to(place)  # type: ignore[arg-type]  # its decorator hides the signature
    return model.eval(), tokenizer


def context_length(model: PreTrainedModel) -> int | None:
    """Most tokens the model reads at once, where its configuration says so."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside the model's weights."""
    name = model.config._name_or_path
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, HFValidationError, ValueError) as error:
        raise LasertriError(f"expected a tokenizer at {name!r}, found none; pass tokenizer=...") from error
