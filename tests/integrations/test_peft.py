"""Adapters that start as PiSSA and LoRA-GA define it, and a model that still gives what it gave."""

import pytest
import torch
from peft import LoraConfig, LoraGAConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from tiny import make_model, make_samples, make_tokenizer

from lasertri import LasertriError
from lasertri.integrations.peft import lora_ga, pissa_init
from lasertri.language.samples import EncodedSamples

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


def along_gradient(targets, *, r=3, start=None, **options):
    ga = {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig(**(start or {}))}
    return LoraConfig(target_modules=targets, r=r, lora_alpha=7, **ga, **options)


def mean_gradient(model, name, samples, tokenizer):
    """Of minus the log-probability of the right answers, by plain autograd, of a weight `[outputs, inputs]`."""
    encoded, weight = EncodedSamples(samples, model=model, tokenizer=tokenizer), model.get_submodule(name).weight
    loss = sum(batch.loss(model) for batch in encoded.gold_batches()) / len(samples)
    [gradient] = torch.autograd.grad(loss, weight)
    return gradient.double().mT if "Conv1D" in type(model.get_submodule(name)).__name__ else gradient.double()


def onto(columns):
    """The projection onto what they span."""
    q = torch.linalg.qr(columns).Q
    return q @ q.mT


@pytest.mark.parametrize(
    ("architecture", "name", "start", "a", "b"),
    [
        ("llama", "model.layers.1.mlp.down_proj", {}, slice(0, 3), slice(3, 6)),
        ("gptj", "transformer.h.0.mlp.fc_in", {"direction": "A2rBr", "scale": "unit"}, slice(3, 6), slice(0, 3)),
        ("gpt2", "transformer.h.1.mlp.c_proj", {"scale": "unit"}, slice(0, 3), slice(3, 6)),
    ],
)
def test_lora_ga_starts_with_the_gradients_singular_vectors(architecture, name, start, a, b):
    model, tokenizer, samples = make_model(architecture), make_tokenizer(architecture), make_samples(12)
    u, sigma, vh = torch.linalg.svd(mean_gradient(model, name, samples, tokenizer), full_matrices=False)
    config = along_gradient([name.rpartition(".")[2]], start=start, fan_in_fan_out=architecture == "gpt2")
    layer = lora_ga(model, config, samples, tokenizer=tokenizer).base_model.model.get_submodule(name)
    right, left = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    torch.testing.assert_close(onto(right.mT), onto(vh[a].mT), rtol=0, atol=1e-3)
    torch.testing.assert_close(onto(left), onto(u[:, b]), rtol=0, atol=1e-3)
    scale = 1.0 if start else len(u) ** 0.25 / 16**0.5
    torch.testing.assert_close(left.norm(dim=0), scale * sigma[b], rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_lora_ga_the_model_gives_what_it_gave(dtype):
    model, untouched = make_model("llama", dtype=dtype), make_model("llama", dtype=dtype)
    config = along_gradient("all-linear", rank_pattern={"q_proj": 5}, start={"scale": "weight_svd"})
    adapted = lora_ga(model, config, make_samples(12), tokenizer=make_tokenizer())
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(adapted(TOKENS).logits, untouched(TOKENS).logits, rtol=0, atol=100 * step)
    with adapted.disable_adapter():
        assert not torch.allclose(adapted(TOKENS).logits, untouched(TOKENS).logits, rtol=0, atol=100 * step)
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    assert {layer.r["default"] for layer in layers} == {3, 5}
    assert not [layer for layer in layers if hasattr(layer.get_base_layer(), "_peft_loraga_grad")]
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * len(layers)


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("llama", LoraGAConfig(), "expected a LoraConfig of peft, got LoraGAConfig"),
        ("llama", along_gradient(["lm_head"]), "and not the head, for LoRA-GA, got lm_head"),
        ("llama", LoraConfig(target_modules="all-linear"), "expected a LoraConfig with init_lora_weights='lora_ga'"),
        ("llama", along_gradient("all-linear", r=9), r"expected r of at most \d for .*, got r=9; lower it"),
        (
            "llama",
            along_gradient(["embed_tokens"]),
            "expected linear layers alone, .* got model.embed_tokens",
        ),
        (
            "mixtral",
            along_gradient("all-linear"),
            "expected linear layers alone, .* got model.layers.0.mlp",
        ),
    ],
)
def test_what_lora_ga_cannot_start_is_refused_and_the_model_left_as_it_was(architecture, config, message):
    model, untouched = make_model(architecture), make_model(architecture)
    with pytest.raises(LasertriError, match=message):
        lora_ga(model, config, make_samples(12), tokenizer=make_tokenizer())
    before = dict(untouched.named_parameters())
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [*before]
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_lora_ga_refuses_a_model_that_has_adapters_and_leaves_them():
    model, samples, tokenizer = make_model("llama"), make_samples(12), make_tokenizer()
    adapted = lora_ga(model, along_gradient("all-linear"), samples, tokenizer=tokenizer)
    before = {name: parameter.clone() for name, parameter in adapted.named_parameters()}
    for given in (model, adapted):
        with pytest.raises(LasertriError, match="expected a model without adapters, got one with peft's"):
            lora_ga(given, along_gradient("all-linear"), samples, tokenizer=tokenizer)
    after = dict(adapted.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())


def test_lora_ga_reads_its_options_as_adapt_does():
    config, options = along_gradient("all-linear"), {"tokenizer": make_tokenizer(), "batch_size": 0}
    with pytest.raises(LasertriError, match="expected batch_size of at least 1, got 0"):
        lora_ga(make_model("llama"), config, make_samples(12), **options)
