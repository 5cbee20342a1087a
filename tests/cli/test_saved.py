"""What was written, and who can read it."""

import json
from types import SimpleNamespace

import pytest
from tiny import make_model

from lasertri import LasertriError
from lasertri.cli.saved import base_of_adapter, how_to_load
from lasertri.search.settings import Settings


def result_of(name, **settings):
    """As far as it matters here, with an edit."""
    return SimpleNamespace(edits=[object()], tokenizer=object(), model=make_model(name), settings=Settings(**settings))


def test_what_makes_a_checkpoint_of_an_edit_alone_is_said(tmp_path):
    [line] = how_to_load(result_of("llama", edit="shrink"), tmp_path)
    assert line.endswith(f"the edit alone; lasertri apply {tmp_path} MODEL -o OUT writes the edited model")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8}))
    _, merges, _ = how_to_load(result_of("llama", merge=True), tmp_path)
    assert merges == f"lasertri apply {tmp_path} MODEL -o OUT merges it, where the whole model fits"


def test_no_engine_is_named_for_an_adapter_of_experts(tmp_path):
    result = result_of("mixtral")
    for parameters, said in (
        (None, "vLLM: --enable-lora --max-lora-rank 8"),
        (["experts.down_proj"], "lasertri apply"),
    ):
        config = {"r": 8, "target_parameters": parameters}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        _, engines = how_to_load(result, tmp_path)
        assert said in engines


@pytest.mark.parametrize("text", ["5", "[" * 99999, '{"base_model_name_or_path": 5}', "{}", "\xff"])
def test_an_adapter_that_does_not_say_its_model_is_refused(tmp_path, text):
    (tmp_path / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(LasertriError, match="expected an adapter"):
        base_of_adapter(tmp_path, otherwise="name it")


def test_an_adapter_of_a_gguf_file_says_how_others_load_its_base(tmp_path):
    result = result_of("qwen2")
    config = {"r": 8, "base_model_name_or_path": "me/tiny-GGUF/tiny.gguf"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    _, base, engines = how_to_load(result, tmp_path)
    assert base == 'its base: AutoModelForCausalLM.from_pretrained("me/tiny-GGUF", gguf_file="tiny.gguf")'
    assert "convert_lora_to_gguf.py --base FOLDER" in engines
