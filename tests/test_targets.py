"""Targets are found in every supported architecture, and only where editing is safe."""

import pytest
import torch
from tiny import CONFIGS, ENCODER_DECODERS, INNER, WIDTH
from torch import nn

from lasertri import LasertriError
from lasertri.targets import ARCHITECTURES, find_targets

GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mt5"}


@pytest.mark.parametrize("name", CONFIGS)
def test_mlp_matrices_of_every_layer_are_found(model_of, name):
    model = model_of(name)
    targets = find_targets(model)
    roles = ["fc_in", "fc_up", "fc_out"] if name in GATED else ["fc_in", "fc_out"]
    layers = 6 if name in ENCODER_DECODERS else 3
    assert [(t.layer, t.role) for t in targets] == [(layer, role) for layer in range(layers) for role in roles]
    inner = {"bloom": 4 * WIDTH}.get(name, INNER)
    for target in targets:
        rows = 2 * inner if (name, target.role) == ("phi3", "fc_in") else inner
        assert target.shape == ((WIDTH, inner) if target.role == "fc_out" else (rows, WIDTH))


def test_every_architecture_of_the_table_is_tried_here():
    assert set(ARCHITECTURES) <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_output_features_whatever_the_storage(model_of, name):
    model = model_of(name)
    for target in find_targets(model):
        module = model.get_submodule(str(target))
        x = torch.randn(2, target.shape[1])
        expected = module(x) - (0 if module.bias is None else module.bias)
        torch.testing.assert_close(x @ target.view(target.parameter(model)).T, expected)


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
