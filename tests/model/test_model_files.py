"""Files that cannot be used are named, with what is wrong, in one sentence, before any weight is read."""

import json
import re

import pytest
import torch
from tiny import make_model, make_tokenizer

from lasertri import LasertriError, load_model, load_tokenizer

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.fixture
def checkpoint(tmp_path):
    """Several shards, and a tokenizer."""
    make_model("llama").save_pretrained(tmp_path, max_shard_size="12KB")
    make_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def changed(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def message(load, folder):
    with pytest.raises(LasertriError) as caught:
        load(folder)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 700
    return text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, r"rope_parameters\.rope_type is 'spiral'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "factor"),
        ({"hidden_act": "swoosh"}, "hidden_act is 'swoosh', which transformers .* does not know"),
        ({"hidden_size": "16"}, "'hidden_size' expected int, got str"),
        ({"rms_norm_eps": "1e-6"}, "'rms_norm_eps' expected float, got str"),
        ({"num_attention_heads": 5}, r"hidden size \(16\) is not a multiple of the number of attention heads \(5\)"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"pad_token_id": 4000}, "Padding_idx must be within"),
        ({"dtype": "float99"}, "float99"),
        ({"layer_types": "all"}, "layer_types"),
    ],
)
def test_a_configuration_of_which_no_model_can_be_built(checkpoint, fields, said):
    changed(checkpoint / "config.json", **fields)
    assert re.search(rf"config\.json cannot be used: .*{said}.*; correct it", message(load_model, checkpoint))


def test_a_configuration_of_other_shapes_than_the_weights(checkpoint):
    changed(checkpoint / "config.json", intermediate_size=41)
    text = message(load_model, checkpoint)
    assert re.search(r"config\.json says, got model\.layers\.0\.mlp\.\w+\.weight as \[.*40.*\] for \[.*41.*\]", text)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"max_new_tokens": -4}, "`max_new_tokens` must be"), ({"cache_implementation": "attic"}, "Invalid `cache_")],
)
def test_settings_of_generation_that_are_none(checkpoint, fields, said):
    changed(checkpoint / "generation_config.json", **fields)
    assert f"generation_config.json cannot be used: {said}" in message(load_model, checkpoint)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", LFS, "config.json is a Git LFS pointer, not the file itself; run git lfs pull"),
        ("generation_config.json", LFS, "generation_config.json is a Git LFS pointer"),
        ("generation_config.json", "[]", "generation_config.json cannot be read (expected a JSON object, got a list)"),
        ("config.json", '{"model_type": ', "config.json cannot be read (it is not JSON"),
        ("config.json", "null", "config.json cannot be read (expected a JSON object"),
        ("config.json", "", "config.json cannot be read (it is empty)"),
        ("model-00002-of-00004.safetensors", LFS, "model-00002-of-00004.safetensors is a Git LFS pointer"),
        ("model-00002-of-00004.safetensors", "<html>", "model-00002-of-00004.safetensors cannot be read (it was cut"),
        ("model-00002-of-00004.safetensors", None, "model-00002-of-00004.safetensors is missing, which model"),
        ("model.safetensors.index.json", "{}", "model.safetensors.index.json cannot be read (it has no weight_map)"),
        ("model.safetensors.index.json", "{", "model.safetensors.index.json cannot be read (it is not JSON"),
    ],
)
def test_files_of_a_model_that_are_no_such(checkpoint, name, content, said):
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_text(content)
    assert said in message(load_model, checkpoint)


@pytest.mark.parametrize("name", ["../outside.safetensors", "{folder}/outside.safetensors", "a/../../x", "", 5, None])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_that_names_files_elsewhere(checkpoint, index, name):
    path = checkpoint / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    shard = checkpoint / content["weight_map"]["model.norm.weight"]
    (checkpoint.parent / "outside.safetensors").write_bytes(shard.read_bytes())
    own = name.format(folder=checkpoint.parent) if isinstance(name, str) else name
    content["weight_map"]["model.norm.weight"] = own
    path.rename(checkpoint / index).write_text(json.dumps(content))
    assert f"{index} names {own!r}, expected files beside it alone" in message(load_model, checkpoint)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LFS.encode(), "pytorch_model.bin is a Git LFS pointer"),
        (b"PK\3\4cut", "pytorch_model.bin cannot be read (it was cut"),
        (b"", "pytorch_model.bin cannot be read (it is empty)"),
    ],
)
def test_pickled_weights_that_are_none(tmp_path, content, said):
    model = make_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    load_model(tmp_path, device="cpu")
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    assert said in message(load_model, tmp_path)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (
            "tokenizer.json",
            {"version": "9.0"},
            "tokenizer.json cannot be read (it is damaged, or later than tokenizers",
        ),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Later"}}, "tokenizer.json cannot be read (it is damaged, or"),
        ("tokenizer_config.json", {"bos_token": 5}, "tokenizer_config.json or config.json cannot be used: Special"),
    ],
)
def test_a_tokenizer_of_another_version(checkpoint, name, fields, said):
    changed(checkpoint / name, **fields)
    assert said in message(load_tokenizer, checkpoint)
    load_model(checkpoint, device="cpu")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", LFS, "tokenizer.json is a Git LFS pointer"),
        ("tokenizer.json", '{"version": "1.0", ', "tokenizer.json cannot be read (it is not JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json cannot be read (expected a JSON object, got a list)"),
        ("tokenizer.json", None, "expected a tokenizer beside the model, found none"),
    ],
)
def test_files_of_a_tokenizer_that_are_no_such(checkpoint, name, content, said):
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_text(content)
    assert said in message(load_tokenizer, checkpoint)
