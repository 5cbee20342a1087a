"""A PiSSA start by lasertri: the best components in the adapter, the rest in the weight, the model as it was."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from tiny import make_model

from lasertri import LasertriError
from lasertri.integrations.peft import pissa_init

TOKENS = torch.arange(12).reshape(2, 6)


def started(architecture, dtype, **options):
    config = LoraConfig(target_modules="all-linear", r=5, lora_alpha=7, init_lora_weights="pissa", **options)
    return get_peft_model(make_model(architecture, dtype=dtype), config)


@pytest.mark.parametrize("architecture", ["gptj", "gpt2", "llama"])  # gpt2's layers are transposed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_adapter_has_the_leading_components_and_the_weight_the_rest(monkeypatch, architecture, dtype):
    monkeypatch.setattr(LoraLayer, "pissa_init", pissa_init)
    started_from = make_model(architecture, dtype=dtype)
    model = started(architecture, dtype, fan_in_fan_out=architecture == "gpt2").base_model.model
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert layers
    step = torch.finfo(dtype).eps  # of what A, B and the weight are rounded to
    for name, layer in layers.items():
        weight, rest = started_from.get_submodule(name).weight, layer.get_base_layer().weight
        assert (rest.dtype, rest.shape, rest.is_contiguous()) == (weight.dtype, weight.shape, True)
        wide = weight.detach().double()
        sigma = torch.linalg.svdvals(wide)
        delta = layer.get_delta_weight("default").double()
        least = float(sigma[5:].square().sum())  # Eckart–Young
        assert float((wide - delta).detach().square().sum()) / least < 1 + 10 * step
        torch.testing.assert_close(rest + delta, wide, rtol=0, atol=step * float(sigma[0]))
    logits = started_from(TOKENS).logits
    torch.testing.assert_close(model(TOKENS).logits, logits, rtol=0, atol=100 * step)


def test_a_wide_matrix_is_split_at_its_leading_components(monkeypatch):
    """Where the iteration runs: what is left has the other singular values."""
    monkeypatch.setattr(LoraLayer, "pissa_init", pissa_init)
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(300, 500, bias=False))
    values = torch.linalg.svdvals(layer[0].weight.double())
    config = LoraConfig(target_modules=["0"], r=8, init_lora_weights="pissa")
    left = torch.linalg.svdvals(get_peft_model(layer, config).get_submodule("0").get_base_layer().weight.double())
    torch.testing.assert_close(left[:292], values[8:], rtol=1e-4, atol=0)


def test_a_rank_beyond_the_matrix_is_refused(monkeypatch):
    monkeypatch.setattr(LoraLayer, "pissa_init", pissa_init)
    config = LoraConfig(target_modules=["0"], r=13, init_lora_weights="pissa")
    with pytest.raises(LasertriError, match=r"r of at most 12 for a matrix \[20, 12\], got r=13; lower it"):
        get_peft_model(torch.nn.Sequential(torch.nn.Linear(12, 20)), config)


def test_a_weight_in_fp64_is_refused_as_peft_does(monkeypatch):
    monkeypatch.setattr(LoraLayer, "pissa_init", pissa_init)
    with pytest.raises(LasertriError, match="float32, float16 or bfloat16"):
        started("gptj", torch.float64)
