"""A model and its tokenizer from the Hugging Face hub or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lasertri.editable import require_unquantised
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
    if place.type not in ("cpu", "cuda") or (place.type == "cuda" and not torch.cuda.is_available()):
        raise LasertriError(f"expected cpu or, where torch sees one, a CUDA device, came {chosen!r}")
    source = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(name, **source)
    except (OSError, ValueError) as error:
        raise LasertriError(
            f"expected a hub id or a folder with a Hugging Face model, came {str(name)!r}: {_first_line(error)}"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise LasertriError(f"{name}: expected a causal language model, came one of type {config.model_type!r}")
    require_unquantised(config)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, **source
        )
    except (SafetensorError, OSError, RuntimeError) as error:  # damaged, absent, of other shapes
        raise LasertriError(
            f"{name}: the checkpoint cannot be read ({_first_line(error)}); download it again"
        ) from error
    model, report = loaded
    if report["missing_keys"]:  # transformers would fill them with random numbers
        raise LasertriError(
            f"{name}: expected every weight of the model, {len(report['missing_keys'])} are missing, "
            f"{min(report['missing_keys'])} among them; download the checkpoint again"
        )
    return model.to(place).eval()


def checkpoint_files(name: str | Path, *, revision: str | None = None) -> list[Path]:
    """The weight files that `load_model` reads, where they lie on this machine; empty if that is not known."""
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(name), revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            return []
    return sorted(folder.glob("*.safetensors"))


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
