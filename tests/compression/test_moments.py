"""Second moments and sensitivities are those of every token that a layer is given."""

import pytest
import torch
from tiny import make_model, make_tokenizer

from lasertri.compression.moments import InputMoments
from lasertri.compression.sensitivity import output_sensitivity
from lasertri.language.text import EncodedText
from lasertri.model.targets import find_targets

TEXT = " ".join(["yes no a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 20)


def case(name, pattern=None, dtype=torch.float32):
    model = make_model(name, dtype=dtype)
    return model, find_targets(model, pattern), EncodedText(TEXT, model=model, tokenizer=make_tokenizer(name))


def seen(model, targets, batches):
    """Inputs and outputs of every layer in one plain pass."""
    inputs, outputs, hooks = {}, {}, []
    for target in targets:

        def keep(_, arguments, output, target=target):
            inputs.setdefault(target, []).append(arguments[0].flatten(0, -2))
            outputs.setdefault(target, []).append(output)
            output.retain_grad() if output.requires_grad else None

        hooks.append(model.get_submodule(target.module).register_forward_hook(keep))
    losses = [batch.loss(model) for batch in batches]
    for hook in hooks:
        hook.remove()
    return inputs, outputs, losses


@pytest.mark.parametrize("name", ["gptj", "gpt2", "llama", "roberta", "t5", "mixtral"])
def test_moments_are_the_sums_over_all_tokens(name):
    model, targets, text = case(name, None if name != "mixtral" else "q_proj|k_proj|o_proj")
    inputs, _, _ = seen(model, targets, text.calibration)
    moments = InputMoments(model, targets, text.calibration)
    moments.budget = 1 << 30
    for target in targets:
        x = torch.cat(inputs[target]).detach().double()
        found = moments.of(target)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, x.mT @ x, rtol=1e-5, atol=1e-5 * float(x.square().sum()) / len(found))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_small_budget_takes_more_passes_for_the_same_moments(monkeypatch):
    model, targets, text = case("llama")
    passes = []
    monkeypatch.setattr(model, "forward", lambda *a, f=model.forward, **k: passes.append(0) or f(*a, **k))
    found = {}
    for budget in (0, 3 * 8 * 16**2, 1 << 30):
        moments = InputMoments(model, targets, text.calibration)
        moments.budget = budget
        passes.clear()
        found[budget] = [moments.of(target) for target in targets], len(passes)
    counts = [count for _, count in found.values()]
    assert counts[0] == len(targets) * counts[2] > counts[1] > counts[2] == len(text.calibration)
    for few, many in zip(found[0][0], found[1 << 30][0], strict=True):
        torch.testing.assert_close(few, many)


def test_a_layer_that_does_not_run_has_moments_of_zero():
    model, targets, text = case("llama", "layers.1.mlp")
    moments = InputMoments(model, targets, text.calibration)
    model.model.layers[1].mlp = torch.nn.Identity()
    model.model.layers[1].mlp.gate_proj = torch.nn.Linear(16, 40)
    moments.targets = targets[:1]
    assert not moments.of(targets[0]).any()


@pytest.mark.parametrize("name", ["gptj", "roberta", "t5"])
def test_sensitivity_is_the_mean_square_of_the_gradients_at_the_outputs(name):
    model, targets, text = case(name)
    _, outputs, losses = seen(model, targets, text.graded)
    sum(losses).backward()
    found = output_sensitivity(model, targets, text.graded)
    for target in targets:
        total = sum(float(y.grad.double().square().sum()) for y in outputs[target])
        assert found[target] == pytest.approx(total / target.shape[0], rel=1e-4)
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.dim() > 1)  # the caller's
