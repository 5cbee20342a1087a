"""Families outside the table: mixed layers, shared experts and experts without gates have their MLPs found too."""

import re
from collections import Counter

import pytest
import torch
from marks import slow
from tiny import make_samples, make_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from lasertri import LasertriError, adapt
from lasertri.edit.adapter import loadable
from lasertri.model.targets import find_linear_layers, find_targets

COMMON = {
    "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 40,
    "vocab_size": 30, "max_position_embeddings": 64, "num_hidden_layers": 4, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": 1, "num_experts_per_tok": 2,
}  # fmt: skip
ROUTED = {"n_routed_experts": 4, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
SSM = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 8}
FAMILIES = {
    "nemotron_h": ROUTED
    | {"hybrid_override_pattern": "M-*E", "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8}
    | {"n_groups": 2, "chunk_size": 8, "moe_shared_expert_intermediate_size": 24},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    | {"num_experts": 4, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "qwen3_next": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 4, "linear_value_head_dim": 4}
    | {"mlp_only_layers": [1]},
    "deepseek_v3": ROUTED
    | {"first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
    | {"v_head_dim": 4, "num_key_value_heads": 4},
    "glm4_moe": ROUTED | {"first_k_dense_replace": 1},
    "granitemoehybrid": SSM
    | {"layer_types": ["mamba", "attention"] * 2, "num_local_experts": 4, "shared_intermediate_size": 24},
    "falcon_h1": SSM | {"mamba_d_ssm": 32},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8},
}
GATED = {"fc_in": 1, "fc_up": 1, "fc_out": 1}
FOUND = {  # by role, of the linear layers and of the experts
    "nemotron_h": (Counter(fc_in=2, fc_out=2), Counter(fc_in=4, fc_out=4)),
    "jamba": (Counter(fc_in=2, fc_up=2, fc_out=2), Counter(fc_in=8, fc_up=8, fc_out=8)),
    "qwen3_next": (Counter(fc_in=4, fc_up=4, fc_out=4), Counter(fc_in=12, fc_up=12, fc_out=12)),
    "deepseek_v3": (Counter(fc_in=4, fc_up=4, fc_out=4), Counter(fc_in=12, fc_up=12, fc_out=12)),
    "glm4_moe": (Counter(fc_in=4, fc_up=4, fc_out=4), Counter(fc_in=12, fc_up=12, fc_out=12)),
    "granitemoehybrid": (Counter(fc_in=4, fc_out=4), Counter(fc_in=16, fc_up=16, fc_out=16)),
    "falcon_h1": (Counter(fc_in=4, fc_up=4, fc_out=4), Counter()),
    "lfm2": (Counter(fc_in=4, fc_up=4, fc_out=4), Counter()),
}


def built(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**COMMON | FAMILIES[name])).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_dense_shared_and_routed_mlps_are_found(name):
    targets = find_targets(built(name))
    dense, experts = (Counter(t.role for t in targets if (t.expert is None) == plain) for plain in (True, False))
    assert (dense, experts) == FOUND[name]
    assert not [t for t in targets if re.search("mamba|attn|conv|gate$|router", t.module)]
    for target in targets:
        rows, columns = target.shape
        assert (columns if target.role == "fc_out" else rows) != 16
        assert (rows if target.role == "fc_out" else columns) == 16
    layers = [target.layer for target in targets]
    assert min(layers) >= 0
    assert layers == sorted(layers)


def test_experts_without_gates_are_what_they_compute():
    model = built("nemotron_h")
    experts, x = model.model.layers[3].mixer.experts, torch.randn(5, 16)
    targets = [t for t in find_targets(model) if t.expert == 2]
    first, out = (t.view(t.parameter(model)) for t in sorted(targets, key=lambda t: t.role))
    expected = experts.act_fn(x @ first.T) @ out.T
    torch.testing.assert_close(experts(x, torch.full((5, 1), 2), torch.ones(5, 1)), expected)


@pytest.mark.parametrize("name", ["nemotron_h", "jamba"])
def test_layers_of_several_kinds_have_their_linear_layers_and_experts_found(name):
    layers = find_linear_layers(built(name))
    assert {target.layer for target in layers} == {0, 1, 2, 3}
    assert {target.expert for target in layers} == {None, 0, 1, 2, 3}


def test_layers_that_peft_loads_no_adapter_for_are_left_out_and_told(caplog):
    """Kernels of a Mamba layer read the weights of its last projection for themselves."""
    model = built("nemotron_h")
    layers = find_linear_layers(model)
    left = set(layers) - set(loadable(model, layers))
    assert {target.module for target in left} == {"model.layers.0.mixer.out_proj"}
    assert "1 layers that peft loads no adapter for are left out, model.layers.0.mixer.out_proj among" in caplog.text
    with pytest.raises(LasertriError, match=r"none of 1, model\.layers\.0\.mixer\.out_proj among them; name others"):
        loadable(model, sorted(left, key=str))


def test_experts_that_cannot_be_told_apart_are_told(caplog):
    model = built("glm4_moe")
    for layer in model.model.layers[1:]:
        layer.mlp.experts.is_concatenated = False  # gate and up take turns
    assert {t.expert for t in find_targets(model)} == {None}
    assert (
        "experts' matrices in 6 parameters are left out, model.layers.1.mlp.experts.gate_up_proj among" in caplog.text
    )


@pytest.mark.parametrize("name", ["nemotron_h", slow("jamba"), slow("qwen3_next"), slow("deepseek_v3")])
@pytest.mark.parametrize("edit", ["step", "truncate"])
def test_they_are_adapted_and_saved(name, edit, tmp_path):
    options = {"blocks": (1,), "ratios": (0.1,), "count": 1} if edit == "truncate" else {"direction": "plain"}
    result = adapt(
        built(name), make_samples(44), tokenizer=make_tokenizer(), accept="best", edit=edit, progress=False, **options
    )
    result.save(tmp_path / "out")
