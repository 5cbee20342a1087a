"""Targets are found in every supported architecture, and only where editing is safe."""

import re

import pytest
import torch
from tiny import CONFIGS, ENCODER_DECODERS, INNER, MASKED, TRANSPOSED, WIDTH
from torch import nn
from transformers.pytorch_utils import Conv1D

from lasertri import LasertriError
from lasertri.model.architectures import ARCHITECTURES, MLP_ROLES
from lasertri.model.targets import find_linear_layers, find_targets

PLAIN = {"gptj", "gpt2", "gpt_neo", "gpt_neox", "opt", "phi", "bloom", "t5", "bart", *MASKED}
GATED = ["fc_in", "fc_up", "fc_out"]
EXPERTS = {"mixtral": 3, "qwen2_moe": 4, "qwen3_moe": 4}
DENSE = 1  # the layer without experts in both of Qwen's


def mlp_roles(name, layer):
    experts = 0 if "qwen" in name and layer == DENSE else EXPERTS.get(name, 0)
    if not experts:
        return ["fc_in", "fc_out"] if name in PLAIN else GATED
    shared = GATED if name == "qwen2_moe" else []
    return ["fc_in", "fc_up"] * experts + ["fc_out"] * experts + shared


@pytest.mark.parametrize("name", CONFIGS)
def test_mlp_matrices_of_every_layer_are_found(model_of, name):
    model = model_of(name)
    targets = find_targets(model)
    layers = range(6 if name in ENCODER_DECODERS else 3)
    assert [(t.layer, t.role) for t in targets] == [(n, role) for n in layers for role in mlp_roles(name, n)]
    for target in targets:
        inner = {"bloom": 4 * WIDTH}.get(name, INNER)
        if target.expert is not None:
            inner = getattr(model.config, "moe_intermediate_size", INNER)
        elif "shared_expert" in target.name:
            inner = model.config.shared_expert_intermediate_size
        assert target.shape == ((WIDTH, inner) if target.role == "fc_out" else (inner, WIDTH))
    assert len({str(target) for target in targets}) == len(targets)


def test_every_architecture_of_the_table_is_tried_here():
    assert set(ARCHITECTURES) <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_output_features_whatever_the_storage(model_of, name):
    model = model_of(name)
    for target in find_targets(model, "."):
        if target.expert is not None:
            continue  # no module gives what one of these does
        module = model.get_submodule(target.module)
        x = torch.randn(2, target.shape[1])
        expected = module(x) - (0 if module.bias is None else module.bias)
        rows = slice(None) if target.rows is None else slice(*target.rows)
        torch.testing.assert_close(x @ target.view(target.parameter(model)).T, expected[:, rows])


def gated_mlp(model, targets, x):
    """What an MLP of these three gives."""
    first, up, out = (target.view(target.parameter(model)) for target in targets)
    return (nn.functional.silu(x @ first.T) * (x @ up.T)) @ out.T


@pytest.mark.parametrize("name", EXPERTS)
def test_an_experts_three_matrices_are_what_it_computes(model_of, name):
    model, x = model_of(name), torch.randn(5, WIDTH)
    targets = [t for t in find_targets(model) if t.layer == 2 and t.expert is not None]
    for expert in range(EXPERTS[name]):
        mine = sorted((t for t in targets if t.expert == expert), key=lambda t: GATED.index(t.role))
        module = model.get_submodule(mine[0].module)
        found = module(x, torch.full((5, 1), expert), torch.ones(5, 1))
        torch.testing.assert_close(found, gated_mlp(model, mine, x), atol=1e-5, rtol=1e-4)


def test_two_matrices_stored_as_one_are_what_the_mlp_computes(model_of):
    model, x = model_of("phi3"), torch.randn(5, WIDTH)
    targets = [t for t in find_targets(model) if t.layer == 1]
    expected = gated_mlp(model, targets, x)
    torch.testing.assert_close(model.model.layers[1].mlp(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "keys"), [("gpt2", 16), ("phi3", 8)])
def test_queries_keys_and_values_are_rows_of_one_matrix(model_of, name, keys):
    """Phi-3 has two heads of keys and values for four of queries."""
    targets = {t.role: t for t in find_targets(model_of(name), "attn") if t.layer == 1}
    rows = {"q_proj": (0, 16), "k_proj": (16, 16 + keys), "v_proj": (16 + keys, 16 + 2 * keys)}
    assert {role: targets[role].rows for role in rows} == rows
    assert str(targets["v_proj"]).endswith("attn.c_attn.v_proj" if name == "gpt2" else "self_attn.qkv_proj.v_proj")


@pytest.mark.parametrize("name", EXPERTS)
def test_what_chooses_experts_is_left_alone(model_of, name):
    model = model_of(name)
    names = {t.name.removesuffix(".weight") for t in find_targets(model, ".")}
    routers = {path for path, _ in model.named_modules() if path.endswith((".gate", ".shared_expert_gate"))}
    assert len(routers) == {"mixtral": 3, "qwen2_moe": 4, "qwen3_moe": 2}[name]
    assert not names & routers


def test_experts_of_unknown_models_are_found_by_their_shapes():
    """Stored as [experts, inputs, outputs], as in Llama 4; but not where gate and up take turns, as in GPT-OSS."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(3, WIDTH, 22))
            self.down_proj = nn.Parameter(torch.randn(3, 11, WIDTH))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts, self.router = Experts(), nn.Linear(WIDTH, 3)

    model = nn.Module()
    model.layers = nn.ModuleList(Block() for _ in range(2))
    targets = find_targets(model, ".")
    assert [(t.layer, t.role) for t in targets[:9]] == [(0, role) for role in ["fc_in", "fc_up"] * 3 + ["fc_out"] * 3]
    assert len(targets) == 18
    x, mine = torch.randn(2, WIDTH), [targets[i] for i in (2, 3, 7)]  # the second's
    experts = model.layers[0].experts
    gate, up = (x @ experts.gate_up_proj[1]).chunk(2, dim=-1)
    expected = (nn.functional.silu(gate) * up) @ experts.down_proj[1]
    torch.testing.assert_close(gated_mlp(model, mine, x), expected)
    for layer in model.layers:
        layer.experts.is_concatenated = False
    with pytest.raises(LasertriError, match="no matrices"):
        find_targets(model, ".")


@pytest.mark.parametrize("name", ["gpt_neox", "bloom"])
def test_rows_that_take_turns_are_one_target_and_the_listing_says_why(model_of, name):
    assert [t.rows for t in find_targets(model_of(name), "query_key_value")] == [None] * 3
    with pytest.raises(
        LasertriError, match=r"query_key_value \[48, 16\] \(one matrix: its rows are q, k and v by turns"
    ):
        find_targets(model_of(name), "q_proj")


def test_a_pattern_names_other_matrices(model):
    targets = find_targets(model, r"h\.1\.attn\..*_proj")
    assert sorted(t.role for t in targets) == ["k_proj", "out_proj", "q_proj", "v_proj"]
    assert {t.layer for t in targets} == {1}


@pytest.mark.parametrize("name", ["t5", "mt5", "bart"])
def test_a_decoders_layers_follow_its_encoders(model_of, name):
    stacks = [target.name.removeprefix("model.").split(".")[0] for target in find_targets(model_of(name))]
    assert stacks == sorted(stacks, reverse=True)
    assert set(stacks) == {"encoder", "decoder"}


@pytest.mark.parametrize("name", ["roberta", "bert", "electra"])
def test_attention_of_masked_models_goes_by_the_roles_of_others(model_of, name):
    targets = find_targets(model_of(name), r"layer\.1\.attention")
    assert sorted(t.role for t in targets) == ["k_proj", "out_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_cross_attention_is_told_apart(model_of, name):
    [encoder, decoder] = (
        sorted(t.role for t in find_targets(model_of(name), rf"(?i){stack}\.(block|layers)\.0.*att"))
        for stack in ("encoder", "decoder")
    )
    assert encoder == ["k_proj", "out_proj", "q_proj", "v_proj"]
    assert decoder == sorted([*encoder, *(f"cross_{role}" for role in encoder)])


def test_a_t5_with_gates_has_three(model_of):
    targets = find_targets(model_of("t5", feed_forward_proj="gated-gelu"))
    assert [t.role for t in targets] == 6 * ["fc_in", "fc_up", "fc_out"]


@pytest.mark.parametrize("name", ["roberta", "bert", "distilbert", "t5", "bart"])
def test_tied_heads_and_embeddings_are_left_alone(model_of, name):
    model = model_of(name)
    head = model.get_output_embeddings()
    assert head.weight is model.get_input_embeddings().weight
    assert all(target.parameter(model) is not head.weight for target in find_targets(model, "."))


def test_heads_and_shared_weights_are_left_alone(model_of):
    model = model_of("gpt2")  # ties its head to the embedding
    assert not [t for t in find_targets(model, ".") if "lm_head" in t.name]
    layers = model.transformer.h
    layers[1].mlp.c_fc.weight = layers[0].mlp.c_fc.weight
    assert not [t for t in find_targets(model) if t.role == "fc_in" and t.layer in (0, 1)]


def test_an_unmatched_pattern_lists_what_was_seen(model):
    with pytest.raises(LasertriError, match=r"nowhere.*3 × transformer\.h\.N\.mlp\.fc_in \[40, 16\].*--targets"):
        find_targets(model, "nowhere")


def test_a_broken_pattern_is_explained(model):
    with pytest.raises(LasertriError, match="regular expression"):
        find_targets(model, "(")


def test_a_model_without_layers_lists_what_was_seen():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    with pytest.raises(LasertriError, match=r"'Sequential', saw 1 × N \[4, 3\]; 1 × N \[5, 4\]"):
        find_targets(model)


# of linear layers in a layer of each family: those outside of parameters that experts share
LINEAR = {"gpt2": 4, "gpt_neox": 4, "bloom": 4, "phi3": 4, "mixtral": 4, "llama": 7, "gptj": 6, "t5": 6, "bart": 6}


@pytest.mark.parametrize("name", CONFIGS)
def test_linear_layers_are_all_those_inside_layers_whole(model_of, name):
    model = model_of(name)
    layers = [target for target in find_linear_layers(model) if target.expert is None]
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    inside = {
        path
        for path, module in modules.items()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and re.search(r"(^|\.)(h|layers?|block)\.\d+\.", path)
        and not path.endswith((".router", ".shared_expert_gate"))
        and not (path.endswith(".gate") and "mlp" in path)
    }
    assert [target.module for target in layers] == [path for path in modules if path in inside]
    for target in layers:
        module = modules[target.module]
        assert (target.rows, target.expert, target.transposed) == (None, None, isinstance(module, Conv1D))
        x = torch.randn(2, target.shape[1])
        assert module(x).shape == (2, target.shape[0])
        assert target.shape == tuple(target.view(target.parameter(model)).shape)
        assert target.layer >= 0
        assert target.module.endswith(f".{target.role}")
        assert target.is_layer(model)
    assert len({target.name for target in layers}) == len(layers)
    if name in LINEAR:
        assert sum(target.layer == 0 for target in layers) == LINEAR[name]


@pytest.mark.parametrize("name", [*EXPERTS, *TRANSPOSED])
def test_every_expert_is_two_layers_whole(model_of, name):
    model = model_of(name)
    found = [target for target in find_linear_layers(model) if target.expert is not None]
    stacks = [(path, p) for path, p in model.named_parameters() if p.dim() == 3]
    assert [(t.name, t.expert) for t in found] == [(path, e) for path, stack in stacks for e in range(len(stack))]
    for target in found:
        stored = target.parameter(model)[target.expert]
        assert torch.equal(target.view(target.parameter(model)), stored.mT if name in TRANSPOSED else stored)
        assert target.shape == tuple(target.view(target.parameter(model)).shape)
        assert (target.rows, target.role) == (None, target.name.split(".", 3)[3])
    names = [str(target) for target in find_linear_layers(model, r"\.2\..*experts\.down_proj\.[02]")]
    assert [path.rpartition("experts.")[2] for path in names] == ["down_proj.0", "down_proj.2"]


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_that_have_a_role_are_whole(model_of, name):
    model = model_of(name)
    chosen = {(target.name, target.expert) for target in find_linear_layers(model, roles=MLP_ROLES)}
    assert chosen == {(target.name, target.expert) for target in find_targets(model)}
    assert len(chosen) < len(find_linear_layers(model))
    assert find_linear_layers(model, roles=("none",)) == find_linear_layers(model)


def test_linear_layers_by_pattern_with_shared_ones_left_out(model_of):
    model = model_of("gpt2")
    assert [target.layer for target in find_linear_layers(model, "c_attn")] == [0, 1, 2]
    assert [target.role for target in find_linear_layers(model, r"h\.1\.attn")] == ["attn.c_attn", "attn.c_proj"]
    model.transformer.h[1].mlp.c_fc.weight = model.transformer.h[0].mlp.c_fc.weight
    assert [target.layer for target in find_linear_layers(model, "c_fc")] == [2]
    with pytest.raises(LasertriError, match=r"that match 'lm_head', got none among transformer\.h\.N\.attn\.c_attn, "):
        find_linear_layers(model, "lm_head")


def test_linear_layers_of_any_module():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5, bias=False))
    assert [(t.name, t.layer, t.shape) for t in find_linear_layers(model)] == [
        ("0.weight", -1, (4, 3)),
        ("2.weight", -1, (5, 4)),
    ]
    with pytest.raises(LasertriError, match="expected linear layers, got none among a model without any"):
        find_linear_layers(nn.Sequential(nn.Conv1d(2, 3, 1)))
    model[2].weight = nn.Parameter(model[2].weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(LasertriError, match=r"expected 2\.weight as a plain tensor"):
        find_linear_layers(model)
