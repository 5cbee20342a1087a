"""A step stands beside the weights or in them, leaves the model as it was, and knows its base."""

import json

import pytest
import torch
from stand_in_quantised import quantise
from stepping import a_step, encoded
from tiny import make_model
from torch import nn

from lasertri import Edit, LasertriError
from lasertri.edit.adapter import WEIGHTS_NAME
from lasertri.edit.edit import CONFIG_NAME
from lasertri.edit.step import Step
from lasertri.model.preserve import preserved
from lasertri.model.targets import find_linear_layers

ARCHITECTURES = ["gptj", "gpt2", "phi3", "roberta", "t5", "mixtral", "qwen3_moe", "llama4_text"]


@torch.no_grad()
def log_probs(model, architecture):
    return encoded(model, architecture).read(model).log_probs


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def as_it_was(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def products(step):
    return {target: left @ right for target, (left, right) in step.factors.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beside_the_weights_is_as_in_them_and_leaves_the_model_bit_for_bit(architecture, dtype):
    model = make_model(architecture).to(dtype)
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # the default's grouped product has no FP64
    step, before = a_step(model, architecture), state(model)
    plain = log_probs(model, architecture)
    with step.beside(model):
        beside = log_probs(model, architecture)
        assert as_it_was(model, before)
    with step.known_by(model, merge=True).applied(model):
        merged = log_probs(model, architecture)
        assert {name for name in before if not torch.equal(model.state_dict()[name], before[name])} == {
            target.name for target in step.targets
        }
    assert as_it_was(model, before)
    assert (log_probs(model, architecture) == plain).all()
    assert not any("forward" in vars(module) for module in model.modules())
    assert abs(beside - plain).max() > 0.05
    # log-probabilities themselves are read in FP32
    assert abs(beside - merged).max() <= 2e-5 * abs(plain).max()


def test_an_fp64_model_loses_no_digit_to_a_step_of_nothing():
    model = make_model("gptj").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-10)  # no values of FP32 any more
    step = a_step(model, "gptj", "plain").scaled(0.0)
    inputs = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        plain = model(inputs).logits
        with step.beside(model):
            assert torch.equal(model(inputs).logits, plain)
    before = state(model)
    step.apply(model)
    assert as_it_was(model, before)


@pytest.mark.parametrize("architecture", ["gptj", "gpt2"])
def test_the_applied_weight_is_the_sum_rounded_once(architecture):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = make_model(architecture, dtype=dtype)
        step = a_step(model, architecture)
        assert {side.dtype for pair in step.factors.values() for side in pair} == {torch.float32}
        expected = {
            target: (target.view(target.parameter(model)).double() + change.double()).to(dtype)
            for target, change in products(step).items()
        }
        step.apply(model)
        for target, weight in expected.items():
            eps = torch.finfo(dtype).eps
            found = target.view(target.parameter(model))
            # FP32 adds before it rounds: now and then a value falls to the other neighbour
            assert (found.double() - weight.double()).abs().max() <= 2 * eps * weight.abs().max()
            assert dtype == torch.float32 or (found == weight).double().mean() > 0.99


def test_an_interrupted_merge_is_undone():
    model = make_model("gpt2")
    step, before = a_step(model, "gpt2").known_by(model, merge=True), state(model)
    with pytest.raises(KeyboardInterrupt), step.applied(model):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), step.beside(model):
        raise KeyboardInterrupt
    assert as_it_was(model, before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_lengths_multiply_and_means_have_the_ranks_of_all():
    model = make_model("llama")
    one, two = a_step(model, "llama", "plain", rank=2), a_step(model, "llama", "whitened", rank=3)
    twice = one.scaled(2.0)
    assert (twice.size, one.size, twice.rank) == (2 * one.size, 0.5, one.rank)
    for target, change in products(one).items():
        torch.testing.assert_close(products(twice)[target], 2 * change)
    mean = one.averaged([two])
    for target, change in products(mean).items():
        torch.testing.assert_close(change, (products(one)[target] + products(two)[target]) / 2, rtol=1e-4, atol=1e-6)
        assert mean.factors[target][0].shape[1] == 5
    for target, change in products(one.averaged([one, one])).items():
        torch.testing.assert_close(change, products(one)[target], rtol=1e-5, atol=1e-7)
    gone, *rest = one.targets
    missing = Step("plain", 2, 0.5, {target: one.factors[target] for target in rest})
    torch.testing.assert_close(products(missing.averaged([one]))[gone], products(one)[gone] / 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_and_loaded_it_is_the_same_step(architecture, tmp_path):
    model = make_model(architecture)
    step = a_step(model, architecture)
    step.save(tmp_path)
    loaded = Edit.load(tmp_path)
    assert isinstance(loaded, Step)
    assert (loaded.direction, loaded.rank, loaded.size) == ("whitened", 64, 0.5)
    assert loaded.targets == step.targets
    assert loaded.origin == step.origin
    assert loaded.to_dict() == step.to_dict() == {"kind": "step", "direction": "whitened", "rank": 64, "size": 0.5}
    for target, change in products(loaded).items():
        torch.testing.assert_close(change, products(step)[target], rtol=1e-6, atol=1e-7)
    other = make_model(architecture)
    loaded.apply(other)
    step.apply(model)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    with pytest.raises(LasertriError, match="once"):
        loaded.apply(other)


def test_another_base_is_refused_and_left_alone(tmp_path):
    a_step(make_model("gptj"), "gptj").save(tmp_path)
    step = Edit.load(tmp_path)
    changed = make_model("gptj")
    with torch.no_grad():
        changed.transformer.h[2].mlp.fc_out.weight[0, 0] += 1e-6
    for model, message in (
        (changed, r"expected the weights that the edit was made of.*mlp\.fc_out of this model has other values"),
        (make_model("gptj", dtype=torch.bfloat16), "other values or another dtype"),
        (make_model("llama"), r"expected a model with transformer\.h\.0\.attn\.k_proj, a target of the edit"),
        (make_model("gptj", n_inner=24), "other values"),
    ):
        before = state(model)
        with pytest.raises(LasertriError, match=message) as refused:
            step.apply(model)
        assert "\n" not in str(refused.value)
        with pytest.raises(LasertriError, match=message), step.applied(model):
            pass
        assert as_it_was(model, before)


def test_damaged_files_are_refused(tmp_path):
    a_step(make_model("gptj"), "gptj").save(tmp_path)
    weights, config = tmp_path / WEIGHTS_NAME, tmp_path / CONFIG_NAME
    whole, described = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[:-10])
    with pytest.raises(LasertriError, match="changed after it was written"):
        Edit.load(tmp_path)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LasertriError, match="changed after it was written"):
        Edit.load(tmp_path)
    weights.unlink()
    with pytest.raises(LasertriError, match=f"{WEIGHTS_NAME}: expected an edit's tensors, but .* No such file"):
        Edit.load(tmp_path)
    weights.write_bytes(whole)
    for change in ({"size": 2.0}, {"direction": "plain"}, {"rank": 3}, {"targets": described["targets"][:-1]}):
        config.write_text(json.dumps(described | change))
        with pytest.raises(LasertriError, match="changed after it was written"):
            Edit.load(tmp_path)
    for broken in ({k: v for k, v in described.items() if k != name} for name in ("targets", "origin", "size")):
        config.write_text(json.dumps(broken))
        with pytest.raises(LasertriError, match="changed after it was written"):
            Edit.load(tmp_path)
    config.write_text(json.dumps(described | {"kind": "grow"}))
    with pytest.raises(LasertriError, match="expected a kind of edit among .*, got 'grow'; a later lasertri"):
        Edit.load(tmp_path)


def test_a_bf16_models_step_beside_it_is_not_rounded_to_its_weights():
    """Merged, most of a small step is lost; beside, an output is rounded once."""
    model = make_model("gptj", dtype=torch.bfloat16)
    step = a_step(model, "gptj").scaled(0.02)
    target = find_linear_layers(model)[4]
    left, right = step.factors[target]
    module = model.get_submodule(target.module)
    x = torch.randn(50, target.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad(), preserved(model):
        plain = module(x)
        exact = plain.float() + (x.float() @ right.mT) @ left.mT
        with step.beside(model):
            assert torch.equal(module(x), exact.bfloat16())


def test_of_a_bf16_experts_step_is_added_what_its_weight_can_hold_as_peft_does_it():
    model = make_model("mixtral", dtype=torch.bfloat16)
    [target, *_] = find_linear_layers(model, r"layers\.1\..*gate_up_proj")
    stack = target.parameter(model)
    x = torch.tensor([1.0, -1.0]).repeat(8).bfloat16()[None]
    right = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stack.fill_(1.0)
        for size, lost in ((5e-4, True), (0.1, False)):
            step = Step("plain", 1, 1.0, {target: (torch.full((80, 1), size), right)})
            merged = (1 + size * right).bfloat16().float()
            with step.beside(model):
                found = nn.functional.linear(x, stack[0])
            assert torch.equal(found, (x.float() @ merged.mT).bfloat16().expand(1, 80))
            assert (found == 0).all() == lost


@pytest.mark.parametrize(("architecture", "dtype"), [("gpt2", torch.float32), ("mixtral", torch.bfloat16)])
def test_what_is_added_is_shown_of_the_weights_it_changes_most(architecture, dtype):
    model = make_model(architecture)
    step = a_step(model, architecture)
    model = model.to(dtype)
    weights = {target: target.view(target.parameter(model)).detach().double() for target in step.targets}
    changes = {target: float(added.norm() / weights[target].norm()) for target, added in products(step).items()}
    found, order = step.singular_values(model), sorted(changes, key=changes.get, reverse=True)
    assert [one.target for one in found] == [str(target) for target in order[:3]]
    for one in found:
        target = next(target for target in step.targets if str(target) == one.target)
        assert one.change == pytest.approx(changes[target], rel=1e-4)
        expected = torch.linalg.svdvals(products(step)[target].double())[: len(one.places)]
        known = torch.tensor(one.values["step"]).double()
        torch.testing.assert_close(known, expected, rtol=1e-3, atol=1e-6 * float(expected[0]))


def test_of_a_weight_of_zeros_a_step_is_no_share():
    model = make_model("llama")
    target = find_linear_layers(model)[0]
    with torch.no_grad():
        target.parameter(model).zero_()
    step = Step("plain", 2, 1.0, {target: (torch.eye(target.shape[0], 2), torch.eye(2, target.shape[1]))})
    [found] = step.singular_values(model)
    assert (found.change, found.values) == (None, {"step": [1, 1]})


def test_of_a_quantised_weight_a_step_is_no_share():
    model = make_model("llama")
    step = a_step(model, "llama")
    for one in step.singular_values(quantise(model)):
        assert one.change is None
