"""Calls of layers and experts are led through a function, and afterwards the model is as it was."""

import pytest
import torch
from tiny import TRANSPOSED, make_model
from torch import nn

from lasertri.model.calls import led
from lasertri.model.targets import find_linear_layers

INPUTS = torch.arange(4, 16).reshape(2, 6)


def seen_in(model, targets, change=0.0):
    """The logits, and how many tokens every target was given."""
    seen = {}

    def through(target, inputs, call):
        assert inputs.shape[-1] == target.shape[1]
        seen[target] = seen.get(target, 0) + inputs.numel() // target.shape[1]
        return call(inputs) + change

    with torch.no_grad(), led(model, targets, through):
        return model(INPUTS).logits, seen


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "aria_text"])
def test_experts_are_noticed_however_the_model_multiplies(name, implementation):
    model = make_model(name)
    model.set_experts_implementation(implementation)
    targets = find_linear_layers(model)
    with torch.no_grad():
        plain = model(INPUTS).logits
    logits, seen = seen_in(model, targets)
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-5)
    for path in {target.name for target in targets if target.expert is not None}:
        assert sum(count for target, count in seen.items() if target.name == path) == 2 * INPUTS.numel()
    assert {seen[target] for target in targets if target.expert is None} == {INPUTS.numel()}
    assert model.config._experts_implementation == implementation
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["mixtral", *TRANSPOSED])
def test_what_the_function_returns_is_what_the_model_goes_on_with(name):
    model = make_model(name)
    for target in find_linear_layers(model, r"layers\.2\..*(experts|o_proj)"):
        plain, seen = seen_in(model, [target])
        changed, _ = seen_in(model, [target], 1.0)
        assert bool(seen) == (not torch.equal(plain, changed)), target


def test_an_error_leaves_nothing_behind():
    model = make_model("mixtral")
    with pytest.raises(ZeroDivisionError), led(model, find_linear_layers(model), lambda *_: 1 / 0):
        model(INPUTS)
    assert model.config._experts_implementation == "grouped_mm"
    assert not any("forward" in vars(module) for module in model.modules())


class Scaled(nn.Linear):
    def forward(self, hidden, by=1.0):
        return by * super().forward(hidden)


def test_a_layer_keeps_what_else_it_is_called_with():
    model, x = nn.Sequential(Scaled(3, 2)), torch.randn(4, 3)
    expected = 5 * model(x) + 1
    with led(model, find_linear_layers(model), lambda _, inputs, call: call(inputs) + 1):
        for found in (model[0](x, 5.0), model[0](x, by=5.0), model[0](hidden=x, by=5.0)):
            torch.testing.assert_close(found, expected)
