"""Whatever fails in the midst of it, the result is the right one or a sentence, and the model is as it was."""

import copy

import numpy as np
import pytest
import torch
from faults import Fault, give_up_on, out_of_memory, room_for
from marks import slow
from tiny import make_model, make_samples, make_tokenizer

from lasertri import LasertriError, adapt
from lasertri.errors import TooLittleMemoryError
from lasertri.model.targets import find_targets

KINDS = {
    "step": {"direction": "whitened"},
    "shrink": {"edit": "shrink"},
    "truncate": {"blocks": (1, 3), "ratios": (0.5,), "count": 3},
}
CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 96 bytes"
ERRORS = (out_of_memory, lambda: RuntimeError(CPU), MemoryError)


def adapted(kind, model, **options):
    settings = {"accept": "best", "calibration": 20, "held_out_limit": 4, "batch_size": 6, "progress": False}
    return adapt(model, make_samples(40), tokenizer=make_tokenizer(), **(settings | KINDS[kind] | options))


def described(model):
    """All that could be left changed beside the weights."""
    modules = [
        (name, module.training, sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]
    return modules, [(p.requires_grad, p.grad, bool(p._post_accumulate_grad_hooks)) for p in model.parameters()]


def assert_alike(found, expected):
    """The same candidates with the same figures, and the same decision."""
    trials, known = found.rounds[0].trials, expected.rounds[0].trials
    assert [trial.candidate.to_dict() for trial in trials] == [trial.candidate.to_dict() for trial in known]
    for one, other in zip(trials, known, strict=True):
        assert one.measurement.accuracy == other.measurement.accuracy
        np.testing.assert_allclose(one.measurement.losses, other.measurement.losses, rtol=1e-3, atol=1e-4)
    assert [edit.to_dict() for edit in found.edits] == [edit.to_dict() for edit in expected.edits]


@pytest.fixture(scope="module")
def undisturbed():
    """Of every kind what is found where nothing fails, and of how many operations."""
    found = {}
    for kind in KINDS:
        with Fault(0) as fault:
            found[kind] = adapted(kind, make_model("gptj")), fault.count
    return found


@pytest.mark.parametrize("share", [0.2, 0.45, 0.7, 0.95, *(slow(k / 60) for k in range(60))])
@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_that_memory_has_no_room_for(kind, share, undisturbed):
    expected, count = undisturbed[kind]
    model, found, said = make_model("gptj").train(), None, ""
    weights, before = copy.deepcopy(model.state_dict()), described(model)
    try:
        with Fault(1 + int(share * count), ERRORS[int(100 * share) % 3]):
            found = adapted(kind, model)
    except LasertriError as error:
        said = str(error)
    if found is None:
        assert said.startswith("expected memory for")
    else:
        assert_alike(found, expected)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert described(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_memory_for_few_tokens_changes_nothing(kind, undisturbed):
    model = make_model("gptj")
    asked = room_for(model, 12)
    found = adapted(kind, model)
    assert max(asked) > 12
    assert_alike(found, undisturbed[kind][0])


@pytest.mark.parametrize("kind", KINDS)
def test_memory_for_none_is_said(kind):
    model = make_model("gptj")
    room_for(model, 0)
    with pytest.raises(TooLittleMemoryError, match="expected memory for one sample at a time, but"):
        adapted(kind, model)


@pytest.mark.parametrize("kind", ["shrink", "truncate"])
def test_a_matrix_that_no_solver_converges_on_is_left_out(kind, monkeypatch, caplog):
    model = make_model("gptj")
    targets = find_targets(model)
    target, others = targets[0], "|".join(str(target) for target in targets[1:])  # preflight takes the first
    expected = adapted(kind, model, targets=others)
    weight = target.view(target.parameter(model))
    failed = give_up_on(monkeypatch, [block for k in (1, 3, 8) for block in weight.tensor_split(k)])
    found = adapted(kind, model, targets="mlp")
    assert {"eigh", "svd"} <= set(failed)
    assert f"{target} at K = " in caplog.text
    assert_alike(found, expected)
