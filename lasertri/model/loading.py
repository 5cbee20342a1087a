"""A model and its tokenizer from the Hugging Face hub or a folder."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

import lasertri.factored  # noqa: F401  # which reads factored layers
from lasertri.errors import LasertriError
from lasertri.model.editable import MERGE, require_unquantised
from lasertri.model.files import (
    COMPUTED,
    config_fields,
    damaged,
    local_folder,
    reading,
    require_own_files,
    tensor_files,
)
from lasertri.model.gguf import dequantising, is_gguf, made_plain, read_from
from lasertri.model.parallel import of_all_processes, require_sharding
from lasertri.model.quantised import keep_unpacked, quantisation
from lasertri.support.paths import names_a_place
from lasertri.support.shown import reason, shown

logger = logging.getLogger(__name__)

EXPECTED = "a hub id or a folder with a Hugging Face model"
AGAIN = "download it again"
CORRECT = "correct it, or take the one it was published with"

Kind = Literal["causal", "masked", "encoder-decoder"]

CLASSES: dict[Kind, tuple[Any, Any]] = {
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    "masked": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING),
    "encoder-decoder": (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
}


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = "auto",
    device: str | None = None,
    plain: bool = False,
    tensor_parallel: bool = False,
) -> PreTrainedModel:
    """Load a language model for inference: a causal or a masked one, or an encoder-decoder, as its configuration says.

    Its layers are factored where `save` wrote such.

    Args:
        name: a hub id or a local folder; or a GGUF file, on the hub `USER/REPOSITORY/FILE.gguf`, whose quantisation is
            taken back.
        revision: branch, tag or commit on the hub.
        dtype: "auto" or None for the checkpoint's own, or "float32", "bfloat16", "float16".
        device: where it runs; by default CUDA where torch has it.
        plain: whether one with quantised weights is refused before they are read; else it is loaded as it is.
        tensor_parallel: whether every process of `torch.distributed`'s default group loads a part of it, onto its own
            GPU, if there are any.

    Raises:
        LasertriError: it is not there, is damaged, or is not a language model; or cannot be loaded in parts.
    """
    if tensor_parallel:
        if device is not None:
            raise LasertriError(f"expected no device for parts of a model, got {shown(device)}; leave it out")
        require_parts(name, revision=revision)
    dtype = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise LasertriError(f"expected a dtype among auto, float32, bfloat16, float16, got {shown(dtype)}")
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(chosen)
    except RuntimeError as error:
        raise LasertriError(f"expected a device such as cpu or cuda:0, got {shown(chosen)}") from error
    if where.type not in ("cpu", "cuda") or (where.type == "cuda" and not torch.cuda.is_available()):
        raise LasertriError(f"expected cpu or, where torch sees one, a CUDA device, got {shown(chosen)}")
    kind, config = checkpoint_kind(name, revision=revision)
    if plain:
        require_unquantised(config)
    place, options = read_from(name, revision)
    options |= {"config": config, "dtype": dtype, "trust_remote_code": False}
    method, advice = quantisation(config), AGAIN
    if method is not None:
        options["device_map"] = {"": where}  # its layers are made there
        advice = f"load the unquantised checkpoint, or go where quantisation by {method} runs"
    if is_gguf(name):
        options |= dequantising()
    folder = local_folder(name, revision)
    if folder is not None:
        require_own_files(folder)
    if tensor_parallel:
        options["distributed_config"] = of_all_processes()
        advice = "load the whole model where that may be why"
    _require_no_adapter(place, revision)
    _require_consistent(name, kind, config, revision)
    with reading(name, "the checkpoint", advice, revision=revision):
        model, report = CLASSES[kind][0].from_pretrained(
            place, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    if is_gguf(name):
        made_plain(model, name, options["gguf_file"])
    _require_all(name, report)
    _say_unused(name, model, report, revision)
    keep_unpacked(model)
    return (model if method is not None or tensor_parallel else model.to(where)).eval()


load = load_model  # beside `save`


def require_parts(name: str | Path, *, revision: str | None = None) -> None:
    """Refuse a model that processes cannot load parts of.

    Raises:
        LasertriError: it is not there, is none that transformers divides, or transformers is too old.
    """
    require_sharding()
    kind, config = checkpoint_kind(name, revision=revision)
    require_unquantised(config)
    with reading(name, _settings(name), CORRECT, revision=revision), torch.device("meta"):
        built = CLASSES[kind][0].from_config(config)
    if is_gguf(name) or not built.supports_tp_plan:
        what = "a GGUF file" if is_gguf(name) else f"type {shown(config.model_type)}"
        raise LasertriError(
            f"{name}: expected a model that transformers has a plan of tensor parallelism for, got {what}; load the "
            "whole model (without --tensor-parallel)"
        )


def load_tokenizer(name: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model's weights.

    Raises:
        LasertriError: there is none.
    """
    folder, (place, options) = local_folder(name, revision), read_from(name, revision)
    advice = "take the one it was published with"
    with reading(name, "tokenizer_config.json or config.json", advice, revision=revision, tokenizer=True):
        try:
            return AutoTokenizer.from_pretrained(place, **options, trust_remote_code=False)
        except (OSError, ValueError) as error:
            if folder is not None and damaged(folder, tokenizer=True):
                raise
            if is_gguf(name):
                raise LasertriError(
                    f"{name}: expected a tokenizer that transformers reads in this GGUF file, but: {reason(error)}; "
                    "pass tokenizer=..."
                ) from error
            raise LasertriError(
                f"expected a tokenizer beside the model, found none at {str(name)!r}; save one there or pass "
                "tokenizer=..."
            ) from error


def context_length(model: PreTrainedModel) -> int | None:
    """Most tokens the model reads at once, where its configuration says so."""
    length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if length and name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return length - module.padding_idx - 1  # RoBERTa counts positions from after its padding's
    return length


def checkpoint_kind(name: str | Path, *, revision: str | None = None) -> tuple[Kind, PreTrainedConfig]:
    """What `model_kind` will say of a model before it is loaded, and its configuration.

    Raises:
        LasertriError: it is not there, or is not a language model.
    """
    place, options = read_from(name, revision)
    if names_a_place(str(place)) and not Path(place).is_dir():
        raise LasertriError(f"expected {EXPECTED}, found no folder {str(name)!r}")
    folder = local_folder(name, revision)
    with reading(name, _settings(name), AGAIN if is_gguf(name) else CORRECT, revision=revision):
        try:
            config = AutoConfig.from_pretrained(place, **options, trust_remote_code=False)
        except (OSError, ValueError) as error:
            if folder is not None and damaged(folder):
                raise
            wanted = "a GGUF file that transformers reads" if is_gguf(name) else EXPECTED
            raise LasertriError(f"expected {wanted}, got {str(name)!r}: {reason(error)}{_instead(folder)}") from error
    kind = _configured_kind(config)
    if kind is None:
        raise LasertriError(
            f"{name}: expected a language model ({', '.join(CLASSES)}), got type {shown(config.model_type)}"
        )
    return kind, config


def model_kind(model: nn.Module) -> Kind:
    """What answers are read from: what follows a prompt, masked positions, or a decoder."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    masked: Any = MODEL_FOR_MASKED_LM_MAPPING.get(type(config), ())
    return "masked" if isinstance(model, masked) else "causal"


def _configured_kind(config: PreTrainedConfig) -> Kind | None:
    """What a checkpoint was saved as; where that is not said, what its type was made for."""
    kinds: tuple[Kind, ...] = ("encoder-decoder",) if config.is_encoder_decoder else ("causal", "masked")
    fitting = [kind for kind in kinds if type(config) in CLASSES[kind][1]]
    saved = [kind for kind in fitting if CLASSES[kind][1][type(config)].__name__ in (config.architectures or ())]
    if len(saved) == 1:
        return saved[0]
    if "masked" in fitting and not getattr(config, "is_decoder", False):
        return "masked"
    return fitting[0] if fitting else None


def _settings(name: str | Path) -> str:
    """What describes the model."""
    return "its header" if is_gguf(name) else "config.json"


def _instead(folder: Path | None) -> str:
    """What to name in a folder that has no model of transformers but GGUF files."""
    files = [] if folder is None or (folder / "config.json").exists() else sorted(folder.glob("*.gguf"))
    return f"; name a GGUF file in it, such as {files[0]}" if files else ""


def _require_no_adapter(name: str | Path, revision: str | None) -> None:
    """Refuse a folder that transformers would load an adapter from, whatever its weights."""
    if find_adapter_config_file(str(name), revision=revision) is not None:
        raise LasertriError(
            f"{name}: expected a model, got one with an adapter (adapter_config.json), which would be saved without "
            f"its weights; {MERGE}, or take the file away to leave the adapter out"
        )


def _require_consistent(name: str | Path, kind: Kind, config: PreTrainedConfig, revision: str | None) -> None:
    """Refuse a configuration that no model can be built of, or whose model cannot write, before weights are read."""
    for field, value in config_fields(config.to_dict()):
        if value != value:  # NaN, which classes take for a dropout, say
            raise LasertriError(f"{name}: expected a number for {field} in {_settings(name)}, got NaN; {CORRECT}")
    with reading(name, _settings(name), CORRECT, revision=revision), torch.device("meta"):
        built = CLASSES[kind][0].from_config(config)
    if not any(True for _ in built.parameters()):
        raise LasertriError(f"{name}: {_settings(name)} describes a model without weights; {CORRECT}")
    folder = local_folder(name, revision)
    if folder is not None and (folder / "generation_config.json").exists():
        with reading(name, "generation_config.json", CORRECT, revision=revision):
            GenerationConfig.from_pretrained(name, revision=revision or "main")


def _require_all(name: str | Path, report: dict[str, Any]) -> None:
    """Refuse what transformers would fill with random numbers."""
    if report["mismatched_keys"]:
        key, stored, built = min(report["mismatched_keys"])
        raise LasertriError(
            f"{name}: expected weights of the shapes that {_settings(name)} says, got "
            f"{key} as {list(stored)} for {list(built)}; take both of one model"
        )
    if report["missing_keys"]:
        raise LasertriError(
            f"{name}: expected every weight of the model, {len(report['missing_keys'])} are missing, "
            f"{min(report['missing_keys'])} among them; download the checkpoint again"
        )


def _say_unused(name: str | Path, model: PreTrainedModel, report: dict[str, Any], revision: str | None) -> None:
    """Warn of tensors that the checkpoint has and the model has no place for; some classes pass over them silently."""
    folder, ignored = local_folder(name, revision), model._keys_to_ignore_on_load_unexpected or ()
    unused = set(report["unexpected_keys"])
    stored = {} if folder is None else tensor_files(folder)
    unused |= {key for key in stored if any(re.search(pattern, key) for pattern in ignored)} - set(model.state_dict())
    unused = {key for key in unused if not COMPUTED.search(key)}
    if unused:
        logger.warning(
            "%s: %d tensors of the checkpoint have no place in %s and are left out, also of what is saved: %s%s",
            name,
            len(unused),
            type(model).__name__,
            min(unused),
            "" if len(unused) == 1 else " and others",
        )
