"""A step is made through a quantised model, and its adapter stands beside the same weights for plain peft."""

import copy
import dataclasses
import json

import pytest
import torch
from peft import PeftModel
from stand_in_quantised import quantise
from tiny import make_model, make_samples, make_tokenizer
from transformers import AutoModelForCausalLM

from lasertri import LasertriError, Sample, adapt, compress, load_model
from lasertri.edit.edit import Edit
from lasertri.edit.origin import Origin

OPTIONS = {"accept": "best", "progress": False}
WIDER = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def samples():
    """An answer that is nearly always the same is found by any step."""
    return [Sample(s.prompt, choices=s.choices, label=int(i % 9 == 0)) for i, s in enumerate(make_samples(60))]


def logits(model):
    with torch.no_grad():
        return model(torch.arange(10)[None]).logits


@pytest.fixture(params=["its own", "no graph"])
def quantised(request):
    return quantise(make_model("llama"), kernel=request.param)


def test_the_step_is_that_of_the_weights_that_it_multiplies_by(quantised):
    plain, before = quantise(make_model("llama"), plain=True), logits(quantised)
    expected, found = (adapt(m, samples(), tokenizer=make_tokenizer(), **OPTIONS).edit for m in (plain, quantised))
    assert found.to_dict() == expected.to_dict()
    for target, (left, right) in expected.factors.items():
        torch.testing.assert_close(
            found.factors[target][0] @ found.factors[target][1], left @ right, rtol=1e-3, atol=1e-4
        )
    assert torch.equal(logits(quantised), before)


def test_its_adapter_is_measured_saved_and_found_again(quantised, tmp_path):
    result = adapt(quantised, samples(), tokenizer=make_tokenizer(), **OPTIONS)
    result.save(tmp_path / "adapted")
    edit = Edit.load(tmp_path / "adapted")
    with edit.applied(quantised):
        beside = logits(quantised)
    assert (beside - logits(quantised)).abs().max() > 0.1
    loaded = PeftModel.from_pretrained(copy.deepcopy(quantised), tmp_path / "adapted")
    torch.testing.assert_close(logits(loaded), beside, rtol=0, atol=1e-5)
    with pytest.raises(LasertriError, match="expected the model quantised as it was .* is not; load it from Python"):
        edit.applied(make_model("llama")).__enter__()
    with pytest.raises(LasertriError, match="load the unquantised checkpoint"):
        edit.apply(quantised)
    with pytest.raises(LasertriError, match=r"\.mlp\.gate_proj\.weight as a plain tensor .* load the unquantised"):
        dataclasses.replace(edit, origin=Origin.of(make_model("llama"), edit.targets)).apply(quantised)


@pytest.mark.parametrize("kind", [{"edit": "shrink"}, {"edit": "truncate"}, {"merge": True}, "compress"])
def test_what_needs_the_weights_themselves_is_refused(quantised, kind):
    with pytest.raises(
        LasertriError, match="load the unquantised checkpoint, edit that, then quantise the result; only"
    ):
        if kind == "compress":
            compress(quantised, rank=0.1, factors="plain", progress=False)
        else:
            adapt(quantised, samples(), tokenizer=make_tokenizer(), **OPTIONS, **kind)


def torchao(name):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(quantization, name)())


def bitsandbytes(**options):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **options)


LIBRARIES = {
    "torchao, int8": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao, activations too": lambda: torchao("Int8DynamicActivationInt8WeightConfig"),  # without a backward pass
    "bitsandbytes, 8 bits": lambda: bitsandbytes(load_in_8bit=True),
    "bitsandbytes, 4 bits": lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_it_goes_with_what_libraries_quantise(library, tmp_path):
    config = LIBRARIES[library]()
    make_model("llama", **WIDER).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=config, dtype="float32", device_map="cpu"
    )
    loaded.save_pretrained(tmp_path / "quantised")
    make_tokenizer().save_pretrained(tmp_path / "quantised")
    result = adapt(loaded, samples(), **OPTIONS)
    result.save(tmp_path / "adapted")
    with result.edit.applied(loaded):
        expected = logits(loaded)
    assert (expected - logits(loaded)).abs().max() > 0.1
    for base in (from_card(tmp_path), load_model(tmp_path / "quantised", device="cpu")):
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapted")
        torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=1e-5)
    described = json.loads((tmp_path / "adapted/adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(tmp_path / "base")


def from_card(folder):
    """The base as the model card has it loaded, which says how it was quantised."""
    from lasertri.model.quantised import keep_unpacked

    lines = (folder / "adapted/README.md").read_text().splitlines()
    code = [line for line in lines if line.startswith(("from transformers", "quantised =", "base ="))]
    names = {}
    exec("\n".join(code).replace('"base"', repr(str(folder / "base"))), names)
    keep_unpacked(names["base"])
    return names["base"]


def test_a_library_that_is_missing_is_named(tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "aqlm"}}))
    with pytest.raises(LasertriError, match=r"aqlm.*; load the unquantised checkpoint, or go where .* by aqlm runs"):
        load_model(tmp_path)
