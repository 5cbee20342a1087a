"""Tiny models of real architectures and samples, made here: the tests need no network and no files."""

from __future__ import annotations

import string

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lasertri import Sample

WORDS = ("<unk>", "<pad>", "yes", "no", *string.ascii_lowercase)
SPECIAL = ("<s>", "</s>", "<mask>")  # what tokenizers of masked models and encoder-decoders have besides
PAD, OPENED, CLOSED = 1, len(WORDS), len(WORDS) + 1
WIDTH, LAYERS, INNER = 16, 3, 40

# what differs from "hidden 16, 3 layers, 4 heads, inner 40" in each architecture's own words
_GPT = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_inner": INNER, "n_positions": 64}
_LLAMA = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": INNER,
    "max_position_embeddings": 64,
    "head_dim": 4,
    "pad_token_id": 1,
}
_BERT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": INNER,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
_T5 = {"d_model": WIDTH, "d_kv": 4, "d_ff": INNER, "num_layers": LAYERS, "num_heads": 4}
# grouped products want rows of whole 16 bytes
_MOE = _LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]}
CAUSAL = {
    "gptj": _GPT | {"rotary_dim": 4},
    "gpt2": _GPT,
    "gpt_neo": {"hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": 4, "intermediate_size": INNER}
    | {"attention_types": [[["global"], LAYERS]], "max_position_embeddings": 64},
    "gpt_neox": _LLAMA,
    "opt": {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "ffn_dim": INNER}
    | {"max_position_embeddings": 64, "word_embed_proj_dim": WIDTH, "pad_token_id": 1},
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi": _LLAMA,
    "phi3": _LLAMA,
    "mixtral": _LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2_moe": _MOE
    | {"shared_expert_intermediate_size": 21, "moe_intermediate_size": 11, "experts_implementation": "eager"},
    "qwen3_moe": _MOE,
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 4},
}
TRANSPOSED = {  # experts stored as [experts, inputs, outputs]: Aria's say so, Llama 4's do not
    "llama4_text": _LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 1, "intermediate_size_mlp": INNER},
    "aria_text": _LLAMA | {"moe_num_experts": 3, "intermediate_size": 24},
}
MASKED = {
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "bert"), _BERT),
    "electra": _BERT | {"embedding_size": 8},
    "distilbert": {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": INNER, "pad_token_id": PAD}
    | {"max_position_embeddings": 64},
}
ENCODER_DECODERS = {
    "t5": _T5,
    "mt5": _T5,  # gated
    "bart": {"d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "max_position_embeddings": 64}
    | {
        f"{stack}_{name}": n
        for stack in ("encoder", "decoder")
        for name, n in (("attention_heads", 4), ("ffn_dim", INNER))
    },
}
CONFIGS = CAUSAL | MASKED | ENCODER_DECODERS


def make_model(name: str, *, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """A randomly initialised model; the random state of the caller stays."""
    special = {"vocab_size": len(WORDS), "bos_token_id": None, "eos_token_id": None}
    if name not in CAUSAL:
        special = {"vocab_size": len(WORDS + SPECIAL), "bos_token_id": OPENED, "eos_token_id": CLOSED}
    if name in ENCODER_DECODERS:
        special |= {"pad_token_id": PAD, "decoder_start_token_id": PAD, "forced_eos_token_id": None}
    config = CONFIG_MAPPING[name](**(CONFIGS | TRANSPOSED).get(name, {}) | special | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto_class(name).from_config(config, dtype=torch.float32)
        for parameter in model.parameters():  # the usual 0.02 leaves so small a model without opinions
            torch.nn.init.normal_(parameter, std=0.25) if parameter.dim() > 1 else None
    return model.to(dtype).eval()


def auto_class(name: str) -> type:
    """What loads a model of this architecture."""
    if name in MASKED:
        return AutoModelForMaskedLM
    return AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else AutoModelForCausalLM


def make_tokenizer(name: str = "gptj") -> PreTrainedTokenizerFast:
    """Words between white space, and for this architecture what opens and closes a text."""
    words = WORDS if name in CAUSAL else WORDS + SPECIAL
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if name in CAUSAL:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    template = "$A </s>" if name in ("t5", "mt5") else "<s> $A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        template, special_tokens=[("<s>", OPENED), ("</s>", CLOSED)]
    )
    mask = AddedToken("<mask>", lstrip=True)  # takes the space before it, as RoBERTa's does
    named = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token=mask, **named)


def make_samples(count: int) -> list[Sample]:
    """Two-choice samples of different lengths; the label depends on the prompt, but not by any rule a model knows."""
    letters = string.ascii_lowercase
    return [
        Sample(
            " ".join(letters[(7 * i + 3 * j) % 26] for j in range(2 + i % 5)),
            choices=("yes", "no"),
            label=(i * i // 3) % 2,
        )
        for i in range(count)
    ]
