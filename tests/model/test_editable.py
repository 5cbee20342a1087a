"""Weights that are not plain numbers in memory are refused before any work, with what to do instead."""

import json
from types import SimpleNamespace

import peft
import pytest
import torch
from tiny import make_model
from torch import nn

from lasertri import LasertriError, adapt, compress, load_model
from lasertri.edit.candidate import Candidate
from lasertri.edit.truncation import Truncation
from lasertri.factors.store import FactorStore
from lasertri.model.targets import find_targets


class Params4bit(nn.Parameter):
    """bitsandbytes.nn.Params4bit: packed values, in a parameter of its own type."""


class Int8Params(nn.Parameter):
    """bitsandbytes.nn.Int8Params."""


class AffineQuantizedTensor(torch.Tensor):
    """torchao.dtypes.AffineQuantizedTensor: reports the dtype that it stands for."""


class TorchQuantLinear(nn.Module):
    """gptqmodel's module for a GPTQ checkpoint; AutoAWQ's `WQLinear_GEMM` names its buffers alike."""

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(2, 40, dtype=torch.int32))


def packed(kind, dtype):
    return kind(torch.zeros(320, 1).to(dtype), requires_grad=False)


@pytest.mark.parametrize(
    ("weight", "named"),
    [
        (packed(Params4bit, torch.uint8), "Params4bit in torch.uint8"),
        (packed(Params4bit, torch.bfloat16), "Params4bit"),  # as `bnb_4bit_quant_storage` has it
        (packed(Int8Params, torch.int8), "Int8Params in torch.int8"),
        (nn.Parameter(torch.randn(40, 16).as_subclass(AffineQuantizedTensor)), "AffineQuantizedTensor"),
        (nn.Parameter(torch.randn(40, 16).to(torch.float8_e4m3fn)), "torch.float8_e4m3fn"),
    ],
)
def test_weights_of_another_kind_are_refused(model, weight, named):
    model.transformer.h[1].mlp.fc_in.weight = weight
    with pytest.raises(LasertriError, match=rf"h\.1\.mlp\.fc_in\.weight as a plain.*{named}.*load the unquantised"):
        find_targets(model)
    assert find_targets(model, r"h\.0\.mlp")  # what is plain may be edited


def test_modules_of_packed_weights_are_refused(model):
    model.transformer.h[1].mlp.fc_in = TorchQuantLinear()
    with pytest.raises(LasertriError, match=r"h\.1\.mlp\.fc_in, a TorchQuantLinear; load the unquantised"):
        find_targets(model)


@pytest.mark.parametrize(
    "quantisation",
    [{"quant_method": "gptq", "bits": 4}, SimpleNamespace(quant_method=SimpleNamespace(value="gptq"))],
    ids=["as a checkpoint has it", "as Transformers has it"],
)
def test_quantised_models_are_refused_before_anything_runs(model, tokenizer, samples, quantisation):
    model.config.quantization_config, model.forward = quantisation, None  # calling it would be another error
    with pytest.raises(LasertriError, match="quantised by gptq; load the unquantised checkpoint"):
        adapt(model, samples, tokenizer=tokenizer, progress=False, edit="shrink")


def test_quantised_checkpoints_are_refused_before_their_weights_are_read(folder, samples):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(LasertriError, match="quantised by awq"):
        load_model(folder, plain=True)
    with pytest.raises(LasertriError, match="quantised by awq"):
        adapt(folder, samples, progress=False, merge=True)


def test_offloaded_weights_are_refused(model, tokenizer, samples):
    """Between forward passes Accelerate's `AlignDevicesHook` leaves meta tensors in place of what it offloads."""
    target = find_targets(model)[0]
    edit = Truncation.build(Candidate(target, 1, 0.5), model, FactorStore(model, [target], [1], budget=1 << 30))
    model.transformer.h[0].mlp.to("meta")
    message = r"all weights in memory, got transformer\.h\.0\.mlp\.fc_in\.weight.*without device_map"
    with pytest.raises(LasertriError, match=message):
        adapt(model, samples, tokenizer=tokenizer, progress=False)
    with pytest.raises(LasertriError, match=message):
        edit.apply(model)


def test_a_model_in_one_place_with_a_device_map_is_welcome():
    model = make_model("gptj")
    model.hf_device_map = {"": "cpu"}
    assert find_targets(model)


def with_peft(model, config):
    """As `get_peft_model` wraps it."""
    return peft.get_peft_model(model, config)


def with_adapter(model, config):
    """As transformers' own method leaves it."""
    model.add_adapter(config)
    return model


@pytest.mark.parametrize("inserted", [with_peft, with_adapter, lambda *a: with_peft(*a).base_model.model])
@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(target_modules=["q_proj", "v_proj"]),
        peft.LoraConfig(target_modules=["fc_in"], use_dora=True),
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    ],
)
def test_models_with_adapters_in_them_are_refused(model, tokenizer, samples, inserted, config):
    adapted = inserted(model, config)
    for work in (
        lambda: adapt(adapted, samples, tokenizer=tokenizer, progress=False),
        lambda: compress(adapted, rank=0.1, factors="plain", progress=False),
    ):
        with pytest.raises(LasertriError, match=r"without adapters, got one with peft's in .*merge_and_unload"):
            work()


def test_a_model_under_prompt_tuning_is_refused(model):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(LasertriError, match="without adapters"):
        find_targets(peft.get_peft_model(model, config))


def test_a_model_that_its_adapter_was_merged_into_is_welcome(model):
    merged = peft.get_peft_model(model, peft.LoraConfig(target_modules=["fc_in"])).merge_and_unload()
    assert len(find_targets(merged)) == 6


def test_weights_made_under_inference_mode_are_refused(folder, samples):
    with torch.inference_mode():
        model = load_model(folder, device="cpu")
    with pytest.raises(
        LasertriError, match=r"got transformer\.\S+ made under torch\.inference_mode\(\); load the model"
    ):
        adapt(model, samples, progress=False)
    with torch.inference_mode(), pytest.raises(LasertriError, match="to be called outside of torch.inference_mode"):
        adapt(load_model(folder, device="cpu"), samples, progress=False)


def test_without_gradients_outside_a_model_is_adapted_all_the_same(model, tokenizer, samples):
    with torch.no_grad():
        for options in ({"edit": "step"}, {"edit": "truncate", "blocks": (1,), "ratios": (0.5,), "count": 1}):
            assert adapt(model, samples, tokenizer=tokenizer, progress=False, **options).rounds[0].trials


@pytest.mark.parametrize("kind", ["module", "call", "forward"])
def test_compiled_parts_are_refused(model, tokenizer, samples, kind):
    mlp = model.transformer.h[1].mlp
    if kind == "module":
        model.transformer.h[1].mlp = torch.compile(mlp)
    elif kind == "call":
        mlp.compile()
    else:
        mlp.forward = torch.compile(mlp.forward)
    with pytest.raises(LasertriError, match=r"not compiled, got transformer\.h\.1\.mlp.* that is; adapt it first"):
        adapt(model, samples, tokenizer=tokenizer, progress=False)


def test_a_compiled_model_is_adapted_as_the_one_it_wraps(model, tokenizer, samples):
    compiled = torch.compile(model)
    options = {"edit": "truncate", "blocks": (1,), "ratios": (0.5,), "count": 1, "accept": "best", "progress": False}
    results = [adapt(own, samples, tokenizer=tokenizer, **options) for own in (model, compiled)]
    assert results[1].model is model
    plain, wrapped = (result.rounds[0].trials[0].measurement for result in results)
    assert plain == wrapped
