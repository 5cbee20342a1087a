"""A tiny model as llama.cpp stores one: quantised, with its tokenizer and its settings in the one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quants
from tiny import make_model
from transformers import PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

MERGES = ("y e", "ye s", "n o", "Ġ yes", "Ġ no")
END = "<|endoftext|>"


def write_gguf(path: Path, *, architecture: str = "qwen2", scaling: bool = False) -> PreTrainedModel:
    """Write it with matrices in Q8_0, whose rows are of 32; returns the model it was made of.

    Args:
        architecture: what it says that it is.
        scaling: whether it scales positions as Llama 3.1 does.
    """
    vocabulary = [*bytes_to_unicode().values(), *("".join(merge.split()) for merge in MERGES), END]
    end = len(vocabulary) - 1
    changes = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "tie_word_embeddings": False}
    model = make_model("qwen2", vocab_size=len(vocabulary), eos_token_id=end, **changes)
    config, writer = model.config, GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    writer.add_token_merges(list(MERGES))
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    names = get_tensor_name_map(MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        kind = GGMLQuantizationType.Q8_0 if tensor.dim() == 2 else GGMLQuantizationType.F32
        stored = quants.quantize(tensor.numpy(), kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), stored, raw_dtype=kind)
    if scaling:
        writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
