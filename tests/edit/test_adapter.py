"""A step is an adapter that plain peft loads, and that serving engines take."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from stepping import a_step, encoded
from tiny import TRANSPOSED, auto_class, make_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from lasertri import LasertriError
from lasertri.edit.adapter import (
    CONFIG_NAME,
    RANKS,
    WEIGHTS_NAME,
    as_peft_loads_it,
    loadable,
    read_adapter,
    write_adapter,
)
from lasertri.edit.origin import Origin
from lasertri.edit.step import Step
from lasertri.model.targets import find_linear_layers

ARCHITECTURES = ["gptj", "gpt2", "llama", "phi3", "t5", "roberta", "opt"]
EXPERTS = ["mixtral", "qwen2_moe", "qwen3_moe", *TRANSPOSED]
SHORT = {
    "gptj": ["fc_in", "fc_out", "k_proj", "out_proj", "q_proj", "v_proj"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "llama": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "phi3": ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"],
    "opt": ["fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"],
}


@torch.no_grad()
def logits(model, name):
    inputs = {"input_ids": torch.arange(4, 16).reshape(2, 6)}
    if name == "t5":
        inputs["decoder_input_ids"] = torch.tensor([[1, 5, 6], [1, 7, 8]])
    return model(**inputs).logits


@pytest.mark.parametrize("name", ARCHITECTURES + EXPERTS)
@pytest.mark.parametrize("direction", ["plain", "whitened"])
def test_plain_peft_gives_our_logits(name, direction, tmp_path):
    model = make_model(name)
    step = a_step(model, name, direction)
    step.save(tmp_path / "adapter")
    with step.beside(model):
        expected = logits(model, name)
    assert (expected - logits(model, name)).abs().max() > 0.05
    model.save_pretrained(tmp_path / "base")
    how = model.config._experts_implementation  # experts of odd widths are for the eager one alone
    base = auto_class(name).from_pretrained(tmp_path / "base", experts_implementation=how)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(adapted, name), expected, rtol=0, atol=1e-5)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged, name), expected, rtol=1e-5, atol=2e-5)
    trainable = peft.PeftModel.from_pretrained(merged, tmp_path / "adapter", is_trainable=True)
    assert {
        name.rpartition(".default")[0].rpartition(".")[2] for name, p in trainable.named_parameters() if p.requires_grad
    } == {
        "lora_A",
        "lora_B",
    }


@pytest.mark.parametrize("name", [*ARCHITECTURES, "bart"])
def test_the_folder_is_one_that_every_engine_takes(name, tmp_path):
    model = make_model(name)
    step = a_step(model, name)
    step.save(tmp_path)
    config, tensors = json.loads((tmp_path / CONFIG_NAME).read_text()), load_file(tmp_path / WEIGHTS_NAME)
    assert config["peft_type"] == "LORA"
    assert config["r"] in RANKS
    assert config["lora_alpha"] == config["r"]
    assert config["fan_in_fan_out"] == (name == "gpt2")
    assert (config["bias"], config["modules_to_save"], config["rank_pattern"]) == ("none", None, {})
    assert not config["use_rslora"]
    assert not config["use_dora"]
    paths = [target.module for target in step.targets]
    expected = {f"base_model.model.{path}.lora_{side}.weight" for path in paths for side in "AB"}
    assert tensors.keys() == expected
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    for target in step.targets:
        a, b = (tensors[f"base_model.model.{target.module}.lora_{side}.weight"] for side in "AB")
        assert (a.shape, b.shape) == ((config["r"], target.shape[1]), (target.shape[0], config["r"]))
    if name in SHORT:
        assert sorted(config["target_modules"]) == SHORT[name]
    elif name == "roberta":  # its head has a `dense` too
        assert sorted(config["target_modules"]) == sorted(paths)


@pytest.mark.parametrize(("widest", "rank"), [(1, 8), (8, 8), (9, 16), (17, 32), (33, 64), (64, 64), (70, 70)])
def test_one_rank_for_all_layers_among_those_that_engines_take(widest, rank, tmp_path):
    model = nn.Sequential(nn.Linear(90, 80), nn.Linear(80, 5))
    first, last = find_linear_layers(model)
    factors = {
        first: (torch.randn(80, widest), torch.randn(widest, 90)),
        last: (torch.randn(5, 1), torch.randn(1, 80)),
    }
    write_adapter(factors, tmp_path, Origin())
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert (config["r"], config["lora_alpha"]) == (rank, rank)
    for target, (left, right) in read_adapter(tmp_path, [first, last], Origin()).items():
        assert (left.shape[1], right.shape[0]) == (rank, rank)
        torch.testing.assert_close(left @ right, factors[target][0] @ factors[target][1], rtol=1e-4, atol=1e-4)


def test_names_that_another_module_ends_in_are_written_out(tmp_path):
    """A step of layer 1 alone must not be loaded into the others."""
    model = make_model("llama")
    step = a_step(model, "llama")
    some = Step("plain", 8, 1.0, {t: pair for t, pair in step.factors.items() if t.layer == 1}).known_by(model)
    some.save(tmp_path)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert sorted(config["target_modules"]) == sorted(target.module for target in some.targets)
    with as_peft_loads_it(model, tmp_path) as adapted:
        found = {path for path, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert found == {f"base_model.model.{target.module}" for target in some.targets}


@pytest.mark.parametrize("name", ["gptj", "gpt2", "t5", "mixtral"])
@pytest.mark.parametrize("failing", [False, True])
def test_the_models_own_modules_are_back_afterwards(name, failing, tmp_path):
    model = make_model(name)
    step = a_step(model, name)
    step.save(tmp_path)
    if failing:  # of another shape: peft has its layers in place before it finds out
        tensors = load_file(tmp_path / WEIGHTS_NAME)
        save_file({key: value[:, :3].contiguous() for key, value in tensors.items()}, tmp_path / WEIGHTS_NAME)
    before = [(path, module, set(vars(module))) for path, module in model.named_modules()]
    plain = logits(model, name)
    if failing:
        with pytest.raises(RuntimeError, match="size mismatch"), as_peft_loads_it(model, tmp_path):
            pass
    else:
        with as_peft_loads_it(model, tmp_path):
            assert any(hasattr(module, "lora_A") for module in model.modules())
    after = [(path, module, set(vars(module))) for path, module in model.named_modules()]
    assert [path for path, _, _ in after] == [path for path, _, _ in before]
    assert all(mine is theirs and a == b for (_, mine, a), (_, theirs, b) in zip(after, before, strict=True))
    assert torch.equal(logits(model, name), plain)


@pytest.mark.parametrize("name", ["gptj", "gpt2", "roberta", "t5", "qwen3_moe", "llama4_text"])
def test_what_was_saved_is_checked_by_what_peft_gives(name, tmp_path):
    model = make_model(name)
    step, batch = a_step(model, name), encoded(model, name).batches()[0]
    step.save(tmp_path)
    step.check(model, tmp_path, batch)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    changed = {key: 1.05 * value if "lora_B" in key else value for key, value in tensors.items()}
    save_file(changed, tmp_path / WEIGHTS_NAME)
    with pytest.raises(LasertriError, match="but loaded by peft it is off by .*; report this model's"):
        step.check(model, tmp_path, batch)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", *EXPERTS])
def test_a_bf16_models_adapter_is_fp32_and_gives_what_was_measured(name, tmp_path):
    model = make_model(name, dtype=torch.bfloat16)
    step, batch = a_step(model, name), encoded(model, name).batches()[0]
    step.save(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS_NAME).values()} == {torch.float32}
    step.check(model, tmp_path, batch)


def test_a_module_of_ones_own_has_an_adapter_too(tmp_path):
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2))
    targets, x = find_linear_layers(model), torch.randn(4, 6)
    step = Step("plain", 2, 1.0, {t: (torch.randn(t.shape[0], 2), torch.randn(2, t.shape[1])) for t in targets})
    step.known_by(model).save(tmp_path)
    with torch.no_grad():
        with step.beside(model):
            expected = model(x)
        with as_peft_loads_it(model, tmp_path):
            torch.testing.assert_close(model(x), expected)


def test_the_experts_of_a_parameter_are_one_pair_and_none_is_taken_for_a_layer(tmp_path):
    """Dense layers are parameters too: peft takes their names for experts of an older checkpoint."""
    model = make_model("qwen3_moe")
    step = a_step(model, "qwen3_moe", "plain", rank=8)
    step.save(tmp_path)
    config, tensors = json.loads((tmp_path / CONFIG_NAME).read_text()), load_file(tmp_path / WEIGHTS_NAME)
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    experts = [f"model.layers.{i}.mlp.experts.{name}" for i in (0, 2) for name in ("gate_up_proj", "down_proj")]
    dense = [f"model.layers.1.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")]
    assert sorted(config["target_parameters"]) == sorted(experts + dense)
    shapes = {key.removeprefix("base_model.model.model.layers."): tuple(t.shape) for key, t in tensors.items()}
    assert shapes["0.mlp.experts.base_layer.lora_A.weight"] == (4 * 8, 16)  # gate and up, wrapped first
    assert shapes["0.mlp.experts.base_layer.lora_B.weight"] == (48, 8 * 4)
    assert shapes["2.mlp.experts.lora_A.weight"] == (4 * 8, 24)
    assert shapes["1.mlp.down_proj.lora_B.weight"] == (16, 8)


@pytest.mark.parametrize("name", ["mixtral", *TRANSPOSED])
@pytest.mark.parametrize(
    "kept", [r"experts\.down_proj", r"2\..*experts\.gate_up_proj\.1$", r"q_proj|1\..*experts.*\.[02]$"]
)
def test_experts_without_factors_are_as_they_were(name, kept, tmp_path):
    model = make_model(name)
    chosen = set(find_linear_layers(model, kept))
    factors = {target: pair for target, pair in a_step(model, name).factors.items() if target in chosen}
    some = Step("plain", 64, 1.0, factors).known_by(model)
    some.save(tmp_path)
    with some.beside(model):
        expected = logits(model, name)
    names = [path for path, _ in model.named_parameters()]
    with as_peft_loads_it(model, tmp_path):
        torch.testing.assert_close(logits(model, name), expected, rtol=0, atol=1e-5)
    assert [path for path, _ in model.named_parameters()] == names  # which peft takes out and puts back last
    assert (expected - logits(model, name)).abs().max() > 1e-3
    loaded = read_adapter(tmp_path, some.targets, some.origin)
    for target, (left, right) in loaded.items():
        torch.testing.assert_close(left @ right, factors[target][0] @ factors[target][1])


class Stacked(nn.Module):
    """Experts of one's own, each given all tokens."""

    def __init__(self, count):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(count, 6, 8))
        self.down_proj = nn.Parameter(torch.randn(count, 4, 6))

    def forward(self, x):
        gate, up = torch.bmm(x.expand(len(self.down_proj), *x.shape), self.gate_up_proj).chunk(2, dim=-1)
        return (gate.tanh() * up @ self.down_proj).sum(dim=0)


@pytest.mark.parametrize("count", [1, 3])
def test_experts_beside_a_conv1d_in_a_module_of_ones_own(count, tmp_path):
    model = nn.Sequential(Conv1D(6, 5), Stacked(count), nn.Linear(6, 2))
    targets, x = find_linear_layers(model), torch.randn(4, 5)
    step = Step("plain", 2, 1.0, {t: (torch.randn(t.shape[0], 2), torch.randn(2, t.shape[1])) for t in targets})
    with pytest.raises(LasertriError, match="expected a step of experts that knows its model"):
        step.save(tmp_path)
    step.known_by(model).save(tmp_path)
    with torch.no_grad():
        with step.beside(model):
            expected = model(x)
        with as_peft_loads_it(model, tmp_path):
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_an_expert_alone_that_peft_would_turn_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(5, 6), Stacked(1))
    model[1].is_transposed = True
    factors = {t: (torch.randn(t.shape[0], 2), torch.randn(2, t.shape[1])) for t in find_linear_layers(model)}
    with pytest.raises(LasertriError, match=r"got 1\.gate_up_proj, one alone that is stored as \[inputs, outputs\]"):
        Step("plain", 2, 1.0, factors).known_by(model).save(tmp_path)


@pytest.mark.parametrize("name", ["gptj", "gpt2", "t5", "roberta", "qwen3_moe"])
def test_layers_that_peft_loads_are_kept(name, caplog):
    model = make_model(name)
    layers = find_linear_layers(model)
    assert loadable(model, layers) == layers
    assert not caplog.messages
    assert not any(hasattr(module, "lora_A") for module in model.modules())
