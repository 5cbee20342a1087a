"""Whatever happens inside, the model and the random state come back."""

import copy

import pytest
import torch
from torch import nn

from lasertri.model.preserve import preserved


def test_everything_but_parameters_comes_back():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    model[0].bias.grad = torch.ones(3)
    buffers = list(model.buffers())
    before, state = copy.deepcopy(model), torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), preserved(model):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert model[0].bias.grad is None
        model[1].running_mean += 1
        model[1].register_buffer("running_var", torch.zeros(3))
        model[1].weight.requires_grad_(True)
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(torch.random.get_rng_state(), state)
    for mine, theirs in zip(model.modules(), before.modules(), strict=True):
        assert mine.training == theirs.training
    for mine, theirs in zip(model.parameters(), before.parameters(), strict=True):
        assert mine.requires_grad == theirs.requires_grad
    assert torch.equal(model[0].bias.grad, torch.ones(3))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before.buffers(), strict=True))
    assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
