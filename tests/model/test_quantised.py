"""Quantised layers are known as such, and gradients pass through them whatever their kernels do."""

import pytest
import torch
from stand_in_quantised import KERNELS, Int8Linear, quantise
from tiny import make_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from lasertri import LasertriError
from lasertri.model.architectures import MLP_ROLES
from lasertri.model.quantised import computing_dtype, differentiable, is_quantised, keep_unpacked, quantisation
from lasertri.model.targets import find_linear_layers, find_targets


class Packed(nn.Module):
    """As GPTQ and AWQ have it: no Linear, and no weight."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("qweight", torch.zeros(inputs // 8, outputs, dtype=torch.int32))


def test_what_is_quantised_is_told_from_what_is_not():
    assert is_quantised(Int8Linear(nn.Linear(4, 6)))
    assert is_quantised(Packed(16, 8))
    assert not any(map(is_quantised, (nn.Linear(4, 6), Conv1D(4, 6), nn.Bilinear(2, 3, 4), nn.Embedding(3, 4))))
    masked = nn.Bilinear(2, 3, 4)  # of a kind of its own
    masked.in_features, masked.out_features, masked.weight = 3, 4, nn.Parameter(torch.ones(4, 3))
    masked.register_buffer("mask", torch.ones(4, 3, dtype=torch.bool))
    assert not is_quantised(masked)
    assert quantisation(make_model("llama").config) is None
    model = quantise(make_model("llama", dtype=torch.bfloat16))
    assert computing_dtype(model) == torch.bfloat16


@pytest.mark.parametrize("architecture", ["llama", "bloom", "phi3"])  # bloom by inspection
def test_targets_of_a_quantised_model_are_those_of_the_plain_one(architecture):
    plain, quantised = make_model(architecture), quantise(make_model(architecture))
    for roles in (None, MLP_ROLES):
        assert find_linear_layers(quantised, roles=roles, beside=True) == find_linear_layers(plain, roles=roles)


def test_layers_of_a_kind_of_their_own_are_targets_too_where_they_may_be():
    plain, quantised = make_model("llama"), quantise(make_model("llama"))
    quantised.model.layers[1].mlp.up_proj = Packed(16, 40)
    assert find_linear_layers(quantised, beside=True) == find_linear_layers(plain)
    for find in (find_linear_layers, find_targets):
        with pytest.raises(LasertriError, match=r"; load the unquantised checkpoint.*only a step, unmerged, can stand"):
            find(quantised)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_pass_through_every_kernel(kernel, dtype):
    torch.manual_seed(0)
    layers = [nn.Linear(12, 7), nn.Linear(7, 5)]
    layers[0].bias.data += 1000  # beside which BF16 would lose the weights
    model = nn.Sequential(*(Int8Linear(layer.to(dtype), kernel) for layer in layers))
    x, weights = torch.randn(2, 3, 12, dtype=dtype, requires_grad=True), [layer.dequantised() for layer in model]
    with differentiable(model):
        output = model(x)
        output.sum().backward()
    with torch.no_grad():
        assert torch.equal(output, model(x.clone()))
    expected = (torch.ones(2, 3, 5, dtype=dtype) @ weights[1]) @ weights[0]
    torch.testing.assert_close(x.grad, expected)
    assert (model[0].bias > 900).all()


def test_running_out_of_memory_is_no_missing_backward_pass():
    model = Int8Linear(nn.Linear(4, 4))

    def forward(x):
        raise torch.OutOfMemoryError("out of memory")

    model.forward = forward
    with differentiable(nn.Sequential(model)), pytest.raises(torch.OutOfMemoryError):
        nn.Sequential(model)(torch.ones(1, 4, requires_grad=True))


def test_bitsandbytes_is_kept_from_packing_weights_for_the_cpu():
    model = nn.Sequential(Int8Linear(nn.Linear(4, 4)))
    model[0].support_avx512bf16_for_cpu = True
    keep_unpacked(model)
    assert not model[0].support_avx512bf16_for_cpu
    model[0].support_avx512bf16_for_cpu = True
    model[0].weight.quant_state = type("QuantState", (), {"packing_format_for_cpu": True})()
    with pytest.raises(LasertriError, match="got 0, which bitsandbytes packed for this CPU .*; load the model again"):
        keep_unpacked(model)


def test_a_second_backward_pass_is_refused():
    model = nn.Sequential(Int8Linear(nn.Linear(3, 4), next(iter(KERNELS))))
    with differentiable(model):
        loss = model(torch.ones(2, 3, requires_grad=True)).sum()
        loss.backward(retain_graph=True)
        with pytest.raises(LasertriError, match="one backward pass through quantised layers"):
            loss.backward()
