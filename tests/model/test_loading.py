"""What a model is loaded as follows from its configuration alone."""

import json

import pytest
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
