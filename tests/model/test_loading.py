"""What a model is loaded as follows from its configuration alone."""

import json

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file
from tiny import make_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM

from lasertri import LasertriError, load_model
from lasertri.model.loading import model_kind

KINDS = {
    "gptj": "causal",
    "bert": "masked",
    "roberta": "masked",
    "distilbert": "masked",
    "t5": "encoder-decoder",
    "bart": "encoder-decoder",
}


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize(("architecture", "kind"), KINDS.items())
def test_a_checkpoint_is_loaded_as_what_it_is(tmp_path, architecture, kind, said):
    model = make_model(architecture)
    model.save_pretrained(tmp_path)
    if not said:  # as in configurations from before `architectures`
        config = json.loads((tmp_path / "config.json").read_text())
        del config["architectures"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(tmp_path, device="cpu")
    assert type(loaded) is type(model)
    assert model_kind(loaded) == kind
    assert all(a.equal(b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_a_decoder_of_a_masked_family_stays_causal(tmp_path):
    config = make_model("roberta", is_decoder=True).config
    for auto, kind in ((AutoModelForCausalLM, "causal"), (AutoModelForMaskedLM, "masked")):
        auto.from_config(config).save_pretrained(tmp_path / kind)
        assert model_kind(load_model(tmp_path / kind, device="cpu")) == kind


@pytest.mark.parametrize("model_type", ["vit", "whisper", "clip"])
def test_what_no_class_fits_is_said(tmp_path, model_type):
    CONFIG_MAPPING[model_type]().save_pretrained(tmp_path)
    with pytest.raises(LasertriError, match=rf"expected a language model \(causal, masked.*got type '{model_type}'"):
        load_model(tmp_path, device="cpu")


def test_a_checkpoint_without_the_language_models_head_is_refused(tmp_path):
    model = make_model("bert")
    model.bert.save_pretrained(tmp_path)
    with pytest.raises(LasertriError, match="expected every weight of the model, .* missing"):
        load_model(tmp_path, device="cpu")


def test_a_folder_with_an_adapter_in_it_is_refused(tmp_path):
    """Transformers would load it into the model, and save the adapter alone."""
    make_model("llama").save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}')
    with pytest.raises(LasertriError, match=r"adapter_config\.json.*merge_and_unload"):
        load_model(tmp_path, device="cpu")


def test_tensors_without_a_place_in_the_model_are_told(tmp_path, caplog):
    make_model("llama", num_hidden_layers=3).save_pretrained(tmp_path)
    load_model(tmp_path, device="cpu")
    assert not caplog.messages
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    load_model(tmp_path, device="cpu")
    assert "9 tensors of the checkpoint have no place in LlamaForCausalLM" in caplog.text
    assert "model.layers.2.input_layernorm.weight and others" in caplog.text


def test_tensors_that_a_class_passes_over_silently_are_told_too(tmp_path, caplog):
    """DeepSeek's layer for predicting further tokens is one that transformers never reads."""
    model = make_model("llama")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights |= {"mtp.proj.weight": torch.ones(2, 2), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model = load_model(tmp_path, device="cpu")
    assert "1 tensors of the checkpoint have no place" in caplog.text
    caplog.clear()
    type(model)._keys_to_ignore_on_load_unexpected, before = [r"^mtp\."], type(model)._keys_to_ignore_on_load_unexpected
    try:
        load_model(tmp_path, device="cpu")
    finally:
        type(model)._keys_to_ignore_on_load_unexpected = before
    assert "1 tensors of the checkpoint have no place" in caplog.text
    assert "mtp.proj.weight" in caplog.text


def test_a_configuration_with_nan_is_refused_by_field(tmp_path):
    make_model("bert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"attention_probs_dropout_prob": float("nan")}))
    with pytest.raises(LasertriError, match=r"a number for attention_probs_dropout_prob in config\.json, got NaN"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "needed", "options", "said"),
    [
        ("llama", "5", {}, "expected several processes to load parts of a model, got one; start them with torchrun"),
        ("llama", "5", {"device": "cpu"}, "expected no device for parts of a model, got 'cpu'; leave it out"),
        ("llama", "99", {}, r"expected transformers 99 or later, .*, got 5\..*; upgrade transformers"),
        ("gptj", "5", {}, "expected a model that transformers has a plan of tensor parallelism for, got type 'gptj'"),
    ],
)
def test_what_cannot_be_loaded_in_parts_is_said(tmp_path, monkeypatch, architecture, needed, options, said):
    make_model(architecture).save_pretrained(tmp_path)
    monkeypatch.setattr("lasertri.model.parallel.SHARDING", Version(needed))
    with pytest.raises(LasertriError, match=said):
        load_model(tmp_path, tensor_parallel=True, **options)
