"""Adapters that start as PiSSA, LoRA-GA and CorDA define it, and a model that still gives what it gave."""

import math

import pytest
import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.layer import LoraLayer
from tiny import make_model, make_samples, make_tokenizer

from lasertri import LasertriError
from lasertri.integrations.peft import corda, lora_ga, pissa_init
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


def test_an_alpha_whose_root_is_divided_by_is_above_zero(monkeypatch):
    monkeypatch.setattr(LoraLayer, "pissa_init", pissa_init)
    config = LoraConfig(target_modules=["0"], r=3, lora_alpha=0, init_lora_weights="pissa")
    with pytest.raises(LasertriError, match="expected a lora_alpha above 0, got 0"):
        get_peft_model(torch.nn.Sequential(torch.nn.Linear(12, 20)), config)


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
            "expected linear layers that share no weight, .* got model.embed_tokens",
        ),
        (
            "llama",
            along_gradient("all-linear", layer_replication=[[0, 2], [1, 3]]),
            "expected no layer_replication for LoRA",
        ),
        (
            "mixtral",
            along_gradient("all-linear"),
            "expected linear layers that share no weight, .* got model.layers.0.mlp",
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


def by_context(targets, *, r=3, method="ipm", **options):
    own = CordaConfig(**{"corda_method": method} | options.pop("own", {}))
    options = {"lora_alpha": 7} | options
    return LoraConfig(target_modules=targets, r=r, init_lora_weights="corda", corda_config=own, **options)


def run_one_by_one(model, architecture, samples):
    encoded = EncodedSamples(samples, model=model, tokenizer=make_tokenizer(architecture), batch_size=1)
    with torch.no_grad():
        for batch in encoded.gold_batches():
            batch.log_probs(model)


def defined(model, architecture, name, samples, r, method):
    """U, S and the product that CorDA takes out of a weight `[outputs, inputs]`, in FP64 as its paper and code say."""
    layer, covariances = model.get_submodule(name), []

    def keep(_, given):
        x = given[0].flatten(0, -2).double()
        covariances.append((x.mT @ x) / x.max() ** 2)

    handle = layer.register_forward_pre_hook(keep)
    run_one_by_one(model, architecture, samples)
    handle.remove()
    weight = layer.weight.detach().double()
    weight = weight.mT if architecture == "gpt2" else weight
    c = sum(covariances) / len(covariances)
    c += 0.01 * c.diagonal().mean() * torch.eye(len(c))
    u, sigma, vh = torch.linalg.svd(weight @ c, full_matrices=False)
    part = slice(r) if method == "ipm" else slice(len(sigma) - r, None)
    return u[:, part], sigma[part], (u[:, part] * sigma[part]) @ vh[part] @ torch.linalg.inv(c)


@pytest.mark.parametrize("method", ["ipm", "kpm"])
@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("llama", "model.layers.1.mlp.down_proj"),  # wide
        ("llama", "model.layers.0.self_attn.o_proj"),  # square
        ("gpt2", "transformer.h.1.mlp.c_fc"),  # tall, and transposed
    ],
)
def test_corda_starts_as_peft_does_and_nearer_to_its_definition(architecture, name, method):
    samples, layer, fan = make_samples(12), name.rpartition(".")[2], architecture == "gpt2"
    u, sigma, product = defined(make_model(architecture), architecture, name, samples, 3, method)
    ours = corda(
        make_model(architecture),
        by_context([layer], method=method, fan_in_fan_out=fan),
        samples,
        tokenizer=make_tokenizer(architecture),
    )
    model, config = make_model(architecture), by_context([layer], method=method, fan_in_fan_out=fan)
    preprocess_corda(model, config, run_model=lambda: run_one_by_one(model, architecture, samples))
    found = {}
    for key, adapted in (("lasertri", ours), ("peft", get_peft_model(model, config))):
        own = adapted.base_model.model.get_submodule(name)
        a, b = (own.get_submodule(f"lora_{side}.default").weight.detach().double() for side in "AB")
        found[key] = own.scaling["default"] * b @ a
        torch.testing.assert_close(onto(b), onto(u), rtol=0, atol=1e-3)
        torch.testing.assert_close(b.norm(dim=0), (sigma * 3 / 7).sqrt(), rtol=1e-4, atol=0)
    torch.testing.assert_close(found["lasertri"], found["peft"], rtol=0, atol=1e-3 * float(product.abs().max()))
    off = {key: float((each - product).norm() / product.norm()) for key, each in found.items()}
    assert off["lasertri"] < 1e-5
    assert off["lasertri"] < 2 * off["peft"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_with_corda_the_model_gives_what_it_gave(method, dtype):
    model, untouched = make_model("llama", dtype=dtype), make_model("llama", dtype=dtype)
    config = by_context("all-linear", method=method, rank_pattern={"q_proj": 8})
    adapted = corda(model, config, make_samples(12), tokenizer=make_tokenizer())
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(adapted(TOKENS).logits, untouched(TOKENS).logits, rtol=0, atol=100 * step)
    if method == "ipm":
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(TOKENS).logits, untouched(TOKENS).logits, rtol=0, atol=100 * step)
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    assert {layer.r["default"] for layer in layers} == {3, 8}
    assert {parameter.dtype for name, parameter in adapted.named_parameters() if "lora_" in name} == {torch.float32}
    assert adapted.peft_config["default"].init_lora_weights == "corda"
    assert len([name for name, parameter in adapted.named_parameters() if parameter.requires_grad]) == 2 * len(layers)


@pytest.mark.parametrize(("architecture", "method"), [("llama", "ipm"), ("gpt2", "kpm")])
def test_what_corda_started_is_saved_for_the_model_as_it_was(architecture, method, tmp_path):
    """As peft says to: the start beside it, and the difference as an adapter of twice the rank."""
    config = by_context("all-linear", method=method, fan_in_fan_out=architecture == "gpt2")
    adapted = corda(make_model(architecture), config, make_samples(12), tokenizer=make_tokenizer(architecture))
    own = adapted.peft_config["default"]
    own.init_lora_weights = True
    adapted.save_pretrained(tmp_path / "start")
    own.init_lora_weights = "corda"
    torch.manual_seed(0)
    for parameter in adapted.parameters():  # trained, say
        parameter.data += 0.05 * torch.randn_like(parameter) if parameter.requires_grad else 0
    adapted.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=tmp_path / "start")
    loaded = PeftModel.from_pretrained(make_model(architecture), tmp_path / "end")
    torch.testing.assert_close(loaded(TOKENS).logits, adapted(TOKENS).logits, rtol=0, atol=1e-4)


def test_a_small_budget_gives_the_same_start_of_corda():
    found = []
    for budget in (None, 4000):
        config, options = by_context("all-linear"), {"tokenizer": make_tokenizer(), "memory_budget": budget}
        adapted = corda(make_model("llama"), config, make_samples(12), **options)
        found.append([layer.get_delta_weight("default") for layer in adapted.modules() if isinstance(layer, LoraLayer)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("rank", [2, 12])  # beyond what a matrix of rank 10 has, and not
def test_of_a_matrix_that_is_not_of_full_rank_corda_has_components_of_zero(rank):
    torch.manual_seed(0)
    model = make_model("llama")
    weight = model.model.layers[0].mlp.gate_proj.weight
    u, sigma, vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    weight.data = ((u[:, :10] * sigma[:10]) @ vh[:10]).float()
    adapted = corda(
        model, by_context(["gate_proj"], r=rank, method="kpm"), make_samples(12), tokenizer=make_tokenizer()
    )
    delta = adapted.base_model.model.model.layers[0].mlp.gate_proj.get_delta_weight("default").double()
    assert delta.isfinite().all()
    assert int((torch.linalg.svdvals(delta) > 1e-5 * sigma[0]).sum()) == max(0, rank - (len(sigma) - 10))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CordaConfig(), "expected a LoraConfig of peft, got CordaConfig"),
        (LoraConfig(target_modules="all-linear"), "expected a LoraConfig with init_lora_weights='corda' and corda_con"),
        (by_context(["lm_head"]), "and not the head, for CorDA, got lm_head"),
        (by_context("all-linear", r=17), r"expected r of at most \d+ for .*, got r=17; lower it"),
        (by_context("all-linear", method="both"), r"expected a corda_method among \['ipm', 'kpm'\], got 'both'"),
        (by_context("all-linear", lora_alpha=0), "expected a lora_alpha above 0, got 0; factors are divided by"),
        (by_context("all-linear", alpha_pattern={"q_proj": -1}), "expected a lora_alpha above 0, got -1"),
        (by_context("all-linear", layer_replication=[[0, 2], [1, 3]]), "expected no layer_replication for CorDA"),
        (by_context("all-linear", own={"cache_file": "c.pt"}), "without cache_file and covariance_file"),
    ],
)
def test_what_corda_cannot_start_is_refused_and_the_model_left_as_it_was(config, message):
    model, untouched = make_model("llama"), make_model("llama")
    with pytest.raises(LasertriError, match=message):
        corda(model, config, make_samples(12), tokenizer=make_tokenizer())
    before = dict(untouched.named_parameters())
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [*before]
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_layers_that_share_a_weight_are_refused_as_such():
    model = make_model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(LasertriError, match=r"expected linear layers that share no weight, .* got .*0\.mlp\.up_proj"):
        corda(model, by_context(["up_proj"]), make_samples(12), tokenizer=make_tokenizer())


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("model.layers.0.mlp.up_proj", 0.0, "expected finite inputs, some above 0, for model.layers.0.mlp.down_proj"),
        ("model.layers.0.mlp.down_proj", math.nan, "expected finite weights, got NaN or Inf in model.layers.0.mlp.dow"),
        ("model.layers.0.input_layernorm", math.inf, "expected finite inputs, some above 0, for model.layers.0.mlp"),
    ],
)
def test_what_says_nothing_of_a_layer_is_refused_by_corda(place, value, message):
    model = make_model("llama")
    torch.nn.init.constant_(model.get_submodule(place).weight, value)
    with pytest.raises(LasertriError, match=message):
        corda(model, by_context(["down_proj"]), make_samples(12), tokenizer=make_tokenizer())
    assert not any(isinstance(module, LoraLayer) for module in model.modules())


def test_corda_refuses_a_model_that_has_adapters():
    model, samples, tokenizer = make_model("llama"), make_samples(12), make_tokenizer()
    adapted = corda(model, by_context("all-linear"), samples, tokenizer=tokenizer)
    for given in (model, adapted):
        with pytest.raises(LasertriError, match="expected a model without adapters, got one with peft's"):
            corda(given, by_context("all-linear"), samples, tokenizer=tokenizer)


def test_corda_refuses_a_model_in_fp64_as_peft_does():
    with pytest.raises(LasertriError, match=r"float32, float16 or bfloat16 for CorDA, got torch\.float64"):
        corda(
            make_model("llama", dtype=torch.float64),
            by_context("all-linear"),
            make_samples(12),
            tokenizer=make_tokenizer(),
        )
